"""Label maps of a case as volumes: gaps, labels, units, and companions in results folders."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataloaders.io.geometry import to_ras
from dataloaders.io.manifest import Case, Geometry, Manifest, affine_rows
from dataloaders.io.nifti import write_volume
from dataloaders.io.png import read_png
from evaluation.evaluate import evaluate_pairs
from evaluation.metrics.faithfulness import METRICS, overlap_rows
from evaluation.pairs import ManifestPairs
from evaluation.request import Request
from evaluation.scoring import volume_of
from tests.toy_results import noisy, write_results


def square(at: int, label: int = 1) -> np.ndarray:
    ids = np.zeros((12, 12), np.uint8)
    ids[4:8, at : at + 4] = label
    return ids


def test_a_gap_between_slices_stays_a_gap() -> None:
    """The nearest voxel of the other map is ten slices of 2 mm away, though the files are next to each other."""
    case, empty = Case("c", "p", "test", (), ()), np.zeros((12, 12), np.uint8)
    condition, seen = (volume_of(case, [5, 15], slices) for slices in ([square(4), empty], [empty, square(4)]))
    assert overlap_rows(condition, seen, (2.0, 1.0, 1.0)) == [{"label": 1, "dice": 0, "hd95": 20}]
    with pytest.raises(ValueError, match="case c: slices of different sizes"):
        volume_of(case, [0, 1], [empty, empty[1:]])


def test_labels_are_those_of_both_maps() -> None:
    found = overlap_rows(square(4, 3)[None], square(4, 250)[None], (1.0, 1.0, 1.0))
    assert [(row["label"], row["dice"]) for row in found] == [(3, 0), (250, 0)]


def test_mean_over_cases_then_labels() -> None:
    rows = [{"label": 1, "dice": 1.0}, {"label": 1, "dice": 0.5}, {"label": 2, "dice": 0.25}]
    assert METRICS[0].of_patient(rows) == pytest.approx((0.75 + 0.25) / 2)
    assert math.isnan(METRICS[0].of_patient([]))


def as_volumes(folder: Path, out: Path, names: dict[str, str]) -> None:
    """The label maps of a results folder as volumes in source geometry (LPS), and the geometry in its manifest."""
    manifest = Manifest.load(folder)
    cases = []
    for case in manifest.cases:
        shape = (40, 48, len(case.slices))
        grid = np.zeros(shape, np.int16)
        for item in case.slices:
            grid[..., item.index] = read_png(folder / item.label)[::-1, ::-1].T
        source = np.diag([-1.0, -1.0, 2.0, 1.0])
        data = grid[::-1, ::-1]
        ras, affine = to_ras(data, source)
        assert np.array_equal(ras, grid)
        write_volume(out / f"{names.get(case.id, case.id)}.nii.gz", data, source)
        geometry = Geometry(affine_rows(source), shape, affine_rows(affine), shape, (0, 0))
        cases.append(replace(case, geometry=geometry))
    spec = replace(manifest.spec, axis="axial", slice_spacing=2.0)
    replace(manifest, cases=tuple(cases), spec=spec).save(folder)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", "_seg"])
def test_segmentations_as_volumes_of_a_results_folder(tmp_path: Path, ending: str) -> None:
    """One volume a case, by its exact name, else by the name and an underscore: sub-1 is not sub-10."""
    folder = write_results(tmp_path / "r", noisy(0.02), patients=3, slices=4, channels=("CT",))
    manifest = Manifest.load(folder)
    cases = [replace(case, id=name) for case, name in zip(manifest.cases, ("sub-1", "sub-10", "sub-1b"), strict=True)]
    replace(manifest, cases=tuple(cases)).save(folder)
    as_volumes(folder, tmp_path / "seen", {case.id: case.id + ending for case in cases})
    if not ending:  # another file that goes on after the exact name
        write_volume(tmp_path / "seen" / "sub-1_other.nii.gz", np.zeros((4, 4, 4), np.int16), np.eye(4))
    pairs = ManifestPairs(folder, Manifest.load(folder))
    result = evaluate_pairs(
        pairs, tmp_path / "out", Request("faithfulness_dice,faithfulness_hd95", segmented=tmp_path / "seen")
    )
    assert result["metrics"]["faithfulness_dice"]["value"] == 1
    assert result["metrics"]["faithfulness_hd95"]["unit"] == "mm"
    assert {row["case"] for row in result["per_overlap"]} == {"sub-1", "sub-10", "sub-1b"}
    (tmp_path / "seen" / f"sub-10{ending}.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"nor one volume sub-10\.nii\.gz or sub-10_\*\.nii\.gz \(0\)"):
        evaluate_pairs(pairs, tmp_path / "out", Request("faithfulness_dice", segmented=tmp_path / "seen"))
