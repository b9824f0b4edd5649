"""Preview pictures: rows of label | real | generated, for the eye during training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from dataloaders.io.files import atomic_path

GAP = 2
MAX_SIDE = 1024  # pixels of a plane in a picture


def label_colors(num_labels: int) -> NDArray[np.uint8]:
    """(N, 3) distinct colours, black for label 0; neighbours in id are far apart in hue."""
    hues = (np.arange(num_labels) * 0.618034) % 1.0  # golden ratio steps never repeat a hue
    colors = (np.array([colormaps["turbo"](0.05 + 0.9 * hue)[:3] for hue in hues]) * 255).astype(np.uint8)
    colors[0] = 0
    return colors


def to_grey(image: NDArray) -> NDArray[np.uint8]:
    """[-1, 1] -> (H, W, 3) greyscale."""
    grey = (np.clip((image + 1) / 2, 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def save_preview(path: Path, label: NDArray, columns: list[NDArray], num_labels: int) -> None:
    """Write a grid: one row per sample, label map first, then each of `columns` with all its channels.

    label (B, H, W) int; each column (B, C, H, W) in [-1, 1].
    """
    colors = label_colors(num_labels)
    rows = []
    for i in range(len(label)):
        tiles = [colors[label[i]]] + [to_grey(channel) for column in columns for channel in column[i]]
        gap = np.full((tiles[0].shape[0], GAP, 3), 255, np.uint8)
        rows.append(np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1))
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    grid = np.concatenate([part for row in rows for part in (row, gap)][:-1])
    with atomic_path(path) as temporary:
        Image.fromarray(grid).save(temporary, format="PNG")


def save_label_preview(path: Path, rows: list[tuple[NDArray, NDArray, NDArray]], num_labels: int) -> None:
    """Write a grid of image (H, W) in [0, 1] | true | predicted label map (H, W); rows may differ in size."""
    colors = label_colors(num_labels)
    height = max(image.shape[0] for image, *_ in rows)
    width = max(image.shape[1] for image, *_ in rows)
    lines = []
    for image, truth, predicted in rows:
        line = np.full((height, 3 * width + 2 * GAP, 3), 255, np.uint8)
        for i, tile in enumerate((to_grey(2 * image - 1), colors[truth], colors[predicted])):
            left = i * (width + GAP)
            line[: tile.shape[0], left : left + tile.shape[1]] = tile
        lines += [line, np.full((GAP, line.shape[1], 3), 255, np.uint8)]
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(lines[:-1])).save(temporary, format="PNG")


def save_overlay(path: Path, image: NDArray, label: NDArray, mm: Sequence[float], num_labels: int) -> None:
    """Axial, coronal and sagittal plane through the middle of the labels: image above, the same with labels below.

    image (X, Y, Z) in [0, 1] and label (X, Y, Z) in RAS axes; mm: voxel size.
    """
    inside = label > 0
    if inside.any():
        middle = [int(np.average(np.arange(n), weights=inside.sum(axis=_others(a)))) for a, n in enumerate(label.shape)]
    else:
        middle = [n // 2 for n in label.shape]
    colors, tiles = label_colors(num_labels), []
    fine = min(mm)
    for across in (2, 1, 0):
        rows, columns = mm[_others(across)[1]], mm[_others(across)[0]]
        grey, ids = (np.take(volume, middle[across], across).T[::-1, ::-1] for volume in (image, label))
        size = (max(1, round(grey.shape[1] * columns / fine)), max(1, round(grey.shape[0] * rows / fine)))
        size = (min(size[0], MAX_SIDE), min(size[1], MAX_SIDE))
        plain = np.asarray(Image.fromarray(to_grey(2 * grey - 1)).resize(size, Image.Resampling.BILINEAR))
        large = np.asarray(Image.fromarray(ids.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
        mixed = np.where((large > 0)[..., None], (0.5 * plain + 0.5 * colors[large]).astype(np.uint8), plain)
        tiles.append((plain, mixed))
    height = max(plain.shape[0] for plain, _ in tiles)
    width = sum(plain.shape[1] + GAP for plain, _ in tiles) - GAP
    grid, left = np.zeros((2 * height + GAP, width, 3), np.uint8), 0
    for plain, mixed in tiles:
        for row, tile in enumerate((plain, mixed)):
            grid[row * (height + GAP) :][: tile.shape[0], left : left + tile.shape[1]] = tile
        left += plain.shape[1] + GAP
    with atomic_path(path) as temporary:
        Image.fromarray(grid).save(temporary, format="PNG")


def _others(axis: int) -> tuple[int, int]:
    first, second = (other for other in range(3) if other != axis)
    return first, second
