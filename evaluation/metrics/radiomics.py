"""Texture features of a slice that need no weights: what a radiologist's software would measure inside the body.

For Fréchet distance, KID and neighbourhood metrics where no pretrained network is at hand, under the name "radiomics".
Not the FRD of Konz et al. 2026: that has other features (pyradiomics), another scale and a logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from skimage.feature import graycomatrix, graycoprops

GLCM_LEVELS, GLCM_DISTANCES = 32, (1, 2)
GLCM_ANGLES = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
LBP_POINTS, LBP_LEVELS = 8, 256
WAVELET_SCALES = 3
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # of a block of 2×2
_PERCENTILES = (5, 10, 25, 50, 75, 90, 95)
_GLCM = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "ASM", "entropy")

_FIRST_ORDER_NAMES = (
    *("mean", "std", "skewness", "kurtosis", *(f"p{p:02d}" for p in _PERCENTILES)),
    *("interquartile_range", "mean_absolute_deviation", "root_mean_square", "entropy", "uniformity"),
)
_GLCM_NAMES = tuple(f"glcm_{name.lower()}_{distance}" for distance in GLCM_DISTANCES for name in _GLCM)
_LBP_NAMES = tuple(f"lbp_{i}" for i in range(LBP_POINTS + 2))
_GRADIENT_NAMES = ("gradient_mean", "gradient_std", "gradient_p50", "gradient_p90")
_WAVELET_NAMES = tuple(f"haar_{band}_{s}" for s in range(1, WAVELET_SCALES + 1) for band in ("lh", "hl", "hh"))
FEATURE_NAMES = (*_FIRST_ORDER_NAMES, *_GLCM_NAMES, *_LBP_NAMES, *_GRADIENT_NAMES, *_WAVELET_NAMES)


def slice_features(image: ArrayLike, mask: ArrayLike) -> NDArray[np.float64]:
    """Features (d,) named by FEATURE_NAMES of an image (H, W) in [0, 1], from its pixels in the mask (H, W) only.

    Always finite. An empty mask gives zeros; so does a group of features for which the mask is too thin (no pair of
    neighbours, no pixel with all its neighbours, no whole wavelet block). A constant image has skewness and kurtosis 0
    and GLCM correlation 1.
    """
    x, inside = np.asarray(image, np.float64), np.asarray(mask, bool)
    if not inside.any():
        return np.zeros(len(FEATURE_NAMES))
    values = np.sort(x[inside])
    (top, bottom), (left, right) = (np.flatnonzero(inside.any(axis))[[0, -1]] for axis in (1, 0))
    box = np.s_[top : bottom + 1, left : right + 1]
    inside = inside[box]
    x = np.where(inside, x[box], 0.0)
    # Equal bins over [0, 1], so that a level means the same intensity in every image.
    levels = np.minimum(x * LBP_LEVELS, LBP_LEVELS - 1).astype(np.uint8)
    # Pixels whose eight neighbours are all inside: the edge of the body is not a texture. One smaller at each side.
    core = inside[:-2] & inside[1:-1] & inside[2:]
    core = core[:, :-2] & core[:, 1:-1] & core[:, 2:]
    parts = (_first_order(values), _glcm(levels, inside), _lbp(levels, core), _gradient(x, core), _wavelet(x, inside))
    return np.concatenate(parts)


def standardise(
    *, real: ArrayLike, fake: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...]]:
    """Both sets (n, d), (m, d) as z-scores by mean and standard deviation of the real one, and the features left out.

    A feature that is the same in all real samples has no scale and is left out of both sets, by name, even where it
    varies in the fake ones. For floors, standardise by all real samples before they are split.
    """
    x, y = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    mean, std = x.mean(0), x.std(0)
    kept = std > 1e-9 * np.abs(x).max(0)  # below is rounding
    dropped = tuple(name for name, keep in zip(FEATURE_NAMES, kept, strict=True) if not keep)
    return (x[:, kept] - mean[kept]) / std[kept], (y[:, kept] - mean[kept]) / std[kept], dropped


# -- groups of features -------------------------------------------------------------------------------------------


def _first_order(values: NDArray) -> NDArray[np.float64]:
    """Moments, percentiles and histogram (32 bins over [0, 1]) of sorted intensities; kurtosis is 0 for a Gaussian."""
    n, mean = len(values), values.mean()
    constant = values[0] == values[-1]
    centred = np.zeros(1) if constant else values - mean
    squared = centred * centred
    variance = squared.mean()
    percentiles = _percentiles(values, _PERCENTILES)
    share = np.diff(np.searchsorted(values, np.arange(1, GLCM_LEVELS) / GLCM_LEVELS), prepend=0, append=n) / n
    return np.array(
        [
            mean,
            np.sqrt(variance),
            0.0 if constant else squared @ centred / n / variance**1.5,
            0.0 if constant else squared @ squared / n / variance**2 - 3,
            *percentiles,
            percentiles[4] - percentiles[2],
            np.abs(centred).mean(),
            np.sqrt(values @ values / n),
            -(share * np.log2(share, out=np.zeros_like(share), where=share > 0)).sum() + 0.0,
            (share**2).sum(),
        ]
    )


def _percentiles(ordered: NDArray, percent: Sequence[int]) -> NDArray[np.float64]:
    """As numpy.percentile, of values that are sorted already: NumPy's search is several times slower than sorting."""
    place = np.array(percent) / 100 * (len(ordered) - 1)
    below = place.astype(np.intp)
    low, high = ordered[below], ordered[np.minimum(below + 1, len(ordered) - 1)]
    return np.asarray(low + (high - low) * (place - below), np.float64)


def _glcm(levels: NDArray[np.uint8], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Haralick's properties of the co-occurrence matrix of 32 levels at each distance, pooled over four angles."""
    # Level 0 is outside; pairs with it are cut out of the matrix.
    levels = np.where(inside, levels // (LBP_LEVELS // GLCM_LEVELS) + 1, 0)
    counts = graycomatrix(levels, GLCM_DISTANCES, GLCM_ANGLES, GLCM_LEVELS + 1, symmetric=True)[1:, 1:]
    pooled = counts.sum(axis=3, keepdims=True)  # (levels, levels, distances, 1)
    properties = np.stack([graycoprops(pooled, name)[:, 0] for name in _GLCM], axis=1)
    properties[pooled.sum(axis=(0, 1, 3)) == 0] = 0
    return properties.ravel()


def _lbp(levels: NDArray[np.uint8], core: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Shares of the rotation-invariant uniform local binary patterns of 3×3 pixels on 256 levels.

    0..8: so many neighbours in a row around the pixel are not darker than it; 9: more than one such row. Ojala et al.
    2002, with the square's corners as they are (scikit-image interpolates them on a circle, which takes ten times as
    long).
    """
    if not core.any():
        return np.zeros(len(_LBP_NAMES))
    H, W = core.shape
    around = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    brighter = [levels[i : H + i, j : W + j] >= levels[1:-1, 1:-1] for i, j in around]
    number, changes = np.zeros((2, H, W), np.uint8)
    for here, before in zip(brighter, (brighter[-1], *brighter), strict=False):
        number += here
        changes += here != before
    patterns = np.where(changes <= 2, number, LBP_POINTS + 1)[core]
    return np.bincount(patterns, minlength=LBP_POINTS + 2) / len(patterns)


def _gradient(x: NDArray, core: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of the length of the gradient by central differences, per pixel."""
    if not core.any():
        return np.zeros(len(_GRADIENT_NAMES))
    along_y, along_x = x[2:, 1:-1] - x[:-2, 1:-1], x[1:-1, 2:] - x[1:-1, :-2]
    length = np.sort(np.sqrt(along_y * along_y + along_x * along_x)[core]) / 2
    return np.array([length.mean(), length.std(), *_percentiles(length, (50, 90))])


def _wavelet(x: NDArray, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Root mean square of the detail coefficients of an orthonormal Haar transform, of blocks that lie in the mask."""
    energies = []
    for _ in range(WAVELET_SCALES):
        rows, columns = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
        a, b, c, d = (x[i:rows:2, j:columns:2] for i, j in _CORNERS)
        whole = np.logical_and.reduce([inside[i:rows:2, j:columns:2] for i, j in _CORNERS])
        upper, lower, left, right = a + b, c + d, a - b, c - d
        for band in (left + right, upper - lower, left - right):
            energies.append(np.sqrt((band[whole] ** 2).mean()) / 2 if whole.any() else 0.0)
        x, inside = (upper + lower) / 2, whole
    return np.array(energies)
