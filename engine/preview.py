"""Preview pictures: rows of label | real | generated, for the eye during training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.geometry import PLANES, plane
from dataloaders.io.pictures import label_colors, resized, save_picture, tile_grid, to_grey
from dataloaders.io.spec import Label

MAX_SIDE = 1024  # pixels of a plane in a picture
WHITE = 255


def save_preview(path: Path, label: NDArray, columns: list[NDArray], labels: Sequence[Label]) -> None:
    """Write a grid: one row per sample, label map first, then each of `columns` with all its channels.

    label (B, H, W) int; each column (B, C, H, W) in [-1, 1].
    """
    colors = label_colors(labels)
    images = [[to_grey(channel, -1, 1) for column in columns for channel in column[i]] for i in range(len(label))]
    save_picture(path, tile_grid([[colors[ids], *row] for ids, row in zip(label, images, strict=True)], WHITE))


def save_label_preview(path: Path, rows: list[tuple[NDArray, NDArray, NDArray]], labels: Sequence[Label]) -> None:
    """Write a grid of image (H, W) in [0, 1] | true | predicted label map (H, W); rows may differ in size."""
    colors = label_colors(labels)
    tiles = [[to_grey(image, 0, 1), colors[truth], colors[predicted]] for image, truth, predicted in rows]
    save_picture(path, tile_grid(tiles, WHITE))


def save_overlay(path: Path, image: NDArray, label: NDArray, mm: Sequence[float], labels: Sequence[Label]) -> None:
    """Axial, coronal and sagittal plane through the middle of the labels: image above, the same with labels below.

    image (X, Y, Z) in [0, 1] and label (X, Y, Z) in RAS axes; mm: voxel size.
    """
    inside = np.argwhere(label > 0)
    middle = inside.mean(axis=0).astype(int) if len(inside) else np.array(label.shape) // 2
    colors, tiles = label_colors(labels), []
    for axis, (across, *within) in PLANES.items():
        grey, ids = (plane(volume, axis, middle[across]) for volume in (image, label))
        height, width = (min(MAX_SIDE, n * (mm[i] / min(mm))) for n, i in zip(grey.shape, within, strict=True))
        plain = resized(to_grey(grey, 0, 1), height, width, smooth=True)
        large = resized(ids.astype(np.int32), height, width, smooth=False)
        tiles.append((plain, np.where((large > 0)[..., None], (plain // 2 + colors[large] // 2), plain)))
    save_picture(path, tile_grid([*zip(*tiles, strict=True)]))
