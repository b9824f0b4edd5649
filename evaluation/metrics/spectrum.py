"""Texture by spatial frequency: radially averaged power spectra of slices and the distance between two of them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

BINS = 64
SMALLEST_SIDE = 8  # pixels; below, a window of Hann leaves nothing to transform
FLOOR = 1e-12  # of the largest power: less is rounding, and a constant image has none at all


class CaseSpectrum:
    """Radial power spectra of the real and generated slices of one case and channel, averaged slice by slice.

    spacing: mm per pixel along rows and columns, (between rows, between columns). Frequencies are in cycles/mm up to
    the Nyquist frequency of the coarser axis, in `bins` bins of equal width. Slices may differ in size.
    """

    def __init__(self, spacing: tuple[float, float], bins: int = BINS) -> None:
        if not all(math.isfinite(size) and size > 0 for size in spacing):
            raise ValueError(f"pixel spacing has to be positive, in mm, got {spacing}")
        if bins < 1:
            raise ValueError(f"spectra need at least 1 bin, got {bins}")
        self.spacing = (float(spacing[0]), float(spacing[1]))
        self.bins = bins
        self.slices = 0
        self._sums = np.zeros((2, bins))
        self._counts = np.zeros(bins)

    @property
    def nyquist(self) -> float:
        """Highest frequency that both axes resolve, in cycles/mm."""
        return 0.5 / max(self.spacing)

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """Centres of the bins in cycles/mm."""
        return np.asarray((np.arange(self.bins) + 0.5) * (self.nyquist / self.bins), np.float64)

    def add(self, real: NDArray, fake: NDArray) -> None:
        """One slice (H, W) of each in physical units. ValueError for shapes that differ or a side below 8 pixels."""
        if np.shape(real) != np.shape(fake) or min(np.shape(real)) < SMALLEST_SIDE:
            raise ValueError(
                f"spectra need two slices of one shape, at least {SMALLEST_SIDE} pixels wide, got {np.shape(real)} and "
                f"{np.shape(fake)}"
            )
        plan = _plan(tuple(np.shape(real)), self.spacing, self.bins)
        for i, image in enumerate((real, fake)):
            self._sums[i] += plan.sums(image)
        self._counts += plan.counts
        self.slices += 1

    @property
    def real(self) -> NDArray[np.float64]:
        """Power spectral density of the real slices per bin, in (unit of the images)²·mm²; NaN for empty bins."""
        return self._curve(0)

    @property
    def fake(self) -> NDArray[np.float64]:
        """As `real`, of the generated slices."""
        return self._curve(1)

    def _curve(self, which: int) -> NDArray[np.float64]:
        counts = np.where(self._counts > 0, self._counts, np.nan)
        return self._sums[which] / counts

    @property
    def distance(self) -> float:
        """`spectrum_distance` of the two curves; NaN without a slice."""
        return spectrum_distance(self.real, self.fake)


def spectrum_distance(real: NDArray, fake: NDArray) -> float:
    """Mean over the bins of |log10(fake power / real power)|, >= 0, lower is better; ten times it is in dB.

    0 for equal spectra, symmetric, and the same in any intensity unit. Bins that are empty (NaN) in both are left out,
    NaN where all are, or where one curve alone is NaN. Power below 1e-12 of the largest counts as that, so that a
    constant image is far from everything, but not infinitely.
    """
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    known = ~(np.isnan(real) & np.isnan(fake))
    if not known.any():
        return math.nan
    real, fake = real[known], fake[known]
    floor = FLOOR * max(real.max(), fake.max())
    if floor == 0:  # all images constant: equally without texture
        return 0.0
    return float(np.abs(np.log10(np.maximum(fake, floor)) - np.log10(np.maximum(real, floor))).mean())


@dataclass(frozen=True)
class _Plan:
    """What depends on the size of a slice only. C: coefficients of the real transform, H·(W // 2 + 1)."""

    window: NDArray[np.float64]  # (H, W), sums to 1
    index: NDArray[np.intp]  # (C,) bin of each coefficient; those above Nyquist in one bin more
    weight: NDArray[np.float64]  # (C,) 2 where the transform leaves out the conjugate; 0 at zero frequency
    counts: NDArray[np.float64]  # (bins,)
    scale: float  # |coefficient|² -> power spectral density

    def sums(self, image: NDArray) -> NDArray[np.float64]:
        """Sum of the power spectral density per bin: (H, W) -> (bins,)."""
        values = np.asarray(image, np.float64)
        # The mean under the window, so that it leaks nothing into the lowest frequencies.
        values = (values - (self.window * values).sum()) * self.window
        transform = fft.rfft2(values).ravel()
        power = (transform.real**2 + transform.imag**2) * self.weight
        bins = len(self.counts)
        return np.asarray(np.bincount(self.index, power, minlength=bins + 1)[:bins] * self.scale, np.float64)


@functools.lru_cache(maxsize=16)
def _plan(shape: tuple[int, int], spacing: tuple[float, float], bins: int) -> _Plan:
    H, W = shape
    # Hann windows over the pixels' centres, so symmetric.
    window = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in shape))
    window /= window.sum()
    radius = np.hypot(fft.fftfreq(H, spacing[0])[:, None], fft.rfftfreq(W, spacing[1]))  # (H, W // 2 + 1) cycles/mm
    nyquist = 0.5 / max(spacing)
    position = radius / nyquist * bins
    index = np.floor(position * (1 - 1e-12)).astype(np.intp)  # upper ends belong to a bin, so Nyquist to the last
    index[position > bins * (1 + 1e-9)] = bins
    index = np.minimum(index, bins).ravel()
    weight = np.full(radius.shape, 2.0)
    weight[:, 0] = 1
    if W % 2 == 0:
        weight[:, -1] = 1
    weight[0, 0] = 0  # the mean is no texture
    counts = np.bincount(index, weight.ravel(), minlength=bins + 1)[:bins].astype(np.float64)
    scale = spacing[0] * spacing[1] / float((window**2).sum())
    return _Plan(window, index, weight.ravel(), counts, scale)
