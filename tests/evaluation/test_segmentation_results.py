from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Manifest
from dataloaders.io.nifti import write_volume
from evaluation.segmentation_results import evaluate_segmentation, segmentation_table
from tests.toy import toy_spec

AFFINE = np.diag([2.0, 1.0, 1.0, 1.0])  # 2 mm³


def folder(root: Path, cases: dict[str, tuple[str, np.ndarray, np.ndarray]]) -> Path:
    found = []
    for case, (patient, true, predicted) in cases.items():
        write_volume(root / "groundtruth" / f"{case}.nii.gz", true.astype(np.uint8), AFFINE)
        write_volume(root / "predictions" / f"{case}.nii.gz", predicted.astype(np.uint8), AFFINE)
        found.append(Case(case, patient, "test", (Window(0, 1),), ()))
    Manifest(toy_spec(labels=4), tuple(found), {"kind": "segmentation", "name": "x", "split": "test"}).save(root)
    return root


def block(label: int, start: int, stop: int) -> np.ndarray:
    volume = np.zeros((20, 6, 6), int)
    volume[start:stop] = label
    return volume


def test_dice_hd95_and_volumes_by_label_case_and_patient(tmp_path: Path) -> None:
    cases = {
        # label 1: 10 planes against 8 of them: Dice 2·8/18, distance 2 voxels of 2 mm
        "p1_a": ("p1", block(1, 0, 10), block(1, 0, 8)),
        "p1_b": ("p1", block(1, 0, 10), block(1, 0, 10)),
        "p2_a": ("p2", block(2, 0, 10), block(3, 0, 10)),  # label 2 missed, label 3 made up, label 1 in neither
    }
    result = evaluate_segmentation(folder(tmp_path, cases))
    metrics = result["metrics"]
    assert metrics["dice/csf"]["value"] == pytest.approx((16 / 18 + 1) / 2)  # p2 has no value, p1 the mean of two cases
    assert metrics["dice/csf"]["n_patients"] == 1
    assert metrics["hd95_mm/csf"]["value"] == pytest.approx((4.0 + 0.0) / 2)
    assert metrics["dice/grey_matter"]["value"] == 0
    assert metrics["hd95_mm/grey_matter"]["value"] is None
    assert metrics["hd95_mm/grey_matter"]["missed"] == 1
    assert metrics["hd95_mm/csf"]["missed"] == 0
    assert metrics["dice"]["value"] == pytest.approx((16 / 18 + 1) / 2 / 2)  # p1 has one label, p2 two that score 0
    assert metrics["volume_error_ml/csf"]["value"] == pytest.approx(((2 * 36 * 2 / 1000) / 2 + 0) / 2)
    assert result["per_patient"]["p2"]["dice/csf"] is None
    assert result["n"] == {"cases": 3, "patients": 2}
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["schema"] == "medsis-segmentation/1"
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 3 * 3
    first = rows[0]
    assert (first["case"], first["label"]) == ("p1_a", "csf")
    assert float(first["true_volume_ml"]) == pytest.approx(10 * 36 * 2 / 1000)
    missed = next(row for row in rows if row["case"] == "p2_a" and row["label"] == "grey_matter")
    assert math.isinf(float(missed["hd95_mm"]))
    neither = next(row for row in rows if row["case"] == "p2_a" and row["label"] == "csf")
    assert neither["dice"] == ""
    assert "3 cases of 2 patients" in segmentation_table(result)


def test_the_mean_and_its_interval_are_of_the_same_patients(tmp_path: Path) -> None:
    """A label that one person of six has, and that is missed, is one of this person's labels and no half of the mean."""
    cases = {f"p{i}": (f"p{i}", block(1, 0, 10), block(1, 0, 9 - i % 2)) for i in range(6)}
    true = block(1, 0, 10)
    true[12:] = 2
    cases["p0"] = ("p0", true, cases["p0"][2])
    result = evaluate_segmentation(folder(tmp_path, cases), distances=False)
    dice = result["metrics"]["dice"]
    assert dice["value"] == pytest.approx(np.mean([of["dice"] for of in result["per_patient"].values()]))
    assert dice["ci95"][0] < dice["value"] < dice["ci95"][1]


def test_maps_of_different_shape_are_one_line(tmp_path: Path) -> None:
    cases = {"a": ("p", block(1, 0, 3), np.zeros((4, 4, 4)))}
    with pytest.raises(ValueError, match=r"predictions/a.nii.gz: is \(4, 4, 4\), the true labels are \(20, 6, 6\)"):
        evaluate_segmentation(folder(tmp_path, cases))
