"""Prepare -> train -> kill -> resume -> test -> evaluate -> compare, through the commands that users type."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pytest

from dataloaders.io.manifest import Manifest
from dataloaders.io.png import write_png
from dataloaders.io.runlog import read_log
from engine import signals
from engine.checkpoint import list_states
from tests.toy import phantom, published, save_nifti

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
LAS = np.diag([-1.0, 1.0, 2.0, 1.0])
TINY = "--oasis.channels_G 4 --oasis.channels_D 4 --oasis.spade_hidden 4 --oasis.z_dim 4 --batch_size 4".split()
PERIODS = "--freq_print 16 --freq_preview 1000 --freq_fid 64 --freq_save_latest 32 --gpu_ids -1".split()
# One thread: on two cores with parallel tests more threads only wait for each other.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]


@dataclass
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


def run(*arguments: object, code: int = 0) -> Done:
    """A command as a process of its own."""
    done = subprocess.run(command(*arguments), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.stdout, done.stderr)


def call(script: str, *arguments: object, code: int = 0) -> Done:
    """A command inside this process: the same code without the seconds that importing torch takes."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in signals._EXIT_CODES}
    with (
        mock.patch.object(sys, "argv", [script, *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert stop.value.code == code, out.getvalue() + err.getvalue()
    return Done(out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    for i in range(3):
        label, image = phantom(i)
        save_nifti(home / "images" / f"p{i}.nii.gz", image, LAS)
        save_nifti(home / "labels" / f"p{i}.nii.gz", label.astype(np.uint8), LAS)
    arguments = ["--format", "pairs", "--images", home / "images", "--labels", home / "labels", "--channel", "T1w"]
    call("scripts/prepare_data.py", *arguments, "--size", 64, "--split", 0.4, 0.3, 0.3, "--out", home / "data")
    return home


def train(home: Path, name: str, *extra: object) -> list[str]:
    where = ["--name", name, "--dataroot", home / "data", "--checkpoints_dir", home / "runs"]
    return command("train.py", *where, *TINY, *PERIODS, "--num_epochs", 8, *published(*extra))[1:]


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    run(*train(home, "whole"))
    return home / "runs" / "whole"


def test_a_run_folder_is_complete(trained: Path) -> None:
    names = {p.name for p in trained.iterdir()}
    assert {"config.json", "environment.txt", "log.txt", "metrics.jsonl", "curves.png", "previews"} <= names
    assert {"weights-best.safetensors", "weights-latest.safetensors"} <= names
    assert list((trained / "previews").glob("*.png"))
    assert 1 <= len(list_states(trained)) <= 4  # the newest three, and the first
    records = read_log(trained / "metrics.jsonl")
    assert {"train", "eval"} == {r["kind"] for r in records}
    keys = {key for r in records if r["kind"] == "train" for key in r["losses"]}
    assert keys == {"generator/segmentation", "discriminator/fake", "discriminator/real", "discriminator/labelmix"}
    assert all("ssim/T1w" in r["metrics"] for r in records if r["kind"] == "eval")


def strip(record: dict) -> dict:
    return {k: v for k, v in record.items() if k not in ("images_per_second", "peak_memory_gb", "loader_wait")}


def wait_for_state(process: subprocess.Popen, folder: Path) -> None:
    for _ in range(600):
        if list_states(folder) or process.poll() is not None:
            break
        time.sleep(0.05)
    assert list_states(folder), "no state was saved before the run ended"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2])
def test_a_stopped_run_resumes_bit_for_bit(home: Path, trained: Path, number: signal.Signals) -> None:
    name = f"stopped-{number.name}"
    folder = home / "runs" / name
    process = subprocess.Popen(
        command(*train(home, name)), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_state(process, folder)
    process.send_signal(number)
    code = process.wait()
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 85)
    resumed = run(*train(home, name))
    assert "resumed at" in resumed.stdout
    for which in ("latest", "best"):
        file = f"weights-{which}.safetensors"
        ours, theirs = (strip_name(path / file) for path in (folder, trained))
        assert ours == theirs, which
    mine, whole = (read_log(path / "metrics.jsonl") for path in (folder, trained))
    assert [strip(r) for r in mine] == [strip(r) for r in whole]


def strip_name(path: Path) -> bytes:
    """The weights' tensors: the header holds the run's name, which differs."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_names_are_not_reused_silently(home: Path, trained: Path) -> None:
    del trained
    assert "already finished" in call(*train(home, "whole")).stdout
    other = call(*train(home, "whole", "--oasis.z_dim", 8), code=2)
    assert "--oasis.z_dim: was 4, now 8" in other.stderr
    assert "exists" in call(*train(home, "whole", "--no-continue_train"), code=2).stderr
    (home / "runs" / "thesis").mkdir()
    (home / "runs" / "thesis" / "chapter1.tex").write_text("mine")
    assert "not a run folder" in call(*train(home, "thesis"), code=2).stderr
    assert "not allowed" in call(*train(home, "../elsewhere"), code=2).stderr


def test_going_back_to_an_older_state(home: Path) -> None:
    options = ["--num_epochs", 2, "--freq_save_latest", 8]
    call(*train(home, "back", *options))
    folder = home / "runs" / "back"
    older, newest = list_states(folder)[0], list_states(folder)[-1]
    images = str(int(older.stem.removeprefix("state-")))
    assert f"resumed at {images} of" in call(*train(home, "back", *options, "--which_iter", images)).stdout
    assert (folder / f"abandoned-{newest.name}").is_file()
    assert newest.is_file()  # made again
    again = call(*train(home, "back", *options, "--which_iter", images)).stdout  # as a requeued job would
    assert "already finished" in again


def test_a_start_that_failed_binds_nobody(home: Path, tmp_path: Path) -> None:
    runs = ["--name", "fails", "--checkpoints_dir", tmp_path]
    (tmp_path / "data" / "val" / "images").mkdir(parents=True)
    for split in ("val", "test"):  # no training split
        for kind in ("images", "labels"):
            write_png(tmp_path / "data" / split / kind / "a.png", np.arange(1024, dtype=np.uint8).reshape(32, 32) % 3)
    assert "the split 'train' has no slices" in call("train.py", *runs, "--dataroot", tmp_path / "data", code=2).stderr
    call("train.py", *runs, "--dataroot", home / "data", "--model", "gmm", "--gpu_ids", "-1")


def test_a_diverging_run_stops_and_keeps_its_weights(home: Path) -> None:
    done = call(*train(home, "diverges", "--lr_g", 1e30, "--lr_d", 1e30), code=4)
    assert "diverged after" in done.stdout
    assert list((home / "runs" / "diverges").glob("crash-*.pt"))


def test_damaged_newest_state_falls_back(home: Path) -> None:
    call(*train(home, "short", "--num_epochs", 2, "--freq_save_latest", 16))
    newest, *_ = reversed(list_states(home / "runs" / "short"))
    newest.write_bytes(newest.read_bytes()[:100])
    done = call(*train(home, "short", "--num_epochs", 2, "--freq_save_latest", 16))
    assert "damaged state file" in done.stdout
    assert "resumed at" in done.stdout


def test_test_evaluate_compare(home: Path, trained: Path) -> None:
    del trained
    call(*train(home, "gmm", "--model", "gmm"))
    where = ["--dataroot", home / "data", "--checkpoints_dir", home / "runs", "--results_dir", home / "results"]
    for name in ("whole", "gmm"):
        done = call("test.py", "--name", name, *where)
        assert "ssim/T1w" in done.stdout
        assert "fid/T1w" in done.stdout
        folder = home / "results" / name / "best"
        manifest = Manifest.load(folder)
        test_case = next(case for case in Manifest.load(home / "data").cases if case.split == "test")
        assert [case.id for case in manifest.cases] == [test_case.id]
        volume = nib.load(folder / "volumes" / f"{test_case.id}_T1w.nii.gz")
        source = nib.load(home / "images" / f"{test_case.id}.nii.gz")
        assert volume.shape == source.shape
        assert np.array_equal(volume.affine, source.affine)
        metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
        assert metrics["fid/T1w"]["value"] is None
        assert "weights missing" in metrics["fid/T1w"]["reason"]
        assert metrics["wasserstein"]["value"] is not None
    real, fake = source.get_fdata(), volume.get_fdata()  # of the GMM: bright where the real scan is bright
    assert np.corrcoef(real.ravel(), fake.ravel())[0, 1] > 0.9
    again = call("test.py", "--name", "gmm", *where, "--seed", 5, code=2)
    assert "other seed" in again.stderr
    call("test.py", "--name", "gmm", *where, "--seed", 5, "--overwrite", "--metrics", "none")
    foreign = home / "mine" / "gmm" / "best"  # --overwrite replaces results, and nothing else
    foreign.mkdir(parents=True)
    (foreign / "paper.md").write_text("mine")
    into = [*where[:-1], home / "mine"]
    refused = call("test.py", "--name", "gmm", *into, "--overwrite", code=2)
    assert "is not a results folder" in refused.stderr
    (foreign / "manifest.json").write_bytes((home / "data" / "manifest.json").read_bytes())
    assert "is not a results folder" in call("test.py", "--name", "gmm", *into, "--overwrite", code=2).stderr
    assert (foreign / "paper.md").read_text() == "mine"
    missing = call("test.py", "--name", "gmm", *where, "--seed", 5, "--metrics", "fid", code=3)
    assert "download_weights.py" in missing.stderr
    assert "no such run" in call("test.py", "--name", "nobody", *where, code=2).stderr
    assert "there are: best" in call("test.py", "--name", "gmm", *where, "--ckpt_iter", 123, code=2).stderr
    call("scripts/evaluate.py", "--results", home / "results" / "gmm" / "best")
    compared = call(
        "scripts/compare.py", home / "results" / "whole", home / "results" / "gmm", "--out", home / "report"
    )
    page = (home / "report" / "report.html").read_text()
    assert "report.html" in compared.stdout
    assert "whole vs gmm" in page
    assert "http://" not in page
    assert "https://" not in page
