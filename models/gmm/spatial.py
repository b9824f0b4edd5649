"""Deformation of label maps: affine and diffeomorphic elastic, in one nearest-neighbour look-up.

Coordinates are voxels of the map, axes in RAS order; a map has shape S and centre c = (S - 1) / 2. An output voxel x reads
the map at  c + A · (x - c + u(x)) + t  (backward map, gmm.md 1.4), where u is the displacement of a stationary velocity
field and A = Scale · Shear · Rotation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.gmm.resampling import Shape, interpolate_axis, linear_taps, sample_positions, slabs, upsample

NODE_STEP = 4  # voxels between the nodes whose trajectories are followed


def affine_matrix(
    rotation: Sequence[float], scaling: Sequence[float], shearing: Sequence[float], translation: Sequence[float]
) -> Tensor:
    """A and t of the backward map, (n, n + 1) float64, for n = 2 or 3.

    rotation: degrees, one angle in 2-D, three (about x, y, z) in 3-D. scaling (n,): above 1 shrinks what is seen. shearing:
    the n² - n entries off the diagonal, row by row. translation (n,): voxels.
    """
    n = len(scaling)
    shear = torch.eye(n, dtype=torch.float64)
    shear[~torch.eye(n, dtype=torch.bool)] = torch.as_tensor(list(shearing), dtype=torch.float64)
    linear = torch.diag(torch.as_tensor(list(scaling), dtype=torch.float64)) @ shear @ _rotation_matrix(rotation)
    return torch.cat([linear, torch.as_tensor(list(translation), dtype=torch.float64)[:, None]], 1)


def _rotation_matrix(degrees: Sequence[float]) -> Tensor:
    if len(degrees) == 1:
        a = math.radians(degrees[0])
        return torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]], dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)
    for axis, angle in enumerate(degrees):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3, dtype=torch.float64)
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = cosine, -sine, sine, cosine
        matrix = matrix @ turn
    return matrix


def integrate_velocity(
    velocity: Tensor,
    shape: Shape,
    *,
    order: int = 1,
    steps: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Displacement of a stationary velocity field after unit time, by the classical Runge-Kutta method.

    velocity: (n, *g) control nodes, voxels of the full map per unit time, corner-aligned. Returns (n, *m) displacement in
    voxels on corner-aligned nodes about NODE_STEP voxels apart: there it costs a sixty-fourth of the full grid. steps:
    default as many as trajectories cross cells of the control grid, so that with more the error does not fall; 0: the
    velocity itself is the displacement (may fold). The inverse deformation is that of -velocity.

    Scaling and squaring, which the predecessors use (Arsigny et al., MICCAI 2006), interpolates its own result seven times
    over; following the trajectories asks the velocity itself, with as many look-ups and half the error.
    """
    coarse = tuple(max(2, math.ceil((size - 1) / NODE_STEP) + 1) for size in shape)
    if steps is None:
        cell = min((size - 1) / max(count - 1, 1) for size, count in zip(shape, velocity.shape[1:], strict=True))
        steps = 1 + int(float(velocity.abs().max()) / cell)
    velocity = velocity.to(device)  # only now: looking at values would make a GPU wait
    if steps == 0 or order != 1:
        velocity = upsample(velocity, coarse, order)
    if steps == 0:
        return velocity
    # grid_sample wants (x, y, z) order and [-1, 1] over the corners
    unit = torch.tensor([2 / max(size - 1, 1) for size in shape], dtype=velocity.dtype, device=velocity.device)
    unit = unit.view(-1, *[1] * len(shape))
    identity = node_coordinates(coarse, (2,) * len(shape), velocity) - 1

    def speed(moved: Tensor) -> Tensor:
        where = (identity + moved * unit).flip(0).movedim(0, -1)
        return F.grid_sample(velocity[None], where[None], align_corners=True, padding_mode="border")[0]

    moved = torch.zeros_like(identity)
    for _ in range(steps):
        a = speed(moved)
        b = speed(moved + a / (2 * steps))
        c = speed(moved + b / (2 * steps))
        d = speed(moved + c / steps)
        moved = moved + (a + 2 * b + 2 * c + d) / (6 * steps)
    return moved


def node_coordinates(counts: Shape, extent: Sequence[float], like: Tensor) -> Tensor:
    """Coordinates (n, *counts) of corner-aligned nodes over [0, extent] per axis."""
    axes = [torch.linspace(0, e, k, dtype=like.dtype, device=like.device) for k, e in zip(counts, extent, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def source_coordinates(affine: Tensor, displacement: Tensor | None, shape: Shape) -> Tensor:
    """Where each node reads the map: (n, *m) voxels, at the displacement's nodes (at the map's corners without one).

    affine: (n, n + 1), see `affine_matrix`. An affine map is reproduced exactly between the corners by linear
    interpolation, so the nodes' coordinates stand for all voxels'.
    """
    n = len(shape)
    counts = (2,) * n if displacement is None else tuple(displacement.shape[1:])
    like = affine.float() if displacement is None else displacement
    affine = affine.to(like)
    centre = torch.tensor([(size - 1) / 2 for size in shape], dtype=like.dtype, device=like.device).view(n, *[1] * n)
    offset = node_coordinates(counts, [size - 1 for size in shape], like) - centre
    if displacement is not None:
        offset = offset + displacement
    moved = torch.einsum("ij,j...->i...", affine[:, :n], offset)
    return moved + centre + affine[:, n].view(n, *[1] * n)


def look_up(
    labels: Tensor, coordinates: Tensor, start: Sequence[int], size: Shape, counts: Shape, *, flip: bool, fill: int
) -> Tensor:
    """Nearest label at the coordinates of a window of the map; the only pass over full-size coordinates, slab by slab.

    labels (*S) of any integer type; coordinates (n, *m) of corner-aligned nodes over S (`source_coordinates`); start and
    size of the window in voxels; flip: mirror the window along its first axis; fill: label outside the map. counts: samples
    per axis, centre-aligned over the window. Returns (*counts) of the labels' type.
    """
    shape = tuple(labels.shape)
    n = len(shape)
    padded = torch.full([s + 2 for s in shape], fill, dtype=labels.dtype, device=labels.device)
    padded[(slice(1, -1),) * n] = labels
    flat, extent = padded.flatten(), padded.shape
    coordinates = coordinates + 1.5  # 1 for the padding, 0.5 so that cutting the fraction rounds to the nearest
    for axis in range(n, 1, -1):
        of = axis - 1
        taps = window_taps(coordinates.shape[axis], shape[of], start[of], size[of], counts[of])
        coordinates = interpolate_axis(coordinates, axis, taps)
    low, high, weight = window_taps(coordinates.shape[1], shape[0], start[0], size[0], counts[0])
    if flip:
        low, high, weight = low.flip(0), high.flip(0), weight.flip(0)
    low, high = low.to(labels.device), high.to(labels.device)
    weight = weight.to(coordinates).view(-1, *[1] * (n - 1))
    out = torch.empty(counts, dtype=labels.dtype, device=labels.device)
    for part in slabs(out.shape, labels.device):
        place = torch.lerp(
            coordinates.index_select(1, low[part]), coordinates.index_select(1, high[part]), weight[part]
        )
        index = place[0].clamp_(0, extent[0] - 0.5).int()
        for axis in range(1, n):
            index.mul_(extent[axis]).add_(place[axis].clamp_(0, extent[axis] - 0.5).int())
        torch.index_select(flat, 0, index.flatten(), out=out[part].view(-1))
    return out


def window_taps(nodes: int, full: int, start: int, size: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lower node, upper node and weight for each sample of a window; beyond the corners the border's cell goes on."""
    if count == size and start >= 0 and start + size <= full:
        low, high, weight = linear_taps(full, nodes)
        return low[start : start + size], high[start : start + size], weight[start : start + size]
    voxel = start + sample_positions(count, size)
    position = voxel * ((nodes - 1) / max(full - 1, 1))
    low = position.floor().clamp(0, max(nodes - 2, 0))
    return low.long(), (low.long() + 1).clamp(max=nodes - 1), (position - low).float()
