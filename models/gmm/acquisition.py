"""What the scanner's resolution does: blur by slice thickness, sample coarsely, add noise there, interpolate back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.gmm.intensity import add_noise
from models.gmm.resampling import Shape, acquisition_matrix, along, linear_matrix, sample_positions


def low_shape(shape: Shape, spacing: Sequence[float], resolution: Sequence[float]) -> Shape:
    """Voxels of the coarse grid: as many whole ones of `resolution` (mm) as the field of view holds; never finer."""
    return tuple(
        max(1, min(size, math.floor(size * mm / r + 1e-6)))
        for size, mm, r in zip(shape, spacing, resolution, strict=True)
    )


def acquire(
    image: Tensor,
    low: Shape,
    sigma: Sequence[float],
    out: Shape,
    *,
    noise: float = 0.0,
    coils: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One channel through the scanner: image (*S) -> (*out).

    low: shape of the coarse grid (`low_shape`); sigma: blur before sampling, voxels of S per axis; noise: its
    standard deviation on the coarse grid, in the image's units; coils: see `add_noise`. All grids share their centre, so
    the image does not move against its labels; constants stay constants up to the edge.
    """
    for axis, (count, s) in enumerate(zip(low, sigma, strict=True)):
        if count != image.shape[axis] or s > 0:
            image = along(image, acquisition_matrix(image.shape[axis], count, s), axis)
    if noise > 0:
        assert generator is not None
        image = add_noise(image, noise, generator, coils)
    for axis, count in enumerate(out):
        if count != image.shape[axis]:
            image = along(image, linear_matrix(count, image.shape[axis]), axis)
    return image


def nearest_labels(labels: Tensor, out: Shape) -> Tensor:
    """Labels (..., *S) on the grid that `acquire` gives the image: the nearest voxel to each centre, (..., *out)."""
    first = labels.ndim - len(out)
    for axis, count in enumerate(out, first):
        size = labels.shape[axis]
        if count != size:
            index = sample_positions(count, size).add(0.5).floor().long().to(labels.device)
            labels = labels.index_select(axis, index)
    return labels
