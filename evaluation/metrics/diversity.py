"""How much the images of one label map differ: several draws of the same method, compared in pairs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.intensity import Window
from evaluation.metrics.msssim import similarities
from evaluation.statistics import nan_mean


def pairwise_similarity(draws: Sequence[NDArray], window: Window) -> tuple[float, float]:
    """Mean SSIM and MS-SSIM over all pairs of draws (H, W) in physical units; 1 where all draws are equal.

    MS-SSIM is NaN where a side has 160 pixels or fewer, SSIM below 11. Zhu et al. 2017 measured the diversity
    of image translation so, with LPIPS in place of SSIM. Cost grows with the square of the number of draws.
    """
    values = [similarities(a, b, window.low, window.width) for a, b in itertools.combinations(draws, 2)]
    return nan_mean([ssim for ssim, _ in values]), nan_mean([ms_ssim for _, ms_ssim in values])


class LabelSpread:
    """Standard deviation over k draws of each label's mean in a case; sums only, so memory does not grow with slices."""

    def __init__(self) -> None:
        self.sums: NDArray[np.float64] | None = None  # (k, labels)
        self.pixels: NDArray[np.float64] = np.zeros(0)

    def add(self, label: NDArray, draws: Sequence[NDArray]) -> None:
        """One slice: label ids (H, W) and the draws (H, W) in physical units."""
        size = max(int(label.max()) + 1, len(self.pixels))
        flat = label.ravel()
        sums = np.array([np.bincount(flat, draw.ravel(), minlength=size) for draw in draws], np.float64)
        if self.sums is not None:
            sums[:, : self.sums.shape[1]] += self.sums
        pixels = np.bincount(flat, minlength=size).astype(np.float64)
        pixels[: len(self.pixels)] += self.pixels
        self.sums, self.pixels = sums, pixels

    @property
    def spread(self) -> float:
        """In the images' unit, mean over the labels that are there, background left out; 0 where all draws are equal.

        Sample standard deviation (n − 1), since the draws are a sample of the endless others.
        """
        there = np.flatnonzero(self.pixels[1:]) + 1
        if self.sums is None or not len(there):
            return float("nan")
        means = self.sums[:, there] / self.pixels[there]
        # From the first draw on: the mean of three equal numbers need not be that number.
        return float((means - means[0]).std(axis=0, ddof=1).mean())
