"""compare.json: all numbers of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.compare import Entrant, Row
from evaluation.report.names import group_of, name_of
from evaluation.report.words import limits, verdict
from evaluation.statistics import PairedDifference

SCHEMA = "medsis-compare/1"


def to_json(entrants: Sequence[Entrant], rows: Sequence[Row], files: Sequence[str] = ()) -> dict[str, Any]:
    """compare.json: methods, numbers, verdict, and the files beside it. The schema is in docs/report.md."""
    return {
        "schema": SCHEMA,
        "methods": [{"name": e.name, "provenance": _public(e.provenance), "n": e.metrics["n"]} for e in entrants],
        "metrics": {row.key: _row_json(row, [entrant.name for entrant in entrants]) for row in rows},
        "verdict": verdict(entrants, rows),
        "limits": limits(entrants, rows),
        "files": list(files),
    }


def _row_json(row: Row, names: Sequence[str]) -> dict[str, Any]:
    difference = None
    if row.difference is not None and row.runner_up is not None:
        difference = {"to": names[row.runner_up], **_difference_json(row.difference), "clear": row.clear}
    return {
        "name": name_of(row.metric),
        "group": group_of(row.metric),
        "channel": row.channel,
        "better": row.better,
        "unit": row.unit,
        "best": None if row.best is None else names[row.best],
        "incomparable": row.incomparable or None,
        "values": dict(zip(names, row.entries, strict=True)),
        "difference": difference,
        "differences": {
            name: _difference_json(of) for name, of in zip(names, row.differences, strict=True) if of is not None
        },
    }


def _difference_json(of: PairedDifference) -> dict[str, Any]:
    interval = None if of.interval is None else list(of.interval)
    return {"mean": of.mean, "ci95": interval, "p": of.p_value, "patients": of.patients, "left_out": of.left_out}


def _public(provenance: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in provenance.items() if key != "made_from"}
