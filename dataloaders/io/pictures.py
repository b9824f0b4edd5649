"""Pictures for the eye: grey values, label colours, tiles side by side, as files or inside of a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dataloaders.io.files import atomic_path
from dataloaders.io.spec import Label

WHITE = 255
GAP = 2  # pixels between tiles
TITLE = 20  # pixels of a line above them


def label_colors(labels: Sequence[Label]) -> NDArray[np.uint8]:
    """(N, 3): the labels' own colours, else distinct ones, neighbours in id far apart in hue; black for label 0."""
    hues = (np.arange(len(labels)) * 0.618034) % 1.0  # golden ratio steps never repeat a hue
    colors = (colormaps["turbo"](0.06 + 0.88 * hues)[:, :3] * 255).round().astype(np.uint8)
    for label in labels:
        if label.color:
            colors[label.id] = list(bytes.fromhex(label.color[1:]))
    colors[:1] = 0
    return colors


def label_table(labels: Sequence[Label]) -> str:
    """BIDS' dseg.tsv of classes, in the colours of pictures."""
    colors = map(hex_color, label_colors(labels))
    rows = [f"{label.id}\t{label.name}\t{color}\n" for label, color in zip(labels, colors, strict=True)]
    return "".join(["index\tname\tcolor\n", *rows])


def hex_color(rgb: Sequence[int] | NDArray) -> str:
    """``#rrggbb``."""
    return "#" + bytes(int(part) for part in rgb).hex()


def to_grey(image: NDArray, low: float, high: float) -> NDArray[np.uint8]:
    """(H, W) -> (H, W, 3), black at `low` and below, white at `high` and above."""
    grey = (np.clip((image - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def resized(pixels: NDArray, height: float, width: float, smooth: bool) -> NDArray:
    """At least one pixel high and wide; not `smooth`: values stay as they are, as labels must."""
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((max(1, round(width)), max(1, round(height))), how))


def tile_grid(rows: Sequence[Sequence[NDArray[np.uint8]]], background: int = 0) -> NDArray[np.uint8]:
    """RGB tiles side by side and below each other, each in the middle of its place, with gaps between them."""
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    widths = [max(tile.shape[1] for tile in column) for column in zip(*rows, strict=True)]
    shape = (sum(heights) + GAP * (len(heights) - 1), sum(widths) + GAP * (len(widths) - 1), 3)
    grid = np.full(shape, background, np.uint8)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for tile, width in zip(row, widths, strict=True):
            y, x = top + (height - tile.shape[0]) // 2, left + (width - tile.shape[1]) // 2
            grid[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
            left += width + GAP
        top += height + GAP
    return grid


def titled(pixels: NDArray[np.uint8], titles: Sequence[str]) -> NDArray[np.uint8]:
    """An RGB grid of tiles, columns of one width, with a line above them that says what each column shows."""
    image = Image.fromarray(np.pad(pixels, ((TITLE, 0), (0, 0), (0, 0))))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for i, title in enumerate(titles):
        draw.text(((i + 0.5) * image.width / len(titles), TITLE / 2), title, "white", font, "mm")
    return np.asarray(image)


def save_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    """As a PNG file."""
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def webp(pixels: NDArray[np.uint8], exact: bool) -> bytes:
    """A grey or RGB picture as WebP, without loss if `exact`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", lossless=exact, quality=75 if exact else 90, method=2)
    return buffer.getvalue()
