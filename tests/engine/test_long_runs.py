"""What a long run needs: a best state to go back to, rates that change, another run's weights, parts of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import engine.run
from config import parse_train
from engine import checkpoint
from engine.methods.base import Verdict
from engine.methods.synthesis import SynthesisJudge
from engine.rates import decay
from engine.signals import EXIT_STALLED
from tests.toy import prepared_folder
from train import train

TINY = "--oasis.channels_G 4 --oasis.channels_D 4 --oasis.spade_hidden 4 --oasis.z_dim 4 --batch_size 4 --gpu_ids -1"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("data"), slices=4)


def run(data: Path, home: Path, *more: object, name: str = "exp", code: int = 0) -> Path:
    where = ["--name", name, "--dataroot", str(data), "--checkpoints_dir", str(home), *TINY.split()]
    assert train(parse_train([*where, *map(str, more)])) == code
    return home / name


def newest(folder: Path) -> dict[str, Any]:
    return checkpoint.load_state(checkpoint.list_states(folder)[-1])


def rewrite(folder: Path, change: dict[str, Any], drop: tuple[str, ...] = ()) -> None:
    path = checkpoint.list_states(folder)[-1]
    state = checkpoint.load_state(path) | change
    checkpoint.write(path, {key: value for key, value in state.items() if key not in drop})


def test_a_best_that_was_chosen_by_something_else_is_not_compared(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(data, tmp_path, "--num_epochs", 1, "--metrics", "ssim")
    state = newest(folder)
    assert state["measure"] == "composite"
    assert 0 < state["best"] < 100
    rewrite(folder, {"best": 1e-9}, drop=("measure",))  # as of version 0.2, by the Wasserstein distance
    capsys.readouterr()
    run(data, tmp_path, "--num_epochs", 2, "--metrics", "ssim")
    said = capsys.readouterr().out
    assert "warning: the best weights so far were chosen by wasserstein, those from here on by composite" in said
    assert checkpoint.load_weights(folder, "best").images == 16
    assert 1e-3 < newest(folder)["best"] < 100
    rewrite(folder, {"best": 1e-9})  # the same measure: nothing is better
    run(data, tmp_path, "--num_epochs", 3, "--metrics", "ssim")
    assert checkpoint.load_weights(folder, "best").images == 16
    assert newest(folder)["best"] == 1e-9


def of(folder: Path, images: int) -> dict[str, Any]:
    return checkpoint.load_state(checkpoint.state_path(folder, images))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], prefix: str = "") -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one if key.startswith(prefix))


def judged(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """Evaluations that give these values by images seen."""

    def evaluate(judge: SynthesisJudge, images: int) -> Verdict:
        return Verdict({"composite": values[images]}, "composite", values[images])

    monkeypatch.setattr(SynthesisJudge, "evaluate", evaluate)


def test_a_collapse_has_a_way_back_to_the_best_evaluation(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(monkeypatch, {8: 3.0, 16: 1.0, 24: 2.0, 32: 5.0, 40: 9.0, 48: 9.5})
    options = ["--freq_fid", 8, "--freq_save_latest", 4]
    folder = run(data, tmp_path, "--num_epochs", 5, *options)
    first = of(folder, 40)
    assert [path.name for path in folder.glob("state-best*")] == ["state-best-0000000016.pt"]
    assert checkpoint.load_weights(folder, "best").images == 16
    capsys.readouterr()
    run(data, tmp_path, "--num_epochs", 5, *options, "--which_iter", "best")
    assert "resumed at 16 of 40" in capsys.readouterr().out
    again = of(folder, 40)
    assert equal(first["method"], again["method"])
    assert again["best"] == 1.0
    assert list(folder.glob("abandoned-state-*40.pt"))
    # A requeued job repeats its command and goes on; whoever trains on with latest may go back a second time.
    run(data, tmp_path, "--num_epochs", 6, *options, "--which_iter", "best")
    assert "resumed at 40 of 48" in capsys.readouterr().out
    run(data, tmp_path, "--num_epochs", 6, *options)
    run(data, tmp_path, "--num_epochs", 6, *options, "--which_iter", "best")
    assert "resumed at 16 of 48" in capsys.readouterr().out


def test_without_a_best_state_the_others_are_named(data: Path, tmp_path: Path) -> None:
    folder = run(data, tmp_path, "--num_epochs", 1, "--metrics", "none")
    assert checkpoint.best_state(folder) is None
    with pytest.raises(ValueError, match=r"--which_iter best: .* no state of its best evaluation; it has states of 8$"):
        run(data, tmp_path, "--num_epochs", 2, "--metrics", "none", "--which_iter", "best")


QUICK = ["--metrics", "none", "--freq_save_latest", 8]


def test_a_learning_rate_that_changes_on_resuming_takes_effect(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(data, tmp_path, "--num_epochs", 1, *QUICK)
    capsys.readouterr()
    run(data, tmp_path, "--num_epochs", 2, *QUICK, "--lr_g", 1e-30)
    assert "learning rate from here on: --lr_g: was 0.0001, now 1e-30" in capsys.readouterr().out
    before, after = of(folder, 8), of(folder, 16)
    weights = {key for key in before["method"] if key.startswith("generator.") and key.endswith(("bias", "original"))}
    assert weights
    assert all(torch.equal(before["method"][key], after["method"][key]) for key in weights)
    assert not equal(before["method"], after["method"], "discriminator.")
    assert after["optimizers"]["generator"]["param_groups"][0]["lr"] == 1e-30
    run(data, tmp_path, "--num_epochs", 3, *QUICK, "--lr_g", 1e-30)
    assert "learning rate" not in capsys.readouterr().out


def test_an_unchanged_rate_stays_as_a_plateau_left_it(data: Path, tmp_path: Path) -> None:
    folder = run(data, tmp_path, "--num_epochs", 1, *QUICK)
    state = newest(folder)
    state["optimizers"]["generator"]["param_groups"][0]["lr"] = 1e-7
    rewrite(folder, {"optimizers": state["optimizers"]})
    run(data, tmp_path, "--num_epochs", 2, *QUICK)
    assert newest(folder)["optimizers"]["generator"]["param_groups"][0]["lr"] == 1e-7
    run(data, tmp_path, "--num_epochs", 3, *QUICK, "--lr_d", 1e-5)
    groups = {name: optimizer["param_groups"][0]["lr"] for name, optimizer in newest(folder)["optimizers"].items()}
    assert groups == {"generator": 1e-4, "discriminator": 1e-5}


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_rates_decay_over_the_run_and_resume_exactly(kind: str, data: Path, tmp_path: Path) -> None:
    options = ["--lr_decay", kind, "--lr_decay_from", 0.25, *QUICK]
    folder = run(data, tmp_path, "--num_epochs", 4, *options)
    first = of(folder, 32)["method"]
    assert newest(folder)["optimizers"]["generator"]["param_groups"][0]["lr"] == 1e-4  # saved as it was given
    plain = run(data, tmp_path, "--num_epochs", 4, *QUICK, name="plain")
    assert equal(of(folder, 16)["method"], of(plain, 16)["method"]) is False
    assert equal(of(folder, 8)["method"], of(plain, 8)["method"])
    run(data, tmp_path, "--num_epochs", 4, *options, "--which_iter", 16)
    assert equal(of(folder, 32)["method"], first)
    run(data, tmp_path, "--num_epochs", 12, *options, "--which_iter", 24)  # at once at the rate of the longer run
    assert len(checkpoint.list_states(folder)) > 3


def test_the_decay_is_a_function_of_the_share_of_the_run() -> None:
    def at(kind: str, share: float, start: float = 0.5) -> float:
        given = ["--name", "x", "--dataroot", "d", "--lr_decay", kind, "--lr_decay_from", str(start)]
        return decay(parse_train(given), share)

    assert [at("none", share) for share in (0, 0.7, 1)] == [1, 1, 1]
    assert [at("linear", share) for share in (0, 0.5, 0.75, 1, 1.2)] == [1, 1, 0.5, 0, 0]
    assert [at("cosine", share) for share in (0.5, 0.75, 1)] == pytest.approx([1, 0.5, 0])
    assert at("cosine", 0.5, 0.0) == pytest.approx(0.5)
    assert at("cosine", 0.25, 0.0) == pytest.approx(0.5 + 0.5**1.5)
    with pytest.raises(SystemExit):
        at("linear", 0.5, 1.0)


def test_a_winning_discriminator_is_a_warning_where_pairs_teach_the_generator(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine.run, "WON", -1.0)  # every accuracy counts as won
    options = ["--stop_patience", 8, "--freq_print", 4, *QUICK]
    run(data, tmp_path, "--num_epochs", 3, *options, "--oasis.lambda_l1", 1)
    run(data, tmp_path, "--num_epochs", 5, *options, "--oasis.lambda_l1", 1)
    said = capsys.readouterr().out
    assert said.count("warning: discriminator/accuracy has been above -1.0 for 8 images") == 1
    assert "finished: 40 images" in said
    with pytest.raises(SystemExit) as stopped:  # the mask loss knows the label alone
        run(data, tmp_path, "--num_epochs", 5, *options, "--oasis.lambda_mask", 1, name="alone")
    assert stopped.value.code == EXIT_STALLED
