"""Lesions into a scan: a trained method paints them on slices (or the volume), and only their zone is taken over.

Any method serves: the lesion generator sees the scan itself, the GAN and the GMM only the label map with a lesion drawn in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dataloaders.io.geometry import ACROSS, bounding_box, plane, put_plane, resample
from dataloaders.io.spec import LESION, Axis, level_channel
from dataloaders.lesions.filling import near
from dataloaders.lesions.placing import Placed, blend_zone
from dataloaders.lesions.preparing import without_lesions
from dataloaders.lesions.scans import Head, Stored
from dataloaders.prepare.tissue import BRAIN_TISSUE
from dataloaders.slice_files import Frame, centred, shadow_box
from models.base import Batch, Method, SampleRandom

SIDE_STEP = 32


@dataclass(frozen=True)
class Painting:
    """How a run paints. everywhere: it wants bands of the whole scan. any_size: slices need not have the training's size.
    volume: all slices at once. reach, feather: of the zone.
    """

    everywhere: bool = False
    any_size: bool = False
    volume: bool = False
    bands: bool = False
    reach: int = 2
    feather: float = 1.0


def without_own_lesions(host: Head, seed: int) -> list[NDArray[np.float32]]:
    """The host's images with its own lesions filled."""
    if not host.lesion.any():
        return host.images
    if seed not in host.filled:
        level = level_channel(host.channels)
        host.filled = {seed: without_lesions(host.images, host.lesion, host.tissue, level, "lesion", seed)}
    return host.filled[seed]


def add_lesions(
    method: Method, how: Painting, host: Head, placed: Placed, seed: int, device: torch.device
) -> list[NDArray[np.float32]]:
    """The host's images, its own lesions filled, with those of `placed` (levels in the host's model range) painted in.

    Beyond the lesions' zone the filled images come back unchanged. Without lesions nothing is painted at all.
    """
    base = without_own_lesions(host, seed)
    if not placed.mask.any():
        return base
    slab, generated = _generate(method, how, host, base, placed, seed, device)
    weights = blend_zone(placed.mask, how.reach, how.feather)[slab]
    zone = weights > 0
    result = []
    for c, image in enumerate(base):
        out = image.copy()
        painted = host.physical(c, generated[c][zone])
        out[slab][zone] += weights[zone] * (painted - image[slab][zone])
        result.append(out)
    return result


def _generate(
    method: Method,
    how: Painting,
    host: Head,
    base: list[NDArray[np.float32]],
    placed: Placed,
    seed: int,
    device: torch.device,
) -> tuple[tuple[slice, ...], list[NDArray[np.float32]]]:
    """The slices around the lesions as a part of the host, and the method's images of them in the model's range."""
    spec = method.spec
    axis: Axis = spec.axis or "axial"
    frame = _frame(host.brain | placed.mask, placed.mask, axis, how, spec.size)
    along = bounding_box(placed.mask, how.reach + SIDE_STEP * how.volume)[ACROSS[axis]]
    slab = tuple(along if i == ACROSS[axis] else slice(None) for i in range(3))
    mask = placed.mask[slab]
    shown = level_channel(host.channels)
    sources = without_lesions(base, mask, host.tissue, shown, "salem2019", seed) if how.everywhere else base
    inputs = [np.clip(host.model(c, image[slab]), -1, 1) for c, image in enumerate(sources)]
    out = [host.model(c, image[slab]) for c, image in enumerate(base)]
    level = np.where(mask, placed.level[slab], out[shown]).astype(np.float32)
    label = _label_map(method, host, mask, slab)
    zone = near(mask, how.reach)
    planes = list(range(along.stop - along.start))
    for part in [planes] if how.volume else [[i] for i in planes if plane(zone, axis, i).any()]:
        numbers = [along.start + i for i in part]
        batch = Batch(
            label=torch.from_numpy(np.stack([frame.cut(label, i) for i in part]).astype(np.int64)),
            image=None,
            cases=["host"] * len(part),
            patients=["host"] * len(part),
            indices=numbers,
            position=torch.zeros(len(part)),
            source=torch.from_numpy(np.stack([[frame.cut(x, i, -1) for x in inputs] for i in part]).astype(np.float32)),
            level=torch.from_numpy(np.stack([frame.cut(level, i, -1) for i in part])),
            grey=torch.tensor([host.grey] * len(part), dtype=torch.float32),
        )
        images = method.synthesize(batch.to(device), [SampleRandom.of(seed, "host", i) for i in numbers])
        for i, image in zip(part, images.float().cpu().numpy(), strict=True):
            for volume, painted in zip(out, image, strict=True):
                put_plane(volume, axis, i, painted, frame.crop)
    return slab, out


def _label_map(method: Method, host: Head, mask: NDArray[np.bool_], slab: tuple[slice, ...]) -> NDArray[np.int64]:
    """Class ids of the run's label map: the host's tissue by name, its own lesions as white matter, the new ones on top."""
    spec = method.spec
    table = np.array([0, *(spec.label_id(name) for name in BRAIN_TISSUE.values())])
    out = table[np.where(host.lesion[slab], 3, host.ids[slab])]
    out[mask] = spec.label_id(LESION)
    return out


def _frame(
    body: NDArray[np.bool_], lesion: NDArray[np.bool_], axis: Axis, how: Painting, size: tuple[int, int]
) -> Frame:
    """Slices of the training's size about the brain's middle; larger ones where that leaves something out and may be.

    ValueError where lesions would lie outside.
    """
    box = shadow_box(body, axis)
    if how.any_size:
        long = [end - first + 2 * 8 for first, end in box]
        size = (max(size[0], -(-long[0] // SIDE_STEP) * SIDE_STEP), max(size[1], -(-long[1] // SIDE_STEP) * SIDE_STEP))
    frame = Frame(axis, centred(box, size), size)
    if sum(int(frame.cut(lesion, i).sum()) for i in range(lesion.shape[ACROSS[axis]])) < lesion.sum():
        raise ValueError(f"lesions lie outside the {size[0]} x {size[1]} pixels that the run was trained on")
    return frame


def back_to_file(scan: Stored, host: Head, before: NDArray, after: NDArray) -> NDArray:
    """Raw values of the file with the change from `before` to `after` (on the host's grid) brought onto its own grid.

    Where nothing changed, every bit stays. On another grid the change is interpolated, never the scan.
    """
    change = after.astype(np.float32) - before
    zone = (change != 0).astype(np.float32)
    if not zone.any():
        return scan.raw
    native = resample(zone, host.grid, scan.raw.shape, scan.affine) > 1e-3
    moved = resample(change, host.grid, scan.raw.shape, scan.affine)
    return scan.changed(native, scan.values[native] + moved[native])


def mask_to_file(scan: Stored, host: Head, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A mask on the host's grid as 0 and 1 on the file's grid."""
    share = resample(mask.astype(np.float32), host.grid, scan.raw.shape, scan.affine)
    return (share > 0.5).astype(np.uint8)
