"""Plots as sets of small panels: one SVG each for the page, all of a set on one sheet for the figure files."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dataloaders.io.runlog import log_curves, read_log
from evaluation.compare import Entrant, Row
from evaluation.privacy import KINDS
from evaluation.report import plots
from evaluation.report.gather import Distributions, Spectra
from evaluation.report.kit import INK, REAL_COLOR, color_of
from evaluation.report.memory import Remembered
from evaluation.report.names import HEADLINE, group_of, is_distribution, name_of, short_name

ARROWS = {"higher": " ↑", "lower": " ↓"}
MAX_CURVES = 12
MOST_COLUMNS, KEYS_ABREAST = 5, 5  # of a sheet
TITLE = 0.25  # inches above a panel of a sheet
# Margins of small plots, inches: dots in rows, columns over names, curves.
ROW, COLUMN, PLOT = (0.1, 0.1, 0.24, 0.06), (0.66, 0.05, 0.1, 0.08), (0.66, 0.12, 0.42, 0.06)
FONTS = "'DejaVu Sans', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Panel:
    """One plot: its title, and what draws it."""

    title: str
    draw: Callable[[plots.Canvas], None]


@dataclass(frozen=True)
class PanelSet:
    """Plots that belong together.

    section: which part of the page. stem: name of the figure files. size: of a panel in inches. margins: left, right,
    bottom and top of it, in inches. real: whether the key names the real images. first: how many panels of the page
    stand open, the rest is folded away.
    """

    section: str
    stem: str
    heading: str
    panels: tuple[Panel, ...]
    size: tuple[float, float]
    margins: tuple[float, float, float, float]
    real: bool = False
    first: int = 1000

    @cached_property
    def svgs(self) -> list[bytes]:
        """The panels as the page shows them, without titles, which it writes itself."""
        figures = [Figure(figsize=self.size) for _ in self.panels]
        for panel, figure in zip(self.panels, figures, strict=True):
            _draw(panel, figure, self)
        return [svg(figure) for figure in figures]


def panel_sets(
    entrants: Sequence[Entrant],
    rows: Sequence[Row],
    gathered: Sequence[tuple[Distributions, Spectra | None]],
    memory: Sequence[Remembered] = (),
) -> list[PanelSet]:
    """All plots; sets without a panel are left out."""
    spec = entrants[0].spec
    sets: list[PanelSet] = []
    spectra: list[Panel] = []
    for channel, (distributions, curves) in zip(spec.channels, gathered, strict=True):
        of_channel = [row for row in rows if row.channel == channel.name and row.measured]
        names = [label.name for label in spec.labels]
        labels = _violin_panels(distributions, names, channel.unit)
        name, stem = channel.name, file_stem(channel.name)
        sets += [
            *_floor_sets(name, of_channel),
            PanelSet(
                "patients", f"patients_{stem}", name, _patient_panels(of_channel, entrants), (2.0, 1.8), COLUMN, first=5
            ),
            PanelSet("intensities", f"intensities_{stem}", name, tuple(labels), (2.0, 1.9), COLUMN, real=True),
        ]
        if curves is not None:
            spectra.append(Panel(channel.name, partial(plots.spectrum, found=curves, unit=channel.unit)))
    sets.append(PanelSet("spectrum", "spectrum", "", tuple(spectra), (5.2, 3.6), PLOT, real=True))
    sets.append(
        PanelSet(
            "memory",
            "memory",
            "",
            _memory_panels(memory),
            (4.2, 0.45 + 0.6 * sum(bool(one.ratios) for one in memory)),
            ROW,
        )
    )
    sets.append(PanelSet("training", "training", "", tuple(_curve_panels(entrants)), (3.1, 1.75), PLOT))
    return [one for one in sets if one.panels]


def file_stem(name: str) -> str:
    """`name` with only letters, digits, dots and dashes."""
    return "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in name)


def _floor_sets(channel: str, rows: Sequence[Row]) -> list[PanelSet]:
    """Distribution metrics of a channel, one set per extractor."""
    by_group: dict[str, list[Panel]] = {}
    for row in rows:
        if is_distribution(row.metric):
            title = short_name(row) + ARROWS.get(row.better or "", "")
            panel = Panel(title, partial(plots.floor_panel, row=row))
            by_group.setdefault(group_of(row.metric).rpartition(": ")[2], []).append(panel)
    return [
        PanelSet(
            "distribution",
            f"distribution_{file_stem(channel)}_{file_stem(title.removesuffix(' features'))}",
            f"{channel}, {title}",
            tuple(panels),
            (1.65, max(1.25, 0.4 + 0.28 * len(rows[0].values))),
            ROW,
        )
        for title, panels in by_group.items()
    ]


def _patient_panels(rows: Sequence[Row], entrants: Sequence[Entrant]) -> tuple[Panel, ...]:
    """Metrics that at least two patients have a value of, the headline ones first."""
    panels = []
    for row in sorted(rows, key=lambda row: row.metric not in HEADLINE):
        values = [[p.get(row.key) for p in e.metrics["per_patient"].values()] for e in entrants]
        if any(sum(value is not None for value in of_method) > 1 for of_method in values):
            title = name_of(row.metric) + ARROWS.get(row.better or "", "")
            panels.append(Panel(title, partial(plots.patient_panel, row=row, entrants=entrants)))
    return tuple(panels)


def _violin_panels(found: Distributions, names: Sequence[str], unit: str) -> list[Panel]:
    labels = plots.shown_labels(found)
    titles = {label: names[label].replace("_", " ") for label in labels} or {0: "whole image"}
    return [
        Panel(title, partial(plots.violins, found=found, label=label, unit=unit)) for label, title in titles.items()
    ]


def _memory_panels(memory: Sequence[Remembered]) -> tuple[Panel, ...]:
    """Nearest scans of what each method makes, by kind of distance."""
    panels = []
    for kind in KINDS:
        found: list[Any] = []
        for one in memory:
            if kind in one.ratios and (row := one.ratio(kind)):
                ends = None if row["low"] is None or row["high"] is None else (row["low"], row["high"])
                found.append((one.method, one.ratios[kind], row["value"], ends, row["without"]))
        if found:
            panels.append(Panel(f"Nearest training / held-out scan, {kind}", partial(plots.ratio_panel, found=found)))
    return tuple(panels)


# -- training -----------------------------------------------------------------------------------------------------


def _curve_panels(entrants: Sequence[Entrant]) -> list[Panel]:
    """The validation distance of all methods together, then each method's losses."""
    logs = [_log_series(entrant) for entrant in entrants]
    found: list[Panel] = []
    curves = [*enumerate(log.get("validation", ([], [])) for log in logs)]
    if any(len(x) > 1 for _, (x, _) in curves):
        draw = partial(plots.training, curves=curves, marker="o")
        found.append(Panel("validation: what the best is chosen by", draw))
    for i, (log, entrant) in enumerate(zip(logs, entrants, strict=True)):
        for name, curve in log.items():
            if name != "validation" and len(curve[0]) > 1:
                title = f"{entrant.name}: {name.replace('/', ' ')}"
                found.append(Panel(title, partial(plots.training, curves=[(i, curve)])))
    return found[:MAX_CURVES]


def _log_series(entrant: Entrant) -> dict[str, plots.Curve]:
    """Losses by name, and the measure that chooses the best weights, on the validation split, as ``validation``."""
    path = entrant.folder / "training_log.jsonl"
    records = read_log(path) if path.is_file() else []
    return log_curves(records, "losses") | {"validation": log_curves(records, "metrics").get("composite", ([], []))}


# -- files --------------------------------------------------------------------------------------------------------


def _draw(panel: Panel, canvas: plots.Canvas, one: PanelSet, above: float = 0.0) -> None:
    """With the set's margins and room for a title `above`: a computed layout takes long and differs from run to run."""
    (width, height), (left, right, bottom, top) = one.size, one.margins
    total = height + above
    canvas.subplots_adjust(left / width, bottom / total, 1 - right / width, 1 - (top + above) / total, hspace=0.08)
    panel.draw(canvas)


def sheet(one: PanelSet, names: Sequence[str]) -> Figure:
    """All panels of a set with titles and a key, at most five side by side."""
    columns = min(MOST_COLUMNS, len(one.panels))
    lines = math.ceil(len(one.panels) / columns)
    handles: list[Any] = [Patch(color=REAL_COLOR, label="real")] if one.real else []
    handles += [Line2D([], [], color=color_of(i), linewidth=4, label=name) for i, name in enumerate(names)]
    key = 0.2 + 0.2 * math.ceil(len(handles) / KEYS_ABREAST)
    heights = [*[one.size[1] + TITLE] * lines, key]
    figure = Figure(figsize=(max(columns * one.size[0], 3.6), sum(heights)))
    grid = figure.add_gridspec(lines + 1, columns, height_ratios=heights, wspace=0, hspace=0)
    for place, panel in enumerate(one.panels):
        cell = figure.add_subfigure(grid[place // columns, place % columns])
        cell.suptitle(panel.title, fontsize=9, color=INK)
        _draw(panel, cell, one, TITLE)
    figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), KEYS_ABREAST), fontsize=8, frameon=False)
    return figure


def svg(figure: Figure) -> bytes:
    """The figure as SVG with text as text."""
    buffer = io.BytesIO()
    # Text stays text, to be edited in a paper's layout; fixed ids and no date, so that equal results give equal files.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "medsis"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().replace(b"'DejaVu Sans'", FONTS.encode())
    # Of some clip paths, matplotlib takes the ids from addresses.
    for n, name in enumerate(re.findall(rb'<clipPath id="(\w+)"', text)):
        text = text.replace(b'"' + name + b'"', b'"clip%d"' % n).replace(b"#" + name + b")", b"#clip%d)" % n)
    return text


def png(figure: Figure, dpi: int = 200) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
