from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from evaluation.utility import RunScores, format_utility, seed_interval, utility_table, write_utility


def scores(arm: str, seed: int, values: list[float | None]) -> RunScores:
    return RunScores(arm, seed, {"dice": {f"p{i}": value for i, value in enumerate(values)}})


def test_seed_interval_is_students() -> None:
    d = np.array([0.1, 0.2, 0.4])
    low, high = seed_interval(d) or (0, 0)
    expected = stats.t.interval(0.95, 2, loc=d.mean(), scale=stats.sem(d))
    assert (low, high) == pytest.approx(expected)
    assert seed_interval(d[:2]) is None


def test_pairs_by_patient_and_by_seed(tmp_path: Path) -> None:
    """Five patients, three seeds: b is better by 0.1, 0.2 or 0.3 with the seed, in every patient."""
    base = np.array([0.5, 0.6, 0.7, 0.4, 0.55])
    runs = []
    for seed, gain in enumerate((0.1, 0.2, 0.3)):
        runs += [scores("real", seed, list(base + 0.01 * seed)), scores("both", seed, list(base + 0.01 * seed + gain))]
    table = utility_table(runs, ["real", "both"])
    (difference,) = table["differences"]
    assert difference["mean"] == pytest.approx(0.2)
    assert difference["patients"]["interval"] == pytest.approx((0.2, 0.2))
    assert difference["patients"]["p_value"] == pytest.approx(2 / 32)
    assert difference["seed_ci95"] == pytest.approx(seed_interval(np.array([0.1, 0.2, 0.3])))
    rows = {row["arm"]: row for row in table["rows"]}
    assert rows["real"]["mean"] == pytest.approx(base.mean() + 0.01)
    assert rows["real"]["seed_sd"] == pytest.approx(0.01)
    write_utility(tmp_path, table)
    assert json.loads((tmp_path / "utility.json").read_text())["schema"] == "medsis-utility/1"
    written = list(csv.DictReader((tmp_path / "utility.csv").read_text().splitlines()))
    assert float(written[1]["difference"]) == pytest.approx(0.2)
    assert "| dice | both | 0.760 ± 0.110 | +0.200 |" in format_utility(table)


def test_missing_values_and_seeds() -> None:
    runs = [
        scores("real", 0, [0.5, None]),
        scores("real", 1, [0.7, None]),
        scores("synthetic", 0, [0.4, 0.9]),
        scores("synthetic", 5, [0.0, 0.0]),  # a seed that real does not have
    ]
    table = utility_table(runs, ["real", "synthetic", "both"])
    (difference,) = table["differences"]
    assert difference["mean"] == pytest.approx(-0.1)
    assert (difference["seeds"], difference["patients"]["patients"]) == (1, 1)
    assert difference["seed_ci95"] is None
    assert "too few" in format_utility(table)
    with pytest.raises(ValueError, match="different patients"):
        utility_table([*runs, RunScores("both", 0, {"dice": {"other": 0.1}})], ["real", "both"])
