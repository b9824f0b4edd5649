"""The GAN among the generators: trained on the real training slices of a combination, painting the GMM's labels."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from dataloaders.io.intensity import LEVELS
from dataloaders.io.manifest import Manifest, Split
from dataloaders.io.png import read_png, write_png
from pipeline.context import LOG, Context, Excluded, Made
from pipeline.programs import ToolFailed, run_command
from pipeline.rules.slices import FLOOR, data_spec, save_manifest, slice_files, write_case
from pipeline.tissue import LABELS
from pipeline.tools.base import ROOT

NAME = "gan"


def real(context: Context) -> Made:
    """Real training slices with their tissue labels, as prepare_data.py would leave them; the last patient validates."""
    used = {name.rpartition("/")[2]: name for name in context.gathered("tissue")}
    patients = sorted({context.cases[case].patient for case in used})
    if len(patients) < 2:
        raise Excluded("fewer than two training patients have usable tissue maps")
    held = {context.cases[case].patient for case in used if context.cases[case].split == "val"} or {patients[-1]}
    cases = []
    for case, name in used.items():
        scan, tissue = context.volume(f"harmonise/{case}", "image"), context.volume(name, "tissue").data
        high = context.facts(name)["window"][1]
        split: Split = "val" if context.cases[case].patient in held else "train"
        cases.append(write_case(context, case, split, scan, tissue, high, cut=1))
    outputs = save_manifest(context, data_spec(context, LABELS, scan.affine), cases)
    return Made(outputs, {"patients": patients, "validation": sorted(held)})


def _run(context: Context, script: str, options: dict[str, Any], *more: str) -> None:
    """One of medsis' own commands in a process of its own."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--name", NAME, "--seed", str(context.study.seed), *more]
    run_command([sys.executable, ROOT / script, *words], ROOT, context.folder / LOG, None)


def train(context: Context) -> Made:
    """train.py; the same command goes on where it stopped."""
    runs, data = context.folder / "checkpoints", context.home(context.needed("real"))
    _run(context, "train.py", {"dataroot": data, "checkpoints_dir": runs}, *context.study.synthesise.gan)
    weights = sorted((runs / NAME).glob("weights-*.safetensors"))
    if not weights:
        raise ToolFailed(f"train.py left no weights; see {context.folder / LOG}")
    outputs = {path.name: str(path.relative_to(context.folder)) for path in weights}
    return Made(outputs | {"log": LOG}, {}, {"name": "train.py"})


def paint(context: Context) -> Made:
    """The GMM's label slices of a case painted by the GAN, with test.py."""
    source, runs = context.home(context.needed("synthesise")), context.home(context.needed("gan")) / "checkpoints"
    phase, results = Manifest.load(source).cases[0].split, context.folder / "results"
    options = {"dataroot": source, "results_dir": results, "checkpoints_dir": runs, "phase": phase, "metrics": "none"}
    _run(context, "test.py", options, "--no-volumes")
    found = sorted(results.rglob("manifest.json"))
    if not found:
        raise ToolFailed(f"test.py left no results; see {context.folder / LOG}")
    made = Manifest.load(found[0].parent)
    cases = []
    for case in made.cases:
        items = []
        for item in case.slices:
            new = slice_files(case.split, case.id, item.index)
            ids, levels = read_png(found[0].parent / item.label), read_png(found[0].parent / item.generated[0])
            write_png(context.folder / new.label, ids)
            # Nothing outside of the brain, and a little more than nothing inside of it, as in all slices.
            levels = np.where(ids > 0, np.maximum(levels, round(FLOOR * LEVELS)), 0).astype(np.uint16)
            write_png(context.folder / new.images[0], levels)
            items.append(replace(new, histogram=item.histogram))
        cases.append(replace(case, slices=tuple(items)))
    shutil.rmtree(results)
    outputs = save_manifest(context, made.spec, cases)
    facts = {"images": sum(len(case.slices) for case in cases), "split": phase}
    return Made(outputs | {"log": LOG}, facts, {"name": "test.py"})
