"""Texture by spatial frequency: radially averaged power spectra of slices and the distance between two of them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from evaluation.metrics.metric import TEXTURE, CaseSlices, Metric

BINS = 64
SMALLEST_SIDE = 8  # pixels; below, a window of Hann leaves nothing to transform
FLOOR = 1e-12  # of the largest power: less is rounding, and a constant image has none at all


class CaseSpectrum:
    """Radial power spectra of the real and generated slices of one case and channel, averaged slice by slice.

    spacing: mm per pixel along rows and columns, (between rows, between columns). Frequencies are in cycles/mm up to
    the Nyquist frequency of the coarser axis, in 64 bins of equal width. Slices may differ in size.
    """

    def __init__(self, spacing: tuple[float, float]) -> None:
        self.spacing = (float(spacing[0]), float(spacing[1]))
        self._sums = np.zeros((2, BINS))
        self._counts = np.zeros(BINS)

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """Centres of the bins in cycles/mm."""
        return np.asarray((np.arange(BINS) + 0.5) * (0.5 / max(self.spacing) / BINS), np.float64)

    def add(self, real: NDArray, fake: NDArray) -> None:
        """One slice (H, W) of each in physical units, from 8 pixels a side on."""
        plan = _plan(tuple(np.shape(real)), self.spacing)
        for i, image in enumerate((real, fake)):
            self._sums[i] += plan.sums(image)
        self._counts += plan.counts

    @property
    def curves(self) -> NDArray[np.float64]:
        """(2, bins) power spectral density of the real and of the generated slices, in (unit of the images)²·mm²."""
        return self._sums / np.where(self._counts > 0, self._counts, np.nan)  # NaN for empty bins


def distance(case: CaseSlices) -> dict[str, float]:
    """`spectrum_distance` of the slices of a case; NaN without one that is large enough."""
    spectrum = CaseSpectrum(case.spacing[1:])
    for item in case.scored:
        if min(item.real.shape) >= SMALLEST_SIDE:
            spectrum.add(*item.physical)
    return {"spectrum_distance": spectrum_distance(*spectrum.curves)}


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


@functools.lru_cache(maxsize=16)
def _hann(shape: tuple[int, int]) -> NDArray[np.float64]:
    """Window over the pixels' centres, so symmetric; sums to 1."""
    window = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in shape))
    return np.asarray(window / window.sum(), np.float64)


def hann_power(image: NDArray) -> NDArray[np.float64]:
    """|coefficient|² (H, W // 2 + 1) of the real transform of an image (H, W) under a window of Hann."""
    values, window = np.asarray(image, np.float64), _hann((image.shape[0], image.shape[1]))
    # Less the mean under the window, so that it leaks nothing into the lowest frequencies.
    transform = fft.rfft2((values - np.vdot(window, values)) * window)
    return np.asarray(transform.real**2 + transform.imag**2, np.float64)


@dataclass(frozen=True)
class _Plan:
    """What depends on the size of a slice only. C: coefficients of the real transform, H·(W // 2 + 1)."""

    index: NDArray[np.intp]  # (C,) bin of each coefficient; those above Nyquist in one bin more
    weight: NDArray[np.float64]  # (C,) 2 where the transform leaves out the conjugate; 0 at zero frequency
    counts: NDArray[np.float64]  # (bins,)
    scale: float  # |coefficient|² -> power spectral density

    def sums(self, image: NDArray) -> NDArray[np.float64]:
        """Sum of the power spectral density per bin: (H, W) -> (bins,)."""
        power = hann_power(image).ravel() * self.weight
        return np.asarray(np.bincount(self.index, power, minlength=BINS + 1)[:BINS] * self.scale, np.float64)


@functools.lru_cache(maxsize=16)
def _plan(shape: tuple[int, int], spacing: tuple[float, float]) -> _Plan:
    H, W = shape
    radius = np.hypot(fft.fftfreq(H, spacing[0])[:, None], fft.rfftfreq(W, spacing[1]))  # (H, W // 2 + 1) cycles/mm
    nyquist = 0.5 / max(spacing)
    position = radius / nyquist * BINS
    index = np.floor(position * (1 - 1e-12)).astype(np.intp)  # upper ends belong to a bin, so Nyquist to the last
    index[position > BINS * (1 + 1e-9)] = BINS
    index = np.minimum(index, BINS).ravel()
    weight = np.full(radius.shape, 2.0)
    weight[:, 0] = 1
    if W % 2 == 0:
        weight[:, -1] = 1
    weight[0, 0] = 0  # the mean is no texture
    counts = np.bincount(index, weight.ravel(), minlength=BINS + 1)[:BINS].astype(np.float64)
    scale = spacing[0] * spacing[1] / float((_hann(shape) ** 2).sum())
    return _Plan(index, weight.ravel(), counts, scale)


METRICS = (
    Metric(
        *("spectrum_distance", "Spectrum distance", TEXTURE, "case", "lower", ""),
        reason="slices need sides of at least 8 pixels",
        setting="radial power of slices under a Hann window, mean |log10 ratio| over 64 bins to Nyquist, by case",
        of=distance,
    ),
)
