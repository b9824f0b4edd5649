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
SLAB_VOXELS = 1 << 18


def along(image: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Apply a matrix along one axis. image (..., N at `axis`, ...), matrix (M, N) -> (..., M at `axis`, ...)."""
    axis %= image.ndim
    rows, inner = math.prod(image.shape[:axis]), math.prod(image.shape[axis + 1 :])
    matrix = matrix.to(image)
    shape = (*image.shape[:axis], len(matrix), *image.shape[axis + 1 :])
    if inner == 1:
        return torch.mm(image.reshape(rows, -1), matrix.T).view(shape)
    if rows == 1:
        return torch.mm(matrix, image.reshape(-1, inner)).view(shape)
    return torch.matmul(matrix, image.reshape(rows, -1, inner)).view(shape)


@lru_cache(maxsize=512)
def centre_positions(count: int, size: int) -> Tensor:
    """Where the `count` samples of a centre-aligned grid over `size` voxels stand, in voxels, (count,) float64."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (size / count) - 0.5


def sample_positions(count: int, size: int) -> Tensor:
    """`centre_positions` for nearest neighbours: a hair nearer to the middle, so that samples halfway between two voxels
    (every one, where size / count is even) take the inner voxel on both sides and nothing moves on the whole."""
    if count >= size:
        return centre_positions(count, size)
    middle = (size - 1) / 2
    return middle + (centre_positions(count, size) - middle) * (1 - 1e-5)


@lru_cache(maxsize=512)
def linear_taps(count: int, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """For `count` voxels over `nodes` corner-aligned nodes: lower and upper node (int64), weight of the upper (float32)."""
    position = torch.linspace(0, nodes - 1, count, dtype=torch.float64)
    low = position.floor().clamp(0, max(nodes - 2, 0))
    return low.long(), (low.long() + 1).clamp(max=nodes - 1), (position - low).float()


def interpolate_axis(grid: Tensor, axis: int, taps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Values between the nodes of one axis. taps: lower node, upper node, weight of the upper, one for each result."""
    low, high, weight = (t.to(grid.device) for t in taps)
    weight = weight.to(grid.dtype).view(-1, *[1] * (grid.ndim - axis - 1))
    return torch.lerp(grid.index_select(axis, low), grid.index_select(axis, high), weight)


def upsample(grid: Tensor, shape: Sequence[int], order: int = 1, first: int = 1) -> Tensor:
    """Control grid to field. grid (C, *g) -> (C, *shape); order 1 interpolates linearly, 3 is a cubic B-spline.

    first: the axis of the grid that shape begins with; those before it stay as they are.
    """
    for axis in range(grid.ndim - 1, first - 1, -1):  # last axis first: the long final pass then copies whole rows
        size, nodes = shape[axis - first], grid.shape[axis]
        if order == 1:
            grid = interpolate_axis(grid, axis, linear_taps(size, nodes))
        else:
            grid = along(grid, cubic_matrix(size, nodes), axis)
    return grid


def upsample_rows(grid: Tensor, size: int, rows: slice, order: int = 1) -> Tensor:
    """Some rows of a grid upsampled along its axis 1 to `size`: (C, n, ...) -> (C, rows, ...)."""
    matrix = (control_matrix if order == 1 else cubic_matrix)(size, grid.shape[1])
    return along(grid, matrix[rows], 1)


def slabs(shape: Sequence[int], device: torch.device) -> list[slice]:
    """Rows of the first axis that are worked on at a time.

    On a CPU so few that the intermediate values stay in its cache, which makes memory-bound steps twice as fast and keeps
    the peak low; a GPU wants few, large kernels.
    """
    rows = max(1, SLAB_VOXELS // max(1, math.prod(shape[1:]))) if device.type == "cpu" else shape[0]
    return [slice(first, min(first + rows, shape[0])) for first in range(0, shape[0], rows)]


@lru_cache(maxsize=512)
def control_matrix(count: int, nodes: int) -> Tensor:
    """(count, nodes) weights of linear interpolation between corner-aligned nodes."""
    return interpolate_axis(torch.eye(nodes, dtype=torch.float64), 0, linear_taps(count, nodes))


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
def _centre_taps(count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """For `count` centre-aligned samples over `size` voxels: lower and upper voxel, weight of the upper (float64)."""
    position = centre_positions(count, size).clamp(0, size - 1)
    low = position.floor().clamp(max=max(size - 2, 0))
    return low.long(), (low.long() + 1).clamp(max=size - 1), position - low


def linear_matrix(count: int, size: int) -> Tensor:
    """(count, size) linear interpolation of `size` voxels at `count` centre-aligned positions; edges replicated."""
    return interpolate_axis(torch.eye(size, dtype=torch.float64), 0, _centre_taps(count, size))


def gaussian_matrix(size: int, sigma: float) -> Tensor:
    """(size, size) float64 Gaussian blur, sigma in voxels. Rows sum to one: a constant stays one up to the edge."""
    if sigma <= 0:
        return torch.eye(size, dtype=torch.float64)
    distance = torch.arange(1 - size, size, dtype=torch.float64)
    kernel = torch.exp((distance / sigma).square_().mul_(-0.5))
    matrix = kernel.unfold(0, size, 1).flip(0)  # row i is the kernel shifted to i
    return matrix.div_(matrix.sum(1, keepdim=True))


def blurred(image: Tensor, sigma: Sequence[float]) -> Tensor:
    """Gaussian blur, normalised at the edges: a constant stays constant. image (C, *S), sigma in voxels per axis of S."""
    for axis, (size, width) in enumerate(zip(image.shape[1:], sigma, strict=True), start=1):
        if width > 0:
            image = along(image, gaussian_matrix(size, width), axis)
    return image


def acquisition_matrix(size: int, count: int, sigma: float) -> Tensor:
    """(count, size): blur with sigma (voxels), then sample at `count` centre-aligned positions, linearly."""
    blur = gaussian_matrix(size, sigma)
    return blur if count == size else interpolate_axis(blur, 0, _centre_taps(count, size))


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
