"""From slices to patients to a number with an interval."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # scipy.stats has the same, but is slow to import

MIN_PATIENTS = 5  # a bootstrap over fewer says nothing
DRAWS = 2000
EXACT_UP_TO = 12  # patients: all 4096 ways to flip signs
PERMUTATIONS = 10_000  # random ones for more patients


_Label = TypeVar("_Label", bound=Hashable)


@dataclass(frozen=True)
class PairedDifference:
    """What two methods differ by, a - b, over the patients that have a value of both.

    mean: of the differences, in the metric's unit; NaN without a patient. interval: 95 % bootstrap interval of it.
    p_value: of the two-sided sign-flip test of no difference. Both are None for fewer than five patients, and `note`
    says so. patients: how many pairs there were. left_out: patients with a value of one method only, or an infinite one.
    """

    mean: float
    interval: tuple[float, float] | None
    p_value: float | None
    patients: int
    left_out: int
    note: str = ""


def bootstrap_interval(values: NDArray, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile interval of the mean over patients; None for fewer than five."""
    values = np.asarray(values, np.float64)
    if len(values) < MIN_PATIENTS:
        return None
    draws = np.random.default_rng(seed).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def student_half_width(values: NDArray) -> float:
    """Half of Student's 95 % interval of the mean of two values or more."""
    n = len(values)
    return float(stdtrit(n - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(n)


def nan_mean(values: Iterable[float]) -> float:
    """Mean of the values that are numbers; NaN where there are none. Infinite values count as missing."""
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def label_means(values: Iterable[tuple[_Label, float]]) -> dict[_Label, float]:
    """`nan_mean` of each label's values; their mean in turn weighs a rare label as much as one that all cases have."""
    found: dict[_Label, list[float]] = {}
    for label, value in values:
        found.setdefault(label, []).append(value)
    return {label: nan_mean(of_label) for label, of_label in found.items()}


def finite(value: float) -> float | None:
    """For JSON, which has no NaN and no infinity: None for either."""
    return float(value) if math.isfinite(value) else None


def finite_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows for JSON, whose numbers are `finite`."""
    return [{key: finite(value) if isinstance(value, float) else value for key, value in row.items()} for row in rows]


def over_patients(values: Iterable[float]) -> dict[str, Any]:
    """``value``, its interval ``ci95`` and ``n_patients`` from the values of patients, as far as they are finite."""
    known = np.array([value for value in values if math.isfinite(value)])
    interval = bootstrap_interval(known)
    value = finite(float(known.mean())) if len(known) else None
    return {"value": value, "ci95": list(interval) if interval else None, "n_patients": len(known)}


def paired_difference(
    a: Sequence[float | None] | NDArray, b: Sequence[float | None] | NDArray, seed: int = 0
) -> PairedDifference:
    """`PairedDifference` of two methods: values of the same patients in the same order, None or NaN where missing.

    The p-value is exact for up to 12 patients, else from 10,000 random sign flips. It is no verdict on many metrics at
    once: with twenty of them, one falls below 0.05 by chance. The result does not depend on the order of the patients,
    and b against a is its mirror image.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"values of the same patients are needed, got {x.shape} and {y.shape}")
    known = np.isfinite(x) & np.isfinite(y)
    left_out = int((~known & ~(np.isnan(x) & np.isnan(y))).sum())
    differences = x[known] - y[known]
    n = len(differences)
    mean = math.fsum(differences) / n if n else math.nan
    if n < MIN_PATIENTS:
        note = f"{n} patient(s) with both values: too few for an interval or a test, at least {MIN_PATIENTS} are needed"
        return PairedDifference(mean, None, None, n, left_out, note)
    sign = -1.0 if mean < 0 else 1.0
    ordered = np.sort(sign * differences)  # draws are by position
    interval = bootstrap_interval(ordered, seed)
    assert interval is not None  # n >= MIN_PATIENTS
    low, high = interval if sign > 0 else (-interval[1], -interval[0])
    return PairedDifference(mean, (low, high), sign_flip_p(ordered, seed), n, left_out)


def sign_flip_p(differences: NDArray, seed: int = 0) -> float:
    """Two-sided p-value of the paired permutation test: how often is |mean| as large if each sign is a coin's toss?

    Exact for up to 12 differences; above, (1 + hits) / (1 + 10,000), which is never 0 and valid as it stands (Phipson and
    Smyth, SAGMB 2010).
    """
    d = np.asarray(differences, np.float64)
    n = len(d)
    if n <= EXACT_UP_TO:
        flips = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        flips = 1 - 2 * np.random.default_rng(seed).integers(0, 2, (PERMUTATIONS, n), dtype=np.int8)
    sums = np.abs(flips.astype(np.float64) @ d)
    # Sums that are equal but for rounding are equal.
    hits = int((sums >= abs(d.sum()) - 1e-12 * np.abs(d).sum()).sum())
    return hits / len(flips) if n <= EXACT_UP_TO else (1 + hits) / (1 + PERMUTATIONS)
