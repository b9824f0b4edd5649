"""Worst and best slices or cases of each method, by one metric that is named."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataloaders.io.manifest import Case, Slice
from evaluation.compare import Entrant
from evaluation.report.pictures import one_window

EACH = 2  # worst and as many best of each method
FEWEST_CASES = 4  # with fewer, slices are ranked instead of cases
LEAST_BODY = 0.25  # of the median number of body pixels: the last slices of a volume are hardly pictures
APART = 3  # slices of one case that are shown are at least so far from each other, because neighbours look the same
DEFAULT = "mae_body"


@dataclass(frozen=True)
class Ranked:
    """A slice to look at: the method's place, value of the metric, and whether it is among the worst or the best."""

    method: int
    worst: bool
    case: Case
    item: Slice
    value: float


@dataclass(frozen=True)
class Ranking:
    """Worst and best of one channel by `metric`. what: ``cases`` or ``slices``. missing: why there is none, or empty."""

    metric: str
    what: str
    unit: str
    found: tuple[Ranked, ...]
    missing: str = ""


def rank(entrants: Sequence[Entrant], channel: int, metric: str = DEFAULT) -> Ranking:
    """Worst and best by the values per slice in each metrics.csv.

    Cases are ranked by the mean over their slices and shown by their slice that is nearest to it; fewer than four cases
    by their slices, those shown some slices apart. Where cases have windows of their own, intensities are in per cent of
    them.
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
            return Ranking(metric, what, unit, (), why)
        if relative:
            values = {key: v * 100 / first.slices[key][0].windows[channel].width for key, v in values.items()}
        found += _of_method(first, i, _with_body(first, values), what, better)
    return Ranking(metric, what, "% of window" if relative else unit, tuple(found))


def _slice_values(entrant: Entrant, channel: str, metric: str) -> dict[tuple[str, int], float]:
    """(case, slice) -> value, from metrics.csv; those that are not finite are left out."""
    path = entrant.folder / "metrics.csv"
    if not path.is_file():
        return {}
    values = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get("channel") == channel and row.get(metric) and row.get("slice"):
                    key, value = (str(row.get("case")), int(row["slice"])), float(row[metric])
                    if np.isfinite(value) and key in entrant.slices:
                        values[key] = value
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: damaged: {error}") from None
    return values


def _with_body(first: Entrant, values: dict[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    """Without the slices that show hardly any body."""
    body = {key: sum(n for label, n in first.slices[key][1].histogram.items() if label > 0) for key in values}
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
