"""Score a folder of predicted and true label maps: Dice, HD95 and volumes by label, case and patient.

Levels: case -> mean over those of a patient -> mean over labels -> mean over patients, and of each label without the step
between. What has no value is left out of means as in nnU-Net (see `metrics.segmentation`); labels that one of two maps
lacks are counted beside HD95's mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.io.console import tracked
from dataloaders.io.files import write_json, write_text
from dataloaders.io.geometry import spacing
from dataloaders.io.manifest import Case, Manifest
from dataloaders.io.nifti import read_ids
from dataloaders.io.spec import Label
from evaluation.metrics.segmentation import dice, hd95
from evaluation.statistics import MIN_PATIENTS, finite, finite_rows, label_means, nan_mean, over_patients
from evaluation.tables import rows_csv

SCHEMA = "medsis-segmentation/1"
PREDICTED, TRUE = "predictions", "groundtruth"
COLUMNS = ("patient", "case", "label", "dice", "hd95_mm", "volume_ml", "true_volume_ml")
METRICS: dict[str, tuple[Callable[[Mapping[str, Any]], float], str, str]] = {  # of a row -> value, direction, unit
    "dice": (lambda row: row["dice"], "higher", ""),
    "hd95_mm": (lambda row: row["hd95_mm"], "lower", "mm"),
    "volume_error_ml": (lambda row: abs(row["volume_ml"] - row["true_volume_ml"]), "lower", "ml"),
}
SETTINGS = {
    "levels": "by label: over a patient's cases, patients; of all labels without background: over a patient's cases, "
    "labels, patients",
    "dice": "2 |A and B| / (|A| + |B|) of whole volumes on the grid of the source; no value where both lack the label",
    "hd95_mm": "95th percentile of distances between border voxels, the larger direction; no value where both lack the "
    "label, infinite (counted as missed, not averaged) where one does",
    "volume_ml": "voxels of the label times the volume of a voxel",
    "interval": f"95 % percentile bootstrap over patients, from {MIN_PATIENTS} patients on",
}


def evaluate_segmentation(folder: Path, progress: bool = False, distances: bool = True) -> dict[str, Any]:
    """Score `folder` (written by test.py for a segmenter) and write metrics.json and metrics.csv there; returns the former.

    distances: HD95 too, which takes nearly all of the time.
    ValueError where a file is missing or maps of one case differ in shape.
    """
    manifest = Manifest.load(folder)
    labels = [label for label in manifest.spec.labels if label.id]
    rows: list[dict[str, Any]] = []
    for case in tracked(manifest.cases, "evaluate", shown=progress):
        rows += _case_rows(folder, case, labels, distances)
    result = summarise(rows, [label.name for label in labels], manifest.provenance)
    write_json(folder / "metrics.json", result)
    write_text(folder / "metrics.csv", rows_csv(rows))
    return result


def _case_rows(folder: Path, case: Case, labels: Sequence[Label], distances: bool) -> list[dict[str, Any]]:
    paths = [folder / kind / f"{case.id}.nii.gz" for kind in (TRUE, PREDICTED)]
    volumes = [read_ids(path) for path in paths]
    true, predicted = (volume.data for volume in volumes)
    if true.shape != predicted.shape:
        raise ValueError(f"{paths[1]}: is {predicted.shape}, the true labels are {true.shape}")
    mm = spacing(volumes[0].affine)
    ml = float(np.prod(mm)) / 1000
    ids = [label.id for label in labels]
    scores, farthest = dice(true, predicted, ids), {}
    if distances:
        farthest = hd95(true, predicted, ids, mm.tolist())
    return [
        {
            "patient": case.patient,
            "case": case.id,
            "label": label.name,
            "dice": scores[label.id],
            "hd95_mm": farthest.get(label.id, math.nan),
            "volume_ml": int((predicted == label.id).sum()) * ml,
            "true_volume_ml": int((true == label.id).sum()) * ml,
        }
        for label in labels
    ]


def summarise(
    rows: Sequence[Mapping[str, Any]], labels: Sequence[str], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Contents of metrics.json from one row per case and label."""
    patients = sorted({row["patient"] for row in rows})
    metrics: dict[str, dict[str, Any]] = {}
    per_patient: dict[str, dict[str, float | None]] = {patient: {} for patient in patients}
    for name, (of, better, unit) in METRICS.items():
        about = {"unit": unit, "better": better}
        values = {
            patient: label_means((row["label"], of(row)) for row in rows if row["patient"] == patient)
            for patient in patients
        }
        by_label = {label: [values[patient][label] for patient in patients] for label in labels}
        for label, found in by_label.items():
            missed = sum(math.isinf(of(row)) for row in rows if row["label"] == label)
            metrics[f"{name}/{label}"] = over_patients(found) | about | {"missed": missed}
        means = {patient: nan_mean(values[patient].values()) for patient in patients}
        metrics[name] = over_patients(means.values()) | about
        for patient in patients:
            per_patient[patient] |= {f"{name}/{label}": finite(value) for label, value in values[patient].items()}
            per_patient[patient][name] = finite(means[patient])
    kept = ("name", "method", "checkpoint", "images_seen", "split", "inputs")
    return {
        "schema": SCHEMA,
        "n": {"cases": len({row["case"] for row in rows}), "patients": len(patients)},
        "labels": list(labels),
        "metrics": metrics,
        "per_patient": per_patient,
        "per_case": [
            {key: "inf" if row[key] == math.inf else value for key, value in plain.items()}
            for row, plain in zip(rows, finite_rows(rows), strict=True)
        ],
        "settings": SETTINGS,
        "provenance": {key: provenance.get(key) for key in kept},
    }


def segmentation_table(result: Mapping[str, Any]) -> str:
    """One line per label, for people."""
    lines = [f"{'label':<24}{'Dice':>8}{'HD95 mm':>10}{'missed':>8}{'volume error ml':>18}"]
    for label in (*result["labels"], ""):
        key = f"/{label}" if label else ""
        entries = [result["metrics"][f"{name}{key}"] for name in ("dice", "hd95_mm", "volume_error_ml")]
        shown = ["-" if entry["value"] is None else f"{entry['value']:.3f}" for entry in entries]
        missed = entries[1].get("missed", "")
        lines.append(f"{label or 'mean':<24}{shown[0]:>8}{shown[1]:>10}{missed!s:>8}{shown[2]:>18}")
    n = result["n"]
    return "\n".join([*lines, f"{n['cases']} cases of {n['patients']} patients"])
