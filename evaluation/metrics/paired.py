"""Metrics between a generated slice and the real slice of the same label map: arrays (H, W) in physical units."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

TAPS, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # the settings of Wang et al. 2004
BLOCK = 16  # rows of the banded matrix; 8 to 24 take about the same time
SLAB = 2**13  # pixels at a time, or BLOCK slices of a volume


def mae(real: NDArray, fake: NDArray, mask: NDArray[np.bool_] | None = None) -> float:
    """Mean absolute error in the images' unit, over all pixels or those of `mask`; NaN for an empty mask."""
    return _mean(np.abs(_difference(real, fake)), mask)


def rmse(real: NDArray, fake: NDArray, mask: NDArray[np.bool_] | None = None) -> float:
    """Root mean square error in the images' unit, over all pixels or those of `mask`; NaN for an empty mask."""
    return math.sqrt(_mean(_difference(real, fake) ** 2, mask))


def psnr(real: NDArray, fake: NDArray, data_range: float, mask: NDArray[np.bool_] | None = None) -> float:
    """10·log10(data_range² / MSE) in dB, for one image, over all pixels or those of `mask`.

    data_range: the window's width. inf for identical images, NaN for an empty mask.
    """
    mse = _mean(_difference(real, fake) ** 2, mask)
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)


def ssim(real: NDArray, fake: NDArray, low: float, data_range: float) -> float:
    """Structural similarity with the settings of Wang et al., IEEE TIP 2004: 11×11 Gaussian, sigma 1.5, K1 .01, K2 .03.

    low, data_range: lowest intensity and width of the window, fixed by the data set and never taken from the images.
    `low` is subtracted, because the luminance term compares ratios of means: in plain HU it would be blind in air and
    judge soft tissue around 0 HU by its sign. ValueError for images smaller than the 11×11 window.
    """
    if min(real.shape) < TAPS:
        raise ValueError(f"SSIM needs images of at least 11×11 pixels, got {real.shape}")
    return similarity(real, fake, low, data_range)[0]


def image_fault(image: NDArray) -> str | None:
    """``non-finite`` for an image with a NaN or an infinite value, ``constant`` for one with a single value, else None."""
    low, high = np.min(image), np.max(image)  # both are NaN where any pixel is
    if not (np.isfinite(low) and np.isfinite(high)):
        return "non-finite"
    return "constant" if low == high else None


# -- local statistics ---------------------------------------------------------------------------------------------


def similarity(real: NDArray, fake: NDArray, low: float, data_range: float) -> tuple[float, float]:
    """SSIM and the mean of its contrast·structure term (Wang 2004, eq. 6 and 9-13) of two images or volumes.

    At least 11 wide along each axis. Means over the places where the whole Gaussian window lies inside, so no rule for
    the border is needed. Slab by slab along the first axis: memory stays small for volumes, and in the cache for slices.
    ValueError where shapes differ.
    """
    if real.shape != fake.shape:
        raise ValueError(f"images to compare have shapes {real.shape} and {fake.shape}")
    places = real.shape[0] - TAPS + 1
    depth = BLOCK * max(1, SLAB // (BLOCK * math.prod(real.shape[1:])))
    total, total_contrast, count = 0.0, 0.0, 0
    for start in range(0, places, depth):
        slab = slice(start, min(start + depth, places) + TAPS - 1)
        luminance, contrast_structure = _similarity_terms(real[slab], fake[slab], low, data_range)
        total += float((luminance * contrast_structure).sum())
        total_contrast += float(contrast_structure.sum())
        count += luminance.size
    return total / count, total_contrast / count


def _similarity_terms(
    real: NDArray, fake: NDArray, low: float, data_range: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Luminance and contrast·structure term at each place of the window: both 10 smaller than the images along each axis.

    In place wherever it can be: fresh memory costs more time than the arithmetic.
    """
    moments = np.empty((4, *real.shape))  # of x and y, the images above `low`: x, y, x² + y², x·y
    x, y, squares, product = moments
    np.subtract(real, low, out=x, dtype=np.float64)
    np.subtract(fake, low, out=y, dtype=np.float64)
    np.multiply(x, x, out=squares)
    np.multiply(y, y, out=product)
    squares += product  # the two variances are needed as their sum only
    np.multiply(x, y, out=product)
    for axis in range(1, moments.ndim):
        moments = _smooth(moments, axis)
    mean_x, mean_y, squares, product = moments
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    means = mean_x * mean_y
    mean_x *= mean_x
    mean_y *= mean_y
    mean_x += mean_y
    # contrast·structure: (2 cov + c2) / (var_x + var_y + c2)
    product -= means
    product *= 2
    product += c2
    squares -= mean_x
    squares += c2
    product /= squares
    # luminance: (2 mean_x mean_y + c1) / (mean_x² + mean_y² + c1)
    means *= 2
    means += c1
    mean_x += c1
    means /= mean_x
    return means, product


def _gaussian_bands(block: int) -> NDArray[np.float64]:
    """(block, block + 10) matrix: each row is the 11-tap Gaussian, one place further than the row above."""
    taps = np.exp(-0.5 * (np.arange(-(TAPS // 2), TAPS // 2 + 1) / SIGMA) ** 2)
    bands = np.zeros((block, block + TAPS - 1))
    for i in range(block):
        bands[i, i : i + TAPS] = taps / taps.sum()
    return bands


def _smooth(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Gaussian along one axis, where the whole window fits: (..., n, ...) -> (..., n - 10, ...).

    Short products with a banded matrix: a third of the time of a direct convolution, though half the factors are 0.
    """
    places = values.shape[axis] - TAPS + 1
    shape = (*values.shape[:axis], places, *values.shape[axis + 1 :])
    after = math.prod(values.shape[axis + 1 :])
    values = values.reshape(-1, values.shape[axis], after)
    smooth = np.empty((len(values), places, after))
    if after == 1:  # along the last axis: the matrix on the right
        values, smooth = values[..., 0].reshape(-1, values.shape[1]), smooth[..., 0]
    for start in range(0, places, BLOCK):
        stop = min(start + BLOCK, places)
        bands = BANDS[: stop - start, : stop - start + TAPS - 1]
        if after == 1:
            np.matmul(values[:, start : stop + TAPS - 1], bands.T, out=smooth[:, start:stop])
        else:
            np.matmul(bands, values[:, start : stop + TAPS - 1], out=smooth[:, start:stop])
    return smooth.reshape(shape)


# -- parts --------------------------------------------------------------------------------------------------------


def _difference(real: NDArray, fake: NDArray) -> NDArray[np.float64]:
    return np.asarray(fake, np.float64) - np.asarray(real, np.float64)


def _mean(values: NDArray, mask: NDArray[np.bool_] | None) -> float:
    chosen = values if mask is None else values[mask]
    return float(chosen.mean()) if chosen.size else math.nan


BANDS = _gaussian_bands(BLOCK)
