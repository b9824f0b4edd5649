"""Texture features of a slice that need no weights: what a radiologist's software would measure inside the body.

For Fréchet distance, KID and neighbourhood metrics where no pretrained network is at hand, under the name "radiomics".
Not the FRD of Konz et al. 2026: that has other features (pyradiomics), another scale and a logarithm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion, find_objects
from skimage.feature import graycomatrix, graycoprops

GLCM_LEVELS, GLCM_DISTANCES = 32, (1, 2)
GLCM_ANGLES = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
LBP_POINTS = 8
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
    values = x[inside]
    box = find_objects(inside.astype(np.uint8))[0]
    inside = inside[box]
    x = np.where(inside, x[box], 0.0)
    # Pixels whose eight neighbours are all inside: the edge of the body is not a texture.
    core = binary_erosion(inside, np.ones((3, 3)))
    parts = (_first_order(values), _glcm(x, inside), _lbp(x, core), _gradient(x, core), _wavelet(x, inside))
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
    """Moments, percentiles and histogram (32 bins over [0, 1]) of the intensities; kurtosis is 0 for a Gaussian."""
    mean, std = values.mean(), values.std()
    constant = values.min() == values.max()
    z = np.zeros(1) if constant else (values - mean) / std
    squared = z * z  # z ** 3 and z ** 4 are slow in NumPy
    percentiles = np.percentile(values, _PERCENTILES)
    share = np.bincount(_quantised(values, GLCM_LEVELS), minlength=GLCM_LEVELS) / len(values)
    return np.array(
        [
            mean,
            0.0 if constant else std,
            (squared * z).mean(),
            0.0 if constant else (squared * squared).mean() - 3,
            *percentiles,
            percentiles[4] - percentiles[2],
            np.abs(values - mean).mean(),
            np.sqrt((values * values).mean()),
            -(share * np.log2(share, out=np.zeros_like(share), where=share > 0)).sum() + 0.0,
            (share**2).sum(),
        ]
    )


def _glcm(x: NDArray, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Haralick's properties of the co-occurrence matrix of 32 levels at each distance, pooled over four angles."""
    # Level 0 is outside; pairs with it are cut out of the matrix.
    levels = np.where(inside, _quantised(x, GLCM_LEVELS) + 1, 0).astype(np.uint8)
    counts = graycomatrix(levels, GLCM_DISTANCES, GLCM_ANGLES, GLCM_LEVELS + 1, symmetric=True)[1:, 1:]
    pooled = counts.sum(axis=3, keepdims=True)  # (levels, levels, distances, 1)
    properties = np.stack([graycoprops(pooled, name)[:, 0] for name in _GLCM], axis=1)
    properties[pooled.sum(axis=(0, 1, 3)) == 0] = 0
    return properties.ravel()


def _lbp(x: NDArray, core: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Shares of the rotation-invariant uniform local binary patterns of 3×3 pixels on 256 levels.

    0..8: so many neighbours in a row around the pixel are not darker than it; 9: more than one such row. Ojala et al.
    2002, with the square's corners as they are (scikit-image interpolates them on a circle, which takes ten times as
    long).
    """
    if not core.any():
        return np.zeros(len(_LBP_NAMES))
    levels = _quantised(x, 256).astype(np.uint8)
    rows, columns = levels.shape  # at least 3 × 3, where there is a core
    around = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    centre = levels[1:-1, 1:-1]
    brighter = np.stack([levels[i : rows - 2 + i, j : columns - 2 + j] >= centre for i, j in around])  # (8, H-2, W-2)
    changes = (brighter != np.roll(brighter, 1, axis=0)).sum(axis=0, dtype=np.uint8)
    patterns = np.where(changes <= 2, brighter.sum(axis=0, dtype=np.uint8), LBP_POINTS + 1)[core[1:-1, 1:-1]]
    return np.bincount(patterns, minlength=LBP_POINTS + 2) / len(patterns)


def _gradient(x: NDArray, core: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of the length of the gradient by central differences, per pixel."""
    if not core.any():
        return np.zeros(len(_GRADIENT_NAMES))
    along_y, along_x = (part[core] for part in np.gradient(x))
    length = np.sqrt(along_y * along_y + along_x * along_x)
    return np.array([length.mean(), length.std(), *np.percentile(length, (50, 90))])


def _wavelet(x: NDArray, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Root mean square of the detail coefficients of an orthonormal Haar transform, of blocks that lie in the mask."""
    energies = []
    for _ in range(WAVELET_SCALES):
        rows, columns = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
        a, b, c, d = (x[i:rows:2, j:columns:2] for i, j in _CORNERS)
        whole = np.logical_and.reduce([inside[i:rows:2, j:columns:2] for i, j in _CORNERS])
        for band in (a - b + c - d, a + b - c - d, a - b - c + d):
            energies.append(np.sqrt((band[whole] ** 2).mean()) / 2 if whole.any() else 0.0)
        x, inside = (a + b + c + d) / 2, whole
    return np.array(energies)


def _quantised(values: NDArray, levels: int) -> NDArray[np.int64]:
    """Equal bins over [0, 1], so that a level means the same intensity in every image."""
    return np.minimum((values * levels).astype(np.int64), levels - 1)
