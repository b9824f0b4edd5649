"""Multi-scale structural similarity of two slices: SSIM at five resolutions, weighed as people judge them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import paired
from evaluation.metrics.paired import TAPS, similarity

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli and Bovik, Asilomar 2003, section 3.2
LARGEST_REFUSED = (TAPS - 1) * 2 ** (len(WEIGHTS) - 1)  # 160: the 11×11 window has to fit into the coarsest scale


def ms_ssim(real: NDArray, fake: NDArray, low: float, data_range: float) -> float:
    """MS-SSIM of two slices (H, W), 0..1, higher is better: Wang et al., Asilomar 2003, eq. 7, five scales.

    low, data_range: as in `paired.ssim`, fixed by the data set. ValueError for a side of 160 pixels or fewer, because
    the window does not fit into the fifth scale, and fewer scales would be another metric under the same name.
    """
    return ssim_and_ms_ssim(real, fake, low, data_range)[1]


def ssim_and_ms_ssim(real: NDArray, fake: NDArray, low: float, data_range: float) -> tuple[float, float]:
    """`paired.ssim` and `ms_ssim` of the same slices, for little more than the time of the second."""
    if min(real.shape) <= LARGEST_REFUSED:
        raise ValueError(f"MS-SSIM needs sides of more than {LARGEST_REFUSED} pixels, got {real.shape}")
    factors = []
    single = math.nan
    for scale in range(len(WEIGHTS)):
        ssim, contrast_structure = similarity(real, fake, low, data_range)
        if scale == 0:
            single = ssim
        if scale < len(WEIGHTS) - 1:
            factors.append(contrast_structure)
            real, fake = halved(real), halved(fake)
        else:  # luminance counts at the coarsest scale only
            factors.append(ssim)
    # A negative mean has no real power. Nothing alike, as in TensorFlow's version. NaN stays NaN.
    return single, math.prod(0.0 if f < 0 else f**weight for f, weight in zip(factors, WEIGHTS, strict=True))


def similarities(real: NDArray, fake: NDArray, low: float, data_range: float) -> tuple[float, float]:
    """SSIM and MS-SSIM of two slices; NaN for the one, or both, whose window they are too small for."""
    if min(real.shape) > LARGEST_REFUSED:
        return ssim_and_ms_ssim(real, fake, low, data_range)
    return (paired.ssim(real, fake, low, data_range) if min(real.shape) >= TAPS else math.nan), math.nan


def halved(image: NDArray) -> NDArray[np.float64]:
    """Means of 2×2 pixels; an odd side is first made even by repeating its last row or column, as Wang's code does."""
    image = np.asarray(image, np.float64)
    H, W = image.shape
    if H % 2 or W % 2:
        image = np.pad(image, ((0, H % 2), (0, W % 2)), mode="edge")
    rows = image[::2] + image[1::2]
    return np.asarray((rows[:, ::2] + rows[:, 1::2]) / 4, np.float64)
