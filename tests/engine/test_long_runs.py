"""What a long run needs: a start that says what comes, a best state, rates that change, weights to begin with, parts."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import engine.run
from config import parse_train
from dataloaders.io.manifest import Manifest
from dataloaders.slices import BatchLoader, SliceDataset
from engine import checkpoint
from engine.methods.synthesis import SynthesisWorkflow
from engine.run import Run
from engine.signals import EXIT_DIVERGED, EXIT_STALLED
from models import build_method
from models.base import Batch
from models.gan.condition import Condition
from models.gan.oasis import Oasis
from tests.launch import training
from tests.toy import prepared_folder
from train import train

pytestmark = pytest.mark.slow
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("data"), slices=4)


def run(data: Path, home: Path, *more: object, name: str = "exp", code: int = 0) -> Path:
    assert train(parse_train(list(map(str, training(data, home, name, *more)[1:])))) == code
    return home / name


def newest(folder: Path) -> dict[str, Any]:
    return checkpoint.load_state(checkpoint.list_states(folder)[-1])


def rewrite(folder: Path, change: dict[str, Any], drop: tuple[str, ...] = ()) -> None:
    path = checkpoint.list_states(folder)[-1]
    state = checkpoint.load_state(path) | change
    checkpoint.write(path, {key: value for key, value in state.items() if key not in drop})


def test_the_best_is_compared_with_what_was_judged_alike(
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
    run(data, tmp_path, "--num_epochs", 4, "--metrics", "none")  # goes on unjudged: the best so far is kept
    assert [checkpoint.load_weights(folder, which).images for which in ("best", "latest")] == [16, 32]


def of(folder: Path, images: int) -> dict[str, Any]:
    return checkpoint.load_state(checkpoint.state_path(folder, images))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], prefix: str = "") -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one if key.startswith(prefix))


def judged(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """Evaluations that give these values by images seen."""

    def evaluate(workflow: SynthesisWorkflow, images: int) -> dict[str, float]:
        return {"composite": values[images]}

    monkeypatch.setattr(SynthesisWorkflow, "evaluate", evaluate)


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


def test_going_back_survives_a_kill_before_the_next_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a long run, which thins its older states: of the best moment its own state alone is left."""
    judged(monkeypatch, {8: 3.0, 16: 1.0, 24: 2.0, 32: 5.0, 40: 9.0})
    options = ["--num_epochs", 5, "--freq_fid", 8, "--freq_save_latest", 4]
    folder = run(data, tmp_path, *options)
    assert not checkpoint.state_path(folder, 16).is_file()
    with mock.patch.object(Run, "step", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, *options, "--which_iter", "best")
    capsys.readouterr()
    run(data, tmp_path, *options, "--which_iter", "best")
    assert "resumed at 16 of 40" in capsys.readouterr().out


def test_weights_that_a_full_disk_refused_are_no_standard(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, {8: 3.0, 16: 1.0, 24: 2.0, 32: 2.5})
    save = checkpoint.save_weights

    def full(path: Path, weights: checkpoint.Weights) -> None:
        if weights.images == 16 and path.name == "weights-best.safetensors":
            raise OSError("No space left on device")
        save(path, weights)

    monkeypatch.setattr(checkpoint, "save_weights", full)
    folder = run(data, tmp_path, "--num_epochs", 4, "--freq_fid", 8, "--freq_save_latest", 8)
    assert checkpoint.load_weights(folder, "best").images == 24
    assert newest(folder)["best"] == 2.0


def test_a_longer_run_is_not_finished_before_its_last_evaluation(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(data, tmp_path, "--num_epochs", 1, *QUICK)
    with mock.patch.object(Run, "preview", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, "--num_epochs", 2, *QUICK)
    capsys.readouterr()
    folder = run(data, tmp_path, "--num_epochs", 2, *QUICK)
    assert "finished: 16 images" in capsys.readouterr().out
    assert checkpoint.load_weights(folder, "best").images == 16


QUICK = ["--metrics", "none", "--freq_save_latest", 8]


def rates(folder: Path) -> dict[str, float]:
    return {name: optimizer["param_groups"][0]["lr"] for name, optimizer in newest(folder)["optimizers"].items()}


def test_a_rate_that_changes_on_resuming_takes_effect_and_others_stay_as_a_plateau_left_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(data, tmp_path, "--num_epochs", 1, *QUICK)
    capsys.readouterr()
    run(data, tmp_path, "--num_epochs", 2, *QUICK, "--lr_g", 1e-30)
    assert "learning rate from here on: --lr_g: was 0.0004, now 1e-30" in capsys.readouterr().out
    before, after = of(folder, 8)["method"], of(folder, 16)
    weights = {key for key in before if key.startswith("generator.") and key.endswith(("bias", "original"))}
    assert weights
    assert all(torch.equal(before[key], after["method"][key]) for key in weights)
    assert not equal(before, after["method"], "discriminator.")
    after["optimizers"]["discriminator"]["param_groups"][0]["lr"] = 1e-7
    rewrite(folder, {"optimizers": after["optimizers"]})
    run(data, tmp_path, "--num_epochs", 3, *QUICK, "--lr_g", 1e-30)
    assert "learning rate" not in capsys.readouterr().out
    assert rates(folder) == {"generator": 1e-30, "discriminator": 1e-7}
    run(data, tmp_path, "--num_epochs", 4, *QUICK, "--lr_g", 1e-5)
    assert rates(folder) == {"generator": 1e-5, "discriminator": 4e-4}


def test_rates_decay_over_the_run_and_resume_exactly(data: Path, tmp_path: Path) -> None:
    options = ["--lr_decay", "cosine", "--lr_decay_from", 0.25, *QUICK]
    folder = run(data, tmp_path, "--num_epochs", 4, *options)
    first = of(folder, 32)["method"]
    assert rates(folder)["generator"] == 4e-4  # saved as it was given
    plain = run(data, tmp_path, "--num_epochs", 4, *QUICK, name="plain")
    assert equal(of(folder, 16)["method"], of(plain, 16)["method"]) is False
    assert equal(of(folder, 8)["method"], of(plain, 8)["method"])
    run(data, tmp_path, "--num_epochs", 4, *options, "--which_iter", 16)
    assert equal(of(folder, 32)["method"], first)
    run(data, tmp_path, "--num_epochs", 12, *options, "--which_iter", 24)  # at once at the rate of the longer run
    assert len(checkpoint.list_states(folder)) > 3


# -- another run's weights --------------------------------------------------------------------------------------------


def test_a_run_begins_with_another_runs_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(monkeypatch, {8: 1.0, 16: 2.0, 24: 3.0})
    options = ["--freq_fid", 8, "--freq_save_latest", 8]
    base = run(data, tmp_path, "--num_epochs", 2, *options, name="base")
    few = prepared_folder(tmp_path / "few", patients=3, slices=4)
    capsys.readouterr()
    still = ["--lr_g", 1e-30, "--lr_d", 1e-30, "--metrics", "none", "--freq_save_latest", 4]
    tuned = run(few, tmp_path, "--num_epochs", 1, *still, "--init_from", base, name="tuned")
    assert "begins with the weights of `base`, best, after 8 images" in capsys.readouterr().out
    there, here = of(base, 8)["method"], newest(tuned)["method"]
    average = {key.removeprefix("average."): value for key, value in there.items() if key.startswith("average.")}
    for key in (key for key in average if key.endswith(("bias", "original"))):  # the others move with each pass
        torch.testing.assert_close(here[f"generator.{key}"], average[key])
        torch.testing.assert_close(here[f"average.{key}"], average[key])
    learned = [key for key in there if key.startswith("discriminator.") and key.endswith(("bias", "original"))]
    assert learned
    torch.testing.assert_close({key: there[key] for key in learned}, {key: here[key] for key in learned})
    origin = checkpoint.load_weights(tuned, "latest").origin
    assert (origin["run"], origin["weights"], origin["images"]) == ("base", "best", 8)
    # A resumed run does not read it again, and still says where it began.
    shutil.move(base, tmp_path / "moved")
    run(few, tmp_path, "--num_epochs", 2, *still, "--init_from", base, name="tuned")
    assert checkpoint.load_weights(tuned, "latest").origin == origin
    # Without a state of that moment the discriminator is new.
    capsys.readouterr()
    (tmp_path / "moved" / "state-best-0000000008.pt").unlink()
    (tmp_path / "moved" / "state-0000000008.pt").unlink()
    file = tmp_path / "moved" / "weights-best.safetensors"
    run(few, tmp_path, "--num_epochs", 1, *still, "--init_from", file, name="again")
    assert "; anew: discriminator" in capsys.readouterr().out


def test_another_runs_weights_must_fit(data: Path, tmp_path: Path) -> None:
    """What the data have no part in is said before they are read, and no refusal leaves a folder behind."""
    base = run(data, tmp_path, "--num_epochs", 1, *QUICK, name="base")
    two, renamed = prepared_folder(tmp_path / "two", slices=4, channels=2), tmp_path / "renamed"
    shutil.copytree(data, renamed)
    text = (data / "manifest.json").read_text(encoding="utf-8")
    (renamed / "manifest.json").write_text(text.replace('"csf"', '"fluid"'), encoding="utf-8")
    nowhere = tmp_path / "nowhere"
    for root, source, more, why in (
        (nowhere, tmp_path / "none", [], "no such run folder"),
        (nowhere, f"{base.name}:77", [], "no weights called '77'; there are: best"),  # by name
        (nowhere, f"{base}:77", [], "no weights called '77'; there are: best"),
        (nowhere, base, ["--oasis.z_dim", 6], "not of this run's shape: --oasis.z_dim: was 4, now 6"),
        (nowhere, base, ["--model", "gmm"], "gmm is fitted to its data"),
        (nowhere, base, ["--model", "spade", "--preset", "small"], "is a run of oasis"),
        (two, base, [], "its channels are not those of --dataroot: MR1 only here"),
        (renamed, base, [], "its labels are not those of --dataroot: csf only there and fluid only here"),
    ):
        with pytest.raises(ValueError, match=re.escape(why)) as error:
            run(root, tmp_path, *QUICK, "--init_from", source, *more, name="new")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "new").exists()


# -- a batch in parts, and steps that are not finite --------------------------------------------------------------------


def one_step(data: Path, model: str, parts: int, *more: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of each player for the same weights, batch and stream."""
    width = [f"--{model}.{name}" for name in ("channels_G", "channels_D", "spade_hidden")]
    given = ["--model", model, "--preset", model, *[text for flag in width for text in (flag, "8")], *more]
    config = parse_train(["--name", "x", "--dataroot", str(data), f"--{model}.param_free_norm", "instance", *given])
    manifest = Manifest.load(data)
    torch.manual_seed(0)
    method = build_method(config, manifest.spec)
    method.mask_threshold.fill_(-0.5)  # away from the first images, all of whose pixels are at the threshold of 0
    players = method.players()
    batch = next(BatchLoader(SliceDataset(data, manifest, "train"), 4, 1).endless())
    training = SimpleNamespace(players=players, method=method)
    cut, losses, gradients = batch.parts(parts), {}, {}
    for name, player in players.items():
        for part in Run.turn(training, name, cut):  # type: ignore[arg-type]
            Run.backward(training, player.losses(part), part)  # type: ignore[arg-type]
        for key in training.losses[0]:
            losses[f"{name}/{key}"] = torch.stack([found[key] for found in training.losses]).mean()
        gradients |= {f"{name}/{key}": p.grad.clone() for key, p in player.net.named_parameters() if p.grad is not None}
        method.zero_grad()
    return losses, gradients


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("oasis", "--oasis.z_dim 4 --oasis.lambda_l1 1 --oasis.lambda_label_l1 1 --oasis.lambda_mask 1 --oasis.grain"),
        ("oasis", "--oasis.z_dim 4 --oasis.no-reuse_fake"),
        ("spade", "--spade.lambda_vgg 0"),
    ],
)
def test_parts_have_the_losses_and_gradients_of_the_whole_batch(model: str, more: str, data: Path) -> None:
    """Noise, LabelMix coins, class weights and the power steps of spectral norm are those of the whole batch."""
    losses, gradients = one_step(data, model, 1, *more.split())
    for parts in (2, 4):
        in_parts, own = one_step(data, model, parts, *more.split())
        torch.testing.assert_close(in_parts, losses, rtol=1e-5, atol=1e-6)
        assert own.keys() == gradients.keys()
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        for key, gradient in gradients.items():  # some are zero but for rounding, such as those of biases before a norm
            torch.testing.assert_close(own[key], gradient, rtol=1e-3, atol=1e-5 * largest)


def test_parts_resume_exactly_with_a_critic_and_its_penalty(data: Path, tmp_path: Path) -> None:
    options = ["--accumulate", 2, *QUICK, "--oasis.critic", "wavelet", "--oasis.channels_W", 4, "--oasis.r1_every", 2]
    folder = run(data, tmp_path, "--num_epochs", 2, *options)
    first = of(folder, 16)
    run(data, tmp_path, "--num_epochs", 2, *options, "--which_iter", 8)
    assert equal(first["method"], of(folder, 16)["method"])
    with pytest.raises(ValueError, match="--batch_size 4: is shared by 1 processes and --accumulate 3"):
        run(data, tmp_path, "--num_epochs", 3, *options, "--accumulate", 3)


@pytest.mark.parametrize("tuned", ["--tuned", "--no-tuned"])
def test_a_step_that_is_not_finite_moves_nothing(
    tuned: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Oasis.generator_losses
    calls = []

    def third_is_broken(self: Oasis, batch: Batch) -> dict[str, Tensor]:
        calls.append(1)
        found = original(self, batch)
        return found | {"segmentation": found["segmentation"] * float("nan")} if len(calls) == 3 else found

    monkeypatch.setattr(Oasis, "generator_losses", third_is_broken)
    with pytest.raises(SystemExit) as stopped:
        run(data, tmp_path, "--num_epochs", 4, *QUICK, tuned)
    assert stopped.value.code == EXIT_DIVERGED
    crash = torch.load(tmp_path / "exp" / "crash-0000000008.pt", weights_only=True)
    before = of(tmp_path / "exp", 8)["method"]
    weights = [key for key in before if key.startswith("generator.") and key.endswith(("bias", "original"))]
    assert weights
    assert all(torch.equal(before[key], crash["method"][key]) for key in weights)
    assert crash["player"] == "generator"
    assert len(crash["slices"]) == 4


class Fetches(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU while it is `on`: values fetched, sizes that depend on values.

    Numbers that were just drawn do not count: seeds are, on the CPU.
    """

    on = False
    waits = (
        *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::bincount"),
        "aten::repeat_interleave.Tensor",
    )
    indexing = ("aten::index", "aten::index_put", "aten::index_put_")

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if self.on:
            self.calls += 1
            places = args[1] if name.partition(".")[0] in self.indexing else ()
            by_mask = any(place is not None and place.dtype == torch.bool for place in places)
            if by_mask or (name.startswith(self.waits) and not hasattr(args[0], "drawn")):
                self.seen[name] += 1
        found = func(*args, **(kwargs or {}))
        if name.startswith("aten::randint"):
            found.drawn = True
        return found


@pytest.mark.parametrize("device", ["-1", pytest.param("0", marks=NEEDS_GPU)])
@pytest.mark.parametrize(
    "method", ["--oasis.lambda_l1 1", "--model spade --preset demo --spade.slices_D 2 --batch_size 4"]
)
def test_a_step_waits_for_the_gpu_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, device: str
) -> None:
    """From a batch on the device to `settle` nothing is fetched, so the CPU runs ahead of the GPU.

    On a GPU CUDA itself says so; on a CPU the operations that would wait are counted.
    """
    entered, settle, meetings, fetches = Run.entered, Run.settle, Condition.meetings, Fetches()

    def watch(step: int) -> None:
        fetches.on = step > 2
        if device == "0":
            torch.cuda.set_sync_debug_mode("error" if step > 2 else "default")

    def enter(self: Run, batch: Batch) -> Batch:
        moved = entered(self, batch)
        watch(self.state.step)
        return moved

    def look(self: Run, batch: Batch, parts: list[Batch]) -> None:
        watch(0)
        settle(self, batch, parts)

    def look_up(self: Condition, kernel: int) -> tuple[Tensor, Tensor]:  # what CPUs alone do
        on, fetches.on = fetches.on, False
        found = meetings(self, kernel)
        fetches.on = on
        return found

    monkeypatch.setattr(Run, "entered", enter)
    monkeypatch.setattr(Run, "settle", look)
    monkeypatch.setattr(Condition, "meetings", look_up)
    try:
        with fetches:
            run(data, tmp_path, "--num_epochs", 4, *QUICK, "--gpu_ids", device, *method.split())
    finally:
        watch(0)
    assert fetches.calls > 1000
    assert not +fetches.seen


def test_fetches_are_seen() -> None:
    """What the test above is blind to could come back unseen."""
    x, ids = torch.ones(3), torch.tensor([0, 2, 1])
    with (fetches := Fetches()):
        fetches.on = True
        int(torch.randint(9, ()))
        assert not fetches.seen
        for i, fetch in enumerate(
            (
                lambda: ids.max().item(),
                lambda: x[x > 0],
                lambda: x.__setitem__(x > 0, torch.zeros(3)),
                lambda: torch.bincount(ids),
                lambda: x.repeat_interleave(ids),
                lambda: ids.unique(),
            )
        ):
            fetch()
            assert fetches.seen.total() > i, fetches.seen


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


# -- the start --------------------------------------------------------------------------------------------------------


def test_train_says_what_it_found_and_how_long_it_takes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(data, tmp_path, "--num_epochs", 5, "--metrics", "none")
    lines = capsys.readouterr().out.splitlines()
    order = ["data: ", "train: 8 slices", "5 labels, share", "channels: MR0", "slices: 32x32", "mirroring: 0 of 4"]
    order += ["40 images: 5 epochs of 8, 4 a step", "validation: none", "exp: new run of oasis, preset oasis, on cpu"]
    order += ["time: about", "finished: 40 images"]  # though --freq_print is 1000
    places = [next(i for i, line in enumerate(lines) if line.strip().startswith(start)) for start in order]
    assert places == sorted(places)
    assert "parameters: generator" in next(line for line in lines if "new run" in line)
    assert "time: about" in (folder / "log.txt").read_text()
    assert not (folder / "metrics.jsonl").exists()  # neither evaluated nor printed
    assert checkpoint.load_weights(folder, "best").images == 40
    assert not (folder / "validation").exists()
