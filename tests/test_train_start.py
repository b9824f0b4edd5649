"""The first minutes of a training, through the command."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from config import parse_train
from dataloaders.io.runlog import read_log
from engine.checkpoint import load_weights
from tests.toy import prepared_folder
from train import train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
TINY = "--preset oasis --oasis.channels_G 4 --oasis.channels_D 4 --oasis.spade_hidden 4 --oasis.z_dim 4".split()
TINY += ["--batch_size", "4"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return prepared_folder(tmp_path / "data", slices=4)


def arguments(data: Path, *more: str) -> list[str]:
    runs = data.parent / "runs"
    return [*f"--name exp --dataroot {data} --checkpoints_dir {runs} --gpu_ids -1".split(), *more]


def test_train_says_what_it_found_and_how_long_it_takes(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(parse_train(arguments(data, *TINY, "--num_epochs", "5", "--metrics", "none"))) == 0
    lines = capsys.readouterr().out.splitlines()
    order = ["data: ", "train: 8 slices", "5 labels, share", "channels: MR0", "slices: 32x32", "mirroring: 0 of 4"]
    order += ["40 images: 5 epochs of 8, 4 a step", "validation: none", "exp: new run of oasis, preset oasis, on cpu"]
    order += ["time: about", "finished: 40 images"]  # though --freq_print is 1000
    places = [next(i for i, line in enumerate(lines) if line.strip().startswith(start)) for start in order]
    assert places == sorted(places)
    assert "parameters: generator" in next(line for line in lines if "new run" in line)
    folder = data.parent / "runs" / "exp"
    assert "time: about" in (folder / "log.txt").read_text()
    assert not (folder / "metrics.jsonl").exists()  # neither evaluated nor printed
    assert load_weights(folder, "best").images == 40
    assert not (folder / "validation").exists()


def test_the_best_of_earlier_evaluations_is_kept_without_metrics(data: Path) -> None:
    """A run that was judged and goes on with --metrics none."""
    common = [*TINY, "--freq_fid", "8", "--freq_save_latest", "8", "--eval_slices", "1"]
    assert train(parse_train(arguments(data, *common, "--num_epochs", "1", "--metrics", "mae"))) == 0
    folder = data.parent / "runs" / "exp"
    assert any(record["kind"] == "eval" for record in read_log(folder / "metrics.jsonl"))
    assert train(parse_train(arguments(data, *common, "--num_epochs", "2", "--metrics", "none"))) == 0
    assert load_weights(folder, "best").images == 8
    assert load_weights(folder, "latest").images == 16


def test_training_imports_what_its_method_needs(data: Path) -> None:
    """Files of ours with code in them that are loaded by the end of a training without validation."""
    script = "import sys; from pathlib import Path; from config import parse_train; from train import train\n"
    script += "assert train(parse_train(sys.argv[1:])) == 0\n"
    script += "print(*(getattr(m, '__file__', None) or '' for m in list(sys.modules.values())), sep='\\n')"
    words = arguments(data, *TINY, "--num_epochs", "1", "--metrics", "none")
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = [Path(line) for line in done.stdout.splitlines() if line.startswith(f"{ROOT}/") and line.endswith(".py")]
    ours = [path for path in ours if ".venv" not in path.parts and len(ast.parse(path.read_text()).body) > 1]
    loaded = sorted({path.relative_to(ROOT).as_posix() for path in ours})
    assert "models/gan/oasis.py" in loaded
    others = ("evaluation/", "models/gan/wavelet", "models/gmm/r", "models/segmenter/m", "models/lesion/m")
    assert not [name for name in loaded if name.startswith(others)]
    assert len(loaded) <= 60, "\n".join([str(len(loaded)), *loaded])
