"""Intensity distributions by label: histograms of 16-bit levels and distances between them, and exact moments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.intensity import LEVELS, Window
from evaluation.metrics.metric import INTENSITIES, CaseSlices, Metric, Row


class LabelHistograms:
    """Counts of 16-bit levels for each label, summed over slices; memory does not grow with their number."""

    def __init__(self) -> None:
        self.counts: dict[int, NDArray[np.int64]] = {}

    def add(self, label: NDArray, levels: NDArray[np.uint16]) -> None:
        """One slice: label ids and levels, both (H, W)."""
        flat = label.ravel()
        order = np.argsort(flat, kind="stable")
        ids, starts = np.unique(flat[order], return_index=True)
        for i, part in zip(ids, np.split(levels.ravel()[order], starts[1:]), strict=True):
            counts = self.counts.setdefault(int(i), np.zeros(LEVELS + 1, np.int64))
            if part.size < LEVELS // 8:  # few pixels: touch only their levels
                np.add.at(counts, part, 1)
            else:
                counts += np.bincount(part, minlength=LEVELS + 1)

    def moments(self, label: int, window: Window) -> tuple[float, float]:
        """Mean and standard deviation of a label in physical units, of the levels."""
        counts = self.counts[label]
        there = np.flatnonzero(counts)
        weight = counts[there] / counts.sum()
        values = window.low + there * (window.width / LEVELS)
        mean = float(weight @ values)
        return mean, float(np.sqrt(weight @ (values - mean) ** 2))


class LabelMoments:
    """Number, mean and sum of squared deviations of each label's values, slice by slice; nothing is clipped or rounded."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[int, float, float]] = {}

    def add(self, label: NDArray, values: NDArray) -> None:
        """One slice: label ids and physical values, both (H, W)."""
        ids, index, counts = np.unique(label.ravel(), return_inverse=True, return_counts=True)
        flat = values.ravel().astype(np.float64)
        means = np.bincount(index, flat) / counts
        squares = np.bincount(index, (flat - means[index]) ** 2)
        for i, n, mean, square in zip(ids.tolist(), counts.tolist(), means.tolist(), squares.tolist(), strict=True):
            n_old, mean_old, square_old = self.sums.get(i, (0, 0.0, 0.0))
            both, step = n_old + n, mean - mean_old
            # Chan, Golub and LeVeque 1983: no cancellation, whatever the offset of the values.
            self.sums[i] = (both, mean_old + step * n / both, square_old + square + step * step * n_old * n / both)

    def moments(self, label: int) -> tuple[float, float]:
        """Mean and standard deviation of a label in the values' unit."""
        n, mean, square = self.sums[label]
        return mean, math.sqrt(square / n)


def wasserstein(real: NDArray, fake: NDArray, window: Window) -> float:
    """1-Wasserstein distance between two histograms of levels, in physical units: the area between their CDFs."""
    cdf_real, cdf_fake = np.cumsum(real) / real.sum(), np.cumsum(fake) / fake.sum()
    return float(np.abs(cdf_real - cdf_fake).sum() * window.width / LEVELS)


def contrast(pixels: Sequence[float], means: Sequence[float]) -> float:
    """How far labels lie apart in a real scan: the deviation of an image that has each label's mean in its place.

    Square root of the variance between labels, weighted by pixels; so small labels do not move it, and any number of
    labels has it: for white and grey matter alone, of equal size, half of their difference. NaN for less than two labels
    or without any contrast.
    """
    if len(means) < 2:
        return math.nan
    weights = np.array(pixels, np.float64) / np.sum(pixels)
    spread = math.sqrt(weights @ (np.array(means) - weights @ np.array(means)) ** 2)
    return spread if spread > 0 else math.nan


def label_rows(case: CaseSlices) -> list[Row]:
    """One row a label: real and generated mean and standard deviation, their errors, and the distance.

    Means and standard deviations are of the values as they are stored, the distance of the window's levels.
    `label_mean_error_relative`: as a share of the real scan's `contrast` between labels other than 0.
    """
    window = case.items[0].window
    histograms, exact = (LabelHistograms(), LabelHistograms()), (LabelMoments(), LabelMoments())
    for item in case.scored:
        for side, levels in enumerate((item.real, item.fake)):
            histograms[side].add(item.label, levels)
            if item.values is not None:
                exact[side].add(item.label, item.values[side])
    rows = []
    for label in sorted(histograms[0].counts):
        (real_mean, real_std), (fake_mean, fake_std) = (
            moments.moments(label) if label in moments.sums else of_levels.moments(label, window)
            for moments, of_levels in zip(exact, histograms, strict=True)
        )
        real, fake = (of_levels.counts[label] for of_levels in histograms)
        distance = wasserstein(real, fake, window)
        rows.append(
            {
                "label": label,
                "pixels": int(real.sum()),
                "real_mean": real_mean,
                "real_std": real_std,
                "generated_mean": fake_mean,
                "generated_std": fake_std,
                "label_mean_error": abs(fake_mean - real_mean),
                "label_std_error": abs(fake_std - real_std),
                "wasserstein": distance,
                "wasserstein_relative": distance / window.width,
            }
        )
    body = [row for row in rows if row["label"] > 0]
    scale = contrast([row["pixels"] for row in body], [row["real_mean"] for row in body])
    for row in rows:
        row["label_mean_error_relative"] = row["label_mean_error"] / scale
    return rows


METRICS = (
    Metric("label_mean_error", "Label mean error", INTENSITIES, "label", "lower"),
    Metric(
        *("label_mean_error_relative", "Label mean error, relative", INTENSITIES, "label", "lower", "of contrast"),
        reason="the real scan has no contrast between two labels other than 0",
        setting="by the deviation, over pixels, of the real means of labels other than 0 in the case",
    ),
    Metric("label_std_error", "Label spread error", INTENSITIES, "label", "lower"),
    Metric("wasserstein", "Label Wasserstein", INTENSITIES, "label", "lower", windowed=True),
)
