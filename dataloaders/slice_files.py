"""What of a volume becomes slices: which, and which part of their planes; writing them as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.geometry import ACROSS, plane, window_plane
from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Slice
from dataloaders.io.png import write_png
from dataloaders.io.spec import Axis
from dataloaders.labelmaps.labels import count_labels


@dataclass(frozen=True)
class Frame:
    """What slices show of a RAS volume: planes across `axis`, from `crop` on, of `size`; see `window_plane`."""

    axis: Axis
    crop: tuple[int, int]
    size: tuple[int, int]

    def cut(self, volume: NDArray, index: int, fill: float = 0) -> NDArray:
        """Slice `index`, padded with `fill`."""
        return window_plane(plane(volume, self.axis, index), self.crop, self.size, fill)


def shadow_box(mask: NDArray, axis: Axis) -> list[tuple[int, int]]:
    """First row and column of all planes' pixels above 0 together, and those behind the last."""
    shadow = plane(np.asarray((mask > 0).any(axis=ACROSS[axis], keepdims=True)), axis, 0)
    places = [np.flatnonzero(shadow.any(axis=across)) for across in (1, 0)]
    return [(int(of_axis[0]), int(of_axis[-1]) + 1) for of_axis in places]


def centred(box: Sequence[tuple[int, int]], size: tuple[int, int]) -> tuple[int, int]:
    """Where a window of `size` begins that has the middle of the box in its own."""
    top, left = (round((first + end - length) / 2) for (first, end), length in zip(box, size, strict=True))
    return top, left


def choose_slices(
    label: NDArray, axis: Axis, size: tuple[int, int], min_foreground: float = 0.0
) -> tuple[list[int], tuple[int, int], float]:
    """Slices of a RAS label volume worth keeping, the crop that centres the labelled bounding box, and the labelled
    fraction it loses.

    A slice is kept where at least one pixel, and that share of its pixels, is labelled within the window.
    """
    total = np.count_nonzero(label > 0)
    if not total:
        return [], (0, 0), 0.0
    frame = Frame(axis, centred(shadow_box(label, axis), size), size)
    inside = [int((frame.cut(label, i) > 0).sum()) for i in range(label.shape[ACROSS[axis]])]
    kept = [i for i, n in enumerate(inside) if n >= max(1, min_foreground * size[0] * size[1])]
    return kept, frame.crop, 1 - sum(inside) / total


def write_slice(
    folder: Path,
    item: Slice,
    label: NDArray,
    images: Sequence[NDArray],
    windows: Sequence[Window],
    frame: Frame,
) -> Slice:
    """Write the PNGs that `item` names, and return it with its histogram.

    label: (I, J, K) class ids of `id_type`, on a RAS grid. images: (I, J, K) per channel on that grid.
    """
    ids = frame.cut(label, item.index)
    if item.label:
        write_png(folder / item.label, ids)
    for path, image, window in zip(item.images or item.generated, images, windows, strict=True):
        write_png(folder / path, window.encode(frame.cut(image, item.index, window.low)))
    return replace(item, histogram=count_labels(ids) if item.label else {})


def write_filled(
    folder: Path,
    item: Slice,
    images: Sequence[NDArray],
    filled: Sequence[NDArray],
    windows: Sequence[Window],
    frame: Frame,
) -> Slice:
    """Write the slice's images without lesions beside the real ones, and return it with their names.

    Where nothing was filled the real file serves for both.
    """
    names = []
    for path, image, copy, window in zip(item.images, images, filled, windows, strict=True):
        before, after = (frame.cut(volume, item.index, window.low) for volume in (image, copy))
        if (before == after).all():
            names.append(path)
            continue
        names.append(path.replace("/images/", "/filled/"))
        write_png(folder / names[-1], window.encode(after))
    return replace(item, filled=tuple(names))
