"""Worst and best slices or cases of each method, by one metric that is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
from matplotlib.figure import Figure

from dataloaders.io.files import naming, read_csv
from dataloaders.io.manifest import Case, Slice
from dataloaders.overview import counted
from evaluation.compare import Entrant
from evaluation.report.names import decimals, name_of, number
from evaluation.report.pictures import Strip, Tile, body_pixels, one_window, strip, tile_sheet

EACH = 2  # worst and as many best of each method
FEWEST_CASES = 4  # with fewer, slices are ranked instead of cases
LEAST_BODY = 0.25  # of the median number of body pixels: the last slices of a volume are hardly pictures
APART = 3  # slices of one case that are shown are at least so far from each other, because neighbours look the same
DEFAULT = "mae_body"


@dataclass(frozen=True)
class Ranked:
    """A slice to look at: the method's place, value of the metric, and whether it is among the worst or the best.

    tiles: the real image, the method's and the difference.
    """

    method: int
    worst: bool
    case: Case
    item: Slice
    value: float
    tiles: tuple[Tile, ...] = ()

    @property
    def kind(self) -> str:
        """``worst`` or ``best``."""
        return "worst" if self.worst else "best"

    @property
    def where(self) -> str:
        """Case and slice."""
        return f"{self.case.id}, slice {self.item.index}"


@dataclass(frozen=True)
class Ranking:
    """Worst and best of one channel by `metric`. caption: how they were chosen, or why there is none."""

    metric: str
    what: str  # "cases" or "slices"
    unit: str
    found: tuple[Ranked, ...]
    caption: str
    strip: Strip | None = None

    def of_method(self, method: int) -> list[Ranked]:
        """Those of one method, the worst first."""
        return [one for one in self.found if one.method == method]

    def text(self, one: Ranked) -> str:
        """Its value, with as many decimals as the others'."""
        return f"{number(one.value, decimals([other.value for other in self.found]))} {self.unit}".strip()


def rank(entrants: Sequence[Entrant], channel: int, metric: str = DEFAULT, limit: float | None = None) -> Ranking:
    """Worst and best by the values per slice in each metrics.csv.

    Cases are ranked by the mean over their slices and shown by their slice that is nearest to it; fewer than four cases
    by their slices, those shown some slices apart. Where cases have windows of their own, intensities are in per cent of
    them. limit: end of the scale of the differences.
    """
    first = entrants[0]
    name = first.spec.channels[channel].name
    what = "cases" if len({case for case, _ in first.slices}) >= FEWEST_CASES else "slices"
    directions = [(e.metrics["metrics"].get(f"{metric}/{name}") or {}) for e in entrants]
    unit, better = directions[0].get("unit") or "", directions[0].get("better")
    relative = bool(unit) and unit == first.spec.channels[channel].unit and not one_window(first, channel)
    found: list[Ranked] = []
    for i, entrant in enumerate(entrants):
        values = _slice_values(entrant, name, metric)
        if not values or better is None:
            why = f"{entrant.name} has no values of {metric} per slice" if not values else f"{metric} has no direction"
            return Ranking(metric, what, unit, (), f"n/a: {why}.")
        if relative:
            values = {key: v * 100 / first.slices[key][0].windows[channel].width for key, v in values.items()}
        found += _of_method(first, i, _with_body(first, values), what, better)
    shown = strip(entrants, channel, [(one.case, one.item) for one in found], limit)
    with_tiles = tuple(
        replace(one, tiles=(row.real, row.generated[one.method], row.differences[one.method]))
        for one, row in zip(found, shown.rows, strict=True)
    )
    caption = _caption(metric, what, entrants[0].metrics["n"]["cases"])
    return Ranking(metric, what, "% of window" if relative else unit, with_tiles, caption, shown)


def _caption(metric: str, what: str, cases: int) -> str:
    how = (
        "Cases are ranked by the mean over their slices; shown is the slice nearest to that mean."
        if what == "cases"
        else f"With {counted(cases, 'case')}, single slices are ranked, those shown at least {APART} slices apart."
    )
    return (
        f"By {name_of(metric)} ({metric}). {how} Slices with less than {LEAST_BODY:.0%} of the median body are left out. "
        "Display window and difference scale as above."
    )


def ranking_figure(ranking: Ranking, names: Sequence[str]) -> Figure:
    """All methods on one sheet: a line of triples, one for each method."""
    assert ranking.strip is not None
    empty: list[tuple[str, Tile | None]] = [("", None)] * 3
    columns = [[_titled(name, ranking, one) for one in ranking.of_method(i)] for i, name in enumerate(names)]
    lines = zip_longest(*columns, fillvalue=empty)
    rows = [("", [place for places in line for place in places]) for line in lines]
    below = f"real, generated, difference ({ranking.strip.scale}); by {name_of(ranking.metric)}"
    return tile_sheet(rows, ranking.strip.aspect, below)


def _titled(name: str, ranking: Ranking, one: Ranked) -> list[tuple[str, Tile | None]]:
    titles = (f"{name}: {one.kind} {ranking.text(one)}\n{one.where}", "", "")
    return [*zip(titles, one.tiles, strict=True)]


def _slice_values(entrant: Entrant, channel: str, metric: str) -> dict[tuple[str, int], float]:
    """(case, slice) -> value, from metrics.csv; those that are not finite are left out."""
    values, path = {}, entrant.folder / "metrics.csv"
    rows = read_csv(path)
    with naming(path, "damaged"):
        for row in rows:
            if row.get("channel") == channel and row.get(metric) and row.get("slice"):
                key, value = (str(row.get("case")), int(row["slice"])), float(row[metric])
                if np.isfinite(value) and key in entrant.slices:
                    values[key] = value
    return values


def _with_body(first: Entrant, values: dict[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    """Without the slices that show hardly any body."""
    body = {key: body_pixels(first.slices[key][1]) for key in values}
    least = LEAST_BODY * float(np.median([*body.values()]))
    return {key: value for key, value in values.items() if body[key] >= least}


def _of_method(
    first: Entrant, method: int, values: dict[tuple[str, int], float], what: str, better: str
) -> list[Ranked]:
    """EACH worst, then EACH best; nothing twice."""
    worst_first = -1.0 if better == "lower" else 1.0
    if what == "slices":
        order = sorted(values, key=lambda key: worst_first * values[key])
        worst = _apart(order, [])
        best = _apart(order[::-1], worst)
        chosen = [(key, values[key], True) for key in worst] + [(key, values[key], False) for key in best]
    else:
        by_case: dict[str, dict[tuple[str, int], float]] = {}
        for key, value in values.items():
            by_case.setdefault(key[0], {})[key] = value
        means = {case: float(np.mean([*of_case.values()])) for case, of_case in by_case.items()}
        cases = sorted(means, key=lambda case: worst_first * means[case])
        each = min(EACH, len(cases) // 2)
        picked = [(case, True) for case in cases[:each]] + [(case, False) for case in cases[::-1][:each]]
        typical = {
            case: min(of_case, key=lambda key: abs(of_case[key] - means[case])) for case, of_case in by_case.items()
        }
        chosen = [(typical[case], means[case], is_worst) for case, is_worst in picked]
    return [Ranked(method, is_worst, *first.slices[key], value) for key, value, is_worst in chosen]


def _apart(order: Sequence[tuple[str, int]], taken: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The first EACH that are no neighbours of each other or of those taken."""
    chosen: list[tuple[str, int]] = []
    for case, index in order:
        near = any(case == other and abs(index - there) < APART for other, there in [*taken, *chosen])
        if not near and len(chosen) < EACH:
            chosen.append((case, index))
    return chosen
