"""Preview pictures: rows of label | real | generated, for the eye during training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from engine.files import atomic_path

GAP = 2


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
