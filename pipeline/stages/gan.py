"""The GAN among the generators: trained on the real training slices of a combination, painting the GMM's labels."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from dataloaders.io import geometry
from dataloaders.io.intensity import LEVELS
from dataloaders.io.manifest import Case as ManifestCase
from dataloaders.io.manifest import Manifest, Slice, Split, slice_name
from dataloaders.io.png import read_png, write_png
from dataloaders.io.spec import Channel, DataSpec
from dataloaders.slice_files import write_slice
from pipeline.commands import ToolFailed, run_command
from pipeline.context import Context, Excluded, Made
from pipeline.slices import FLOOR, brain_frame, chosen_slices, stripped
from pipeline.tissue import LABELS

ROOT = Path(__file__).resolve().parents[2]
NAME = "gan"


def real(context: Context) -> Made:
    """Real training slices with their tissue labels, as prepare_data.py would leave them; the last patient validates."""
    used = [name for name in context.done(context.unit.gathers) if name.startswith("tissue/")]
    scans = [context.cases[name.rpartition("/")[2]] for name in used]
    patients = sorted({case.patient for case in scans})
    if len(patients) < 2:
        raise Excluded("fewer than two training patients have usable tissue maps")
    held = {case.patient for case in scans if case.split == "val"} or {patients[-1]}
    outputs: dict[str, str] = {}
    cases, mm = [], (1.0, 1.0, 1.0)
    for name, case in zip(used, scans, strict=True):
        image = context.volume(f"harmonise/{case.id}", "image")
        tissue = context.volume(name, "tissue")
        brain = tissue.data > 0
        frame, _ = brain_frame(brain, context.study.slices.size)
        split: Split = "val" if case.patient in held else "train"
        picture, window = stripped(image.data, brain, context.facts(name)["window"][1])
        chosen = chosen_slices(brain.sum((0, 1)), replace(context.study.slices, count=0))
        items = []
        for z in chosen:
            files = f"{split}/labels/{slice_name(case.id, z)}", f"{split}/images/{slice_name(case.id, z, 0)}"
            item = Slice(z, files[0], (files[1],))
            items.append(write_slice(context.folder, item, tissue.data, [picture], [window], frame))
            outputs |= {f"label {case.id} {z}": files[0], f"image {case.id} {z}": files[1]}
        mm = geometry.plane_spacing(image.affine, "axial")
        cases.append(ManifestCase(case.id, case.patient, split, (window,), tuple(items)))
    size = context.study.slices.size
    spec = DataSpec(LABELS, (Channel("T1w"),), (size, size), (mm[1], mm[2]), mm[0], "axial")
    Manifest(spec, tuple(cases), {"kind": "data", "split": "patients"}).save(context.folder)
    return Made(outputs | {"manifest": "manifest.json"}, {"patients": patients, "validation": sorted(held)})


def train(context: Context) -> Made:
    """train.py in a process of its own; the same command goes on where it stopped."""
    data = context.home(context.needed("real"))
    runs = context.folder / "checkpoints"
    command: list[str | Path] = [
        sys.executable,
        ROOT / "train.py",
        "--name",
        NAME,
        "--dataroot",
        data,
        "--checkpoints_dir",
        runs,
    ]
    command += ["--seed", str(context.study.seed), *context.study.synthesise.gan]
    seconds = run_command(command, ROOT, context.folder / "log.txt", None)
    weights = sorted((runs / NAME).glob("weights-*.safetensors"))
    if not weights:
        raise ToolFailed(f"train.py left no weights; see {context.folder / 'log.txt'}")
    outputs = {path.name: str(path.relative_to(context.folder)) for path in weights}
    return Made(outputs | {"log": "log.txt"}, {"seconds": seconds}, {"name": "train.py"})


def paint(context: Context) -> Made:
    """The GMM's label slices of a case painted by the GAN: test.py in a process of its own."""
    source = context.home(context.needed("synthesise"))
    manifest = Manifest.load(source)
    phase = manifest.cases[0].split
    results = context.folder / "results"
    command: list[str | Path] = [
        sys.executable,
        ROOT / "test.py",
        "--name",
        NAME,
        "--dataroot",
        source,
        "--results_dir",
        results,
    ]
    command += ["--checkpoints_dir", context.home(context.needed("gan")) / "checkpoints", "--phase", phase]
    command += ["--metrics", "none", "--no-volumes", "--seed", str(context.study.seed)]
    run_command(command, ROOT, context.folder / "log.txt", None)
    found = sorted(results.rglob("manifest.json"))
    if not found:
        raise ToolFailed(f"test.py left no results; see {context.folder / 'log.txt'}")
    made = Manifest.load(found[0].parent)
    outputs: dict[str, str] = {}
    cases = []
    for case in made.cases:
        items = []
        for item in case.slices:
            picture, label = f"images/{Path(item.generated[0]).name}", f"labels/{Path(item.label).name}"
            for old, new in ((item.generated[0], picture), (item.label, label)):
                (context.folder / new).parent.mkdir(exist_ok=True)
                shutil.move(found[0].parent / old, context.folder / new)
            _strip(context.folder / picture, context.folder / label)
            items.append(replace(item, label=label, images=(picture,), generated=()))
            outputs |= {f"label{item.index}": label, f"image{item.index}": picture}
        cases.append(replace(case, slices=tuple(items)))
    shutil.rmtree(results)
    Manifest(made.spec, tuple(cases), {"kind": "data", "split": "patients"}).save(context.folder)
    facts = {"images": sum(len(case.slices) for case in cases), "split": phase}
    return Made(outputs | {"manifest": "manifest.json", "log": "log.txt"}, facts, {"name": "test.py"})


def _strip(picture: Path, label: Path) -> None:
    """Nothing outside of the brain, and a little more than nothing inside of it, as in all slices."""
    levels, ids = read_png(picture), read_png(label)
    write_png(picture, np.where(ids > 0, np.maximum(levels, round(FLOOR * LEVELS)), 0).astype(np.uint16))
