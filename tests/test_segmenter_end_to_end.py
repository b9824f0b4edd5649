"""Prepare -> train -> kill -> resume -> test -> segment -> kill -> resume, through the commands that users type."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dataloaders.io.manifest import Manifest
from dataloaders.io.runlog import read_log
from engine.checkpoint import list_states
from tests.launch import assert_killed_run_goes_on, call, prepared_scans
from tests.toy import LAS, phantom, save_nifti

pytestmark = pytest.mark.slow

TINY = "--model segmenter --segmenter.features 8 8 8 8 8 --segmenter.patch 32 --segmenter.depth 8".split()
TINY += "--batch_size 4 --segmenter.lr 0.02 --segmenter.dropout 0.1 --segmenter.real_fraction 0.8 --gpu_ids -1".split()
TINY += "--gmm.resolution_mix 1 0 0 0 --gmm.bias_field_std 0 --gmm.gamma_std 0.05 --gmm.nonlin_std 1".split()
TINY += "--segmenter.epoch_samples 32 --num_epochs 12".split()
PERIODS = "--freq_print 32 --freq_preview 1000 --freq_fid 64 --freq_save_latest 32".split()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_scans(tmp_path_factory.mktemp("home"))


def train(home: Path, name: str, *extra: object) -> list:
    where = ["--name", name, "--dataroot", home / "data", "--checkpoints_dir", home / "runs"]
    return ["train.py", *where, *TINY, *PERIODS, *extra]


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    call(*train(home, "whole"))
    return home / "runs" / "whole"


def test_it_learns_and_keeps_its_best(home: Path, trained: Path) -> None:
    del home
    records = read_log(trained / "metrics.jsonl")
    dices = [record["metrics"]["dice"] for record in records if record["kind"] == "eval"]
    assert max(dices) > max(0.3, 1.3 * dices[0])
    assert set(records[-1]["metrics"]) == {"dice", *(f"dice/label_{i}" for i in range(1, 5))}
    assert list((trained / "previews").glob("*.png"))


@pytest.mark.usefixtures("trained")
def test_a_killed_training_resumes_bit_for_bit(home: Path) -> None:
    assert_killed_run_goes_on(home / "runs", *train(home, "killed"), apart=("--num_workers", 1))
    assert "already finished" in call(*train(home, "killed")).stdout


def test_patience_ends_a_run_that_no_longer_gets_better(home: Path) -> None:
    slow = ["--segmenter.lr", "1e-12", "--segmenter.dropout", "0", "--segmenter.patience", "2"]
    done = call(*train(home, "patient", *slow))
    states = list_states(home / "runs" / "patient")
    assert int(states[-1].stem.removeprefix("state-")) < 12 * 32
    assert "no better evaluation among 2" in done.stdout
    assert "already finished" in call(*train(home, "patient", *slow)).stdout
    more = [*slow[:-1], "1000"]
    assert "finished: 384 images" in call(*train(home, "patient", *more)).stdout


def test_other_label_maps_are_refused(home: Path, tmp_path: Path) -> None:
    label, _ = phantom(0)
    path = save_nifti(tmp_path / "maps" / "a.nii.gz", label.astype(np.uint8), LAS)
    options = ["--segmenter.label_maps", tmp_path / "maps", "--num_epochs", 1]
    call(*train(home, "maps", *options))
    save_nifti(path, phantom(1)[0].astype(np.uint8), LAS)
    again = call(*train(home, "maps", *options), code=2)
    assert "--segmenter.label_maps: its files are not those of the training so far" in again.stderr
    none = call(*train(home, "none", "--segmenter.results", tmp_path / "no"), code=2)
    assert f"error: --segmenter.results {tmp_path / 'no'}: no such file or folder" in none.stderr


def test_real_scans_go_on_from_images_painted_from_label_maps(home: Path) -> None:
    painted = ["--segmenter.real_fraction", 0, "--segmenter.val_samples", 0, "--num_epochs", 1]
    call(*[home / "labels" if word == home / "data" else word for word in train(home, "painted", *painted)])
    done = call(*train(home, "scans", "--num_epochs", 1, "--init_from", f"{home / 'runs' / 'painted'}:latest"))
    assert "begins with the weights of `painted`, latest, after 32 images" in done.stdout


def test_test_scores_whole_volumes_in_the_space_of_the_source(home: Path, trained: Path) -> None:
    del trained
    where = ["--dataroot", home / "data", "--checkpoints_dir", home / "runs", "--results_dir", home / "results"]
    done = call("test.py", "--name", "whole", *where)
    assert "1 cases of 1 patients" in done.stdout
    folder = home / "results" / "whole" / "best"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["metrics"]["dice"]["value"] > 0.3
    case = metrics["per_case"][0]["case"]
    source = nib.load(home / "labels" / f"{case}.nii.gz")
    truth, predicted = (nib.load(folder / kind / f"{case}.nii.gz") for kind in ("groundtruth", "predictions"))
    true, given = np.asarray(truth.dataobj), np.asarray(source.dataobj)
    kept = true.any(axis=(0, 1))  # prepare_data.py leaves out slices with hardly any label
    assert kept.sum() > 15
    assert np.array_equal(true[..., kept], given[..., kept])  # every label of the others came back
    assert np.array_equal(predicted.affine, source.affine)
    overlap = (np.asarray(predicted.dataobj) > 0) & (np.asarray(source.dataobj) > 0)
    assert overlap.sum() > 0.6 * (np.asarray(source.dataobj) > 0).sum()
    assert "other phase" in call("test.py", "--name", "whole", *where, "--phase", "val", code=2).stderr
    for flags, words in (
        (["--seed", 5], "--seed: changes nothing for segmenter"),
        (["--no-volumes"], "--no-volumes: changes nothing for segmenter"),
        (["--metrics", "ssim"], "--metrics ssim: of a segmenter must be auto"),
    ):
        assert words in call("test.py", "--name", "whole", *where, *flags, code=2).stderr
    wrong = call("test.py", "--name", "whole", *where, "--inputs", "FLAIR", code=2)
    assert "--inputs FLAIR: no such channel; there are T1w" in wrong.stderr


def test_segment_says_what_is_wrong(home: Path, trained: Path, tmp_path: Path) -> None:
    good = home / "images" / "p0.nii.gz"
    where = ["--output", tmp_path / "out", "--cpu"]
    none = call("scripts/segment.py", "--input", good, *where, "--checkpoint", tmp_path / "no", code=2)
    assert "no such run folder" in none.stderr
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    both = call("scripts/segment.py", "--input", tmp_path / "bad.nii.gz", good, *where, "--checkpoint", trained, code=1)
    assert "1 segmented, 0 kept, 1 failed" in both.stdout
    assert [line for line in both.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: {tmp_path / 'bad.nii.gz'}: named .gz but not compressed with gzip"
    ]
    weights = ["--checkpoint", trained / "weights-latest.safetensors", "--cpu"]
    more = ["--post", tmp_path / "p.nii.gz", "--resample", tmp_path / "seen"]
    call("scripts/segment.py", "--i", good, "--o", tmp_path / "x.nii.gz", *weights, *more)
    assert nib.load(tmp_path / "p.nii.gz").shape == (*nib.load(good).shape, 5)
    assert (tmp_path / "seen" / "p0_resampled.nii.gz").is_file()
    for flag, value, said in (
        ("--o", tmp_path / "x.mgz", "name a folder, or for one scan a file ending in .nii.gz"),
        ("--device", "99", "--device 99: this machine shows"),
    ):
        wrong = ["--i", good, "--o", tmp_path / "y", "--checkpoint", trained, flag, value]
        assert said in call("scripts/segment.py", *wrong, code=2).stderr


def test_the_utility_study_from_its_command(home: Path, tmp_path: Path) -> None:
    arguments = ["scripts/utility.py", "--dataroot", home / "data", "--out", tmp_path / "study", "--seeds", 1]
    short = [*TINY, *PERIODS, "--segmenter.epoch_samples", 16, "--num_epochs", 1]
    listed = call(*arguments, "--dry_run").stdout.splitlines()
    assert listed[2] == "2 both-s0 --segmenter.real_fraction 0.5"
    first = call(*arguments, "--only", 0, "--", *short).stdout
    assert "2 trainings are missing: synthetic-s0, both-s0" in first
    done = call(*arguments, "--", *short)
    assert "real-s0: train.py" not in done.stdout  # kept
    assert "missing" not in done.stdout
    table = json.loads((tmp_path / "study" / "utility.json").read_text())
    assert [row["arm"] for row in table["rows"] if row["metric"] == "dice"] == ["real", "synthetic", "both"]
    assert all(row["mean"] is not None for row in table["rows"] if row["metric"] == "dice")
    failed = call(*arguments[:-2], "--seeds", 2, "--only", 3, "--", *short, "--segmenter.inputs", "FLAIR", code=2)
    assert "holds what was made with other settings" in failed.stderr
    few = [*arguments[:3], "--out", tmp_path / "few", "--seeds", 1, "--arms", "both", "--patients", 1]
    call(*few, "--generators", "fitted=--model gmm --gpu_ids -1", "--", *short)
    made = Manifest.load(tmp_path / "few" / "images" / "fitted-n1-s0" / "best")
    config = json.loads((tmp_path / "few" / "runs" / "both-fitted-n1-s0" / "config.json").read_text())["config"]
    assert sorted({case.patient for case in made.cases}) == config["only_patients"]
