"""One label map laid over another, by their labels: an affine map in closed form, then a stationary velocity field.

Log-domain demons (Vercauteren et al., MICCAI 2008) on the labels themselves: what is matched are shares of labels, not
intensities, so any two maps of one scheme register, in 2-D and 3-D. The exponential of a velocity field is a diffeomorphism
(Arsigny et al., MICCAI 2006), and so is that of any weighted sum of such fields, which displacements do not promise.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloaders.labelmaps.maps import LabelMap
from models.base import seeded_generator
from models.gmm.resampling import blurred, upsample
from models.gmm.scheme import LabelScheme, plain_name
from models.gmm.spatial import NODE_STEP, integrate_velocity, node_coordinates

NODES = 90  # at most, along the longest side of what is registered: 2 mm for a head
MARGIN = 8  # nodes around it, within which fields fade to 0
CHANNELS = 12  # numbers that stand for a label
LEVELS = ((8, 20), (4, 20), (2, 20), (1, 5))  # coarser by this factor, iterations
FORCE = 1.0  # nodes that an iteration moves at most
STIFFNESS = 1.0  # nodes: standard deviation of the Gaussian that smooths the velocity in each iteration
RIDGE = 0.01  # weight of the foreground's extent beside the places of the labels


OUTSIDE = re.compile(r"extra cerebral|exterior|skull|\bhead\b|\bskin\b")


def guides(scheme: LabelScheme) -> tuple[int, ...]:
    """Label indices that are laid over each other: kept in the output and not around the brain, where maps end anywhere."""
    kept = [i for i in scheme.role("brain") if i != scheme.background]
    return tuple(i for i in kept if not OUTSIDE.search(plain_name(scheme.names[i]))) or tuple(kept)


@dataclass(frozen=True)
class NodeGrid:
    """A grid of nodes over the labelled part of a reference map: node q stands at origin + q · step (mm of that map's axes
    from its first voxel). shape: nodes per axis.
    """

    origin: tuple[float, ...]
    step: float
    shape: tuple[int, ...]

    @classmethod
    def around(cls, label_map: LabelMap, scheme: LabelScheme) -> NodeGrid:
        """Of the map's `label_points`."""
        points = label_points(label_map, scheme)[0]
        low, high = points.min(0).values, points.max(0).values
        step = max(float((high - low).max()) / NODES, *label_map.spacing)
        shape = [math.ceil(float(size) / step) + 1 + 2 * MARGIN for size in high - low]
        return cls(tuple((low - MARGIN * step).tolist()), step, tuple(shape))

    def nodes(self) -> Tensor:
        """(n, *shape) node coordinates."""
        return node_coordinates(self.shape, [size - 1 for size in self.shape], torch.zeros(1))

    def taper(self) -> Tensor:
        """(*shape): 1 over the labels, smoothly to 0 at the border, so that deformations end there."""
        out = torch.ones(self.shape)
        for axis, size in enumerate(self.shape):
            depth = torch.minimum(torch.arange(size), torch.arange(size - 1, -1, -1)) / MARGIN
            ramp = torch.sin(depth.clamp(max=1) * math.pi / 2) ** 2
            out = out * ramp.view(-1, *[1] * (len(self.shape) - 1 - axis))
        return out

    def to_map(self, nodes: Tensor, matrix: Tensor) -> Tensor:
        """Nodes' coordinates (n, *m) in a map's mm. matrix: (n, n + 1), mm of the reference -> mm of the map."""
        n = len(self.shape)
        mm = nodes * self.step + torch.tensor(self.origin).view(n, *[1] * n)
        return apply_affine(matrix, mm)

    def from_map(self, mm: Tensor, matrix: Tensor) -> Tensor:
        """The way back of `to_map`."""
        n = len(self.shape)
        return (apply_affine(inverse_affine(matrix), mm) - torch.tensor(self.origin).view(n, *[1] * n)) / self.step


def apply_affine(matrix: Tensor, points: Tensor) -> Tensor:
    """(n, n + 1) on coordinates (n, *m)."""
    n = len(points)
    return torch.einsum("ij,j...->i...", matrix[:, :n], points) + matrix[:, n].view(n, *[1] * (points.ndim - 1))


def inverse_affine(matrix: Tensor) -> Tensor:
    """Of (n, n + 1)."""
    inverse = torch.linalg.inv(matrix[:, :-1])
    return torch.cat([inverse, -inverse @ matrix[:, -1:]], 1)


def label_points(label_map: LabelMap, scheme: LabelScheme) -> tuple[Tensor, Tensor]:
    """Places (M, n) in mm and labels (M,) of the voxels of `guides`, without fluid around a brain, at most every second one
    per axis; ValueError where there are none.
    """
    steps = [2 if size > NODES else 1 for size in label_map.values.shape]
    values = label_map.values[tuple(slice(None, None, step) for step in steps)]
    outer = [i for i in scheme.role("csf") if "ventricle" not in scheme.names[i]]
    kept = torch.zeros(scheme.num_labels, dtype=torch.bool)
    kept[[i for i in guides(scheme) if i not in outer] or list(guides(scheme))] = True
    place = kept[values.int()].nonzero()
    if not len(place):
        raise ValueError(f"{label_map.path or label_map.name}: has no labels that could be registered")
    scale = torch.tensor([mm * step for mm, step in zip(label_map.spacing, steps, strict=True)])
    return place * scale, values[tuple(place.T)].long()


def affine_of_labels(fixed: LabelMap, moving: LabelMap, scheme: LabelScheme) -> Tensor:
    """(n, n + 1) float32, mm of fixed -> mm of moving: least squares of the labels' centres, and of the foreground's extent.

    The second decides where labels share a centre (three tissues): the symmetric matrix that turns one covariance into the
    other (Gelbrich 1990), which never mirrors.
    """
    (a, of_a), (b, of_b) = (label_points(m, scheme) for m in (fixed, moving))
    n = a.shape[1]
    count_a, count_b = (torch.bincount(of, minlength=scheme.num_labels).double() for of in (of_a, of_b))
    both = (count_a > 0) & (count_b > 0)
    if not both.any():
        raise ValueError(f"{moving.path or moving.name}: shares no label with {fixed.path or fixed.name}")
    centre_a, centre_b = (
        torch.zeros(scheme.num_labels, n, dtype=torch.float64).index_add_(0, of, p.double())
        / count.clamp(min=1)[:, None]
        for p, of, count in ((a, of_a, count_a), (b, of_b, count_b))
    )
    weight = torch.where(both, torch.minimum(count_a, count_b).sqrt(), 0)
    weight = (weight / weight.sum())[:, None]
    middle_a, middle_b = (weight * centre_a).sum(0), (weight * centre_b).sum(0)
    centre_a, centre_b = centre_a - middle_a, centre_b - middle_b
    extent, other = (torch.cov(p.double().T) + 1e-6 * torch.eye(n) for p in (a, b))
    root = _power(extent, 0.5)
    stretch = _power(extent, -0.5) @ _power(root @ other @ root, 0.5) @ _power(extent, -0.5)
    spread = (weight * centre_a).T @ centre_a + RIDGE * extent
    linear = ((weight * centre_b).T @ centre_a + RIDGE * stretch @ extent) @ torch.linalg.inv(spread)
    if torch.linalg.det(linear) <= 0:
        linear = stretch
    return torch.cat([linear, (middle_b - linear @ middle_a)[:, None]], 1).float()


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=1e-9) ** exponent) @ vectors.T


def shares(label_map: LabelMap, codes: Tensor, frame: NodeGrid, matrix: Tensor) -> Tensor:
    """Codes (N, C) of a map's labels at the frame's nodes, (C, *shape): means over 2 samples per node and axis."""
    n, shape = len(frame.shape), label_map.values.shape
    nodes = frame.nodes()
    mm = torch.tensor(label_map.spacing).view(n, *[1] * n)
    flat = label_map.values.reshape(-1)
    out = torch.zeros(nodes[0].numel(), codes.shape[1])
    for corner in torch.cartesian_prod(*[torch.tensor([-0.25, 0.25])] * n):
        voxel = (frame.to_map(nodes + corner.view(n, *[1] * n), matrix) / mm).round_().long()
        place, inside = torch.zeros_like(voxel[0]), torch.ones_like(voxel[0], dtype=torch.bool)
        for axis, size in enumerate(shape):
            inside &= (voxel[axis] >= 0) & (voxel[axis] < size)
            place = place * size + voxel[axis].clamp(0, size - 1)
        found = codes.index_select(0, flat.index_select(0, place.view(-1)).int())
        out += torch.where(inside.view(-1, 1), found, 0)
    return (out.T / 2**n).reshape(-1, *frame.shape)


def label_codes(scheme: LabelScheme, seed: int = 0) -> Tensor:
    """(N, C) numbers that stand for the labels, both sides alike, 0 for the others than `guides`.

    One channel a structure where there are few; else unit vectors in random directions, nearly at right angles, since a
    channel for each of a hundred parcels would cost a hundred times as much and their differences are all that counts.
    """
    partners = scheme.partners or tuple(range(scheme.num_labels))
    group = {i: min(i, partners[i]) for i in guides(scheme)}
    groups = {first: place for place, first in enumerate(sorted(set(group.values())))}
    vectors = torch.eye(len(groups))
    if len(groups) > CHANNELS:
        vectors = F.normalize(torch.randn(len(groups), CHANNELS, generator=seeded_generator(seed, "codes")), dim=1)
    codes = torch.zeros(scheme.num_labels, vectors.shape[1])
    for i, first in group.items():
        codes[i] = vectors[groups[first]]
    return codes


def exponential(velocity: Tensor, every: int = 1) -> Tensor:
    """Displacement after unit time of a velocity field, both (n, *g) in nodes. every: follow every so many nodes only."""
    fine = NODE_STEP // every  # voxels, of the grid that is integrated on, per node
    grid = tuple(fine * (size - 1) + 1 for size in velocity.shape[1:])
    return upsample(integrate_velocity(fine * velocity, grid), velocity.shape[1:]) / fine


def sampled(field: Tensor, where: Tensor) -> Tensor:
    """Field (C, *g) at node coordinates (n, *m), linearly, 0 outside: (C, *m)."""
    n = len(where)
    size = torch.tensor(field.shape[1:]).view(n, *[1] * n)
    unit = (2 * where / (size - 1).clamp(min=1) - 1).flip(0).movedim(0, -1)
    return F.grid_sample(field[None], unit[None], align_corners=True, padding_mode="zeros")[0]


def gradient(field: Tensor) -> Tensor:
    """(C, *g) -> (C, n, *g), per node."""
    return torch.stack(torch.gradient(field, dim=tuple(range(1, field.ndim))), 1)


def velocity_between(fixed: Tensor, moving: Tensor, taper: Tensor) -> Tensor:
    """Stationary velocity (n, *g) in nodes with moving(exp(v)(x)) = fixed(x), of codes (C, *g) on one frame."""
    n = taper.ndim
    velocity, coarser = torch.zeros(n, *([2] * n)), 1
    for factor, iterations in LEVELS:
        pool = F.avg_pool3d if n == 3 else F.avg_pool2d
        still, loose = (
            pool(codes[None], factor, ceil_mode=True)[0] if factor > 1 else codes for codes in (fixed, moving)
        )
        shape = tuple(still.shape[1:])
        edge = upsample(taper[None], shape)
        velocity = upsample(velocity, shape) * (coarser / factor)
        coarser = factor
        nodes = node_coordinates(shape, [size - 1 for size in shape], velocity)
        slope = gradient(still)
        for _ in range(iterations):
            warped = sampled(loose, nodes + exponential(velocity, every=2 if factor == 1 else 1))
            error = still - warped
            ahead = (slope + gradient(warped)) / 2
            force = (error[:, None] * ahead).sum(0) / (
                (ahead**2).sum((0, 1)) + (error**2).sum(0) / (4 * FORCE**2) + 1e-6
            )
            velocity = edge * blurred(velocity + force, (STIFFNESS,) * n)
    return upsample(velocity, taper.shape) * coarser


def register_labels(
    fixed: LabelMap, moving: LabelMap, scheme: LabelScheme, frame: NodeGrid, codes: Tensor
) -> tuple[Tensor, Tensor]:
    """Affine (n, n + 1), mm of fixed -> mm of moving, and velocity (n, *frame.shape) in nodes: the label of moving at
    affine(exp(v)(x)) is that of fixed at x."""
    matrix = affine_of_labels(fixed, moving, scheme)
    identity = torch.eye(len(frame.shape), len(frame.shape) + 1)
    still, loose = shares(fixed, codes, frame, identity), shares(moving, codes, frame, matrix)
    return matrix, velocity_between(still, loose, frame.taper())
