"""Stage 8: the common reference, Dice, and the report."""

from __future__ import annotations

from functools import lru_cache, partial
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
from pipeline.report import collect, page
from pipeline.tissue import TISSUES, read_labels, read_table


def reference(context: Context) -> Made:
    """What all networks are measured against in a test case: drawn labels, one combination's, or the vote of all."""
    used, scan = context.gathered("tissue"), context.needed("harmonise")
    grid = context.volume(scan, "image")
    if context.study.evaluate.reference == "labels":
        if "reference" not in context.records[scan].outputs:
            raise Excluded('evaluate.reference = "labels", but no reference file came with the case')
        (table,) = context.unit.files
        drawn = read_labels(context.path(scan, "reference"), grid)
        labels, source = read_table(table).apply(drawn).astype(np.uint8), ["labels"]
    elif not used:
        raise Excluded("no combination has a usable tissue map of this case")
    else:
        labels = scores.consensus([context.volume(name, "tissue").data for name in used], grid.data)
        source = [name.split("/")[1] for name in used]
    write_volume(context.folder / "reference.nii.gz", labels, grid.affine)
    return Made({"reference": "reference.nii.gz"}, {"from": source})


def evaluate(context: Context) -> Made:
    """scores.json and scores.csv: real and synthetic tables, agreement, robustness."""
    networks = {name.split("/")[1]: name for name in context.gathered("predict")}
    result: dict[str, Any] = {
        "reference": context.study.evaluate.reference,
        "real": {network: _real(context, name) for network, name in networks.items()},
        "synthetic": {network: _synthetic(context, name) for network, name in networks.items()},
        **_between_tools(context),
    }
    write_json(context.folder / "scores.json", result)
    write_text(context.folder / "scores.csv", _csv(result))
    return Made({"scores": "scores.json", "table": "scores.csv"}, {"networks": len(networks)})


def _pooled(context: Context, cases: dict[str, scores.TissueScores]) -> dict[str, Any]:
    patients = {case.id: case.patient for case in context.cases.values()}
    return scores.pooled(cases, patients, context.study.evaluate.tissues)


def _real(context: Context, unit: str) -> dict[str, Any]:
    """One network on real held-out scans: against the reference, and against every combination's own labels.

    Only slices that the network saw count: those of the stripper's brain, in the axial range of the study.
    """
    against: dict[str, dict[str, scores.TissueScores]] = {}
    distances: dict[str, scores.TissueScores] = {}
    over = context.study.evaluate.tissues
    for task in [task for task in context.facts(unit)["tasks"] if task.startswith("slices/")]:
        case, chosen = task.rpartition("/")[2], context.facts(task)["slices"]
        found = context.volume(unit, task)
        for name in [*context.gathered("reference"), *context.gathered("tissue")]:
            stage, *combination, of = name.split("/")
            if of != case:
                continue
            column = combination[0] if combination else stage
            pair = context.volume(name, stage).data[..., chosen], found.data[..., chosen]
            against.setdefault(column, {})[case] = scores.tissue_dice(*pair, over)
            if column == "reference":
                distances[case] = scores.tissue_hd95(*pair, spacing(found.affine).tolist(), over)
    return {
        "dice": {column: _pooled(context, cases) for column, cases in sorted(against.items())},
        "hd95": _pooled(context, distances) if distances else None,
    }


def _synthetic(context: Context, unit: str) -> dict[str, Any]:
    """One network on the synthetic test slices of every combination, a case's slices taken together."""
    against: dict[str, dict[str, scores.TissueScores]] = {}
    for task in [task for task in context.facts(unit)["tasks"] if task.startswith(("synthesise/", "paint/"))]:
        _, column, case = task.split("/")
        items = Manifest.load(context.home(task)).cases[0].slices
        truth = np.stack([read_png(context.home(task) / item.label) for item in items])
        found = np.stack([read_png(context.path(unit, f"{task} {item.index}")) for item in items])
        against.setdefault(column, {})[case] = scores.tissue_dice(truth, found, context.study.evaluate.tissues)
    return {column: _pooled(context, cases) for column, cases in sorted(against.items())}


def _between_tools(context: Context) -> dict[str, Any]:
    """Agreement between combinations' tissue maps, and between strippers' brain masks, over all cases."""

    @lru_cache(maxsize=64)
    def read(stage: str, name: str, case: str) -> NDArray:
        return read_volume(context.path(f"{stage}/{name}/{case}", "tissue" if stage == "tissue" else "mask")).data

    def rows(stage: str, score: scores.Score, columns: tuple[str, ...]) -> list[dict[str, Any]]:
        cases: dict[str, set[str]] = {}
        for _, name, case in [unit.split("/") for unit in context.gathered(stage)]:
            if stage == "tissue" or not context.cases[case].given_brain:
                cases.setdefault(name, set()).add(case)
        return scores.agreement(cases, lambda a, b, case: score(read(stage, a, case), read(stage, b, case)), columns)

    return {
        "agreement": rows(
            "tissue", partial(scores.tissue_dice, over=context.study.evaluate.tissues), (*TISSUES, "mean")
        ),
        "masks": rows("strip", scores.mask_dice, ("dice",)),
    }


def _csv(result: dict[str, Any]) -> str:
    """One row per network, test set, case and tissue."""
    lines = []
    for network, tables in result["real"].items():
        columns = [("real", column, table) for column, table in tables["dice"].items()]
        columns += [("synthetic", column, table) for column, table in result["synthetic"][network].items()]
        for kind, column, table in columns:
            for case, values in table["cases"].items():
                for tissue, value in values.items():
                    lines.append([kind, network, column, case, tissue, None if value is None else f"{value:.5f}"])
    return csv_text(["test", "network", "against", "case", "tissue", "dice"], lines)


def report(context: Context) -> Made:
    """report.html, one self-contained page, and report.json with all of its numbers."""
    data = collect(context)
    write_json(context.folder / "report.json", data)
    write_text(context.folder / "report.html", page(context, data))
    return Made({"report": "report.html", "data": "report.json"})
