"""Intensity distributions by label: exact histograms of 16-bit levels, and distances between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataloaders.intensity import LEVELS, Window


class LabelHistograms:
    """Counts of 16-bit levels for each label, summed over slices; memory does not grow with their number."""

    def __init__(self) -> None:
        self.counts: dict[int, NDArray[np.int64]] = {}

    def add(self, label: NDArray, levels: NDArray[np.uint16]) -> None:
        """One slice: label ids and levels, both (H, W)."""
        for i in np.unique(label):
            counts = np.bincount(levels[label == i], minlength=LEVELS + 1)
            self.counts[int(i)] = self.counts.get(int(i), 0) + counts

    def moments(self, label: int, window: Window) -> tuple[float, float]:
        """Mean and standard deviation of a label in physical units."""
        weight = self.counts[label] / self.counts[label].sum()
        values = window.low + np.arange(LEVELS + 1) * (window.width / LEVELS)
        mean = float(weight @ values)
        return mean, float(np.sqrt(weight @ (values - mean) ** 2))


def wasserstein(real: NDArray, fake: NDArray, window: Window) -> float:
    """1-Wasserstein distance between two histograms of levels, in physical units: the area between their CDFs."""
    cdf_real, cdf_fake = np.cumsum(real) / real.sum(), np.cumsum(fake) / fake.sum()
    return float(np.abs(cdf_real - cdf_fake).sum() * window.width / LEVELS)


def coarse(counts: NDArray, window: Window, bins: int = 128) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Density for plots: bin centres in physical units, and shares that sum to 1."""
    edges = np.linspace(0, LEVELS + 1, bins + 1).astype(int)
    shares = np.add.reduceat(counts, edges[:-1]) / max(1, counts.sum())
    centers = window.low + (edges[:-1] + edges[1:]) / 2 * (window.width / LEVELS)
    return centers, shares
