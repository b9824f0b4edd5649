"""compare.json, and the tables as CSV and as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataloaders.io.files import csv_text
from evaluation.compare import Entrant, Row, count
from evaluation.report.cards import flat_settings
from evaluation.report.names import group_of, grouped, metric_name, name_of, number, row_decimals, short_name
from evaluation.report.panels import file_stem
from evaluation.report.words import limits, verdict
from evaluation.statistics import MIN_PATIENTS, PairedDifference

SCHEMA = "medsis-compare/1"


# -- JSON ---------------------------------------------------------------------------------------------------------


def to_json(entrants: Sequence[Entrant], rows: Sequence[Row], files: Sequence[str] = ()) -> dict[str, Any]:
    """compare.json: methods, numbers, verdict, and the files beside it. The schema is in docs/report.md."""
    return {
        "schema": SCHEMA,
        "methods": [
            {"name": e.name, "provenance": _public(e.manifest.provenance), "n": e.metrics["n"]} for e in entrants
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


def _public(provenance: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in provenance.items() if key != "made_from"}


# -- CSV ----------------------------------------------------------------------------------------------------------


def csv_tables(entrants: Sequence[Entrant], rows: Sequence[Row]) -> dict[str, str]:
    """File name -> text. An empty cell is a value that could not be computed."""
    found = {"metrics.csv": _metrics_csv(entrants, rows), "per_patient.csv": _patients_csv(entrants, rows)}
    found["settings.csv"] = _settings_csv(entrants)
    for name in ("per_label", "per_case"):
        records = [{"method": e.name} | record for e in entrants for record in e.metrics.get(name) or ()]
        if records:
            found[f"{name}.csv"] = _csv(records)
    return found


def _metrics_csv(entrants: Sequence[Entrant], rows: Sequence[Row]) -> str:
    """One line per metric and method."""
    records = []
    for row in rows:
        for i, entrant in enumerate(entrants):
            entry, of = row.entries[i] or {}, row.differences[i]
            low, high = entry.get("ci95") or (None, None)
            d_low, d_high = (None, None) if of is None or of.interval is None else of.interval
            records.append(
                {
                    **{"method": entrant.name, "metric": row.metric, "name": name_of(row.metric)},
                    **{"group": group_of(row.metric), "channel": row.channel, "unit": row.unit, "better": row.better},
                    **{"value": row.values[i], "ci95_low": low, "ci95_high": high, "slice_sd": entry.get("slice_sd")},
                    **{"n_patients": entry.get("n_patients"), "n_slices": entry.get("n")},
                    **{"floor": row.reference(i, "floor"), "ceiling": row.reference(i, "ceiling")},
                    **{"extractor": entry.get("extractor"), "best": row.best == i},
                    "best_minus_this": None if of is None else of.mean,
                    **{"difference_low": d_low, "difference_high": d_high, "p": None if of is None else of.p_value},
                    "reason": row.reason(i) if row.values[i] is None else None,
                }
            )
    return _csv(records)


def _patients_csv(entrants: Sequence[Entrant], rows: Sequence[Row]) -> str:
    """One line per method and patient, a column per metric."""
    records = [
        {"method": entrant.name, "patient": patient} | values
        for entrant in entrants
        for patient, values in entrant.metrics["per_patient"].items()
    ]
    return _csv(records)


def _settings_csv(entrants: Sequence[Entrant]) -> str:
    settings = [flat_settings(entrant.manifest.provenance) for entrant in entrants]
    keys = dict.fromkeys(key for one in settings for key in one)
    names = [entrant.name for entrant in entrants]
    return _csv(
        [{"setting": key} | {name: one.get(key) for name, one in zip(names, settings, strict=True)} for key in keys]
        or [{"setting": None} | dict.fromkeys(names)]
    )


def _csv(records: Sequence[dict[str, Any]]) -> str:
    fields = list(dict.fromkeys(key for one in records for key in one))
    return csv_text(fields, ([one.get(field) for field in fields] for one in records))


# -- LaTeX --------------------------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "−": "$-$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "±": r"$\pm$",
    **{raised: f"$^{{{plain}}}$" for plain, raised in zip("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)},
    "µ": r"$\mu$",
    "…": r"\ldots{}",
    "–": "--",
}


def latex(text: object) -> str:
    """`text` as LaTeX prints it."""
    return "".join(_LATEX.get(letter, letter if letter.isprintable() else " ") for letter in str(text))


def latex_tables(entrants: Sequence[Entrant], rows: Sequence[Row]) -> dict[str, str]:
    """File name -> a booktabs table of one channel: metrics down, methods across, the best in bold."""
    channels = dict.fromkeys(row.channel for row in rows if row.channel)
    return {
        f"metrics_{file_stem(channel)}.tex": _latex_table(
            entrants, [row for row in rows if row.channel in (channel, None) and row.measured], channel
        )
        for channel in channels
    }


def _latex_table(entrants: Sequence[Entrant], rows: Sequence[Row], channel: str) -> str:
    floors = any(row.reference(i, "floor") is not None for row in rows for i in range(len(entrants)))
    columns = 1 + len(entrants) + floors
    head = " & ".join(["", *(latex(entrant.name) for entrant in entrants), *(["Floor"] if floors else [])])
    lines = []
    for (of, title), of_group in sorted(grouped(rows).items(), key=lambda item: item[0][0] is None):
        title += "" if of else ", all channels"
        lines.append(rf"\midrule\multicolumn{{{columns}}}{{@{{}}l}}{{\emph{{{latex(title)}}}}} \\")
        lines += [_latex_row(row, floors) for row in of_group]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_caption(entrants, rows, channel)}}}",
            rf"\label{{tab:metrics-{file_stem(channel).lower()}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{% only where it is too wide",
            rf"\begin{{tabular}}{{@{{}}l{'r' * (columns - 1)}@{{}}}}",
            r"\toprule",
            rf"{head} \\",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _latex_row(row: Row, floors: bool) -> str:
    places = row_decimals(row)
    arrow = {"higher": r" $\uparrow$", "lower": r" $\downarrow$"}.get(row.better or "", "")
    unit = f" ({latex(row.unit)})" if row.unit else ""
    cells = [f"{latex(short_name(row))}{unit}{arrow}"]
    for i, (entry, value) in enumerate(zip(row.entries, row.values, strict=True)):
        if entry is None or value is None:
            cells.append("n/a")
            continue
        shown = latex(number(value, places))
        interval = ""
        if entry.get("ci95"):
            low, high = (latex(number(end, places)) for end in entry["ci95"])
            interval = rf" {{\small [{low}, {high}]}}"
        cells.append((rf"\textbf{{{shown}}}" if row.best == i else shown) + interval)
    if floors:
        found = [f for i in range(len(row.entries)) if (f := row.reference(i, "floor")) is not None]
        cells.append(latex(number(found[0], places)) if found else "")
    return " & ".join(cells) + r" \\"


def _caption(entrants: Sequence[Entrant], rows: Sequence[Row], channel: str) -> str:
    n = entrants[0].metrics["n"]
    split = entrants[0].manifest.provenance.get("split") or ""
    parts = [
        f"Metrics of {channel}, {count(n['slices'], f'{split} slice'.strip())} of {count(n['patients'], 'patient')}."
    ]
    if n["patients"] >= MIN_PATIENTS:
        parts.append("Brackets: 95 % bootstrap intervals over patients.")
    else:
        parts.append(f"No intervals: fewer than {MIN_PATIENTS} patients.")
    if any(row.best is not None for row in rows):
        parts.append("Bold: best value.")
    if any(row.reference(i, "floor") is not None for row in rows for i in range(len(entrants))):
        parts.append("Floor: the same metric between two halves of the real data, split by patient.")
    missing = [metric_name(row) for row in rows if row.measured and None in row.values]
    if missing:
        parts.append(f"n/a: not measured ({', '.join(missing)}).")
    return latex(" ".join(parts))
