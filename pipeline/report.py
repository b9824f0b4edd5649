"""report.html of a study: one self-contained page; report.json: all of its numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataloaders.io.files import read_json
from dataloaders.io.manifest import SPLITS
from evaluation.report.kit import Cell, Table, measured, missing, render
from pipeline.context import Context
from pipeline.records import Record
from pipeline.report_pictures import KEYS, case_pictures, predictions, samples
from pipeline.rules import RULES
from pipeline.tissue import TISSUES
from pipeline.tools import configured

COLUMNS = (*TISSUES, "mean")


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
    tools = {r.tool["name"]: r.tool for r in records.values() if r.tool.get("name", "given") != "given"}
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
    for stage in RULES:
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
    maps = {}
    for name, record in context.of("tissue", case).items():
        if record.facts:
            facts = {key: record.facts[key] for key in ("litres", "share", "largest", "unknown_ml", "outside_ml")}
            reason = _without_folders(record.reason, context)
            maps[name.split("/")[1]] = {"state": record.state, "reason": reason, **facts}
    strips = context.of("strip", case).items()
    masks = {name.split("/")[1]: record.facts["litres"] for name, record in strips if "litres" in record.facts}
    found = context.cases[case]
    return {"id": case, "patient": found.patient, "split": found.split, "brain_litres": masks, "maps": maps}


def page(context: Context, data: dict[str, Any]) -> str:
    """The page as one string; it refers to no other file and to no network."""
    scores, study = data["scores"], context.study
    found = {name: tables["dice"].get("reference") for name, tables in scores["real"].items()} if scores else {}
    values = {name: of["mean"]["value"] for name, of in found.items() if of and of["mean"]["value"] is not None}
    splits = [row["split"] for row in data["cases"]]
    sources = {s for name in context.done(context.of("reference")) for s in context.facts(name)["from"]}
    return render(
        "report.html",
        Path(__file__).parent,
        title=data["study"],
        splits={split: splits.count(split) for split in SPLITS if split in splits},
        over=study.evaluate.tissues,
        best=max(values.items(), key=lambda item: item[1], default=None),
        drawn=_drawn(context),
        sources=sorted(sources),
        strippers=len(study.strip.tools),
        tables=_tables(data) | (_score_tables(scores) if scores else {"real": None}),
        tissues=KEYS,
        predictions=predictions(context) if scores else {},
        cases=case_pictures(context),
        samples=samples(context),
        tested=len({case.patient for case in context.cases.values() if case.split == "test"}),
        given_brains=any(case.given_brain for case in context.cases.values()),
        scored=scores is not None,
    )


def _drawn(context: Context) -> bool:
    """Whether the reference came with the cases."""
    name = context.study.evaluate.reference.partition("_")[0]
    return name == "labels" or (
        name in context.study.segment.tools and configured(context.study, name, "segment")[0].given
    )


def _score_tables(scores: dict[str, Any]) -> dict[str, Table]:
    real, scans = [], []
    for name, tables in scores["real"].items():
        found, distances = tables["dice"].get("reference"), tables["hd95"]
        if found is None:
            real.append([name, *missing(len(COLUMNS) + 2)])
            continue
        distance = measured(distances["mean"]["value"] if distances else None, 1)
        real.append([name, *(_measured(found[c]) for c in COLUMNS), distance, measured(len(found["cases"]), 0)])
        scans += [[name, case, *map(measured, map(values.get, COLUMNS))] for case, values in found["cases"].items()]
    agreement = scores["agreement"]
    pairs = [(row["a"].split("_"), row["b"].split("_"), row) for row in agreement]
    stripped = [[f"{a[0]}: {a[1]}, {b[1]}", *_tissues_of(row)] for a, b, row in pairs if a[0] == b[0]]
    masks = [[f"{row['a']}, {row['b']}", measured(row["dice"]), measured(row["cases"], 0)] for row in scores["masks"]]
    return {
        "real": Table(["network trained on", *COLUMNS, "HD95 mm", "scans"], real),
        "scans": Table(["network trained on", "scan", *COLUMNS], scans),
        "cross_real": _matrix(
            {name: tables["dice"] for name, tables in scores["real"].items()},
            "trained on ↓, real scans labelled by →",
            "Mean Dice on real scans. Shaded: a tool's network against its own labels.",
        ),
        "cross_synthetic": _matrix(
            scores["synthetic"],
            "trained on ↓, synthetic slices of →",
            "Mean Dice on synthetic test slices, made from the test patients' maps: what the original study reports.",
        ),
        "agreement": _agreement(agreement),
        "agreement_by_tissue": Table(
            ["maps", *COLUMNS, "scans"], [[f"{row['a']}, {row['b']}", *_tissues_of(row)] for row in agreement]
        ),
        "strippers": Table(["segmenter: strippers", *COLUMNS, "scans"], stripped),
        "masks": Table(["brain masks", "Dice", "scans"], masks),
    }


def _measured(entry: dict[str, Any]) -> Cell:
    ends = entry.get("ci95")
    return measured(entry["value"], small=(f"[{ends[0]:.3f}, {ends[1]:.3f}]",) if ends else ())


def _tissues_of(row: dict[str, Any]) -> list[Cell]:
    return [*(measured(row[column]) for column in COLUMNS), measured(row["cases"], 0)]


def _matrix(tables: dict[str, dict[str, Any]], corner: str, note: str) -> Table:
    columns = sorted({column for row in tables.values() for column in row}, key=lambda c: (c != "reference", c))
    rows = [
        [name, *(measured(row[c]["mean"]["value"] if c in row else None, kind="best" * (c == name)) for c in columns)]
        for name, row in tables.items()
    ]
    return Table([corner, *columns], rows, note=note)


def _agreement(found: list[dict[str, Any]]) -> Table:
    names = sorted({name for row in found for name in (row["a"], row["b"])})
    cells = {}
    for row in found:
        tissues = ", ".join(f"{t} {row[t]:.3f}" for t in TISSUES if row[t] is not None)
        cells[row["a"], row["b"]] = cells[row["b"], row["a"]] = measured(row["mean"], title=tissues)
    rows = [[a, *(cells.get((a, b), Cell("–", kind="na")) for b in names)] for a in names]
    return Table(["", *names], rows)


def _tables(data: dict[str, Any]) -> dict[str, Table]:
    """Those that are there before anything could be evaluated."""
    waiting = {unit: len(names) for unit, names in data["blocked"].items()}
    left_out = [
        [i["unit"], i["state"], Cell(i["reason"], kind="text bad"), measured(waiting.get(i["unit"], 0), 0)]
        for i in data["left_out"]
    ]
    times = [
        [stage, measured(t["units"], 0), measured(t["minutes"], 1), measured(t["cpu_minutes"], 1)]
        for stage, t in data["times"].items()
    ]
    keys = ("name", "version", "licence", "citation")
    return {
        "left_out": Table(["unit", "state", "reason", "units that wait for it"], left_out),
        "cases": Table(
            ["scan", "split", "maps", "litres", "GM %", "WM %", "CSF %", "ids in no table", "gate"],
            [line for case in data["cases"] for line in _case_lines(case)],
        ),
        "tools": Table(keys, [[tool.get(key, "") for key in keys] for tool in data["tools"]]),
        "times": Table(["stage", "units", "minutes", "processor minutes"], times),
    }


def _case_lines(case: dict[str, Any]) -> list[list[Any]]:
    lines = []
    for name, found in case["maps"].items():
        shares = [measured(100 * found["share"][tissue], 0) for tissue in TISSUES]
        unknown = ", ".join(f"{i} ({ml:.2f} ml)" for i, ml in found["unknown_ml"].items()) or "none"
        gate = "good" if found["state"] == "done" else Cell(found["reason"], kind="text bad")
        lines.append([case["id"], case["split"], name, measured(found["litres"], 2), *shares, unknown, gate])
    return lines or [[case["id"], case["split"], *missing(7)]]
