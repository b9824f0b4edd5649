"""The metrics as tables: methods down, metrics across, and everything once more in one long table."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.compare import Entrant, Row, count
from evaluation.report.html import scroll, text
from evaluation.report.names import (
    RATIO_NOTE,
    group_of,
    grouped,
    is_distribution,
    joined,
    name_of,
    number,
    p_text,
    row_decimals,
    short_name,
)
from evaluation.report.plots import color_of

ARROWS = {"higher": "↑", "lower": "↓"}
MOST_COLUMNS = 7  # of one table; longer groups are cut into several


def metrics_section(entrants: Sequence[Entrant], rows: Sequence[Row]) -> str:
    """All tables with their legend and what has no value."""
    notes: list[str] = []
    channels = list(dict.fromkeys(row.channel for row in rows))
    measured = {key: [row for row in of_group if row.measured] for key, of_group in grouped(rows).items()}
    parts = []
    for channel in sorted(channels, key=lambda name: name is None):  # what covers all channels comes last
        groups = {title: found for (of, title), found in measured.items() if of == channel and found}
        if groups and (len(channels) > 1 or channel):
            parts.append(f"<h3>{text(channel or 'All channels')}</h3>")
        for title, found in groups.items():
            pieces = [found[i : i + MOST_COLUMNS] for i in range(0, len(found), MOST_COLUMNS)]
            parts += [_group_table(entrants, piece, title, notes) for piece in pieces]
    parts.append(f"<p class='notes'>{_legend(rows)}</p>")
    if region := (entrants[0].metrics.get("settings") or {}).get("region"):
        parts.append(f"<p class='notes'>Compared with the real image: {text(region)}.</p>")
    if notes:
        parts.append("<ol class='notes'>" + "".join(f"<li>{text(note)}</li>" for note in notes) + "</ol>")
    parts.append(_unmeasured(rows))
    parts.append(
        f"<details><summary>All metrics in one table</summary>{_long_table(entrants, rows)}</details>"
        "<p class='notes'>The same numbers: tables/metrics.csv, tables/*.tex, compare.json.</p>"
    )
    return "".join(parts)


def _group_table(entrants: Sequence[Entrant], rows: Sequence[Row], title: str, notes: list[str]) -> str:
    """Methods down, the metrics of one group across; below: n, floor, difference of the best to the next."""
    places = [row_decimals(row) for row in rows]
    head = "".join(
        f"<th scope='col' data-sort='number' data-better='{row.better or ''}'>{_metric_head(row, short_name(row))}</th>"
        for row in rows
    )
    body = []
    for i, entrant in enumerate(entrants):
        cells = "".join(_cell(row, i, digits, notes) for row, digits in zip(rows, places, strict=True))
        name = f"<i class='key' style='--c:{color_of(i)}'></i>{text(entrant.name)}"
        body.append(f"<tr><th scope='row' data-v='{text(entrant.name)}'>{name}</th>{cells}</tr>")
    foot = [_foot("n", [_n(row) for row in rows])]
    for what in ("floor", "ceiling"):
        found = [_reference(row, what, digits) for row, digits in zip(rows, places, strict=True)]
        foot += [_foot(f"{what} (real)", found)] if any(found) else []
    tests = [_test(row, digits) for row, digits in zip(rows, places, strict=True)]
    foot += [_foot("best − next", tests)] if any(tests) else []
    return scroll(
        f"<table class='metrics sortable'><caption>{text(title)}</caption><thead><tr>"
        f"<th scope='col' data-sort='text'>method</th>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
        f"<tfoot>{''.join(foot)}</tfoot></table>"
    )


def _metric_head(row: Row, name: str) -> str:
    """Name, direction, unit."""
    arrow = f"&nbsp;<span title='{row.better} is better'>{ARROWS[row.better]}</span>" if row.better in ARROWS else ""
    unit = f" <small>{text(row.unit)}</small>" if row.unit else ""
    return f"{text(name)}{arrow}{unit}"


def _cell(row: Row, i: int, places: int, notes: list[str]) -> str:
    entry, value = row.entries[i], row.values[i]
    if entry is None or value is None:
        reason = row.reason(i)
        if reason not in notes:
            notes.append(reason)
        return f"<td class='na' title='{text(reason)}'>n/a<sup>{notes.index(reason) + 1}</sup></td>"
    spread = ""
    if entry.get("ci95"):
        low, high = (number(end, places) for end in entry["ci95"])
        spread = f" <small>[{low}, {high}]</small>"
    elif entry.get("slice_sd") is not None:
        spread = f" <small>± {number(entry['slice_sd'], places)}</small>"
    mark = " <span class='clear' title='interval of the difference leaves out zero'>●</span>" if row.clear else ""
    best = row.best == i
    shown = number(value, places) + (mark if best else "") + spread
    return f"<td{' class=best' if best else ''} data-v='{value!r}'>{shown}</td>"


def _foot(name: str, cells: Sequence[str]) -> str:
    return f"<tr><th scope='row'>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _n(row: Row) -> str:
    """From how many patients or slices a metric comes."""
    counts = [
        entry.get("n_patients", entry.get("n")) for entry in row.entries if entry and entry.get("value") is not None
    ]
    noun = "slice" if is_distribution(row.metric) else "patient"
    entry = next((entry for entry in row.entries if entry), {})
    noun = "patient" if "n_patients" in entry else noun
    known = sorted({n for n in counts if n is not None})
    return "" if not known else count(known[0], noun) if len(known) == 1 else f"{known[0]} to {known[-1]} {noun}s"


def _reference(row: Row, what: str, places: int) -> str:
    found = sorted({f for i in range(len(row.entries)) if (f := row.reference(i, what)) is not None})
    return " to ".join(number(value, places) for value in dict.fromkeys((found[0], found[-1]))) if found else ""


def _test(row: Row, places: int) -> str:
    """Difference to the next best with interval and p-value."""
    of = row.difference
    if of is None or of.interval is None:
        return ""
    low, high = (number(end, places) for end in of.interval)
    return f"{number(of.mean, places)} <small>[{low}, {high}]</small> <small>{text(p_text(of.p_value))}</small>"


def _legend(rows: Sequence[Row]) -> str:
    parts = ["↑ higher, ↓ lower is better; the best value is shaded"]
    if any(row.better is None and row.metric.endswith("_ratio") for row in rows):
        parts.append(f"ratios without an arrow have no better side: {RATIO_NOTE}")
    if any(entry and entry.get("ci95") for row in rows for entry in row.entries):
        parts.append(
            "brackets: 95 % bootstrap interval over patients; best − next: mean difference over the same patients, its "
            "interval and the p-value of a sign-flip test; ● that interval leaves out zero"
        )
    else:
        parts.append("± standard deviation between slices, which is not an interval")
    if any(row.reference(i, "floor") is not None for row in rows for i in range(len(row.entries))):
        parts.append("floor: the same metric between two halves of the real data, split by patient")
    return "; ".join(parts) + "."


def _unmeasured(rows: Sequence[Row]) -> str:
    """Metrics that no method has, by reason."""
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        if not row.measured:
            reasons.setdefault(row.reason(0), {})[name_of(row.metric)] = None
    lines = [f"<li>{text(joined([*names]))}: n/a, {text(reason)}</li>" for reason, names in reasons.items()]
    return f"<p class='notes'>Without a value:</p><ul class='notes'>{''.join(lines)}</ul>" if lines else ""


def _long_table(entrants: Sequence[Entrant], rows: Sequence[Row]) -> str:
    """Metrics down, methods across; sortable by metric, channel, group, best and p."""
    names = "".join(f"<th scope='col'>{text(entrant.name)}</th>" for entrant in entrants)
    own = ("channel", "group")
    head = "<th scope='col' data-sort='text'>metric</th>" + "".join(
        f"<th scope='col' data-sort='text'>{what}</th>" for what in own
    )
    tail = "<th scope='col' data-sort='text'>best</th><th scope='col' data-sort='number'>p</th>"
    lines = []
    for row in rows:
        places = row_decimals(row)
        p = row.difference.p_value if row.difference else None
        best = "" if row.best is None else entrants[row.best].name
        values = "".join(
            f"<td{' class=best' if row.best == i else ''}>{'n/a' if v is None else number(v, places)}</td>"
            for i, v in enumerate(row.values)
        )
        lines.append(
            f"<tr><th scope='row' data-v='{text(name_of(row.metric))}'>{_metric_head(row, name_of(row.metric))}</th>"
            f"<td class='text'>{text(row.channel or 'all')}</td><td class='text'>{text(group_of(row.metric))}</td>{values}"
            f"<td class='text'>{text(best)}</td><td data-v='{'' if p is None else repr(p)}'>{p_text(p)[2:].lstrip('= ')}"
            "</td></tr>"
        )
    return scroll(
        f"<table class='metrics sortable long'><thead><tr>{head}{names}{tail}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
