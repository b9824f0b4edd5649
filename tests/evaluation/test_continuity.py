"""Continuity from slice to slice through a results folder; closed forms on arrays are in test_case_metrics.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataloaders.io.manifest import Case, Manifest
from dataloaders.io.png import read_png
from evaluation import evaluate_results, format_table, headline
from tests.toy_results import noisy, write_results

METRICS = "slice_jump_ratio,slice_difference_mae"


def edit_cases(folder: Path, *cases: Case) -> None:
    replace(Manifest.load(folder), cases=cases).save(folder)


def expected(folder: Path, case: Case, channel: int) -> tuple[float, float]:
    """Ratio and error of a whole case at once, in physical units."""
    window = case.windows[channel]
    real, fake = (
        np.stack([window.decode(read_png(folder / getattr(item, kind)[channel])) for item in case.slices]).astype(float)
        for kind in ("images", "generated")
    )
    body = np.stack([read_png(folder / item.label) > 0 for item in case.slices])
    both = body[1:] & body[:-1]
    step_real, step_fake = np.diff(real, axis=0)[both], np.diff(fake, axis=0)[both]
    return np.abs(step_fake).sum() / np.abs(step_real).sum(), np.abs(step_fake - step_real).mean()


def test_two_channels_and_the_whole_volume_at_once_agree(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=2, slices=4)
    result = evaluate_results(folder, METRICS)
    cases = Manifest.load(folder).cases
    assert [row["slice_pairs"] for row in result["per_case"]] == [3] * 4
    for c, channel in enumerate(("T1w", "CT")):
        found = np.array([expected(folder, case, c) for case in cases])
        for k, name in enumerate(METRICS.split(",")):
            key = f"{name}/{channel}"
            assert result["metrics"][key]["value"] == pytest.approx(found[:, k].mean(), rel=1e-6)
            assert result["per_patient"]["sub-01"][key] == pytest.approx(found[1, k], rel=1e-6)


def test_without_neighbours_the_value_is_missing_and_not_zero(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=2, slices=5)
    first, second = Manifest.load(folder).cases
    edit_cases(folder, *(replace(case, slices=case.slices[::2]) for case in (first, second)))
    result = evaluate_results(folder, METRICS)
    for name in METRICS.split(","):
        entry = result["metrics"][f"{name}/CT"]
        assert (entry["value"], entry["n_patients"]) == (None, 0)
        assert "no adjacent slices" in entry["reason"]
        assert f"{name}/CT" not in headline(result)
    text = (folder / "metrics.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["per_case"][0]["slice_jump_ratio"] is None
    lines = [line for line in format_table(result).splitlines() if "slice_" in line]
    assert len(lines) == 4
    assert all("n/a" in line for line in lines)
    edit_cases(folder, first, replace(second, slices=second.slices[::2]))  # one patient is enough for a value
    assert evaluate_results(folder, METRICS)["metrics"]["slice_jump_ratio/CT"]["n_patients"] == 1
