"""What a long run needs: a best state to go back to, rates that change, another run's weights, parts of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config import parse_train
from engine import checkpoint
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
