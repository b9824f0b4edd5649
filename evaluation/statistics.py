"""From slices to patients to a number with an interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_PATIENTS = 5  # a bootstrap over fewer says nothing
DRAWS = 2000


def bootstrap_interval(values: NDArray, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile interval of the mean over patients; None for fewer than five."""
    values = np.asarray(values, np.float64)
    if len(values) < MIN_PATIENTS:
        return None
    draws = np.random.default_rng(seed).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def nan_mean(values: list[float]) -> float:
    """Mean of the values that are numbers; NaN where there are none. Infinite values count as missing."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")
