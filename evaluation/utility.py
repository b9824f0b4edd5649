"""The utility study's table: Dice on real test scans of networks trained on real images, synthetic ones, or both.

Values: mean over a patient's cases (evaluation/segmentation_results.py), by label and over all labels. An arm's value is
the mean over seeds and patients. Two arms are compared in pairs: by patient, each the mean over the seeds, with a bootstrap
interval and a sign-flip test; and by seed, each the mean over the patients, with Student's interval. The first says
whether the difference holds for other patients, the second whether it holds for another training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.files import csv_text, read_json, write_json, write_text
from evaluation.segmentation_results import SCHEMA as SCORES
from evaluation.statistics import PairedDifference, bootstrap_interval, paired_difference, student_half_width

SCHEMA = "medsis-utility/1"
MIN_SEEDS = 3


@dataclass(frozen=True)
class RunScores:
    """Scores of one training: metric -> patient -> value, None where there is none."""

    arm: str
    seed: int
    values: dict[str, dict[str, float | None]]


def read_scores(arm: str, seed: int, folder: Path) -> RunScores:
    """Dice of one results folder of a segmenter. ValueError where it holds something else."""
    data = read_json(folder / "metrics.json")
    if data.get("schema") != SCORES:
        raise ValueError(f"{folder}: schema {data.get('schema')!r}, a segmenter's results have {SCORES!r}")
    names = ["dice", *(f"dice/{label}" for label in data["labels"])]
    patients = data["per_patient"]
    return RunScores(arm, seed, {name: {p: patients[p].get(name) for p in sorted(patients)} for name in names})


def seed_interval(differences: NDArray) -> tuple[float, float] | None:
    """95 % interval of the mean over seeds by Student's t; None for fewer than three."""
    d = np.asarray(differences, np.float64)
    d = d[np.isfinite(d)]
    if len(d) < MIN_SEEDS:
        return None
    half = student_half_width(d)
    return float(d.mean()) - half, float(d.mean()) + half


def utility_table(runs: Sequence[RunScores], arms: Sequence[str]) -> dict[str, Any]:
    """Contents of utility.json: a row for each metric and arm, and the paired difference of each arm to the first.

    A difference takes the seeds that both arms have. ValueError where the runs were tested on different patients.
    """
    patients = {tuple(next(iter(run.values.values()))) for run in runs}
    if len(patients) > 1:
        raise ValueError("the runs were tested on different patients, so they cannot be compared in pairs")
    metrics = list(dict.fromkeys(name for run in runs for name in run.values))
    rows, differences = [], []
    for metric in metrics:
        by_arm = {arm: {run.seed: _values(run, metric) for run in runs if run.arm == arm} for arm in arms}
        rows += [_row(metric, arm, seeds) for arm, seeds in by_arm.items() if seeds]
        for arm in arms[1:]:
            if both := sorted(by_arm[arm].keys() & by_arm[arms[0]].keys()):
                pair = tuple(np.stack([by_arm[name][seed] for seed in both]) for name in (arm, arms[0]))
                differences.append({"metric": metric, "arm": arm, "against": arms[0]} | _difference(*pair))
    return {"schema": SCHEMA, "arms": list(arms), "runs": len(runs), "rows": rows, "differences": differences}


def _values(run: RunScores, metric: str) -> NDArray[np.float64]:
    return np.array([math.nan if v is None else v for v in run.values[metric].values()], np.float64)


def _row(metric: str, arm: str, seeds: Mapping[int, NDArray]) -> dict[str, Any]:
    table = np.stack(list(seeds.values()))  # (seeds, patients)
    by_seed, by_patient = _means(table, 1), _means(table, 0)
    known = by_patient[np.isfinite(by_patient)]
    finite = by_seed[np.isfinite(by_seed)]
    interval = bootstrap_interval(known)
    return {
        "metric": metric,
        "arm": arm,
        "mean": float(known.mean()) if len(known) else None,
        "seed_sd": float(finite.std(ddof=1)) if len(finite) > 1 else None,
        "patient_ci95": list(interval) if interval else None,
        "seeds": len(seeds),
        "patients": len(known),
    }


def _difference(a: NDArray, b: NDArray) -> dict[str, Any]:
    """a - b, (seeds, patients) each."""
    patients: PairedDifference = paired_difference(_means(a, 0), _means(b, 0))
    interval = seed_interval(_means(a - b, 1))
    return {
        "mean": patients.mean if math.isfinite(patients.mean) else None,
        "patients": {k: v for k, v in asdict(patients).items() if k != "mean"},
        "seed_ci95": list(interval) if interval else None,
        "seeds": len(a),
    }


def _means(table: NDArray, axis: int) -> NDArray[np.float64]:
    """Means of the finite values along an axis; NaN where there are none."""
    known = np.isfinite(table)
    count = known.sum(axis)
    return np.where(count > 0, np.where(known, table, 0).sum(axis) / np.maximum(count, 1), np.nan)


def write_utility(folder: Path, table: Mapping[str, Any]) -> None:
    """utility.json, and utility.csv with the rows."""
    write_json(folder / "utility.json", dict(table))
    columns = ("metric", "arm", "mean", "seed_sd", "seeds", "patients")
    head = [*columns, "difference", "patient_low", "patient_high", "p_value", "seed_low", "seed_high"]
    lines = []
    found = {(item["metric"], item["arm"]): item for item in table["differences"]}
    for row in table["rows"]:
        item = found.get((row["metric"], row["arm"]))
        extra = [""] * 6
        if item is not None:
            low, high = item["patients"]["interval"] or ("", "")
            extra = [item["mean"], low, high, item["patients"]["p_value"], *(item["seed_ci95"] or ("", ""))]
        lines.append([*(row[column] for column in columns), *extra])
    write_text(folder / "utility.csv", csv_text(head, lines))


def format_utility(table: Mapping[str, Any]) -> str:
    """For people: Markdown, one line for each metric and arm."""
    first = table["arms"][0] if table["arms"] else ""
    lines = [
        f"| metric | trained on | mean ± sd of seeds | minus {first} | over patients | over seeds |",
        "|---" * 6 + "|",
    ]
    found = {(item["metric"], item["arm"]): item for item in table["differences"]}
    for row in table["rows"]:
        spread = f" ± {row['seed_sd']:.3f}" if row["seed_sd"] is not None else ""
        mean = "-" if row["mean"] is None else f"{row['mean']:.3f}{spread}"
        cells = ["", "", ""]
        if (item := found.get((row["metric"], row["arm"]))) is not None:
            n = item["patients"]["patients"]
            of_patients = _interval(item["patients"]["interval"]) or f"too few ({n})"
            p = item["patients"]["p_value"]
            cells = [
                "-" if item["mean"] is None else f"{item['mean']:+.3f}",
                of_patients + (f", p {p:.3f}" if p is not None else ""),
                _interval(item["seed_ci95"]) or f"too few ({item['seeds']})",
            ]
        lines.append(f"| {row['metric']} | {row['arm']} | {mean} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _interval(values: Sequence[float] | None) -> str:
    return f"{values[0]:+.3f} to {values[1]:+.3f}" if values else ""
