"""The metrics of all methods: as tables for the page, as CSV files and LaTeX, and all numbers as compare.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dataloaders.overview import counted
from evaluation.catalog import described
from evaluation.compare import Entrant, Row
from evaluation.metrics.metric import AGREEMENT
from evaluation.report.cards import settings_table
from evaluation.report.kit import Cell, Heading, Table, color_of, render
from evaluation.report.names import (
    SETS,
    group_of,
    grouped,
    headline,
    metric_name,
    name_of,
    number,
    p_text,
    row_decimals,
    short_name,
)
from evaluation.report.panels import file_stem
from evaluation.report.words import by_kind, limits, verdict, winners
from evaluation.statistics import MIN_PATIENTS, PairedDifference
from evaluation.tables import rows_csv

SCHEMA = "medsis-compare/1"
FLOOR = (
    "Floor: what real images get, a second scan of the same head or, between sets, half of the people against the other"
)
LINES = 5  # of the first screen
MOST_COLUMNS = 7  # of one table; longer groups are cut into several


# -- for the page -------------------------------------------------------------------------------------------------


def page_tables(entrants: Sequence[Entrant], rows: Sequence[Row], notes: list[str]) -> list[tuple[str, list[Table]]]:
    """(heading, tables) of every channel, a table per group; what covers all channels comes last.

    notes: reasons of missing values are added here; cells refer to them by number.
    """
    channels = sorted(dict.fromkeys(row.channel for row in rows), key=lambda name: name is None)
    groups = {key: [row for row in of_group if row.measured] for key, of_group in grouped(rows).items()}
    found = []
    for channel in channels:
        tables = [
            _group_table(entrants, of_group[i : i + MOST_COLUMNS], title, notes)
            for (of, title), of_group in groups.items()
            if of == channel
            for i in range(0, len(of_group), MOST_COLUMNS)
        ]
        heading = channel or ("All channels" if len(channels) > 1 else "")
        found += [(heading, tables)] if tables else []
    return found


def _group_table(entrants: Sequence[Entrant], rows: Sequence[Row], title: str, notes: list[str]) -> Table:
    """Methods down, the metrics of one group across; below: n, floor, difference of the best to the next."""
    table = metric_table(entrants, rows, notes)
    feet = len(table.columns) - 1 - len(entrants)
    return replace(table.transposed(Heading("method", sort="text"), feet), caption=title, kind="metrics sortable")


def metric_table(entrants: Sequence[Entrant], rows: Sequence[Row], notes: list[str]) -> Table:
    """Metrics down; across the methods, then n and, where there are any, floor, ceiling and best − next."""
    body: list[list[Any]] = []
    for row in rows:
        places = row_decimals(row)
        head = Heading(short_name(row), row.unit, row.better, sort="number")
        cells = [_cell(row, i, places, notes) for i in range(len(entrants))]
        more = [Cell(_n(row)), _floor(row, places), Cell(_reference(row, "ceiling", places))]
        body.append([head, *cells, *more, _difference(row, places)])
    methods = [Heading(entrant.name, color=color_of(i)) for i, entrant in enumerate(entrants)]
    columns: list[Heading | str] = ["metric", *methods, "n", "floor", "ceiling", "best − next"]
    kept = [i for i, name in enumerate(columns) if i <= len(methods) + 1 or any(line[i].text for line in body)]
    return Table([columns[i] for i in kept], [[line[i] for i in kept] for line in body])


def first_table(entrants: Sequence[Entrant], rows: Sequence[Row]) -> Table:
    """The first screen: for each kind of metric, about `LINES` in all, who is best, and the numbers of one metric."""
    channels: list[str | None] = [*dict.fromkeys(row.channel for row in rows if row.channel)] or [None]
    heads, shown = [], []
    for channel in channels:
        kinds = by_kind([row for row in rows if row.channel in (channel, None)])
        first = sorted(kinds.items(), key=lambda item: (item[0] != AGREEMENT, item[0] != SETS))
        for kind, of_kind in first[: max(1, LINES // len(channels))]:
            if row := headline(of_kind):
                where = f"{kind}, {channel}" if len(channels) > 1 else kind
                heads.append([where, *([winners(entrants, of_kind)] if len(entrants) > 1 else [])])
                shown.append(row)
    table = metric_table(entrants, shown, [])
    kept = [i for i, name in enumerate(table.columns) if name not in ("n", "best − next")]
    body = [[*head, *(line[i] for i in kept)] for head, line in zip(heads, table.rows, strict=True)]
    names = ["", "who is best", "for example"] if len(entrants) > 1 else ["", "for example"]
    for row, line in zip(shown, body, strict=True):
        arrow = {"higher": " ↑", "lower": " ↓"}[row.better or "lower"]
        line[len(names) - 1] = name_of(row.metric) + arrow + (f" {row.unit}" if row.unit else "")
    return Table([*names, *(table.columns[i] for i in kept[1:])], body, kind="metrics first")


def _cell(row: Row, i: int, places: int, notes: list[str]) -> Cell:
    entry, value = row.entries[i], row.values[i]
    if entry is None or value is None:
        reason = row.reason(i)
        if reason not in notes:
            notes.append(reason)
        return Cell("n/a", kind="na", title=reason, note=notes.index(reason) + 1)
    small: tuple[str, ...] = ()
    if entry.get("ci95"):
        small = (_interval(entry["ci95"], places),)
    elif entry.get("slice_sd") is not None:
        small = (f"± {number(entry['slice_sd'], places)}",)
    if (matched := row.matched(i)) is not None:
        small += (f"{number(matched, places)} at the floor's n",)
    if row.passed(i):
        small += ("can no longer tell",)
    best = row.best == i
    return Cell(number(value, places), value, small, "best" if best else "", clear=best and row.clear)


def _interval(ends: Sequence[float], places: int) -> str:
    return f"[{number(ends[0], places)}, {number(ends[1], places)}]"


def _n(row: Row) -> str:
    """From how many patients, slices or cases a metric comes."""
    present = [entry for entry in row.entries if entry]
    counts = (entry.get("n_patients", entry.get("n")) for entry in present if entry.get("value") is not None)
    known = {n for n in counts if n is not None}
    metric = described(row.metric)
    level = metric.level if metric and not any("n_patients" in entry for entry in present) else None
    noun = {"set": "slice", "lesions": "case"}.get(level or "", "patient")
    if len(known) < 2:
        return "".join(counted(n, noun) for n in known)
    return f"{min(known)} to {max(known)} {noun}s"


def _reference(row: Row, what: str, places: int) -> str:
    found = sorted(row.references(what))
    return " to ".join(number(value, places) for value in dict.fromkeys(found[:1] + found[-1:]))


def _floor(row: Row, places: int) -> Cell:
    """What real images get, and which: second scans of the same people, or other people."""
    found = [floor for entry in row.entries if isinstance(floor := (entry or {}).get("floor"), dict)]
    what = {line: None for floor in found for line in _of_whom(floor, places)}
    return Cell(_reference(row, "floor", places), small=tuple(what))


def _of_whom(floor: dict[str, Any], places: int) -> list[str]:
    people = counted(floor["n_patients"], "patient") if floor.get("n_patients") else ""
    several = floor.get("splits", 1) > 1
    of_splits = [f"{_interval(floor['range'], places)} in {floor['splits']} splits"] if several else []
    return [*of_splits, *filter(None, [" of ".join(filter(None, (str(floor.get("of") or ""), people)))])]


def _difference(row: Row, places: int) -> Cell:
    """Of the best to the next best, with interval and p-value."""
    of = row.difference
    if of is None or of.interval is None:
        return Cell("")
    return Cell(number(of.mean, places), small=(_interval(of.interval, places), p_text(of.p_value)))


def long_table(entrants: Sequence[Entrant], rows: Sequence[Row]) -> Table:
    """Metrics down, methods across; sortable by metric, channel, group, best and p."""
    lines = []
    for row in rows:
        p = row.difference.p_value if row.difference else None
        places = row_decimals(row)
        values = [
            Cell("n/a" if v is None else number(v, places), kind="best" if row.best == i else "")
            for i, v in enumerate(row.values)
        ]
        best = "" if row.best is None else entrants[row.best].name
        head = Heading(name_of(row.metric), row.unit, row.better)
        p_cell = Cell(p_text(p)[2:].lstrip("= "), p)
        lines.append([head, row.channel or "all", group_of(row.metric), *values, best, p_cell])
    own = [Heading(name, sort="text") for name in ("metric", "channel", "group", "best")]
    methods = [entrant.name for entrant in entrants]
    return Table([*own[:3], *methods, own[3], Heading("p", sort="number")], lines, kind="metrics sortable long")


def marks(rows: Sequence[Row]) -> dict[str, Any]:
    """What the marks in the tables need explained: ratios without a better side, intervals, floors and passing one."""
    return {
        "ratios": any(row.better is None and row.metric.endswith("_ratio") for row in rows),
        "intervals": any(entry and entry.get("ci95") for row in rows for entry in row.entries),
        "floors": FLOOR if any(row.references("floor") for row in rows) else "",
        "passed": any(row.passed(i) for row in rows for i in range(len(row.entries))),
    }


# -- CSV ----------------------------------------------------------------------------------------------------------


def csv_tables(entrants: Sequence[Entrant], rows: Sequence[Row]) -> dict[str, str]:
    """File name -> text. An empty cell is a value that could not be computed."""
    patients = [
        {"method": entrant.name, "patient": patient} | values
        for entrant in entrants
        for patient, values in entrant.metrics["per_patient"].items()
    ]
    found = {
        "metrics.csv": rows_csv([_record(entrant, row, i) for row in rows for i, entrant in enumerate(entrants)]),
        "per_patient.csv": rows_csv(patients),
        "settings.csv": settings_table(entrants).csv(),
    }
    for name in ("per_label", "per_case"):
        records = [{"method": e.name} | record for e in entrants for record in e.metrics.get(name) or ()]
        found |= {f"{name}.csv": rows_csv(records)} if records else {}
    return found


def _record(entrant: Entrant, row: Row, i: int) -> dict[str, Any]:
    """A metric of one method as a line of metrics.csv."""
    entry, of = row.entries[i] or {}, row.differences[i]
    low, high = entry.get("ci95") or (None, None)
    d_low, d_high = (None, None) if of is None or of.interval is None else of.interval
    return {
        **{"method": entrant.name, "metric": row.metric, "name": name_of(row.metric)},
        **{"group": group_of(row.metric), "channel": row.channel, "unit": row.unit, "better": row.better},
        **{"value": row.values[i], "ci95_low": low, "ci95_high": high, "slice_sd": entry.get("slice_sd")},
        **{"n_patients": entry.get("n_patients"), "n_slices": entry.get("n")},
        **{"floor": row.reference(i, "floor"), "floor_passed": entry.get("floor_passed")},
        "ceiling": row.reference(i, "ceiling"),
        **{"extractor": entry.get("extractor"), "best": row.best == i},
        "best_minus_this": None if of is None else of.mean,
        **{"difference_low": d_low, "difference_high": d_high, "p": None if of is None else of.p_value},
        "reason": row.reason(i) if row.values[i] is None else None,
    }


# -- LaTeX --------------------------------------------------------------------------------------------------------


def latex_tables(entrants: Sequence[Entrant], rows: Sequence[Row]) -> dict[str, str]:
    """File name -> a booktabs table of one channel."""
    channels = dict.fromkeys(row.channel for row in rows if row.channel)
    return {
        f"metrics_{file_stem(channel)}.tex": _latex_table(
            entrants, [row for row in rows if row.channel in (channel, None) and row.measured], channel
        )
        for channel in channels
    }


def _latex_table(entrants: Sequence[Entrant], rows: Sequence[Row], channel: str) -> str:
    n, split = entrants[0].metrics["n"], entrants[0].provenance.get("split") or ""
    groups = sorted(grouped(rows).items(), key=lambda item: item[0][0] is None)
    text = render(
        "metrics.tex",
        channel=channel,
        stem=file_stem(channel),
        methods=[entrant.name for entrant in entrants],
        groups=[
            (title + ("" if of else ", all channels"), metric_table(entrants, of_group, []))
            for (of, title), of_group in groups
        ],
        slices=counted(n["slices"], f"{split} slice".strip()),
        patients=counted(n["patients"], "patient"),
        intervals=n["patients"] >= MIN_PATIENTS,
        fewest=MIN_PATIENTS,
        best=any(row.best is not None for row in rows),
        floors=FLOOR if any(row.references("floor") for row in rows) else "",
        lacking=[metric_name(row) for row in rows if row.measured and None in row.values],
    )
    return f"{text}\n"


# -- JSON ---------------------------------------------------------------------------------------------------------


def to_json(entrants: Sequence[Entrant], rows: Sequence[Row], files: Sequence[str] = ()) -> dict[str, Any]:
    """compare.json: methods, numbers, verdict, and the files beside it. The schema is in docs/report.md."""
    return {
        "schema": SCHEMA,
        "methods": [
            {
                "name": e.name,
                "provenance": {key: of for key, of in e.provenance.items() if key != "made_from"},
                "n": e.metrics["n"],
            }
            for e in entrants
        ],
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
