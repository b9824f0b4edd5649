"""Prepare -> train -> kill -> resume -> test -> evaluate -> compare, through the commands that users type."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dataloaders.io.manifest import Manifest
from dataloaders.io.png import write_png
from dataloaders.io.runlog import read_log
from engine.checkpoint import list_states
from tests.launch import PERIODS, assert_killed_run_goes_on, call, prepared_scans, training

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_scans(tmp_path_factory.mktemp("home"))


def train(home: Path, name: str, *extra: object) -> list[object]:
    return training(home / "data", home / "runs", name, *PERIODS, "--num_epochs", 8, *extra)


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    call(*train(home, "whole"))
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


@pytest.mark.usefixtures("trained")
def test_a_killed_run_resumes_bit_for_bit(home: Path) -> None:
    """One that is asked to stop does so in tests/test_faults.py and tests/slurm/test_slurm.py."""
    assert_killed_run_goes_on(home / "runs", *train(home, "killed"))


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


def test_a_start_that_failed_binds_nobody(home: Path, tmp_path: Path) -> None:
    runs = ["--name", "fails", "--checkpoints_dir", tmp_path]
    (tmp_path / "data" / "val" / "images").mkdir(parents=True)
    for split in ("val", "test"):  # no training split
        for kind in ("images", "labels"):
            write_png(tmp_path / "data" / split / kind / "a.png", np.arange(1024, dtype=np.uint8).reshape(32, 32) % 3)
    assert "the split 'train' has no slices" in call("train.py", *runs, "--dataroot", tmp_path / "data", code=2).stderr
    call("train.py", *runs, "--dataroot", home / "data", "--model", "gmm", "--gpu_ids", "-1")


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
    foreign = home / "mine" / "gmm" / "best"  # --overwrite replaces results, and nothing else
    foreign.mkdir(parents=True)
    (foreign / "paper.md").write_text("mine")
    into = ["--results_dir", home / "mine", "--overwrite"]
    for flags, words, code in (
        (["--seed", 5], "other seed", 2),
        (into, "is not a results folder", 2),
        (["--seed", 5, "--metrics", "fid"], "download_weights.py", 3),
        (["--name", "nobody"], "no such run", 2),
        (["--inputs", "T1w"], "--inputs: changes nothing for gmm", 2),
        (["--ckpt_iter", 123], "there are: best", 2),
        (["--seed", 5, "--overwrite", "--resample", "liver"], "--resample liver: no such label; there are 0 ", 2),
    ):
        assert words in call("test.py", "--name", "gmm", *where, *flags, code=code).stderr
    (foreign / "manifest.json").write_bytes((home / "data" / "manifest.json").read_bytes())
    assert "is not a results folder" in call("test.py", "--name", "gmm", *where, *into, code=2).stderr
    assert (foreign / "paper.md").read_text() == "mine"
    call("test.py", "--name", "gmm", *where, "--seed", 5, "--overwrite", "--metrics", "none")
    call("scripts/evaluate.py", "--results", home / "results" / "gmm" / "best")
    results = [home / "results" / name for name in ("whole", "gmm")]
    assert "report.html" in call("scripts/compare.py", *results, "--out", home / "report").stdout
    page = (home / "report" / "report.html").read_text()
    assert "whole vs gmm" in page
    assert not re.search("https?://", page)
