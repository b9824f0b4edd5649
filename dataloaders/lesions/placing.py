"""Choosing, changing and placing lesions in a brain that has none there.

Masks and intensities come on the host's grid in RAS order (carried by registration, or drawn there). Everything random
comes from one seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.io.geometry import bounding_box
from dataloaders.lesions.filling import FULL, near
from dataloaders.lesions.preparing import Tissue

NEAR_WHITE_MM = 2.0  # lesions may reach so far out of white matter
KEPT_SHARE = 0.5  # a lesion of which less than this fits is left out
MIN_VOXELS = 3
PASSES = 30  # times that every lesion may be used again, changed anew, to reach a load
ELASTIC_GRID_MM = 8.0


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How lesions are changed. load_ml: volume to reach, None for the lesions that there are.

    scale: size of each lesion, drawn between low and high. mirror: probability that a lesion changes sides. elastic:
    standard deviation of its smooth deformation in mm. shift: standard deviation of its displacement along each axis in mm.
    """

    load_ml: float | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    mirror: float = 0.0
    elastic: float = 0.0
    shift: float = 0.0
    seed: int = 0

    @property
    def changes(self) -> bool:
        """Whether lesions do not just stay as they are."""
        return self.scale != (1.0, 1.0) or self.mirror > 0 or self.elastic > 0 or self.shift > 0


@dataclass(frozen=True)
class Lesion:
    """One placed lesion: number of the component it comes from, centre in voxels, ml, and what was done to it."""

    source: int
    centre: tuple[float, float, float]
    ml: float
    scale: float
    mirrored: bool
    shift_mm: tuple[float, float, float]


@dataclass
class Placed:
    """mask, level: (I, J, K) on the host's grid; level is meant inside the mask only.

    left_out: lesions that did not fit. cut_ml: what was cut off those that are there, outside of the allowed zone. facts:
    how they came to the host.
    """

    mask: NDArray[np.bool_]
    level: NDArray[np.float32]
    lesions: list[Lesion] = field(default_factory=list)
    left_out: int = 0
    cut_ml: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """Plain values for JSON."""
        lesions = [asdict(lesion) for lesion in self.lesions]
        return {**self.facts, "lesions": lesions, "left_out": self.left_out, "cut_ml": round(self.cut_ml, 4)}

    def shortfall(self) -> str:
        """What of the mask is not there, as a sentence's end; empty where all is."""
        parts = [f"{self.left_out} lesions did not fit into the white matter"] if self.left_out else []
        parts += [f"{self.cut_ml:.3g} ml of lesions lay outside of the white matter"] if self.cut_ml else []
        return "".join(f"; {part}" for part in parts)


def allowed_zone(tissue: Tissue, brain: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.bool_]:
    """Voxels that lesions may take: white matter, and up to 2 mm beside it what is not CSF."""
    if not tissue.white.any():
        raise ValueError("the scan has no white matter, so there is no place for lesions")
    near = ndimage.distance_transform_edt(~tissue.white, sampling=spacing) <= NEAR_WHITE_MM
    return near & ~tissue.csf & brain


def place(
    mask: NDArray[np.bool_],
    level: NDArray,
    allowed: NDArray[np.bool_],
    brain: NDArray[np.bool_],
    spacing: Sequence[float],
    how: Variation,
) -> Placed:
    """Lesions of `mask` with the intensities `level`, kept inside `allowed`, changed and repeated as `how` says.

    With load_ml the lesions are taken in random order, and over again, until their union has that volume; the last one
    gives up its outermost voxels. ValueError where none fits or the load cannot be reached.
    """
    placed = Placed(np.zeros(mask.shape, bool), np.array(level, np.float32))
    labelled, count = ndimage.label(mask, FULL)
    if count == 0:
        return placed
    voxel_ml = float(np.prod(spacing)) / 1000
    target = None if how.load_ml is None else max(1, round(how.load_ml / voxel_ml))
    rng = np.random.default_rng((how.seed, 1))
    boxes = ndimage.find_objects(labelled, count)
    middle = float(np.flatnonzero(brain.any(axis=(1, 2)))[[0, -1]].sum()) / 2 if brain.any() else mask.shape[0] / 2
    for number, again in _order(count, target is not None, rng):
        if target is not None and placed.mask.sum() >= target:
            break
        stamp = _stamp(labelled == number, level, boxes[number - 1], spacing, how, again, middle, rng)
        _add(placed, stamp, number, allowed, target, voxel_ml)
    got = int(placed.mask.sum())
    if target is not None and got < target:
        raise ValueError(
            f"--load {how.load_ml:g}ml: only {got * voxel_ml:.3g} ml fit into the white matter; ask for less, or allow "
            "--shift, --scale and --mirror"
        )
    if not got:
        raise ValueError(f"none of the {count} lesions fits into the white matter; is the mask in the scan's space?")
    return placed


def _order(count: int, repeat: bool, rng: np.random.Generator) -> Iterator[tuple[int, bool]]:
    """Numbers of components, and whether they were used before: all once, or in random order over and over."""
    if not repeat:
        yield from ((number, False) for number in range(1, count + 1))
        return
    for use in range(PASSES):
        yield from ((int(number), use > 0) for number in rng.permutation(count) + 1)


@dataclass(frozen=True)
class _Stamp:
    """A changed lesion within a box of the host: share of each voxel in 0..1, intensities, and what was done."""

    box: tuple[slice, ...]
    share: NDArray[np.float32]
    level: NDArray[np.float32]
    scale: float
    mirrored: bool
    shift_mm: tuple[float, float, float]


def _stamp(
    lesion: NDArray[np.bool_],
    level: NDArray,
    box: tuple[slice, ...],
    spacing: Sequence[float],
    how: Variation,
    again: bool,
    middle: float,
    rng: np.random.Generator,
) -> _Stamp:
    """A lesion in its new place. Used `again` it always moves at least a little, or it would cover itself."""
    if not how.changes and not again:
        return _Stamp(box, lesion[box].astype(np.float32), level[box].astype(np.float32), 1.0, False, (0.0, 0.0, 0.0))
    size = np.asarray(spacing, float)
    scale = float(rng.uniform(*how.scale))
    mirrored = bool(rng.random() < (max(how.mirror, 0.5) if again else how.mirror))
    shift = rng.normal(0, max(how.shift, 3.0) if again else how.shift, 3)
    old = np.array([(s.start + s.stop - 1) / 2 for s in box])
    half = np.array([(s.stop - s.start) / 2 for s in box]) * scale + 2 + 2 * how.elastic / size
    centre = old + shift / size
    if mirrored:
        centre[0] = 2 * middle - centre[0]
    low, high = np.floor(centre - half), np.ceil(centre + half) + 1
    new = tuple(
        slice(int(np.clip(a, 0, n)), int(np.clip(b, 0, n))) for a, b, n in zip(low, high, lesion.shape, strict=True)
    )
    grid = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in new), indexing="ij")).astype(float)
    offset = (grid - centre[:, None, None, None]) / scale
    if mirrored:
        offset[0] *= -1
    if how.elastic > 0 and offset[0].size:
        offset += _elastic(offset.shape[1:], size, how.elastic, rng)
    points = offset + old[:, None, None, None]
    share = ndimage.map_coordinates(lesion.astype(np.float32), points, order=1)
    values = ndimage.map_coordinates(np.asarray(level, np.float32), points, order=1, mode="nearest")
    return _Stamp(new, share, values, scale, mirrored, (float(shift[0]), float(shift[1]), float(shift[2])))


def _elastic(shape: tuple[int, ...], size: NDArray, std_mm: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Smooth random displacement in voxels, (3, *shape)."""
    nodes = [max(2, int(np.ceil(n * mm / ELASTIC_GRID_MM)) + 1) for n, mm in zip(shape, size, strict=True)]
    places = np.meshgrid(*(np.linspace(0, k - 1, n) for k, n in zip(nodes, shape, strict=True)), indexing="ij")
    fields = [ndimage.map_coordinates(rng.normal(0, std_mm, nodes), places, order=1) for _ in range(3)]
    return np.stack(fields) / size[:, None, None, None]


def _add(
    placed: Placed, stamp: _Stamp, number: int, allowed: NDArray[np.bool_], target: int | None, voxel_ml: float
) -> None:
    """Put a stamp into the host, where enough of it fits."""
    wanted = stamp.share > 0.5
    fits = wanted & allowed[stamp.box] & ~placed.mask[stamp.box]
    enough = fits.sum() >= max(1, KEPT_SHARE * wanted.sum())
    if not enough or (fits.sum() < MIN_VOXELS and wanted.sum() >= MIN_VOXELS):
        placed.left_out += 1
        return
    placed.cut_ml += int((wanted & ~allowed[stamp.box]).sum()) * voxel_ml
    if target is not None and placed.mask.sum() + fits.sum() > target:
        fits = _deepest(fits, target - int(placed.mask.sum()))
    placed.mask[stamp.box] |= fits
    placed.level[stamp.box][fits] = stamp.level[fits]
    where = np.argwhere(fits).mean(0) + [s.start for s in stamp.box]
    centre = (float(where[0]), float(where[1]), float(where[2]))
    ml = int(fits.sum()) * voxel_ml
    placed.lesions.append(Lesion(number, centre, ml, stamp.scale, stamp.mirrored, stamp.shift_mm))


def _deepest(mask: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """The `count` voxels of the mask that lie deepest inside it; among equals those nearest to its centre."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
    places = np.argwhere(mask)
    off_centre = np.linalg.norm(places - places.mean(0), axis=1)
    order = np.lexsort((off_centre, -depth[mask]))[:count]
    kept = np.zeros(mask.shape, bool)
    kept[tuple(places[order].T)] = True
    return kept


def blend_zone(lesion: NDArray[np.bool_], reach: int, feather: float) -> NDArray[np.float32]:
    """How much of the generated scan shows, (I, J, K) in 0..1: 1 in lesions, exactly 0 beyond `reach` voxels around them."""
    weights = np.zeros(lesion.shape, np.float32)
    if lesion.any():
        box = bounding_box(lesion, reach + math.ceil(3 * feather))
        inner = lesion[box]
        soft = zone = near(inner, reach)
        if feather > 0 and reach > 0:
            soft = ndimage.gaussian_filter(near(inner, reach - 1).astype(np.float32), feather, truncate=3)
        weights[box] = np.where(inner, 1, np.where(zone, soft, 0))
    return weights
