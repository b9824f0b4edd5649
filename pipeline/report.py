"""report.html of a study: one self-contained page; report.json: all of its numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dataloaders.io.files import read_json, write_json, write_text
from pipeline.context import Context
from pipeline.plan import ORDER
from pipeline.records import Record
from pipeline.report_pictures import case_pictures, predictions, samples
from pipeline.tissue import TISSUES

COLUMNS = (*TISSUES, "mean")
TEXT = (
    *("stage", "reason", "state", "split", "maps", "ids in no table", "gate", "scan"),
    *("version", "licence", "citation"),
)
STYLE = Path(__file__).with_name("page.css")
# The browser itself is told to fetch nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(context: Context) -> None:
    """Write both files to the unit's folder."""
    data = collect(context)
    write_json(context.folder / "report.json", data)
    write_text(context.folder / "report.html", render(context, data))


def collect(context: Context) -> dict[str, Any]:
    """Scores, cases with their facts, and everything that is not done, with its reason."""
    records = context.records
    scores_unit = records.get("evaluate")
    done = scores_unit is not None and scores_unit.state == "done"
    left_out = [
        {"unit": name, "state": record.state, "reason": _without_folders(record.reason, context)}
        for name, record in sorted(records.items())
        if record.state not in ("done", "blocked")
    ]
    blocked: dict[str, list[str]] = {}
    for name, record in sorted(records.items()):
        if record.state == "blocked":
            blocked.setdefault(_root(record, records), []).append(name)
    tools = {}
    for record in records.values():
        if record.tool.get("name") and record.tool.get("name") != "given":
            tools[record.tool["name"]] = record.tool
    return {
        "study": context.study.name,
        "scores": read_json(context.path("evaluate", "scores")) if done else None,
        "cases": [_case_row(context, case) for case in sorted(context.cases)],
        "left_out": left_out,
        "blocked": blocked,
        "tools": [tools[name] for name in sorted(tools)],
        "times": _times(records),
    }


def _without_folders(text: str, context: Context) -> str:
    """The text without absolute folders, which name people, projects and machines: a report is given away.

    Paths below the study's work folder start there; of others the name alone is left.
    """
    known = {context.study.work, *(source.source.parent for source in context.study.input)}
    for folder in sorted({*known, *(path.resolve() for path in known)}, key=lambda path: -len(str(path))):
        text = text.replace(f"{folder}/", "")
    return re.sub(r"(?<![\w.~])~?/(?:[^\s/:;,'\"()]+/)*", "", text)


def _times(records: Mapping[str, Record]) -> dict[str, dict[str, Any]]:
    """Units, minutes from begin to end, minutes of processor, by stage in the order of the work."""
    found: dict[str, dict[str, Any]] = {}
    for stage in (stage for group in ORDER for stage in group):
        own = [record for name, record in records.items() if name.split("/")[0] == stage and record.state != "blocked"]
        if own:
            sums = {key: round(sum(getattr(r, f"{key}seconds") for r in own) / 60, 2) for key in ("", "cpu_")}
            found[stage] = {"units": len(own), "minutes": sums[""], "cpu_minutes": sums["cpu_"]}
    return found


def _root(record: Record, records: Mapping[str, Record]) -> str:
    """The unit that a blocked one waits for in the end."""
    name = record.reason.split(" ")[0]
    while name in records and records[name].state == "blocked":
        name = records[name].reason.split(" ")[0]
    return name


def _case_row(context: Context, case: str) -> dict[str, Any]:
    records = context.records
    maps = {}
    for name, record in records.items():
        if name.startswith("tissue/") and name.endswith(f"/{case}") and record.facts:
            keys = ("litres", "share", "largest", "unknown_ml", "outside_ml")
            facts = {key: record.facts[key] for key in keys}
            reason = _without_folders(record.reason, context)
            maps[name.split("/")[1]] = {"state": record.state, "reason": reason, **facts}
    masks = {
        name.split("/")[1]: record.facts["litres"]
        for name, record in records.items()
        if name.startswith("strip/") and name.endswith(f"/{case}") and "litres" in record.facts
    }
    found = context.cases[case]
    return {"id": case, "patient": found.patient, "split": found.split, "brain_litres": masks, "maps": maps}


def render(context: Context, data: dict[str, Any]) -> str:
    """The page as one string; it refers to no other file and to no network."""
    scores = data["scores"]
    sections = [f"<h1>{escape(data['study'])}</h1>", _intro(context, data)]
    if scores:
        sections += [
            "<h2>Dice on real held-out scans</h2>" + _real_table(context, scores) + predictions(context),
            "<h2>Train tool × test tool</h2>" + _cross_tables(scores),
            "<h2>Agreement between segmentations</h2>" + _agreement(scores),
            "<h2>Robustness across strippers</h2>" + _robustness(context, scores),
        ]
    sections += [
        "<h2>Left out</h2>" + _left_out(data),
        "<h2>Cases</h2>" + _case_table(data) + case_pictures(context),
        "<h2>Synthetic slices</h2>" + samples(context),
        "<h2>Tools</h2>" + _tools(data),
        "<h2>Time</h2>" + _time_table(data),
        "<h2>What this does not show</h2>" + _limits(context, scores),
        "<footer>Written by medsis pipeline. All numbers are in report.json beside this file.</footer>",
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{POLICY}\">"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{escape(data['study'])} · medsis</title><link rel='icon' href='data:,'>"
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def _intro(context: Context, data: dict[str, Any]) -> str:
    splits = [context.cases[row["id"]].split for row in data["cases"]]
    words = {"train": "to train on", "val": "to validate on", "test": "to test on"}
    counts = ", ".join(f"{splits.count(split)} {word}" for split, word in words.items() if split in splits)
    text = f"{len(splits)} scans: {counts}. Networks saw synthetic slices only; patients are never in two splits."
    if data["scores"]:
        best = _best(data["scores"])
        if best:
            name, value = best
            text += f" Best mean Dice of GM, WM and CSF on real scans: {value:.3f} ({name}). {_reference_note(context)}"
    return f"<p class='verdict'>{escape(text)}</p>"


def _best(scores: dict[str, Any]) -> tuple[str, float] | None:
    values = {
        name: tables["dice"]["reference"]["mean"]["value"]
        for name, tables in scores["real"].items()
        if "reference" in tables["dice"] and tables["dice"]["reference"]["mean"]["value"] is not None
    }
    name = max(values, key=lambda key: values[key], default=None)
    return None if name is None else (name, values[name])


def _reference_note(context: Context) -> str:
    kind = context.study.evaluate.reference
    if kind == "labels":
        return "Reference: labels that were given with the cases."
    units = [name for name in context.records if name.startswith("reference/")]
    sources = sorted({s for name in context.done(units) for s in context.facts(name)["from"]})
    if len(sources) == 1:
        return f"Reference: the labels of {sources[0]} itself, so Dice is agreement with this tool, not accuracy."
    ties = " (where they tie, the scan's intensity decides)"
    return f"Reference: the vote of {', '.join(sources)}{ties}, so Dice is agreement with these tools, not accuracy."


def table(head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """An HTML table; cells are HTML already."""
    top = "".join(f"<th class='text'>{cell}</th>" if cell in TEXT else f"<th>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr>{''.join(cell if cell.startswith('<td') else f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows
    )
    below = f"<p class='notes'>{note}</p>" if note else ""
    return f"<div class='scroll'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>{below}"


def _number(value: float | None, digits: int = 3, best: bool = False) -> str:
    if value is None:
        return "<td class='na'>n/a</td>"
    return f"<td class='best'>{value:.{digits}f}</td>" if best else f"<td>{value:.{digits}f}</td>"


def _text(words: str, bad: bool = False) -> str:
    return f"<td class='text{' bad' if bad else ''}'>{escape(words)}</td>"


def _real_table(context: Context, scores: dict[str, Any]) -> str:
    rows = []
    for name, tables in scores["real"].items():
        found = tables["dice"].get("reference")
        if found is None:
            rows.append([escape(name), *["<td class='na'>n/a</td>"] * 6])
            continue
        cells = []
        for column in COLUMNS:
            interval = found[column].get("ci95")
            spread = f" <small>[{interval[0]:.3f}, {interval[1]:.3f}]</small>" if interval else ""
            cells.append(_number(found[column]["value"]).replace("</td>", f"{spread}</td>"))
        distance = tables["hd95"]["mean"]["value"] if tables["hd95"] else None
        rows.append([escape(name), *cells, _number(distance, 1), f"{len(found['cases'])}"])
    head = ["network trained on", *COLUMNS, "HD95 mm", "scans"]
    note = escape(_reference_note(context)) + " Mean over patients, then over tissues"
    note += "; brackets: 95 % bootstrap interval over patients, from five patients on."
    by_case = [
        [escape(name), _text(case), *(_number(values[column]) for column in COLUMNS)]
        for name, tables in scores["real"].items()
        for case, values in tables["dice"].get("reference", {"cases": {}})["cases"].items()
    ]
    detail = table(["network trained on", "scan", *COLUMNS], by_case)
    return table(head, rows, note) + f"<details><summary>Scan by scan</summary>{detail}</details>"


def _matrix(tables: dict[str, dict[str, Any]], corner: str, note: str) -> str:
    columns = sorted({column for row in tables.values() for column in row}, key=lambda c: (c != "reference", c))
    if not columns:
        return f"<p class='notes'>{note} Nothing was measured.</p>"
    rows = []
    for name, row in tables.items():
        values = [row[c]["mean"]["value"] if c in row else None for c in columns]
        rows.append([escape(name), *(_number(value, best=columns[i] == name) for i, value in enumerate(values))])
    return table([corner, *map(escape, columns)], rows, note)


def _cross_tables(scores: dict[str, Any]) -> str:
    real = {name: tables["dice"] for name, tables in scores["real"].items()}
    return _matrix(
        real,
        "trained on ↓, real scans labelled by →",
        "Mean Dice on real scans. Shaded: a tool's network against its own labels.",
    ) + _matrix(
        scores["synthetic"],
        "trained on ↓, synthetic slices of →",
        "Mean Dice on synthetic test slices, made from the test patients' maps: what the original study reports.",
    )


def _agreement(scores: dict[str, Any]) -> str:
    rows = scores["agreement"]
    names = sorted({name for row in rows for name in (row["a"], row["b"])})
    if not names:
        return "<p class='notes'>One combination only: nothing to compare.</p>"
    values = {(row["a"], row["b"]): row for row in rows} | {(row["b"], row["a"]): row for row in rows}
    body = []
    for a in names:
        cells = []
        for b in names:
            row = values.get((a, b))
            title = "" if row is None else ", ".join(f"{t} {row[t]:.3f}" for t in TISSUES if row[t] is not None)
            cell = "<td class='na'>–</td>" if row is None else _number(row["mean"])
            cells.append(cell.replace("<td", f"<td title='{escape(title, quote=True)}'", 1))
        body.append([escape(a), *cells])
    detail = table(
        ["maps", *COLUMNS, "scans"],
        [[escape(f"{r['a']}, {r['b']}"), *(_number(r[c]) for c in COLUMNS), str(r["cases"])] for r in rows],
    )
    note = "Mean Dice of GM, WM and CSF between tissue maps, over the scans that both have."
    return table(["", *map(escape, names)], body, note) + f"<details><summary>By tissue</summary>{detail}</details>"


def _robustness(context: Context, scores: dict[str, Any]) -> str:
    if len(context.study.strip.tools) < 2:
        return "<p class='notes'>One stripper only: nothing to compare.</p>"
    rows = []
    for row in scores["agreement"]:
        a, b = row["a"].split("_"), row["b"].split("_")
        if a[0] == b[0]:
            rows.append([escape(f"{a[0]}: {a[1]}, {b[1]}"), *(_number(row[c]) for c in COLUMNS), str(row["cases"])])
    masks = [[escape(f"{r['a']}, {r['b']}"), _number(r["dice"]), str(r["cases"])] for r in scores["masks"]]
    return table(
        ["segmenter: strippers", *COLUMNS, "scans"], rows, "Dice of one segmenter's maps after two strippers."
    ) + table(
        ["brain masks", "Dice", "scans"], masks, "Scans that came with a brain mask or without a skull are not counted."
    )


def _left_out(data: dict[str, Any]) -> str:
    if not data["left_out"]:
        return "<p>Nothing: every unit is done.</p>"
    waiting = {name: len(units) for name, units in data["blocked"].items()}
    rows = [
        [
            escape(item["unit"]),
            _text(item["state"]),
            _text(item["reason"], bad=True),
            str(waiting.get(item["unit"], 0)),
        ]
        for item in data["left_out"]
    ]
    return table(["unit", "state", "reason", "units that wait for it"], rows)


def _case_table(data: dict[str, Any]) -> str:
    rows = []
    for case in data["cases"]:
        for name, found in case["maps"].items() or [("", None)]:
            if found is None:
                rows.append([escape(case["id"]), _text(case["split"]), *["<td class='na'>n/a</td>"] * 7])
                continue
            shares = [_number(100 * found["share"][tissue], 0) for tissue in TISSUES]
            unknown = ", ".join(f"{i} ({ml:.2f} ml)" for i, ml in found["unknown_ml"].items()) or "none"
            good = found["state"] == "done"
            word = "good" if good else found["reason"]
            row = [escape(case["id"]), _text(case["split"]), _text(name), _number(found["litres"], 2), *shares]
            rows.append([*row, _text(unknown), _text(word, bad=not good)])
    head = ["scan", "split", "maps", "litres", "GM %", "WM %", "CSF %", "ids in no table", "gate"]
    return table(head, rows)


def _time_table(data: dict[str, Any]) -> str:
    rows = [
        [_text(stage), str(t["units"]), _number(t["minutes"], 1), _number(t["cpu_minutes"], 1)]
        for stage, t in data["times"].items()
    ]
    return table(["stage", "units", "minutes", "processor minutes"], rows, "Sums over units; with --jobs they overlap.")


def _tools(data: dict[str, Any]) -> str:
    keys = ("name", "version", "licence", "citation")
    rows = [[escape(tool["name"]), *(_text(tool.get(key, "")) for key in keys[1:])] for tool in data["tools"]]
    return table(keys, rows)


def _limits(context: Context, scores: dict[str, Any] | None) -> str:
    lines = ["How good a segmentation is by an expert's eye: no drawn reference was given."]
    if context.study.evaluate.reference == "labels":
        lines = []
    patients = {case.patient for case in context.cases.values() if case.split == "test"}
    if len(patients) < 5:
        lines.append(f"What other patients would show: {len(patients)} were tested, too few for an interval.")
    if any(case.given_brain for case in context.cases.values()):
        lines.append("How strippers do on scans that came without a skull or with a mask.")
    if scores is None:
        lines.append("Any Dice: nothing could be evaluated; see what is left out.")
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
