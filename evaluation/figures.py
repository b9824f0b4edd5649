"""Pictures of the comparison report, as PNG bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dataloaders.intensity import Window
from dataloaders.manifest import Case, Slice
from dataloaders.png import read_png
from engine.runlog import read_log
from evaluation.compare import Entrant
from evaluation.intensity import LabelHistograms, coarse
from evaluation.results import read_items

METHOD_COLORS = ("#0b6e99", "#c2571a", "#5b8c2a", "#7a4fa3", "#a3294f")
REAL_COLOR = "#8a8f98"
INK = "#1c2430"
SOFT_TISSUE_HU = (-160.0, 240.0)  # width 400, level 40
ROWS = 5
MAX_PANELS = 12


def label_hex(num_labels: int) -> list[str]:
    """One colour per label; background black; hues far apart for neighbouring ids."""
    return ["#000000"] + [
        to_hex(colormaps["turbo"](0.06 + 0.88 * ((i * 0.618034) % 1.0))) for i in range(1, num_labels)
    ]


def chosen_slices(entrant: Entrant, rows: int = ROWS) -> list[tuple[Case, Slice]]:
    """Evenly spaced slices over all cases, leaving out those with hardly any body."""
    slices = entrant.slices()
    body = [sum(n for label, n in item.histogram.items() if label > 0) for _, item in slices]
    full = [pair for pair, n in zip(slices, body, strict=True) if n >= 0.5 * float(np.median(body))]
    positions = np.linspace(0, len(full) - 1, min(rows, len(full))).round().astype(int)
    return [full[i] for i in positions]


def display_window(entrant: Entrant, channel: int, case: Case) -> Window:
    """Soft-tissue window for HU, the case's own window for everything else."""
    is_hu = entrant.spec.channels[channel].unit == "HU"
    return Window(*SOFT_TISSUE_HU) if is_hu else case.windows[channel]


def strips(entrants: list[Entrant], channel: int) -> bytes:
    """Rows of label | real | each method | signed difference of each method, one scale for all differences."""
    chosen = chosen_slices(entrants[0])
    rows = [_row(entrants, case, item, channel) for case, item in chosen]
    limit = max(float(np.percentile(np.abs(fake - row["real"]), 99.5)) for row in rows for fake in row["fakes"]) or 1.0
    n = len(entrants)
    columns = 2 + 2 * n
    height, width = entrants[0].spec.size
    cell = 1.45
    figure = Figure(figsize=(cell * columns + 0.9, cell * height / width * len(rows) + 0.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)  # type: ignore[union-attr]
    axes = figure.subplots(len(rows), columns, squeeze=False)
    titles = ["label map", "real", *(e.name for e in entrants), *(f"{e.name} − real" for e in entrants)]
    colors = np.array(
        [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in label_hex(entrants[0].spec.num_labels)], np.uint8
    )
    image: Any = None
    for r, row in enumerate(rows):
        window = row["window"]
        axes[r, 0].imshow(colors[row["label"]], interpolation="nearest")
        for c, picture in enumerate([row["real"], *row["fakes"]], 1):
            axes[r, c].imshow(picture, cmap="gray", vmin=window.low, vmax=window.high, interpolation="lanczos")
        for c, fake in enumerate(row["fakes"], 2 + n):
            image = axes[r, c].imshow(fake - row["real"], cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes[r, 0].set_ylabel(row["title"], fontsize=7, color="#5a6472")
        for axis in axes[r]:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
    for c, title in enumerate(titles):
        axes[0, c].set_title(title, fontsize=9, color=INK)
    bar = figure.colorbar(image, ax=axes[:, 2 + n :], shrink=0.6, pad=0.02, aspect=30)
    bar.set_label(f"difference ({entrants[0].spec.channels[channel].unit})", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return _png(figure)


def _row(entrants: list[Entrant], case: Case, item: Slice, channel: int) -> dict[str, Any]:
    window = case.windows[channel]
    fakes = []
    for entrant in entrants:
        other = next(i for c, i in entrant.slices() if (c.id, i.index) == (case.id, item.index))
        fakes.append(window.decode(read_png(entrant.folder / other.generated[channel])).astype(float))
    first = entrants[0]
    return {
        "label": read_png(first.folder / item.label),
        "real": window.decode(read_png(first.folder / item.images[channel])).astype(float),
        "fakes": fakes,
        "window": display_window(first, channel, case),
        "title": f"{case.id}\nslice {item.index}",
    }


def label_plots(entrants: list[Entrant], channel: int) -> bytes:
    """Intensity densities of the largest labels: real as area, each method as line."""
    pooled = [_pooled(entrant, channel) for entrant in entrants]
    real = pooled[0][0]
    labels = sorted((i for i in real if i > 0), key=lambda i: -sum(c.sum() for c, _ in real[i]))[:MAX_PANELS]
    columns = min(4, len(labels))
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(2.9 * columns, 1.9 * rows + 0.3), layout="constrained")
    spec = entrants[0].spec
    for position, label in enumerate(sorted(labels), 1):
        axes = figure.add_subplot(rows, columns, position)
        x, y = _density(real[label])
        axes.fill_between(x, y, color=REAL_COLOR, alpha=0.45, linewidth=0, label="real")
        for entrant, (_, fake), color in zip(entrants, pooled, METHOD_COLORS, strict=False):
            axes.plot(*_density(fake[label]), color=color, linewidth=1.3, label=entrant.name)
        known = np.flatnonzero(y > 0.002 * y.max())
        if len(known):
            margin = 0.25 * (x[known[-1]] - x[known[0]]) + 1e-9
            axes.set_xlim(x[known[0]] - margin, x[known[-1]] + margin)
        axes.set_title(spec.labels[label].name.replace("_", " "), fontsize=9)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlabel(spec.channels[channel].unit, fontsize=7)
        if position == 1:
            axes.legend(fontsize=7, frameon=False)
    return _png(figure)


Histograms = dict[int, list[tuple[NDArray, Window]]]


def _pooled(entrant: Entrant, channel: int) -> tuple[Histograms, Histograms]:
    """Level counts by label, one entry per case, since windows differ between cases."""
    by_case: dict[str, tuple[LabelHistograms, LabelHistograms, Window]] = {}
    for item in read_items(entrant.folder, entrant.manifest):
        if item.channel == channel:
            pair = by_case.setdefault(item.case.id, (LabelHistograms(), LabelHistograms(), item.window))
            pair[0].add(item.label, item.real)
            pair[1].add(item.label, item.fake)
    real: Histograms = {}
    fake: Histograms = {}
    for a, b, window in by_case.values():
        for target, source in ((real, a), (fake, b)):
            for label, counts in source.counts.items():
                target.setdefault(label, []).append((counts, window))
    return real, fake


def _density(parts: list[tuple[NDArray, Window]]) -> tuple[NDArray, NDArray]:
    low, high = min(w.low for _, w in parts), max(w.high for _, w in parts)
    grid = np.linspace(low, high, 256)
    total = np.zeros_like(grid)
    for counts, window in parts:
        x, y = coarse(counts, window)
        total += counts.sum() * np.interp(grid, x, y, left=0, right=0) / window.width
    return grid, total / max(total.sum(), 1e-12)


def curves(entrants: list[Entrant]) -> bytes | None:
    """Losses and validation metric of the methods that were trained; None where no log has more than one point."""
    panels: list[tuple[str, str, list[float], list[float]]] = []
    for entrant, color in zip(entrants, METHOD_COLORS, strict=False):
        path = entrant.folder / "training_log.jsonl"
        if not path.is_file():
            continue
        series: dict[str, tuple[list[float], list[float]]] = {}
        for record in read_log(path):
            values = dict(record.get("losses", {}))
            if "wasserstein" in record.get("metrics", {}):
                values["validation wasserstein"] = record["metrics"]["wasserstein"]
            for name, value in values.items():
                if value is not None:
                    xs, ys = series.setdefault(name, ([], []))
                    xs.append(record["images"])
                    ys.append(value)
        panels += [(f"{entrant.name}: {name}", color, *xy) for name, xy in series.items() if len(xy[0]) > 1]
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 1.9 * rows), layout="constrained")
    for position, (title, color, xs, ys) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, position)
        axes.plot(xs, ys, color=color, linewidth=1.3, marker="o" if len(xs) < 12 else "", markersize=3)
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("images seen", fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()
