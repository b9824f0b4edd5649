"""scripts/evaluate.py: results folders, and any two folders of PNG files."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dataloaders.io.png import read_png, write_png
from evaluation.evaluate import evaluate_pairs
from evaluation.folders import Folders
from evaluation.request import Request
from tests.launch import call
from tests.toy_results import noisy, write_results

pytestmark = pytest.mark.usefixtures("no_weights")
run = partial(call, "scripts/evaluate.py")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Real, generated and label folders of equally named files, from a toy results folder with one channel."""
    source = write_results(tmp_path / "toy", noisy(0.03), patients=2, slices=2, channels=("CT",))
    for kind in ("groundtruth", "generated", "label"):
        shutil.copytree(source / kind, tmp_path / kind)
    return tmp_path / "groundtruth", tmp_path / "generated", tmp_path / "label"


def test_two_folders_equal_the_results_folder(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    real, generated, label = folders
    run("--results", tmp_path / "toy")
    pair = ("--real", real, "--generated", generated, "--labels", label, "--window", "-1024", "3071")
    run(*pair, "--out", tmp_path / "out")
    ours = json.loads((tmp_path / "toy" / "metrics.json").read_text())
    theirs = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert theirs["n"] == ours["n"] == {"slices": 4, "cases": 2, "patients": 2}
    same = ("mae", "mae_body", "ssim", "psnr", "wasserstein", "label_std_error", "slice_jump_ratio")
    for key in (*same, "slice_difference_mae"):
        expected = ours["metrics"][f"{key}/CT"]["value"]
        assert theirs["metrics"][f"{key}/image"]["value"] == pytest.approx(expected, rel=1e-6), key


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("p_z9", "p_z10", "p_z11"), 2),  # by number, not by name
        (("p_z0000_0000", "p_z0001_0000"), 1),
        (("p_z0000_0000", "p_z0000_0001", "p_z0001_0000", "p_z0001_0001"), 2),  # each channel for itself
        (("p_z0000", "p_z0002"), 0),
        (("p_001", "p_002"), 0),  # no order is known
        (("p_scan1_z0000", "p_scan2_z0001"), 0),  # two scans of a patient
    ],
)
def test_neighbours_are_told_by_the_slice_number(tmp_path: Path, names: tuple[str, ...], pairs: int) -> None:
    for folder in ("real", "generated", "label"):
        for i, name in enumerate(names):
            write_png(tmp_path / folder / f"{name}.png", np.full((16, 16), 1 if folder == "label" else i, np.uint8))
    folders = [tmp_path / folder for folder in ("real", "generated", "label")]
    result = evaluate_pairs(
        Folders(*folders, patient_regex="(p)").pairs(),
        tmp_path / "out",
        Request("mae,slice_difference_mae,slice_jump_ratio"),
    )
    assert result["n"]["slices"] == len(names)
    assert result["n"]["patients"] == 1
    assert sum(row["slice_pairs"] for row in result["per_case"]) == pairs
    assert result["metrics"]["slice_jump_ratio/image"]["value"] == (1 if pairs else None)


@pytest.mark.parametrize("endings", [("", "_T1w", "_dseg"), ("_T1w", "_T1w", "_dseg"), ("_MR", "_CT", "")])
def test_a_modality_that_all_names_share_is_no_part_of_the_name(tmp_path: Path, endings: tuple[str, ...]) -> None:
    """`test.py --labels` adds the channel's name, and BIDS ends in _T1w and in _dseg: such files were without partner."""
    folders = [tmp_path / folder for folder in ("real", "generated", "label")]
    for folder, ending in zip(folders, endings, strict=True):
        for name in ("sub-1", "sub-2"):
            write_png(folder / f"{name}{ending}.png", np.full((16, 16), 1 if folder.name == "label" else 40, np.uint8))
    result = evaluate_pairs(Folders(*folders).pairs(), tmp_path / "out", Request("mae,label_mean_error"))
    assert [row["case"] for row in result["per_case"]] == ["sub-1", "sub-2"]


def test_files_without_partner_are_listed(folders: tuple[Path, Path, Path]) -> None:
    real, generated, _ = folders
    (generated / "sub-00_z0000_0000.png").unlink()
    (real / "sub-01_z0001_0000.png").unlink()
    error = run("--real", real, "--generated", generated, code=2).stderr
    assert "2 files without a partner" in error
    assert "sub-00_z0000_0000.png" in error
    assert "sub-01_z0001_0000.png" in error


def test_the_range_of_twelve_bits_in_sixteen_is_that_of_the_data(tmp_path: Path) -> None:
    """Pure noise must not score as if two twelve-bit scans were nearly equal."""
    rng = np.random.default_rng(0)
    for kind in ("real", "generated"):
        for i in range(2):
            write_png(tmp_path / kind / f"p{i}.png", rng.integers(0, 4096, (32, 32)).astype(np.uint16))

    said = ""

    def psnr(*more: str) -> float:
        nonlocal said
        pair = ("--real", tmp_path / "real", "--generated", tmp_path / "generated", "--metrics", "psnr,mae", *more)
        said = run(*pair, "--out", tmp_path / "out").stderr
        return json.loads((tmp_path / "out/metrics.json").read_text())["metrics"]["psnr/image"]["value"]

    expected = [
        10 * np.log10(4095**2 / np.mean((a.astype(float) - b) ** 2))
        for a, b in ([read_png(tmp_path / k / f"p{i}.png") for k in ("real", "generated")] for i in range(2))
    ]
    assert psnr() == pytest.approx(np.mean(expected), abs=0.01)
    assert "highest level is 409" in said
    assert "levels count from 0 to 4095; give --levels for another range" in said
    assert psnr("--levels", "4095") == pytest.approx(np.mean(expected), abs=0.01)
    assert psnr("--levels", "4095", "--window", "-1024", "3071") == pytest.approx(np.mean(expected), abs=0.01)
    assert psnr("--levels", "65535") > 25  # as told
    assert psnr("--window", "0", "65535") > 25
    assert "give --levels 4095 if the files have fewer bits" in said
    run("--real", tmp_path / "real", "--generated", tmp_path / "real", "--levels", "70000", code=2)


def test_without_labels_only_whole_image_metrics(
    folders: tuple[Path, Path, Path],
    tmp_path: Path,
) -> None:
    real, generated, _ = folders
    done = run("--real", real, "--generated", generated, "--out", tmp_path / "out", "--json")
    result = json.loads(done.stdout)  # stdout is JSON and nothing else
    assert result["metrics"]["mae/image"]["value"] > 0
    assert result["metrics"]["mae_body/image"]["value"] is None
    assert result["metrics"]["mae_body/image"]["reason"]
