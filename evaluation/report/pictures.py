"""Tiles of slices: label map, real image, each method's image and its difference, in physical display windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from textwrap import fill

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Slice
from dataloaders.io.pictures import label_colors, to_grey, webp
from evaluation.compare import Entrant
from evaluation.pairs import paired_slices
from evaluation.report.gather import read_label, read_picture
from evaluation.report.kit import INK, SOFT

HU_WINDOWS = {  # name -> HU; the first is the one that pictures are shown in
    "soft tissue": (-160.0, 240.0),
    "lung": (-1350.0, 150.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
}
DIVERGING = colormaps["RdBu_r"]
ROWS = 5
MARGIN = 4  # pixels around the body that are shown
MIN_SIDE = 256  # smaller tiles are enlarged, because browsers blur small images
TILE = 1.25  # inches of a tile in a figure file


@dataclass(frozen=True)
class Tile:
    """A picture, (H, W, 3), and its caption. exact: neither smoothed nor compressed with loss."""

    title: str
    pixels: NDArray[np.uint8]
    exact: bool = False

    @cached_property
    def data(self) -> bytes:
        """The picture as a page holds it."""
        image = Image.fromarray(self.pixels)
        factor = max(1, -(-MIN_SIDE // min(image.size)))
        how = Image.Resampling.NEAREST if self.exact else Image.Resampling.BICUBIC
        large = image.resize((image.width * factor, image.height * factor), how)
        return webp(np.asarray(large), self.exact)


@dataclass(frozen=True)
class SliceTiles:
    """One slice of one channel: the label map, the real image, then each method's images, then their differences."""

    where: str
    label: Tile
    real: Tile
    generated: tuple[Tile, ...]
    differences: tuple[Tile, ...]

    @property
    def all(self) -> tuple[Tile, ...]:
        """In the order of a row."""
        return (self.label, self.real, *self.generated, *self.differences)


@dataclass(frozen=True)
class Strip:
    """Slices of one channel. Differences go from -limit to +limit (`unit`) in all slices and methods."""

    rows: tuple[SliceTiles, ...]
    limit: float
    unit: str
    aspect: float  # width / height of a tile in mm

    @property
    def scale(self) -> str:
        """What the colours of the differences mean."""
        return f"blue −{self.limit:.3g}, red +{self.limit:.3g} {self.unit}"


def chosen_slices(entrant: Entrant, rows: int = ROWS) -> list[tuple[Case, Slice]]:
    """Evenly spaced slices over all cases, leaving out those with hardly any body."""
    slices = [(case, item) for case in entrant.manifest.cases for item in paired_slices(case)]
    body = [body_pixels(item) for _, item in slices]
    full = [pair for pair, n in zip(slices, body, strict=True) if n >= 0.5 * float(np.median(body))]
    positions = np.linspace(0, len(full) - 1, min(rows, len(full))).round().astype(int)
    return [full[i] for i in positions]


def body_pixels(item: Slice) -> int:
    """Pixels of a slice with a label other than 0."""
    return sum(n for label, n in item.histogram.items() if label > 0)


def display_window(entrant: Entrant, channel: int, case: Case) -> Window:
    """Soft-tissue window for HU, the case's own window for everything else."""
    is_hu = entrant.spec.channels[channel].unit == "HU"
    return Window(*HU_WINDOWS["soft tissue"]) if is_hu else case.windows[channel]


def one_window(entrant: Entrant, channel: int) -> bool:
    """Whether all cases share the channel's intensity window, so that their units can be set side by side."""
    return len({case.windows[channel] for case in entrant.manifest.cases}) == 1


def strip(
    entrants: Sequence[Entrant], channel: int, chosen: Sequence[tuple[Case, Slice]], limit: float | None = None
) -> Strip:
    """The chosen slices of one channel in all methods, cut to the body.

    Differences are in physical units where all cases share a window, else in per cent of the case's window. Without a
    `limit` their scale ends at the 99.5th percentile, at most at half of the window that is displayed.
    """
    first = entrants[0]
    same = one_window(first, channel)
    read = [read_picture(entrants, case, item, channel, read_label(first, item)) for case, item in chosen]
    cut = body_box([picture.label for picture in read])
    images, differences, ends = [], [], []
    for (case, _), picture in zip(chosen, read, strict=True):
        window, scale = case.windows[channel], 1.0 if same else 100 / case.windows[channel].width
        decoded = [window.decode(levels[cut]).astype(np.float64) for levels in (picture.real, *picture.generated)]
        images.append(decoded)
        differences.append([(fake - decoded[0]) * scale for fake in decoded[1:]])
        ends.append(display_window(first, channel, case).width * scale / 2)
    if limit is None:
        spread = max((float(np.percentile(np.abs(d), 99.5)) for of_slice in differences for d in of_slice), default=0.0)
        limit = min(spread, *ends) or 1.0
    names, colors = [entrant.name for entrant in entrants], label_colors(first.spec.labels)
    rows = []
    for (case, item), picture, decoded, of_slice in zip(chosen, read, images, differences, strict=True):
        window = display_window(first, channel, case)
        real, *fakes = (to_grey(image, window.low, window.high) for image in decoded)
        rows.append(
            SliceTiles(
                f"{case.id}, slice {item.index}",
                Tile("label map", colors[picture.label[cut]], exact=True),
                Tile("real", real),
                tuple(Tile(name, fake) for name, fake in zip(names, fakes, strict=True)),
                tuple(Tile(f"{name} − real", signed(d, limit)) for name, d in zip(names, of_slice, strict=True)),
            )
        )
    height, width = images[0][0].shape
    aspect = width * first.spec.spacing[1] / (height * first.spec.spacing[0])
    return Strip(tuple(rows), limit, first.spec.channels[channel].unit if same else "% of window", aspect)


def body_box(labels: Sequence[NDArray]) -> tuple[slice, slice]:
    """The box that holds all labels other than 0 of all slices, with a margin; everything where there are none."""
    body = np.any([label > 0 for label in labels], axis=0)
    if not body.any():
        return slice(None), slice(None)
    rows, columns = (np.flatnonzero(body.any(axis)) for axis in (1, 0))
    return tuple(slice(max(0, int(i[0]) - MARGIN), int(i[-1]) + MARGIN + 1) for i in (rows, columns))  # type: ignore[return-value]


def signed(difference: NDArray, limit: float) -> NDArray[np.uint8]:
    """Colours (H, W, 3) of a difference from -limit to +limit."""
    return (DIVERGING(np.clip(difference / limit, -1, 1) / 2 + 0.5)[..., :3] * 255).round().astype(np.uint8)


def diverging_stops(n: int = 11) -> list[str]:
    """Colours of the difference maps, from negative to positive."""
    return [to_hex(DIVERGING(x)) for x in np.linspace(0, 1, n)]


def tile_sheet(rows: Sequence[tuple[str, Iterable[tuple[str, Tile | None]]]], aspect: float, below: str) -> Figure:
    """A figure of rows, each with a word on its left and tiles with a title or none; None leaves a place empty."""
    grid = [(name, list(tiles)) for name, tiles in rows]
    left, tall = (0.4 if any(name for name, _ in grid) else 0.05), TILE / aspect
    heads = [0.06 + 0.13 * max(len(title.splitlines()) for title, _ in tiles) for _, tiles in grid]
    width = left + (TILE + 0.03) * len(grid[0][1])
    below = fill(below, int(width * 15))
    height = len(grid) * tall + sum(heads) + 0.15 * len(below.splitlines()) + 0.1
    figure = Figure(figsize=(width, height))
    y = height
    for head, (name, tiles) in zip(heads, grid, strict=True):
        y -= head + tall
        figure.text(
            0.2 / width, (y + tall / 2) / height, name, fontsize=7, color=SOFT, rotation=90, ha="center", va="center"
        )
        for i, (title, tile) in enumerate(tiles):
            if tile is not None:
                x = left + (TILE + 0.03) * i
                axes = figure.add_axes((x / width, y / height, TILE / width, tall / height))
                axes.imshow(tile.pixels, aspect="auto", interpolation="nearest")
                axes.set_title(title, fontsize=7, color=INK, loc="left", pad=2)
                axes.set_axis_off()
    figure.text(0.5, 0.06 / height, below, fontsize=8, color=SOFT, ha="center", va="bottom")
    return figure
