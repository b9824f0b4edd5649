"""What real images reach on a metric, and whether a method has got there, so that the metric can no longer tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.catalog import described
from evaluation.metrics.metric import Row
from evaluation.pairs import Pairs
from evaluation.request import ScoringPlan
from evaluation.scoring import Scores, Side
from evaluation.summary import Summary

REPEATS = "repeats"  # the folder below a prepared one, and what its results are called
PAIRED = ("slice", "label", "case")  # levels that a second scan has values of
NO_FLOORS: tuple[dict[str, Row], str] = ({}, "none: scripts/repeats.py has made none of these data")


def second_side(pairs: Pairs, planned: ScoringPlan, folder: Path) -> Side:
    """The second scans in `folder` (of scripts/repeats.py), and what is measured of them.

    ValueError for a folder that does not go with `pairs`.
    """
    chosen = {key: m for key, m in planned.chosen.items() if m.level in PAIRED and not m.asked}
    networks = {key: net for key, net in planned.extractors.items() if f"{key}_distance" in chosen}
    request = replace(planned.request, draws=(), segmented=None, segmented_real=None, progress=False)
    return pairs.beside(folder), replace(planned, chosen=chosen, extractors=networks, request=request)


def of_second_scans(side: Side, scores: Scores) -> tuple[dict[str, Row], str]:
    """Entries of metrics.json of the second scans, and in words which they are."""
    result = Summary(side[0], scores, side[1]).result()
    people = result["n"]["patients"]
    named = side[0].provenance.get("pairs")
    said = f"{people} {'person' if people == 1 else 'people'}"
    return result["metrics"], said + (f": {', '.join(named)}" if isinstance(named, list) else "")


def add_floors(metrics: dict[str, Row], seconds: Mapping[str, Row]) -> None:
    """Give entries their `floor` from the second scans, and all that have one `floor_passed`, in place."""
    for key, entry in metrics.items():
        there = seconds.get(key, {})
        if entry["value"] is not None and there.get("value") is not None and "n_patients" in there:
            entry["floor"] = {"of": "second scan"} | {name: there[name] for name in ("value", "ci95", "n_patients")}
        if (said := passed(key.partition("/")[0], entry)) is not None:
            entry["floor_passed"] = said


def passed(metric: str, entry: Mapping[str, Any]) -> bool | None:
    """Whether an entry is at least as good as its floor; None where that has no answer.

    Distributions by their value at the floor's number of samples. Ratios by their distance from 1.
    """
    floor = entry.get("floor") or {}
    value = floor.get("matched") if floor.get("of") == "other people" else entry["value"]
    limit, known = floor.get("value"), described(metric)
    if value is None or limit is None or known is None:
        return None
    if known.better is None:
        return abs(value - 1) <= abs(limit - 1) if metric.endswith("_ratio") else None
    return bool(value <= limit if known.better == "lower" else value >= limit)
