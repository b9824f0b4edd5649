"""Metrics of whole volumes: errors within a mask, summed slice by slice or at once, and SSIM in three dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.paired import TAPS, similarity


@dataclass(frozen=True)
class Errors:
    """Sums of |fake - real| and of (fake - real)² over voxels; they add up over slices, in any order and grouping."""

    absolute: float = 0.0
    squared: float = 0.0
    voxels: int = 0

    def __add__(self, other: Errors) -> Errors:
        return Errors(self.absolute + other.absolute, self.squared + other.squared, self.voxels + other.voxels)

    @property
    def mae(self) -> float:
        """Mean absolute error in the images' unit, >= 0; NaN without a voxel."""
        return self.absolute / self.voxels if self.voxels else math.nan

    @property
    def rmse(self) -> float:
        """Root mean square error in the images' unit, >= 0; NaN without a voxel."""
        return math.sqrt(self.squared / self.voxels) if self.voxels else math.nan

    def psnr(self, data_range: float) -> float:
        """10·log10(data_range² / MSE) in dB over all voxels at once; inf for identical volumes, NaN without a voxel.

        Not the mean of the slices' PSNR: the logarithm of a mean is not the mean of logarithms.
        """
        if not self.voxels:
            return math.nan
        return 20 * math.log10(data_range / self.rmse) if self.squared > 0 else math.inf


def volume_errors(real: NDArray, fake: NDArray, mask: NDArray[np.bool_] | None = None) -> Errors:
    """`Errors` of two slices or volumes of one shape in physical units, over all voxels or those of `mask`."""
    if np.shape(real) != np.shape(fake):
        raise ValueError(f"images to compare have shapes {np.shape(real)} and {np.shape(fake)}")
    if mask is not None:
        if np.shape(mask) != np.shape(real):
            raise ValueError(f"images have shape {np.shape(real)}, their mask {np.shape(mask)}")
        real, fake = real[mask], fake[mask]
    difference = (np.asarray(fake, np.float64) - np.asarray(real, np.float64)).ravel()
    return Errors(float(np.abs(difference).sum()), float(np.square(difference).sum()), difference.size)


def ssim3d(real: NDArray, fake: NDArray, low: float, data_range: float) -> float:
    """Structural similarity of two volumes (D, H, W): as `paired.ssim`, with an 11×11×11 Gaussian of sigma 1.5 voxels.

    The window is in voxels, not mm: compare methods on the same grid only. ValueError for volumes of fewer than 11
    slices, rows or columns.
    """
    if np.ndim(real) != 3 or np.shape(real) != np.shape(fake):
        raise ValueError(f"3-D SSIM needs two volumes of one shape, got {np.shape(real)} and {np.shape(fake)}")
    if min(real.shape) < TAPS:
        raise ValueError(f"3-D SSIM needs volumes of at least 11×11×11 voxels, got {real.shape}")
    return similarity(real, fake, low, data_range)[0]
