"""Plots of the report, each drawn on a figure or a part of one, so that the page and the figure files show the same."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from evaluation.compare import Entrant, Row
from evaluation.report.gather import Distributions, Spectra
from evaluation.report.kit import INK, LINE, REAL_COLOR, REAL_INK, SOFT, color_of
from evaluation.report.names import decimals, number, raised

Canvas = Figure | SubFigure
Interval = tuple[float, float]
MAX_LABELS = 12
MOST_PATIENTS = 200  # with a dot each: more cannot be told apart, and each takes room in the page and memory
TAIL = 0.005  # of the pixels of a violin are cut off at each end


def plain(axes: Axes, without: str = "") -> Axes:
    """Thin grey axes without a frame, small figures; `without` the spine and the ticks of one side.

    Tick labels are plain text of few letters: matplotlib's own powers of ten take most of the time of a small plot.
    """
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    axes.tick_params(labelsize=8, colors=SOFT, length=3, width=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    if without:
        axes.spines[without].set_visible(False)
        axes.set(**{"xticks" if without == "bottom" else "yticks": []})
    return axes


def tick(value: float, _: object = None) -> str:
    """Label of a tick: ``0.25``, ``−1000``, ``1.5×10⁶``, ``10⁻³``."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.5g}".replace("-", "−")
    digits, _, exponent = f"{value:.2e}".partition("e")
    mantissa = f"{float(digits):g}"
    power = f"10{raised(int(exponent))}"
    return power if mantissa == "1" else f"{mantissa}×{power}".replace("-", "−")


# -- intensities by label -----------------------------------------------------------------------------------------


def shown_labels(found: Distributions) -> list[int]:
    """Ids of the largest labels, background left out, in order of id."""
    sizes = found.real.sum(axis=1)
    largest = [int(i) for i in np.argsort(-sizes, kind="stable") if i > 0 and sizes[i] > 0]
    return sorted(largest[:MAX_LABELS])


def violins(canvas: Canvas, found: Distributions, label: int, unit: str) -> None:
    """One label: a violin of the real intensities and of each method's, with median (line) and quartiles (bar)."""
    sets = [found.real[label], *(fake[label] for fake in found.generated)]
    ends = [_quantiles(counts, found.values, (TAIL, 0.25, 0.5, 0.75, 1 - TAIL)) for counts in sets]
    step = (found.high - found.low) / len(found.values)
    axes = plain(canvas.add_subplot(), without="bottom")
    for place, (counts, quantiles) in enumerate(zip(sets, ends, strict=True)):
        if quantiles is None:
            continue
        low, lower, median, upper, high = quantiles
        fill, ink = (REAL_COLOR, REAL_INK) if place == 0 else (color_of(place - 1),) * 2
        y, density = _density(counts, found.values, low - step, high + step)
        width = 0.42 * density / max(density.max(), 1e-12)
        axes.fill_betweenx(y, place - width, place + width, color=fill, alpha=1 if place == 0 else 0.45, linewidth=0)
        axes.plot([place, place], [lower, upper], color=ink, linewidth=3.2, solid_capstyle="butt")
        axes.plot([place - 0.2, place + 0.2], [median, median], color=ink, linewidth=1.3)
    known = [quantiles for quantiles in ends if quantiles is not None]
    if known:
        real = ends[0] or known[0]
        axes.axhline(real[2], color=REAL_INK, linewidth=0.6, linestyle=(0, (3, 3)), zorder=0)
        low, high = min(q[0] for q in known), max(q[4] for q in known)
        room = 0.06 * max(high - low, step)
        axes.set_ylim(low - room, high + room)
    axes.set_xlim(-0.6, len(sets) - 0.4)
    axes.set_ylabel(unit, fontsize=8, color=SOFT)
    axes.locator_params(axis="y", nbins=5)


def _quantiles(counts: NDArray, values: NDArray, shares: Sequence[float]) -> list[float] | None:
    total = counts.sum()
    if total == 0:
        return None
    cumulated = np.cumsum(counts) / total
    return [float(values[int(np.searchsorted(cumulated, share))]) for share in shares]


def _density(counts: NDArray, values: NDArray, low: float, high: float) -> tuple[NDArray, NDArray]:
    """Smooth density between low and high, at most 160 points: Silverman's bandwidth, at least a bin."""
    step = values[1] - values[0]
    share = counts / counts.sum()
    spread = float(np.sqrt(share @ (values - share @ values) ** 2))
    quartiles = _quantiles(counts, values, (0.25, 0.75))
    assert quartiles is not None  # counts.sum() > 0
    narrow = (quartiles[1] - quartiles[0]) / 1.34 or spread
    bandwidth = max(1.0, 0.9 * min(spread, narrow) / step * float(counts.sum()) ** -0.2)
    smooth = gaussian_filter1d(share, bandwidth, mode="constant")
    inside = np.flatnonzero((values >= low) & (values <= high))
    chosen = inside[:: max(1, len(inside) // 160)]
    return values[chosen], smooth[chosen]


# -- spectrum -----------------------------------------------------------------------------------------------------


def spectrum(canvas: Canvas, found: Spectra, unit: str) -> None:
    """Power by frequency (geometric mean over cases, the real ones' range shaded), and each method over real in dB."""
    axes, ratio = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    x = found.frequencies
    real = _logarithm(found.real)
    if len(real) > 1:
        axes.fill_between(x, 10 ** real.min(axis=0), 10 ** real.max(axis=0), color=REAL_COLOR, alpha=0.5, linewidth=0)
    axes.plot(x, 10 ** real.mean(axis=0), color=REAL_INK, linewidth=2.6, label="real")
    for i, power in enumerate(found.generated):
        curve = _logarithm(power)
        axes.plot(x, 10 ** curve.mean(axis=0), color=color_of(i), linewidth=1.3)
        ratio.plot(x, 10 * (curve - real).mean(axis=0), color=color_of(i), linewidth=1.3)
    axes.set_yscale("log")
    axes.set_ylabel(f"power, ({unit})²·mm²", fontsize=8, color=SOFT)
    ratio.axhline(0, color=REAL_INK, linewidth=1)
    low, high = ratio.get_ylim()
    ratio.set_ylim(max(min(low, -1), -40), min(max(high, 1), 40))
    ratio.set_ylabel("method / real, dB", fontsize=8, color=SOFT)
    ratio.set_xlabel("spatial frequency, cycles/mm", fontsize=8, color=SOFT)
    for one in (axes, ratio):
        plain(one)
        one.minorticks_off()
        one.xaxis.set_tick_params(labelbottom=one is ratio)
        one.set_xlim(0, float(x[-1]))


def _logarithm(power: NDArray) -> NDArray[np.float64]:
    """log10 of (cases, bins); a case's empty bins as their neighbours, no power at all as next to none."""
    bins = np.arange(power.shape[1])
    filled = np.stack([np.interp(bins, bins[~np.isnan(row)], row[~np.isnan(row)]) for row in power])
    return np.log10(np.maximum(filled, 1e-12 * max(float(filled.max()), 1e-300)))


# -- numbers ------------------------------------------------------------------------------------------------------


def floor_panel(canvas: Canvas, row: Row) -> None:
    """One distribution metric: a dot per method, hollow at the floor's n; dashed: the floor, grey: its range."""
    values = [(i, value) for i, value in enumerate(row.values) if value is not None]
    floors = sorted(row.references("floor"))
    matched = {i: found for i, _ in values if (found := row.matched(i)) is not None}
    places = decimals([value for _, value in values] + floors, 3)
    axes = plain(canvas.add_subplot(), without="left")
    ranges = {tuple(found) for entry in row.entries if (found := ((entry or {}).get("floor") or {}).get("range"))}
    for low, high in ranges:
        axes.axvspan(low, high, color=REAL_INK, alpha=0.15, linewidth=0)
    for floor in floors:
        axes.axvline(floor, color=REAL_INK, linewidth=1.2, linestyle=(0, (4, 2)))
    for i, value in values:
        y = len(row.values) - 1 - i
        axes.plot([value], [y], "o", color=color_of(i), markersize=6.5)
        if i in matched:
            axes.plot([matched[i]], [y], "o", markerfacecolor="none", color=color_of(i), markersize=6.5)
        axes.annotate(number(value, places), (value, y), (0, 6), textcoords="offset points", ha="center", fontsize=7.5)
    shown = [0.0, *floors, *itertools.chain(*ranges), *(value for _, value in values), *matched.values()]
    if row.metric.rpartition("_")[2] in ("precision", "recall", "density", "coverage"):
        shown.append(1.0)
    low, high = min(shown), max(shown)
    room = 0.12 * ((high - low) or 1.0)
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(-0.6, len(row.values) - 0.2)
    axes.locator_params(axis="x", nbins=3)


def patient_panel(canvas: Canvas, row: Row, entrants: Sequence[Entrant]) -> None:
    """One metric patient by patient: a dot per patient and method, lines join a patient's; dashed: second real scans.

    Of very many patients `MOST_PATIENTS`, evenly spaced; the mean is over all.
    """
    patients = list(entrants[0].metrics["per_patient"])
    table = np.array(
        [[entrant.metrics["per_patient"].get(p, {}).get(row.key) for entrant in entrants] for p in patients], float
    )
    drawn = table[np.linspace(0, len(table) - 1, min(len(table), MOST_PATIENTS)).round().astype(int)]
    axes = plain(canvas.add_subplot(), without="bottom")
    for floor in row.references("floor"):
        axes.axhline(floor, color=REAL_INK, linewidth=1, linestyle=(0, (4, 2)), zorder=0)
    spread = np.linspace(-0.12, 0.12, len(drawn)) if len(drawn) > 1 else np.zeros(1)
    for shift, values in zip(spread, drawn, strict=True):
        axes.plot(np.arange(len(values)) + shift, values, color=LINE, linewidth=0.6, zorder=1)
    for i in range(len(entrants)):
        axes.plot(i + spread, drawn[:, i], "o", color=color_of(i), markersize=3.6, alpha=0.85, linewidth=0, zorder=2)
        if np.isfinite(table[:, i]).any():
            mean = float(np.nanmean(table[:, i]))
            axes.plot([i - 0.25, i + 0.25], [mean, mean], color=INK, linewidth=1.4, zorder=3)
    axes.set_xlim(-0.6, len(entrants) - 0.4)
    axes.set_ylabel(row.unit, fontsize=8, color=SOFT)
    axes.locator_params(axis="y", nbins=5)


def ratio_panel(
    canvas: Canvas, found: Sequence[tuple[int, NDArray[np.float64], float, Interval | None, float]]
) -> None:
    """Nearest training over nearest held-out scan, below 1 is nearer to training; a line per method, from its number,
    the slices' ratios (dots), their mean over people with its interval, and the same of real scans (grey dash)."""
    axes = plain(canvas.add_subplot(), without="left")
    axes.axvline(1, color=REAL_INK, linewidth=0.8, linestyle=(0, (3, 3)))
    for line, (method, ratios, mean, interval, floor) in enumerate(reversed(found)):
        spread = line + 0.3 * np.linspace(-1, 1, len(ratios)) if len(ratios) > 1 else [line]
        axes.plot(ratios, spread, "o", color=color_of(method), markersize=2.6, alpha=0.45, markeredgewidth=0)
        axes.plot([floor, floor], [line - 0.4, line + 0.4], color=REAL_INK, linewidth=2)
        if interval is not None:
            axes.plot(interval, [line, line], color=INK, linewidth=1.6)
        axes.plot([mean], [line], "o", color=INK, markersize=4.5)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.locator_params(axis="x", nbins=5)


# -- training -----------------------------------------------------------------------------------------------------

Curve = tuple[list[float], list[float]]


def training(canvas: Canvas, curves: Sequence[tuple[int, Curve]], marker: str = "") -> None:
    """(method, curve); a method that is fitted at once, so has one value, is a dashed line."""
    axes = plain(canvas.add_subplot())
    for i, (x, y) in curves:
        if len(x) == 1:
            axes.axhline(y[0], color=color_of(i), linewidth=1.4, linestyle="--")
        elif x:
            axes.plot(x, y, color=color_of(i), linewidth=1.4, marker=marker, markersize=3)
    if marker:
        axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("images seen", fontsize=8, color=SOFT)
