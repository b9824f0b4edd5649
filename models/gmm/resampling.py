"""Linear maps along one axis: everything in the generator that interpolates, blurs or changes resolution is made of these.

A blur, a change of resolution or the upsampling of a control grid is separable, so each axis has its own matrix. A matrix
is exact (no truncated kernel), keeps constants (rows sum to one, at edges too) and keeps centroids (grids share their
centre), and costs one product per axis however wide the blur is.

Two grid conventions, both free of constant bands at the far edge:
* image grids are centre-aligned: sample j of n over N voxels stands at (j + 1/2) · N / n - 1/2;
* control grids are corner-aligned: node k of n over N voxels stands at k · (N - 1) / (n - 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

Shape = tuple[int, ...]


def along(image: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Apply a matrix along one axis. image (..., N at `axis`, ...), matrix (M, N) -> (..., M at `axis`, ...)."""
    axis %= image.ndim
    rows, inner = math.prod(image.shape[:axis]), math.prod(image.shape[axis + 1 :])
    matrix = matrix.to(image)
    shape = (*image.shape[:axis], len(matrix), *image.shape[axis + 1 :])
    if inner == 1:
        return torch.mm(image.reshape(rows, -1), matrix.T).view(shape)
    return torch.matmul(matrix, image.reshape(rows, -1, inner)).view(shape)


@lru_cache(maxsize=512)
def centre_positions(count: int, size: int) -> Tensor:
    """Where the `count` samples of a centre-aligned grid over `size` voxels stand, in voxels, (count,) float64."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (size / count) - 0.5


@lru_cache(maxsize=512)
def linear_taps(count: int, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """For `count` voxels over `nodes` corner-aligned nodes: lower and upper node (int64), weight of the upper (float32)."""
    position = torch.linspace(0, nodes - 1, count, dtype=torch.float64)
    low = position.floor().clamp(0, max(nodes - 2, 0))
    return low.long(), (low.long() + 1).clamp(max=nodes - 1), (position - low).float()


def upsample_axis(grid: Tensor, axis: int, size: int) -> Tensor:
    """Linear interpolation of corner-aligned nodes along one axis: (..., n at `axis`, ...) -> (..., size, ...)."""
    axis %= grid.ndim
    low, high, weight = (t.to(grid.device) for t in linear_taps(size, grid.shape[axis]))
    weight = weight.to(grid.dtype).view(-1, *[1] * (grid.ndim - axis - 1))
    return torch.lerp(grid.index_select(axis, low), grid.index_select(axis, high), weight)


def upsample(grid: Tensor, shape: Sequence[int], order: int = 1) -> Tensor:
    """Control grid to field. grid (C, *g) -> (C, *shape); order 1 interpolates linearly, 3 is a cubic B-spline."""
    for axis in range(len(shape), 0, -1):  # last axis first: the long final pass then copies whole rows
        if order == 1:
            grid = upsample_axis(grid, axis, shape[axis - 1])
        else:
            grid = along(grid, cubic_matrix(shape[axis - 1], grid.shape[axis]), axis)
    return grid


@lru_cache(maxsize=512)
def cubic_matrix(count: int, nodes: int) -> Tensor:
    """(count, nodes) weights of a cubic B-spline with corner-aligned coefficients, mirrored beyond the ends."""
    if nodes == 1:
        return torch.ones(count, 1, dtype=torch.float64)
    position = torch.linspace(0, nodes - 1, count, dtype=torch.float64)
    matrix = torch.zeros(count, nodes, dtype=torch.float64)
    for k in range(-1, nodes + 1):
        distance = (position - k).abs()
        inner = 2 / 3 - distance**2 + distance**3 / 2
        outer = (2 - distance).clamp(min=0) ** 3 / 6
        mirrored = min(abs(k), max(2 * (nodes - 1) - k, 0))
        matrix[:, mirrored] += torch.where(distance < 1, inner, outer)
    return matrix


@lru_cache(maxsize=512)
def linear_matrix(count: int, size: int) -> Tensor:
    """(count, size) linear interpolation of `size` voxels at `count` centre-aligned positions; edges replicated."""
    position = centre_positions(count, size).clamp(0, size - 1)
    low = position.floor().clamp(max=max(size - 2, 0)).long()
    matrix = torch.zeros(count, size, dtype=torch.float64)
    row = torch.arange(count)
    matrix[row, low] = 1 - (position - low)
    matrix[row, (low + 1).clamp(max=size - 1)] += position - low
    return matrix


def gaussian_matrix(size: int, sigma: float) -> Tensor:
    """(size, size) Gaussian blur, sigma in voxels. Rows sum to one, so a constant stays a constant up to the edge."""
    if sigma <= 0:
        return torch.eye(size, dtype=torch.float64)
    position = torch.arange(size, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (position / sigma) ** 2)  # of the distance, for a Toeplitz look-up
    matrix = kernel[(position[:, None] - position).abs().long()]
    return matrix / matrix.sum(1, keepdim=True)


def acquisition_matrix(size: int, count: int, sigma: float) -> Tensor:
    """(count, size): blur with sigma (voxels), then sample at `count` centre-aligned positions."""
    if count == size:
        return gaussian_matrix(size, sigma)
    return linear_matrix(count, size) @ gaussian_matrix(size, sigma)


def grain_gain(shape: Sequence[int], sigma: Sequence[float]) -> float:
    """Factor that gives white noise its standard deviation back after a Gaussian blur of sigma voxels per axis."""
    gain = 1.0
    for size, s in zip(shape, sigma, strict=True):
        if s > 0:
            middle = gaussian_matrix(size, s)[size // 2]
            gain /= float((middle**2).sum().sqrt())
    return gain


def nodes(size: int, scale: float) -> int:
    """Number of control nodes along an axis of `size` voxels.

    scale below 1: a fraction as in lab2im, whose ceil(size · scale) cells keep their width (one node more than cells,
    because our nodes reach from corner to corner); from 1 up: the number of nodes itself.
    """
    count = round(scale) if scale >= 1 else math.ceil(size * scale - 1e-9) + 1
    return max(1, min(count, size))
