"""Stage 8: the common reference, Dice, and the report."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.files import csv_text, write_json, write_text
from dataloaders.io.geometry import spacing
from dataloaders.io.manifest import Manifest
from dataloaders.io.nifti import read_volume, write_volume
from dataloaders.io.png import read_png
from pipeline import scores
from pipeline.context import Context, Excluded, Made
from pipeline.report import write_report
from pipeline.tissue import TISSUES


def reference(context: Context) -> Made:
    """What all networks are measured against in a test case: drawn labels, one combination's, or the vote of all."""
    kind = context.study.evaluate.reference
    used = context.done(context.unit.gathers)
    grid = context.volume(context.needed("harmonise"), "image")
    if kind == "labels":
        if "reference" not in context.records[context.needed("harmonise")].outputs:
            raise Excluded('evaluate.reference = "labels", but no reference file came with the case')
        labels, source = context.volume(context.needed("harmonise"), "reference").data, ["labels"]
    elif not used:
        raise Excluded("no combination has a usable tissue map of this case")
    else:
        labels = scores.consensus([context.volume(name, "tissue").data for name in used], grid.data)
        source = [name.split("/")[1] for name in used]
    write_volume(context.folder / "reference.nii.gz", labels.astype(np.uint8), grid.affine)
    return Made({"reference": "reference.nii.gz"}, {"from": source})


def evaluate(context: Context) -> Made:
    """scores.json and scores.csv: real and synthetic tables, agreement, robustness."""
    patient_of = {case.id: case.patient for case in context.cases.values()}
    gathers = context.done(context.unit.gathers)
    predicted = [name for name in gathers if name.startswith("predict/")]
    result: dict[str, Any] = {
        "reference": context.study.evaluate.reference,
        "real": {name.split("/")[1]: _real(context, name, gathers, patient_of) for name in predicted},
        "synthetic": {name.split("/")[1]: _synthetic(context, name, patient_of) for name in predicted},
        **_between_tools(context, gathers),
    }
    write_json(context.folder / "scores.json", result)
    write_text(context.folder / "scores.csv", _csv(result))
    return Made({"scores": "scores.json", "table": "scores.csv"}, {"networks": len(predicted)})


def _real(context: Context, unit: str, gathers: list[str], patient_of: dict[str, str]) -> dict[str, Any]:
    """One network on real held-out scans: against the reference, and against every combination's own labels.

    Only slices that the network saw count: those of the stripper's brain, in the axial range of the study.
    """
    against: dict[str, dict[str, scores.Scores]] = {}
    distances: dict[str, scores.Scores] = {}
    matrix = np.zeros((len(TISSUES) + 1, len(TISSUES) + 1), np.int64)
    for task in context.facts(unit)["tasks"]:
        if not task.startswith("slices/"):
            continue
        case = task.rpartition("/")[2]
        found = context.volume(unit, task)
        chosen = context.facts(task)["slices"]
        for truth in [g for g in gathers if g.startswith(("reference/", "tissue/")) and g.endswith(f"/{case}")]:
            is_reference = truth.startswith("reference/")
            labels = context.volume(truth, "reference" if is_reference else "tissue").data[..., chosen]
            pair = labels, found.data[..., chosen]
            column = "reference" if is_reference else truth.split("/")[1]
            against.setdefault(column, {})[case] = scores.tissue_dice(*pair)
            if is_reference:
                distances[case] = scores.tissue_hd95(*pair, spacing(found.affine).tolist())
                matrix += np.array(scores.confusion(*pair))
    return {
        "dice": {column: scores.pooled(cases, patient_of) for column, cases in sorted(against.items())},
        "hd95": scores.pooled(distances, patient_of) if distances else None,
        "confusion": matrix.tolist(),
    }


def _synthetic(context: Context, unit: str, patient_of: dict[str, str]) -> dict[str, Any]:
    """One network on the synthetic test slices of every combination, a case's slices taken together."""
    against: dict[str, dict[str, scores.Scores]] = {}
    for task in context.facts(unit)["tasks"]:
        stage, column, case = task.split("/")
        if stage not in ("synthesise", "paint"):
            continue
        items = Manifest.load(context.home(task)).cases[0].slices
        truth = np.stack([read_png(context.home(task) / item.label) for item in items])
        found = np.stack([read_png(context.path(unit, f"{task} {item.index}")) for item in items])
        against.setdefault(column, {})[case] = scores.tissue_dice(truth, found)
    return {column: scores.pooled(cases, patient_of) for column, cases in sorted(against.items())}


def _between_tools(context: Context, gathers: list[str]) -> dict[str, Any]:
    """Agreement between combinations' tissue maps, and between strippers' brain masks, over all cases."""

    @lru_cache(maxsize=64)
    def read(stage: str, name: str, case: str) -> NDArray:
        return read_volume(context.path(f"{stage}/{name}/{case}", "tissue" if stage == "tissue" else "mask")).data

    found: dict[str, Any] = {}
    for stage, key in (("tissue", "agreement"), ("strip", "masks")):
        cases: dict[str, list[str]] = {}
        for unit in gathers:
            if unit.startswith(f"{stage}/"):
                _, name, case = unit.split("/")
                if stage == "tissue" or not context.cases[case].given_brain:
                    cases.setdefault(name, []).append(case)
        names = sorted(cases)
        if stage == "tissue":
            found[key] = scores.agreement(names, cases, lambda name, case: read("tissue", name, case))
            continue
        found[key] = []
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                shared = sorted(set(cases[a]) & set(cases[b]))
                values = [
                    v for c in shared if (v := scores.mask_dice(read("strip", a, c), read("strip", b, c))) is not None
                ]
                mean = float(np.mean(values)) if values else None
                found[key].append({"a": a, "b": b, "cases": len(shared), "dice": mean})
    return found


def _csv(result: dict[str, Any]) -> str:
    """One row per network, test set, case and tissue."""
    lines = []
    for network, tables in result["real"].items():
        rows = [("real", network, column, table) for column, table in tables["dice"].items()]
        rows += [("synthetic", network, column, table) for column, table in result["synthetic"][network].items()]
        for kind, name, column, table in rows:
            for case, values in table["cases"].items():
                for tissue, value in values.items():
                    lines.append([kind, name, column, case, tissue, None if value is None else f"{value:.5f}"])
    return csv_text(["test", "network", "against", "case", "tissue", "dice"], lines)


def report(context: Context) -> Made:
    """report.html, one self-contained page, and report.json with all of its numbers."""
    write_report(context)
    return Made({"report": "report.html", "data": "report.json"})
