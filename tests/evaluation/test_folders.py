"""scripts/evaluate.py on any two folders of PNG files; that they score as a results folder does: test_field_of_view.py."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dataloaders.io.png import write_png
from evaluation.evaluate import evaluate_pairs
from evaluation.folders import Folders
from evaluation.request import Request
from tests.launch import call

pytestmark = pytest.mark.usefixtures("no_weights")
run = partial(call, "scripts/evaluate.py")
PLAIN = ("", "", "")


def images(root: Path, *names: str, endings: tuple[str, ...] = PLAIN) -> tuple[Path, Path, Path]:
    """Folders of flat real and generated images, each brighter than the one before, and of label maps."""
    folders = root / "real", root / "generated", root / "labels"
    for folder, ending in zip(folders, endings, strict=True):
        for i, name in enumerate(names):
            level = 1 if folder.name == "labels" else 40 + i + (folder.name == "generated")
            write_png(folder / f"{name}{ending}.png", np.full((16, 16), level, np.uint8))
    return folders


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
    folders = Folders(*images(tmp_path, *names), patient_regex="(p)")
    request = Request("mae,slice_difference_mae,slice_jump_ratio")
    result = evaluate_pairs(folders.pairs(), tmp_path / "out", request)
    assert (result["n"]["slices"], result["n"]["patients"]) == (len(names), 1)
    assert sum(row["slice_pairs"] for row in result["per_case"]) == pairs
    assert result["metrics"]["slice_jump_ratio/image"]["value"] == (1 if pairs else None)


@pytest.mark.parametrize("endings", [("", "_T1w", "_dseg"), ("_T1w", "_T1w", "_dseg"), ("_MR", "_CT", "")])
def test_a_modality_that_all_names_share_is_no_part_of_the_name(tmp_path: Path, endings: tuple[str, ...]) -> None:
    """`test.py --labels` adds the channel's name, and BIDS ends in _T1w and in _dseg: such files were without partner."""
    folders = Folders(*images(tmp_path, "sub-1", "sub-2", endings=endings))
    result = evaluate_pairs(folders.pairs(), tmp_path / "out", Request("mae,label_mean_error"))
    assert [row["case"] for row in result["per_case"]] == ["sub-1", "sub-2"]


def test_files_without_partner_are_listed(tmp_path: Path) -> None:
    real, generated, _ = images(tmp_path, "a", "b", "c")
    (generated / "a.png").unlink()
    (real / "b.png").unlink()
    error = run("--real", real, "--generated", generated, code=2).stderr
    for part in ("2 files without a partner", "a.png", "b.png"):
        assert part in error


def test_the_range_of_twelve_bits_in_sixteen_is_that_of_the_data(tmp_path: Path) -> None:
    """Pure noise must not score as if two twelve-bit scans were nearly equal."""
    rng, expected = np.random.default_rng(0), []
    for i in range(2):
        a, b = (rng.integers(0, 4096, (32, 32)).astype(np.uint16) for _ in range(2))
        write_png(tmp_path / "real" / f"p{i}.png", a)
        write_png(tmp_path / "generated" / f"p{i}.png", b)
        expected.append(10 * np.log10(4095**2 / np.mean((a.astype(float) - b) ** 2)))

    def psnr(*more: str) -> tuple[float, str]:
        pair = ("--real", tmp_path / "real", "--generated", tmp_path / "generated", "--metrics", "psnr,mae", *more)
        said = run(*pair, "--out", tmp_path / "out").stderr
        return json.loads((tmp_path / "out/metrics.json").read_text())["metrics"]["psnr/image"]["value"], said

    for more in ("", "--levels 4095", "--levels 4095 --window -1024 3071"):
        found, said = psnr(*more.split())
        assert found == pytest.approx(np.mean(expected), abs=0.01), more
        if not more:
            assert "highest level is 409" in said
            assert "levels count from 0 to 4095; give --levels for another range" in said
    assert psnr("--levels", "65535")[0] > 25  # as told
    found, said = psnr("--window", "0", "65535")
    assert found > 25
    assert "give --levels 4095 if the files have fewer bits" in said
    run("--real", tmp_path / "real", "--generated", tmp_path / "real", "--levels", "70000", code=2)


def test_without_labels_only_whole_image_metrics(tmp_path: Path) -> None:
    real, generated, _ = images(tmp_path, "a", "b")
    metrics = "mae,mae_body"
    done = run("--real", real, "--generated", generated, "--metrics", metrics, "--out", tmp_path / "out", "--json")
    result = json.loads(done.stdout)  # stdout is JSON and nothing else
    assert result["metrics"]["mae/image"]["value"] == pytest.approx(1)
    assert result["metrics"]["mae_body/image"]["value"] is None
    assert result["metrics"]["mae_body/image"]["reason"]
