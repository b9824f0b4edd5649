"""Structural similarity of two images, at five scales, and of two volumes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.intensity import Window
from evaluation.metrics.metric import AGREEMENT, VARIETY, CaseSlices, Metric, stacked
from evaluation.pairs import Item
from evaluation.statistics import nan_mean

TAPS, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # the settings of Wang et al. 2004
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli and Bovik, Asilomar 2003, section 3.2
LARGEST_REFUSED = (TAPS - 1) * 2 ** (len(WEIGHTS) - 1)  # 160: the 11×11 window has to fit into the coarsest scale
BLOCK = 16  # rows of the banded matrix; 8 to 24 take about the same time
SLAB = 2**13  # pixels at a time, or BLOCK slices of a volume


def similarities(real: NDArray, fake: NDArray, window: Window) -> tuple[float, float]:
    """SSIM and MS-SSIM of two slices (H, W) in physical units; NaN for the one, or both, that they are too small for.

    SSIM: Wang et al., IEEE TIP 2004, 11×11 Gaussian, sigma 1.5, K1 .01, K2 .03; from 11 pixels a side. MS-SSIM: Wang et
    al., Asilomar 2003, eq. 7, five scales; above 160 pixels a side, because the window does not fit into the fifth scale
    of smaller ones, and fewer scales would be another metric under the same name.
    window: fixed by the data set and never taken from the images. Its lower end is subtracted, because the luminance term
    compares ratios of means: in plain HU it would be blind in air and judge soft tissue around 0 HU by its sign.
    """
    if min(real.shape) < TAPS:
        return math.nan, math.nan
    single, contrast = similarity(real, fake, window.low, window.width)
    if min(real.shape) <= LARGEST_REFUSED:
        return single, math.nan
    factors = []
    ssim = single
    for _ in WEIGHTS[1:]:
        factors.append(contrast)
        real, fake = halved(real), halved(fake)
        ssim, contrast = similarity(real, fake, window.low, window.width)
    factors.append(ssim)  # luminance counts at the coarsest scale only
    # A negative mean has no real power. Nothing alike, as in TensorFlow's version. NaN stays NaN.
    return single, math.prod(0.0 if f < 0 else f**weight for f, weight in zip(factors, WEIGHTS, strict=True))


def halved(image: NDArray) -> NDArray[np.float64]:
    """Means of 2×2 pixels; an odd side is first made even by repeating its last row or column, as Wang's code does."""
    image = np.asarray(image, np.float64)
    H, W = image.shape
    if H % 2 or W % 2:
        image = np.pad(image, ((0, H % 2), (0, W % 2)), mode="edge")
    rows = image[::2] + image[1::2]
    return np.asarray((rows[:, ::2] + rows[:, 1::2]) / 4, np.float64)


def pairwise_similarities(draws: Sequence[NDArray], window: Window) -> tuple[float, float]:
    """Mean SSIM and MS-SSIM over all pairs of draws (H, W) in physical units; 1 where all draws are equal.

    Zhu et al. 2017 measured the diversity of image translation so, with LPIPS in place of SSIM. Cost grows with the
    square of the number of draws.
    """
    values = [similarities(a, b, window) for a, b in itertools.combinations(draws, 2)]
    return nan_mean([ssim for ssim, _ in values]), nan_mean([ms_ssim for _, ms_ssim in values])


def ssim_3d(case: CaseSlices) -> dict[str, float]:
    """SSIM with a Gaussian of 11×11×11 voxels on the runs of at least 11 slices, weighted by its places along z.

    The window is in voxels, not mm: compare methods on the same grid only.
    """
    total, places = 0.0, 0
    for run in case.runs:
        count = len(run) - TAPS + 1
        if count > 0 and min(run[0].real.shape) >= TAPS:
            real, fake, _ = stacked(run)
            total += similarity(real, fake, run[0].window.low, run[0].window.width)[0] * count
            places += count
    return {"ssim_3d": total / places if places else math.nan}


# -- the local window ---------------------------------------------------------------------------------------------


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


BANDS = _gaussian_bands(BLOCK)


# -- declarations ---------------------------------------------------------------------------------------------------


def _of_slice(item: Item) -> dict[str, float]:
    return dict(zip(("ssim", "ms_ssim"), similarities(*item.physical, item.window), strict=True))


def _of_draws(item: Item) -> dict[str, float]:
    names = "diversity_ssim", "diversity_ms_ssim"
    return dict(zip(names, pairwise_similarities(item.draws, item.window), strict=True)) if item.draws else {}


_SMALL = "slices need sides of at least 11 pixels"
_SMALL_FOR_SCALES = f"slices need sides of more than {LARGEST_REFUSED} pixels"
BETWEEN_DRAWS = "mean over all pairs of draws of a label map"
METRICS = (
    Metric(
        *("ssim", "SSIM", AGREEMENT, "slice", "higher", ""),
        windowed=True,
        reason=_SMALL,
        setting="2-D, on intensity minus window low, data range = window width, Gaussian 11x11 sigma 1.5, K1 0.01, K2 0.03",
        of=_of_slice,
    ),
    Metric(
        *("ms_ssim", "MS-SSIM", AGREEMENT, "slice", "higher", ""),
        windowed=True,
        reason=_SMALL_FOR_SCALES,
        quiet=True,
        setting="2-D, five scales, weights of Wang et al. 2003, as ssim otherwise",
        of=_of_slice,
    ),
    Metric(
        *("ssim_3d", "3-D SSIM", AGREEMENT, "case", "higher", ""),
        windowed=True,
        reason="needs 11 adjacent slices of at least 11 x 11 pixels",
        setting="as ssim with a Gaussian of 11x11x11 voxels, on runs of adjacent slices, weighted by their length; by case",
        of=ssim_3d,
    ),
    Metric(
        *("diversity_ssim", "SSIM between draws", VARIETY, "slice", None, "", ("draws",)),
        windowed=True,
        reason=_SMALL,
        setting=BETWEEN_DRAWS,
        of=_of_draws,
    ),
    Metric(
        *("diversity_ms_ssim", "MS-SSIM between draws", VARIETY, "slice", None, "", ("draws",)),
        windowed=True,
        quiet=True,
        reason=_SMALL_FOR_SCALES,
        setting=BETWEEN_DRAWS,
        of=_of_draws,
    ),
)
