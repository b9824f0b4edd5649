"""New anatomies between and around a few label maps, with ventricles and cortex of other sizes.

One map is the reference; each other map i is laid over it once: map_i(A_i exp(v_i)(x)) = reference(x). A new anatomy has
the velocity  v = m + Σ z_i (v_i - m) / √(n - 1)  with standard normal z_i: a draw from the normal distribution that has the
mean m and the covariance of the maps' own fields (log-Euclidean statistics: Arsigny et al., MICCAI 2006), whose principal
components need not be known for it. It has the labels of a base map b:

    anatomy(x) = map_b(A_b exp(s) exp(v_b) exp(-v) A_b⁻¹ x)

Every exp is a diffeomorphism, so nothing folds and every structure keeps its neighbours. s makes ventricles and cortex
larger or smaller: it flows along the gradient of their blurred masks, as fast as the drawn factor of their volumes asks for.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dataloaders.io.console import say, tracked
from dataloaders.io.files import atomic_path
from dataloaders.labelmaps.map_registration import (
    NodeGrid,
    exponential,
    gradient,
    label_codes,
    label_points,
    register_labels,
    sampled,
    shares,
)
from dataloaders.labelmaps.maps import LabelMap, LabelMaps, Source
from models.base import seeded_generator, uniform
from models.gmm.resampling import blurred
from models.gmm.scheme import LabelScheme
from models.gmm.spatial import look_up, node_coordinates

VERSION = 1  # of the method: fields of another one are made again
FAR = 1.0  # standard deviations at which z is cut: beyond, four maps give volumes that no head has
WAYS = (1.0, 0.5, 0.25, 0.125)  # from the base map to the anatomy, the first whose volumes are usual
UNUSUAL, LARGE = 1.2, 0.006  # factor beyond the given maps' volumes; part of the whole from which structures count
STEEPEST = 2.5  # nodes per unit time of a change of size


@dataclass(frozen=True)
class Size:
    """How a structure changes: largest logarithm of its volume's factor, and over how many nodes neighbours give way."""

    change: float
    reach: float


SIZES = {"ventricles": Size(0.4, 3.0), "cortex": Size(0.1, 1.0)}


@dataclass(frozen=True)
class Registered:
    """A map laid over the reference: fields (n, *g) float16 in nodes of the frame.

    matrix (n, n + 1): mm of the reference -> mm of the map. displacement: exp(velocity) - identity. sizes: velocities that
    make ventricles and cortex e times as large, where the map has them.
    """

    matrix: Tensor
    velocity: Tensor
    displacement: Tensor
    sizes: dict[str, Tensor]


class Anatomies(LabelMaps):
    """Label maps, and after them `count` new ones; anatomy k of a seed is always the same.

    sources: as for `LabelMaps`. scheme: of the labels, whose outputs are what is registered. folder: for the fields, found
    there again by the content of the maps; without one they stay in memory.

    A single map changes the sizes of its ventricles and cortex alone, which is said; ValueError where it names neither.
    """

    def __init__(
        self,
        sources: Source,
        scheme: LabelScheme,
        count: int,
        seed: int,
        folder: Path | None = None,
        cache_gb: float = 1.0,
        array_spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__(sources, cache_gb, array_spacing)
        self.given, self.count, self.seed, self.folder = len(self.sources), count, seed, folder
        self.use(scheme)
        self.codes = label_codes(scheme)
        self.frame, self.fields = self._register(scheme)
        if self.given == 1:
            if not self.fields[0].sizes:
                raise ValueError(
                    f"{self.sources[0] if isinstance(self.sources[0], Path) else self.name(0)}: new anatomies need two "
                    "label maps, or labels named ventricle or cortex, whose size can change"
                )
            found = " and ".join(sorted(self.fields[0].sizes))
            say(f"anatomies: of one label map, so they differ in the size of {found} alone")

    def __len__(self) -> int:
        return self.given + self.count

    def name(self, index: int) -> str:
        """Of a given map its own, else ``anatomy00003``."""
        return super().name(index) if index < self.given else f"anatomy{index - self.given:05d}"

    def _read(self, index: int) -> LabelMap:
        return super()._read(index) if index < self.given else self.anatomy(index - self.given)

    # -- registration ---------------------------------------------------------------------------------------------

    def _register(self, scheme: LabelScheme) -> tuple[NodeGrid, list[Registered]]:
        maps = [self[i] for i in range(self.given)]
        hashes = [_digest(label_map) for label_map in maps]
        self.volumes = torch.stack([volumes_of(label_map, scheme) for label_map in maps])
        centre = most_central(self.volumes)
        reference = maps[centre]
        frame = NodeGrid.around(reference, scheme)
        found: dict[int, Registered] = {}
        first = os.getpid() % len(maps)  # jobs that start together begin with different maps
        for i in tracked([*range(first, len(maps)), *range(first)], "register label maps"):
            told = f"{VERSION} {hashes[centre]} {hashes[i]} {scheme.to_dict()}"
            key = hashlib.sha256(told.encode()).hexdigest()[:16]
            found[i] = self._stored(key) or self._registered(reference, maps[i], scheme, frame, key)
        return frame, [found[i] for i in range(len(maps))]

    def _stored(self, key: str) -> Registered | None:
        try:
            tensors = load_file(self.folder / f"{key}.safetensors") if self.folder else None
        except (OSError, SafetensorError):
            return None
        if tensors is None:
            return None
        matrix, velocity, displacement = (tensors.pop(name) for name in ("matrix", "velocity", "displacement"))
        return Registered(matrix, velocity, displacement, tensors)

    def _registered(
        self, reference: LabelMap, label_map: LabelMap, scheme: LabelScheme, frame: NodeGrid, key: str
    ) -> Registered:
        if label_map is reference:
            n = len(frame.shape)
            matrix, velocity = torch.eye(n, n + 1), torch.zeros(n, *frame.shape)
        else:
            matrix, velocity = register_labels(reference, label_map, scheme, frame, self.codes)
        sizes = sizes_of(label_map, scheme, frame, matrix)
        found = Registered(matrix, velocity.half(), exponential(velocity).half(), sizes)
        if self.folder is not None:
            with atomic_path(self.folder / f"{key}.safetensors") as temporary:
                save_file({k: v for k, v in {**vars(found), **sizes}.items() if k != "sizes"}, temporary)
        return found

    # -- sampling -------------------------------------------------------------------------------------------------

    def anatomy(self, k: int) -> LabelMap:
        """Anatomy k as label indices, on the grid of its base map."""
        generator = seeded_generator(self.seed, "anatomy", k)
        base = int(torch.randint(self.given, (), generator=generator))
        own = self.fields[base]
        label_map = replace(self[base], name=self.name(self.given + k), path=None)
        fill = self.drawn.background or 0
        velocity, change = self.draw_velocity(generator), self.draw_sizes(own, generator)
        found = label_map
        for way in WAYS:
            found = warped(label_map, self.displacement(own, velocity, change, way), self.frame, own.matrix, fill)
            if self.given == 1 or self._usual(found):
                break
        return found

    def displacement(self, own: Registered, velocity: Tensor, change: Tensor | None, way: float = 1.0) -> Tensor:
        """(n, *g) in nodes, where to read the base map. way: how far to go from it to the anatomy, 0 to 1."""
        nodes = self.frame.nodes()
        total = exponential(-torch.lerp(own.velocity.float(), velocity, way), every=2)
        total = total + sampled(own.displacement.float(), nodes + total)
        return total if change is None else total + sampled(exponential(way * change), nodes + total)

    def _usual(self, label_map: LabelMap) -> bool:
        """Whether its structures are about as large as those of the given maps; small ones do not count."""
        volumes = volumes_of(label_map, self.drawn)
        low, high = self.volumes.min(0).values, self.volumes.max(0).values
        large = low > LARGE * self.volumes.sum(1).min()
        return bool(((volumes > low / UNUSUAL) & (volumes < high * UNUSUAL))[large].all())

    def draw_velocity(self, generator: torch.Generator) -> Tensor:
        """v of the module's text, (n, *g) in nodes."""
        n = len(self.fields)
        z = torch.randn(n, generator=generator).clamp(-FAR, FAR)
        weights = (z - z.mean()) / math.sqrt(max(n - 1, 1)) + 1 / n
        total = torch.zeros(len(self.frame.shape), *self.frame.shape)
        for weight, one in zip(weights.tolist(), self.fields, strict=True):
            total.add_(one.velocity, alpha=weight)
        return total

    def draw_sizes(self, own: Registered, generator: torch.Generator) -> Tensor | None:
        """Velocity that reads the map, so that its ventricles and cortex become larger."""
        total = None
        for name, size in SIZES.items():
            factor = uniform(generator, -size.change, size.change)
            if name in own.sizes:
                field = own.sizes[name].float() * -factor
                total = field if total is None else total + field
        return total


def sizes_of(label_map: LabelMap, scheme: LabelScheme, frame: NodeGrid, matrix: Tensor) -> dict[str, Tensor]:
    """Velocities (n, *g) float16, in nodes, out of the map's ventricles and its cortex; see `Registered`."""
    table = torch.zeros(scheme.num_labels, len(SIZES))
    for column, name in enumerate(SIZES):
        table[list(parts(scheme)[name]), column] = 1
    found = {}
    for (name, size), mask in zip(SIZES.items(), shares(label_map, table, frame, matrix), strict=True):
        if not mask.any():
            continue
        outwards = -gradient(blurred(mask[None], (size.reach,) * mask.ndim))[0] * frame.taper()
        spread = sum(torch.gradient(outwards[axis], dim=axis)[0] for axis in range(len(outwards)))
        rate = float((mask * spread).sum() / mask.sum())  # growth of its volume per unit of its own
        fastest = STEEPEST / (size.change * float(outwards.norm(dim=0).max()))
        found[name] = (outwards * min(1 / rate, fastest)).half()
    return found


def parts(scheme: LabelScheme) -> dict[str, tuple[int, ...]]:
    """Label indices of what changes its size."""
    inner = re.compile(r"ventricle|choroid plexus")
    ventricles = tuple(i for i, name in enumerate(scheme.names) if inner.search(name) and scheme.outputs[i])
    return {"ventricles": ventricles, "cortex": scheme.role("cortex")}


def places(
    label_map: LabelMap, displacement: Tensor, frame: NodeGrid, matrix: Tensor
) -> tuple[tuple[slice, ...], Tensor]:
    """The part of a map that the frame covers, and where its nodes, corner-aligned, read it (n, *m): voxels of that part."""
    n, shape = len(frame.shape), label_map.values.shape
    mm = torch.tensor(label_map.spacing).view(n, *[1] * n)
    corners = frame.to_map(node_coordinates((2,) * n, [size - 1 for size in frame.shape], displacement), matrix) / mm
    low = [max(0, math.floor(float(axis.min()))) for axis in corners]
    high = [min(size, math.ceil(float(axis.max())) + 1) for axis, size in zip(corners, shape, strict=True)]
    extent = [b - a - 1 for a, b in zip(low, high, strict=True)]
    counts = [max(2, math.ceil(e * m / frame.step) + 1) for e, m in zip(extent, label_map.spacing, strict=True)]
    start = torch.tensor(low).view(n, *[1] * n)
    nodes = frame.from_map((node_coordinates(tuple(counts), extent, displacement) + start) * mm, matrix)
    where = frame.to_map(nodes + sampled(displacement, nodes), matrix) / mm - start
    return tuple(map(slice, low, high)), where


def warped(label_map: LabelMap, displacement: Tensor, frame: NodeGrid, matrix: Tensor, fill: int) -> LabelMap:
    """The map read at the displaced places, nearest label."""
    part, where = places(label_map, displacement, frame, matrix)
    inside = label_map.values[part].contiguous()
    size, values = tuple(inside.shape), label_map.values.clone()
    values[part] = look_up(inside, where, (0,) * len(size), size, size, flip=False, fill=fill)
    return replace(label_map, values=values)


def _digest(label_map: LabelMap) -> str:
    """Of labels and voxel size."""
    digest = hashlib.sha256(f"{tuple(label_map.values.shape)} {label_map.spacing} {label_map.values.dtype}".encode())
    digest.update(label_map.values.numpy().tobytes())
    return digest.hexdigest()


def volumes_of(label_map: LabelMap, scheme: LabelScheme) -> Tensor:
    """mm^n of each label that can be registered, both sides together at the first of them, (N,)."""
    labels = label_points(label_map, scheme)[1]
    counts = torch.bincount(labels, minlength=scheme.num_labels) * math.prod(label_map.spacing)
    partners = torch.tensor(scheme.partners or range(scheme.num_labels))
    return torch.zeros_like(counts).index_add_(0, torch.minimum(partners, torch.arange(len(counts))), counts)


def most_central(volumes: Tensor) -> int:
    """The map whose structures have the most usual volumes. volumes: (maps, N)."""
    logs = torch.log(volumes + 1e-3 * volumes.sum(1, keepdim=True))
    return int((logs - logs.median(0).values).abs().mean(1).argmin())
