"""Painting lesions over, so that a patient's scan looks healthy there: the pairs that the lesion generator learns from.

Two ways: slice by slice as published (Salem et al., IEEE Access 2019, sec. II-B; without the faults of the public code),
and in 3-D from clean white matter. Neither changes a voxel outside its mask, except the published one's smoothing of
white matter around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

RINGS = (3, 5, 8)  # voxels around a lesion in which white matter is looked for
ENOUGH = 20  # voxels of white matter that give a mean and a spread
GRAIN_SIGMA = 0.6  # voxels; published for the slices
TREND_SIGMA = 2.0  # voxels; what is smoother than this is anatomy and bias, what is finer is grain
FULL = ndimage.generate_binary_structure(3, 3)


def fill_volume(
    image: NDArray,
    mask: NDArray[np.bool_],
    white: NDArray[np.bool_],
    avoid: NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> NDArray[np.float32]:
    """The image (I, J, K) with every voxel of `mask` replaced by what white matter around its lesion looks like.

    white: white matter. avoid: voxels that no intensity is taken from (other hyperintensities); lesions never are. Each
    26-connected lesion gets the smoothly interpolated white matter of the ring of 3, 5 or 8 voxels that has 20 of them,
    else the whole brain's median, and grain of the same spread as the ring's and the smoothness of the scan's. Voxels
    outside the mask come back as they are. ValueError where there is no clean white matter at all.
    """
    _same_shape(image, mask, white)
    out = np.array(image, np.float32)
    if not mask.any():
        return out
    clean = white & ~mask
    if avoid is not None and (clean & ~avoid).sum() >= ENOUGH:
        clean &= ~avoid
    if not clean.any():
        raise ValueError("no white matter outside the lesions, so there is nothing to fill them with")
    grain = Grain.of(image, clean, mask, np.random.default_rng(seed))
    overall = float(np.median(image[clean]))
    for wide, blob in _blobs(mask, RINGS[-1] + 1, FULL):
        out[wide][blob] = _healthy(image[wide], blob, clean[wide], overall, grain.within(wide))
    return out


@dataclass(frozen=True)
class Grain:
    """The fine texture of a scan's white matter, and new one like it.

    deep: white matter away from its border, where partial volume with the cortex is no grain. residual: (I, J, K) image
    minus its trend there. spread: robust deviation of it. noise: unit normal noise of the residual's smoothness.
    """

    deep: NDArray[np.bool_]
    residual: NDArray
    spread: float
    noise: NDArray

    @classmethod
    def of(cls, image: NDArray, white: NDArray[np.bool_], mask: NDArray[np.bool_], rng: np.random.Generator) -> Grain:
        """Measured in `white`, made for the voxels of `mask`."""
        deep = ndimage.binary_erosion(white, FULL)
        if deep.sum() < ENOUGH:
            deep = white
        share = ndimage.gaussian_filter(white.astype(np.float32), TREND_SIGMA, truncate=3)
        trend = ndimage.gaussian_filter(np.where(white, image, 0).astype(np.float32), TREND_SIGMA, truncate=3)
        residual = np.where(deep, image - trend / np.maximum(share, 1e-3), 0.0).astype(np.float32)
        box = ndimage.find_objects(mask.astype(np.uint8))[0]
        noise = np.zeros(image.shape, np.float32)
        fresh = ndimage.gaussian_filter(rng.standard_normal(mask[box].shape), _smoothness(residual, deep), mode="wrap")
        noise[box] = fresh / max(float(fresh.std()), 1e-6)
        return cls(deep, residual, _robust_spread(residual[deep]), noise)

    def within(self, box: tuple[slice, ...]) -> Grain:
        """The same of a part of the scan."""
        return Grain(self.deep[box], self.residual[box], self.spread, self.noise[box])


def _smoothness(residual: NDArray, white: NDArray[np.bool_]) -> float:
    """Sigma in voxels at which smoothed white noise has the residual's correlation of neighbours, exp(-1 / (4 sigma²))."""
    found = []
    for axis in range(residual.ndim):
        a, b = (np.moveaxis(array, axis, 0) for array in (residual, white))
        both = b[1:] & b[:-1]
        if both.any():
            found.append(float((a[1:] * a[:-1])[both].mean() / max(float((a[1:] ** 2)[both].mean()), 1e-12)))
    correlation = float(np.clip(np.mean(found), 0.02, 0.9)) if found else 0.02
    return float(np.sqrt(-0.25 / np.log(correlation)))


def _healthy(
    image: NDArray, blob: NDArray[np.bool_], clean: NDArray[np.bool_], overall: float, grain: Grain
) -> NDArray:
    """Values of the blob's voxels: interpolated ring plus grain."""
    distance = ndimage.distance_transform_edt(~blob)
    noise = grain.noise[blob]
    for radius in RINGS:
        ring = clean & (distance <= radius)
        if ring.sum() >= ENOUGH:
            break
    else:
        return overall + grain.spread * noise
    values = image[ring]
    center, spread = float(np.median(values)), _robust_spread(values)
    near = ring & (np.abs(image - center) <= 2.5 * max(spread, 1e-6))  # partial volume and vessels are left out
    base = _spread_inward(image, near if near.sum() >= ENOUGH else ring, blob, center)
    fine = grain.residual[ring & grain.deep]
    return base + (_robust_spread(fine) if len(fine) >= ENOUGH else grain.spread) * noise


def _spread_inward(image: NDArray, known: NDArray[np.bool_], blob: NDArray[np.bool_], center: float) -> NDArray:
    """Normalised smoothing of the known voxels, from fine to coarse, so that every voxel of the blob gets a value."""
    total, weight = np.zeros(image.shape), np.zeros(image.shape)
    for sigma, trust in ((2.0, 1.0), (4.0, 0.1), (8.0, 0.01)):
        share = ndimage.gaussian_filter(known.astype(np.float64), sigma, truncate=3)
        total += trust * ndimage.gaussian_filter(np.where(known, image, 0.0), sigma, truncate=3)
        weight += trust * share
    total += 1e-6 * center  # lesions deeper than all of these
    return (total / (weight + 1e-6))[blob]


def _robust_spread(values: NDArray) -> float:
    """1.4826 · median absolute deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


# -- as published -------------------------------------------------------------------------------------------------


def fill_slices(
    image: NDArray, mask: NDArray[np.bool_], white: NDArray[np.bool_], seed: int = 0
) -> NDArray[np.float32]:
    """The published filling: each 4-connected blob of `mask` in each slice along the third axis drawn from N(m, s/2).

    m, s: mean and spread of the white matter within two steps of the blob. White matter within four steps is then
    smoothed with sigma 0.6 (in the plane: the public code smooths the vector of masked voxels, which mixes voxels that
    are not neighbours). Rings are read from the image as it came, never from filled or masked voxels; a blob without
    white matter around it gets that of its slice, else of the volume, instead of staying as it is. Each slice has random
    numbers of its own.
    """
    _same_shape(image, mask, white)
    if not mask.any():
        return np.array(image, np.float32)
    source, masks, tissue = (np.moveaxis(array, 2, 0) for array in (image, mask, white & ~mask))
    out = np.array(source, np.float32)
    whole = source[tissue] if tissue.any() else source[~masks]
    if not whole.size:
        raise ValueError("no voxel outside the mask, so there is nothing to fill it with")
    for index in range(len(out)):
        if masks[index].any():
            rng = np.random.default_rng((seed, index))
            here = source[index][tissue[index]]
            fallback = here if len(here) >= 2 else whole
            _fill_plane(out[index], source[index], masks[index], tissue[index], fallback, rng)
    return np.ascontiguousarray(np.moveaxis(out, 0, 2))


def _fill_plane(
    out: NDArray[np.float32],
    source: NDArray,
    mask: NDArray[np.bool_],
    white: NDArray[np.bool_],
    fallback: NDArray,
    rng: np.random.Generator,
) -> None:
    for box, blob in _blobs(mask, margin=2):
        ring = ndimage.binary_dilation(blob, iterations=2) & white[box]
        values = source[box][ring] if ring.any() else fallback
        out[box][blob] = rng.normal(values.mean(), 0.5 * values.std(), int(blob.sum()))
    # After all blobs: what is smoothed is the filled slice, and each voxel once.
    region = ndimage.binary_dilation(mask, iterations=4) & (white | mask)
    out[region] = ndimage.gaussian_filter(out, GRAIN_SIGMA)[region]


def _blobs(
    mask: NDArray[np.bool_], margin: int, neighbours: NDArray | None = None
) -> Iterator[tuple[tuple[slice, ...], NDArray[np.bool_]]]:
    """Connected blobs with the box around each; face to face, unless `neighbours` says what touches."""
    labelled, count = ndimage.label(mask, neighbours)
    for number, box in enumerate(ndimage.find_objects(labelled, count), start=1):
        wide = tuple(slice(max(0, s.start - margin), s.stop + margin) for s in box)
        yield wide, labelled[wide] == number


def near(lesion: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """The lesion and all that is up to so many steps away from it, diagonal ones included."""
    return ndimage.maximum_filter(lesion.astype(np.uint8), 2 * steps + 1, mode="constant") > 0


def _same_shape(image: NDArray, mask: NDArray, white: NDArray) -> None:
    if not image.shape == mask.shape == white.shape:
        raise ValueError(f"image {image.shape}, mask {mask.shape} and white matter {white.shape} differ in shape")
