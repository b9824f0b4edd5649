"""Tiles of slices: label map, real image, each method's image and its difference, in physical display windows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image

from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Slice
from evaluation.compare import Entrant
from evaluation.report.gather import Picture, read_label, read_picture
from evaluation.results import paired_slices

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


@dataclass(frozen=True)
class Tiles:
    """One slice of one channel as 8-bit pixels: label map (RGB), images (grey) and differences (RGB)."""

    case: str
    index: int
    label: NDArray[np.uint8]
    real: NDArray[np.uint8]
    generated: tuple[NDArray[np.uint8], ...]
    difference: tuple[NDArray[np.uint8], ...]


@dataclass(frozen=True)
class Strip:
    """Slices of one channel. Differences go from -limit to +limit (`unit`) in all slices and methods."""

    rows: tuple[Tiles, ...]
    limit: float
    unit: str
    aspect: float  # width / height of a tile in mm


def label_hex(num_labels: int) -> list[str]:
    """One colour per label; background black; hues far apart for neighbouring ids."""
    return ["#000000"] + [
        to_hex(colormaps["turbo"](0.06 + 0.88 * ((i * 0.618034) % 1.0))) for i in range(1, num_labels)
    ]


def label_rgb(num_labels: int) -> NDArray[np.uint8]:
    """(N, 3) the same."""
    return np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in label_hex(num_labels)], np.uint8)


def chosen_slices(entrant: Entrant, rows: int = ROWS) -> list[tuple[Case, Slice]]:
    """Evenly spaced slices over all cases, leaving out those with hardly any body."""
    slices = [(case, item) for case in entrant.manifest.cases for item in paired_slices(case)]
    body = [sum(n for label, n in item.histogram.items() if label > 0) for _, item in slices]
    full = [pair for pair, n in zip(slices, body, strict=True) if n >= 0.5 * float(np.median(body))]
    positions = np.linspace(0, len(full) - 1, min(rows, len(full))).round().astype(int)
    return [full[i] for i in positions]


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
    scales = [1.0 if same else 100 / case.windows[channel].width for case, _ in chosen]
    windows = [display_window(first, channel, case) for case, _ in chosen]
    read = [read_picture(entrants, case, item, channel, read_label(first, item)) for case, item in chosen]
    cut = body_box([picture.label for picture in read])
    physical = [
        [case.windows[channel].decode(levels[cut]).astype(np.float64) for levels in (picture.real, *picture.generated)]
        for (case, _), picture in zip(chosen, read, strict=True)
    ]
    differences = [
        [(fake - real) * scale for fake in fakes] for (real, *fakes), scale in zip(physical, scales, strict=True)
    ]
    if limit is None:
        spread = max((float(np.percentile(np.abs(d), 99.5)) for of_slice in differences for d in of_slice), default=0.0)
        limit = min(spread, *(window.width * scale / 2 for window, scale in zip(windows, scales, strict=True))) or 1.0
    rows = [
        _tiles(case, item, picture, cut, images, of_slice, window, limit, first.spec.num_labels)
        for (case, item), picture, images, of_slice, window in zip(
            chosen, read, physical, differences, windows, strict=True
        )
    ]
    height, width = rows[0].real.shape
    aspect = width * first.spec.spacing[1] / (height * first.spec.spacing[0])
    return Strip(tuple(rows), limit, first.spec.channels[channel].unit if same else "% of window", aspect)


def _tiles(
    case: Case,
    item: Slice,
    picture: Picture,
    cut: tuple[slice, slice],
    images: Sequence[NDArray],
    differences: Sequence[NDArray],
    window: Window,
    limit: float,
    num_labels: int,
) -> Tiles:
    real, *fakes = (_grey(image, window) for image in images)
    signed = tuple(_signed(difference, limit) for difference in differences)
    return Tiles(case.id, item.index, label_rgb(num_labels)[picture.label[cut]], real, tuple(fakes), signed)


def body_box(labels: Sequence[NDArray]) -> tuple[slice, slice]:
    """The box that holds all labels other than 0 of all slices, with a margin; everything where there are none."""
    body = np.any([label > 0 for label in labels], axis=0)
    if not body.any():
        return slice(None), slice(None)
    rows, columns = (np.flatnonzero(body.any(axis)) for axis in (1, 0))
    return tuple(slice(max(0, int(i[0]) - MARGIN), int(i[-1]) + MARGIN + 1) for i in (rows, columns))  # type: ignore[return-value]


def _grey(image: NDArray, window: Window) -> NDArray[np.uint8]:
    return (np.clip((image - window.low) / window.width, 0, 1) * 255).round().astype(np.uint8)


def _signed(difference: NDArray, limit: float) -> NDArray[np.uint8]:
    return (DIVERGING(np.clip(difference / limit, -1, 1) / 2 + 0.5)[..., :3] * 255).round().astype(np.uint8)


def diverging_stops(n: int = 11) -> list[str]:
    """Colours of the difference maps, from negative to positive."""
    return [to_hex(DIVERGING(x)) for x in np.linspace(0, 1, n)]


def webp(pixels: NDArray[np.uint8], exact: bool = False) -> bytes:
    """A tile as WebP; label maps `exact`, so without smoothing and without loss."""
    image = Image.fromarray(pixels)
    factor = -(-MIN_SIDE // min(image.size))
    if factor > 1:
        how = Image.Resampling.NEAREST if exact else Image.Resampling.BICUBIC
        image = image.resize((image.width * factor, image.height * factor), how)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", lossless=exact, quality=90, method=2)
    return buffer.getvalue()
