"""Pictures of the comparison report, each a small PNG, so that the page can lay them out for any window."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from dataloaders.intensity import LEVELS, Window
from dataloaders.manifest import Case, Slice
from dataloaders.png import read_png
from engine.runlog import read_log
from evaluation.compare import Entrant
from evaluation.results import paired_slices, read_items

METHOD_COLORS = ("#0b6e99", "#c2571a", "#5b8c2a", "#7a4fa3", "#a3294f")
REAL_COLOR = "#c9ccd1"
INK, SOFT = "#1c2430", "#5a6472"
SOFT_TISSUE_HU = (-160.0, 240.0)  # width 400, level 40
DIVERGING = colormaps["RdBu_r"]
ROWS = 5
MAX_PANELS = 12
MARGIN = 4  # pixels around the body that are shown
MIN_SIDE = 256  # smaller tiles are enlarged, because browsers blur small images
BINS = 4096  # of the intensity histograms; panels merge them to fewer over what they show, by number of pixels
PANEL_BINS = (15, 60)


@dataclass(frozen=True)
class Row:
    """One slice of one channel, as PNG files: label map, real image, and for each method its image and difference."""

    title: str
    label: bytes
    real: bytes
    generated: tuple[bytes, ...]
    difference: tuple[bytes, ...]


@dataclass(frozen=True)
class Strip:
    """Rows of one channel. Differences go from -limit to +limit (`unit`) in all rows and methods."""

    rows: tuple[Row, ...]
    limit: float
    unit: str
    aspect: float  # width / height of a tile in mm


# -- the same slices ----------------------------------------------------------------------------------------------


def label_hex(num_labels: int) -> list[str]:
    """One colour per label; background black; hues far apart for neighbouring ids."""
    return ["#000000"] + [
        to_hex(colormaps["turbo"](0.06 + 0.88 * ((i * 0.618034) % 1.0))) for i in range(1, num_labels)
    ]


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
    return Window(*SOFT_TISSUE_HU) if is_hu else case.windows[channel]


def strip(entrants: Sequence[Entrant], channel: int) -> Strip:
    """The chosen slices of one channel in all methods, cut to the body.

    Differences are in physical units where all chosen cases share a window, else in per cent of the case's window.
    The scale ends at the 99.5th percentile, at most at half of the window that is displayed.
    """
    first = entrants[0]
    chosen = chosen_slices(first)
    same = len({case.windows[channel] for case, _ in chosen}) == 1
    scales = [1.0 if same else 100 / case.windows[channel].width for case, _ in chosen]
    pictures = [_pictures(entrants, case, item, channel) for case, item in chosen]
    cut = _body_box([label for label, _, _ in pictures])
    windows = [display_window(first, channel, case) for case, _ in chosen]
    differences = [
        [(f - real) * scale for f in fakes] for (_, real, fakes), scale in zip(pictures, scales, strict=True)
    ]
    spread = max((float(np.percentile(np.abs(d), 99.5)) for of_slice in differences for d in of_slice), default=0.0)
    most = min(window.width * scale / 2 for window, scale in zip(windows, scales, strict=True))
    limit = min(spread, most) or 1.0
    colors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in label_hex(first.spec.num_labels)], np.uint8)
    rows = [
        Row(
            f"{case.id}, slice {item.index}",
            _png(colors[label[cut]], smooth=False),
            _png(_grey(real[cut], window)),
            tuple(_png(_grey(fake[cut], window)) for fake in fakes),
            tuple(_png(_signed(difference[cut], limit)) for difference in of_slice),
        )
        for (case, item), (label, real, fakes), of_slice, window in zip(
            chosen, pictures, differences, windows, strict=True
        )
    ]
    height, width = colors[pictures[0][0][cut]].shape[:2]
    aspect = width * first.spec.spacing[1] / (height * first.spec.spacing[0])
    return Strip(tuple(rows), limit, first.spec.channels[channel].unit if same else "% of window", aspect)


def _pictures(
    entrants: Sequence[Entrant], case: Case, item: Slice, channel: int
) -> tuple[NDArray, NDArray[np.float64], list[NDArray[np.float64]]]:
    """Label map, real image and the methods' images in physical units."""
    window = case.windows[channel]

    def read(entrant: Entrant, path: str) -> NDArray[np.float64]:
        return window.decode(read_png(entrant.folder / path)).astype(np.float64)

    fakes = [read(e, e.slice(case.id, item.index).generated[channel]) for e in entrants]
    return read_png(entrants[0].folder / item.label), read(entrants[0], item.images[channel]), fakes


def _body_box(labels: Sequence[NDArray]) -> tuple[slice, slice]:
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


def _png(pixels: NDArray[np.uint8], smooth: bool = True) -> bytes:
    image = Image.fromarray(pixels)
    factor = -(-MIN_SIDE // min(image.size))
    if factor > 1:
        how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        image = image.resize((image.width * factor, image.height * factor), how)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def difference_gradient() -> str:
    """CSS colour stops of the difference maps, from negative to positive."""
    return ",".join(to_hex(DIVERGING(x)) for x in np.linspace(0, 1, 11))


# -- intensities by label -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distributions:
    """Histograms (N labels, BINS) of one channel in physical units [low, high]: the real images' and each method's."""

    low: float
    high: float
    real: NDArray[np.int64]
    generated: tuple[NDArray[np.int64], ...]


def distributions(entrants: Sequence[Entrant]) -> list[Distributions]:
    """Pixel counts by label and physical intensity, one entry per channel; one pass over each method's images."""
    spec = entrants[0].spec
    by_method = []
    windows = [[case.windows[c] for case in entrants[0].manifest.cases] for c in range(spec.num_channels)]
    limits = [(min(w.low for w in channel), max(w.high for w in channel)) for channel in windows]
    real = np.zeros((spec.num_channels, spec.num_labels * BINS), np.int64)
    for i, entrant in enumerate(entrants):
        fake = np.zeros_like(real)
        for item in read_items(entrant.folder, entrant.manifest):
            bins = _bin_of_level(item.window, *limits[item.channel])
            labels = item.label.astype(np.int64) * BINS
            for levels, counts in ((item.real, real), (item.fake, fake))[i > 0 :]:
                counts[item.channel] += np.bincount((labels + bins[levels]).ravel(), minlength=counts.shape[1])
        by_method.append(fake.reshape(spec.num_channels, spec.num_labels, BINS))
    real = real.reshape(by_method[0].shape)
    return [Distributions(*limits[c], real[c], tuple(fake[c] for fake in by_method)) for c in range(spec.num_channels)]


def _bin_of_level(window: Window, low: float, high: float) -> NDArray[np.int64]:
    """(65536,) lookup from a 16-bit level to a bin of [low, high]."""
    values = window.decode(np.arange(LEVELS + 1)).astype(np.float64)
    return np.clip((values - low) / (high - low) * BINS, 0, BINS - 1).astype(np.int64)


def label_panels(entrants: Sequence[Entrant], channel: int, found: Distributions) -> list[tuple[str, bytes]]:
    """(label name, PNG) of the largest labels: real intensities as area, each method's as a line."""
    sizes = found.real.sum(axis=1)
    shown = [int(i) for i in np.argsort(-sizes, kind="stable") if i > 0 and sizes[i] > 0][:MAX_PANELS]
    spec = entrants[0].spec
    names = [entrant.name for entrant in entrants]
    return [
        (spec.labels[label].name.replace("_", " "), _density_panel(found, label, names, spec.channels[channel].unit))
        for label in sorted(shown)
    ]


def _density_panel(found: Distributions, label: int, names: Sequence[str], unit: str) -> bytes:
    """One label: densities over the range that holds the middle 98 % of the real and of each method's pixels."""
    counts = [found.real[label], *(fake[label] for fake in found.generated)]
    shares = [np.cumsum(c) / max(1, c.sum()) for c in counts]
    start = min(int(np.searchsorted(s, 0.01)) for s in shares)
    stop = max(int(np.searchsorted(s, 0.99)) for s in shares) + 1
    bins = int(np.clip(np.sqrt(counts[0].sum()) / 2, *PANEL_BINS))
    step = max(1, (stop - start) // bins)
    edges = np.arange(max(0, start - 3 * step), min(BINS, stop + 3 * step) + 1, step)
    x = found.low + (edges[:-1] + step / 2) * (found.high - found.low) / BINS
    densities = [np.diff(np.append(0, np.cumsum(c))[edges]) / max(1, c.sum()) for c in counts]
    figure, axes = _panel()
    axes.fill_between(x, densities[0], color=REAL_COLOR, linewidth=0, label="real")
    for density, name, color in zip(densities[1:], names, METHOD_COLORS, strict=False):
        axes.plot(x, density, color=color, linewidth=1.5, label=name)
    # A method that gives every pixel of a label one value would press all others to the floor.
    axes.set_ylim(0, 1.08 * min(max(d.max() for d in densities), 2.5 * max(densities[0].max(), 1e-9)))
    axes.set_xlim(x[0], x[-1])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(unit, fontsize=8, color=SOFT)
    return _figure_png(figure)


# -- training -----------------------------------------------------------------------------------------------------

Series = dict[str, tuple[list[float], list[float]]]


def curve_panels(entrants: Sequence[Entrant]) -> list[tuple[str, bytes]]:
    """(title, PNG): the validation distance of all methods together, then each method's losses."""
    logs = [_log_series(entrant) for entrant in entrants]
    panels = []
    validation = [log.get("validation", ([], [])) for log in logs]
    if any(len(x) > 1 for x, _ in validation):
        panels.append(("validation: label Wasserstein", _validation_panel(validation)))
    for log, entrant, color in zip(logs, entrants, METHOD_COLORS, strict=False):
        for name, (x, y) in log.items():
            if name != "validation" and len(x) > 1:
                figure, axes = _panel()
                axes.plot(x, y, color=color, linewidth=1.4)
                axes.set_xlabel("images seen", fontsize=8, color=SOFT)
                panels.append((f"{entrant.name}: {name.replace('/', ' ')}", _figure_png(figure)))
    return panels[:MAX_PANELS]


def _validation_panel(series: Sequence[tuple[list[float], list[float]]]) -> bytes:
    figure, axes = _panel()
    for (x, y), color in zip(series, METHOD_COLORS, strict=False):
        if len(x) == 1:  # fitted, not trained: one value for the whole width
            axes.axhline(y[0], color=color, linewidth=1.4, linestyle="--")
        elif x:
            axes.plot(x, y, color=color, linewidth=1.4, marker="o", markersize=3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images seen", fontsize=8, color=SOFT)
    return _figure_png(figure)


def _log_series(entrant: Entrant) -> Series:
    """Losses by name, and the channel-free Wasserstein distance on the validation split as ``validation``."""
    path = entrant.folder / "training_log.jsonl"
    series: Series = {}
    for record in read_log(path) if path.is_file() else ():
        values: dict[str, Any] = dict(record.get("losses", {}))
        values["validation"] = record.get("metrics", {}).get("wasserstein")
        for name, value in values.items():
            if value is not None:
                xs, ys = series.setdefault(name, ([], []))
                xs.append(record["images"])
                ys.append(value)
    return series


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.1, 1.75), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(labelsize=8, colors=SOFT, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b9bfc7")
    axes.locator_params(axis="x", nbins=5)
    return figure, axes


def _figure_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=180, facecolor="white")
    return buffer.getvalue()
