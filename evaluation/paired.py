"""Metrics between a generated slice and the real slice of the same label map: arrays (H, W) in physical units."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity


def mae(real: NDArray, fake: NDArray, mask: NDArray[np.bool_] | None = None) -> float:
    """Mean absolute error in the images' unit, over all pixels or those of `mask`; NaN for an empty mask."""
    return _mean(np.abs(_difference(real, fake)), mask)


def rmse(real: NDArray, fake: NDArray, mask: NDArray[np.bool_] | None = None) -> float:
    """Root mean square error in the images' unit, over all pixels or those of `mask`; NaN for an empty mask."""
    return math.sqrt(_mean(_difference(real, fake) ** 2, mask))


def psnr(real: NDArray, fake: NDArray, data_range: float) -> float:
    """10·log10(data_range² / MSE) in dB, for one image; inf for identical images. data_range: the window's width."""
    mse = _mean(_difference(real, fake) ** 2, None)
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)


def ssim(real: NDArray, fake: NDArray, low: float, data_range: float) -> float:
    """Structural similarity with the settings of Wang et al., IEEE TIP 2004: 11×11 Gaussian, sigma 1.5, K1 .01, K2 .03.

    low, data_range: lowest intensity and width of the window, fixed by the data set and never taken from the images.
    `low` is subtracted, because the luminance term compares ratios of means: in plain HU it would be blind in air and
    judge soft tissue around 0 HU by its sign. ValueError for images smaller than the 11×11 window.
    """
    if min(real.shape) < 11:
        raise ValueError(f"SSIM needs images of at least 11×11 pixels, got {real.shape}")
    return float(
        structural_similarity(
            np.asarray(real, np.float64) - low,
            np.asarray(fake, np.float64) - low,
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def _difference(real: NDArray, fake: NDArray) -> NDArray[np.float64]:
    return np.asarray(fake, np.float64) - np.asarray(real, np.float64)


def _mean(values: NDArray, mask: NDArray[np.bool_] | None) -> float:
    chosen = values if mask is None else values[mask]
    return float(chosen.mean()) if chosen.size else math.nan
