"""Slices of a volume on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from numpy.typing import NDArray

from dataloaders.geometry import plane, window_plane
from dataloaders.intensity import Window
from dataloaders.labels import count_labels
from dataloaders.manifest import Slice
from dataloaders.png import write_png
from spec import Axis


@dataclass(frozen=True)
class Frame:
    """What slices show of a RAS volume: planes across `axis`, from `crop` on, of `size`; see `window_plane`."""

    axis: Axis
    crop: tuple[int, int]
    size: tuple[int, int]

    def cut(self, volume: NDArray, index: int, fill: float = 0) -> NDArray:
        """Slice `index`, padded with `fill`."""
        return window_plane(plane(volume, self.axis, index), self.crop, self.size, fill)


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
    write_png(folder / item.label, ids)
    for path, image, window in zip(item.images or item.generated, images, windows, strict=True):
        write_png(folder / path, window.encode(frame.cut(image, item.index, window.low)))
    return replace(item, histogram=count_labels(ids))


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
