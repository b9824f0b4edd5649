"""Stage 7: nnU-Net data set, plan, training and prediction of one combination."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.io.files import read_json, write_json
from dataloaders.io.geometry import stitch
from dataloaders.io.manifest import Case as SliceCase
from dataloaders.io.manifest import Manifest, Slice
from dataloaders.io.nifti import write_volume
from dataloaders.io.png import read_png
from pipeline import nnunet
from pipeline.context import LOG, Context, Excluded, Made
from pipeline.programs import ToolFailed, run_command


def _slices(context: Context, unit: str) -> Iterator[tuple[SliceCase, Slice, Path]]:
    """Case, slice and image of each slice of a unit."""
    home = context.home(unit)
    for case in Manifest.load(home).cases:
        yield from ((case, item, home / item.images[0]) for item in case.slices)


def dataset(context: Context) -> Made:
    """Synthetic training slices in nnU-Net's form, and folds by patient."""
    name = nnunet.dataset_name(context.unit.settings["number"], context.unit.name)
    samples = [
        nnunet.TrainingSlice(
            f"{case.id}_{item.index:05d}", case.patient, case.split, image, context.home(unit) / item.label
        )
        for unit in context.done(context.unit.gathers)
        for case, item, image in _slices(context, unit)
    ]
    samples.sort(key=lambda sample: sample.name)
    if not samples:
        raise Excluded("no training case is usable, so there are no synthetic slices")
    try:
        splits = nnunet.group_splits(samples)
    except ValueError as error:
        raise Excluded(str(error)) from None
    if context.study.nnunet.fold >= len(splits):
        raise Excluded(f"nnunet.fold = {context.study.nnunet.fold}: there are {len(splits)} folds of patients")
    files = nnunet.write_dataset(context.folder / "raw" / name, samples)
    write_json(context.folder / "splits_final.json", splits)
    outputs = {file: f"raw/{name}/{file}" for file in files} | {"splits": "splits_final.json"}
    patients = sorted({sample.patient for sample in samples})
    return Made(outputs, {"images": len(samples), "patients": patients, "name": name})


def _name(context: Context) -> str:
    """Of the combination's data set."""
    name: str = context.facts(f"dataset/{context.unit.name}")["name"]
    return name


def _model(context: Context) -> str:
    """Folder of the trained network in that of the training."""
    o = context.study.nnunet
    return f"results/{_name(context)}/{nnunet.trainer(o)}__{nnunet.plans_name(o)}__2d"


def _run(context: Context, program: str, arguments: Iterable[Any], limit: float | None = None) -> None:
    """One of nnU-Net's commands, logged in the unit's folder.

    Its three folders are those of the combination's units; that of the running one is in its own folder.
    """
    folders = {}
    for stage, folder in (("dataset", "raw"), ("plan", "preprocessed"), ("train", "results")):
        home = context.folder if context.unit.stage == stage else context.home(f"{stage}/{context.unit.name}")
        folders[folder] = home / folder
    variables = nnunet.environment(folders, context.study.nnunet, context.study.threads, context.unit.stage == "plan")
    command: list[str | Path] = [nnunet.program(program), *map(str, arguments)]
    run_command(command, context.folder, context.folder / LOG, limit, variables)


def _number(context: Context) -> str:
    return str(int(_name(context)[len("Dataset") :][:3]))


def _refuse_absent(context: Context, program: str, files: Iterable[str]) -> None:
    """ToolFailed where a program that ended well left some of its files out."""
    absent = [file for file in files if not (context.folder / file).is_file()]
    if absent:
        more = f" and {len(absent) - 1} more files" if len(absent) > 1 else ""
        raise ToolFailed(f"{program} left no {absent[0]}{more}; see {context.folder / LOG}")


def plan(context: Context) -> Made:
    """nnUNetv2_plan_and_preprocess, the folds by patient, and the small plan where it is asked for."""
    threads, place = context.study.threads, f"preprocessed/{_name(context)}"
    (context.folder / "preprocessed").mkdir()
    arguments = ["-d", _number(context), "-c", "2d", "-np", threads, "-npfp", threads, "--verify_dataset_integrity"]
    _run(context, "nnUNetv2_plan_and_preprocess", arguments, context.study.time_limit)
    plans = context.folder / place / f"{nnunet.PLANS}.json"
    _refuse_absent(context, "nnUNetv2_plan_and_preprocess", [f"{place}/{plans.name}"])
    shutil.copyfile(context.path(f"dataset/{context.unit.name}", "splits"), plans.with_name("splits_final.json"))
    names = [plans.name, "dataset.json", "splits_final.json"]
    if context.study.nnunet.plan == "small":
        names.append(f"{nnunet.SMALL_PLANS}.json")
        write_json(plans.with_name(names[-1]), nnunet.small_plans(read_json(plans), context.study.nnunet))
    return Made({name: f"{place}/{name}" for name in names} | {"log": LOG}, {}, nnunet.about())


def train(context: Context) -> Made:
    """nnUNetv2_train of one fold; an interrupted one goes on from its last checkpoint."""
    o, model = context.study.nnunet, _model(context)
    fold = f"{model}/fold_{o.fold}"
    (context.folder / "results").mkdir(exist_ok=True)
    arguments = ["-device", o.device, "-tr", nnunet.trainer(o), "-p", nnunet.plans_name(o)]
    arguments += ["--c"] if (context.folder / fold / "checkpoint_latest.pth").is_file() else []
    _run(context, "nnUNetv2_train", [_number(context), "2d", o.fold, *arguments])
    outputs = {name: f"{fold}/checkpoint_{name}.pth" for name in ("final", "best")}
    _refuse_absent(context, "nnUNetv2_train", outputs.values())
    # The training loss of each epoch (Dice and cross-entropy: below 0 is good).
    text = (context.folder / LOG).read_text(encoding="utf-8", errors="replace")
    losses = [float(value) for value in re.findall(r"train_loss (\S+)", text)]
    if losses and not math.isfinite(losses[-1]):
        raise ToolFailed(f"training diverged: its last loss is {losses[-1]}; see {context.folder / LOG}")
    outputs |= {name: f"{model}/{name}.json" for name in ("dataset", "plans")} | {"log": LOG}
    outputs |= {"progress": f"{fold}/progress.png"} if (context.folder / fold / "progress.png").is_file() else {}
    return Made(outputs, {}, nnunet.about())


def predict(context: Context) -> Made:
    """Labels of all test slices, real and synthetic, in one call; those of real scans also as volumes on their grid."""
    o, threads = context.study.nnunet, max(1, context.study.threads)
    tasks = context.done(context.unit.gathers)
    source = context.folder / "input"
    outputs: dict[str, str] = {}
    for i, unit in enumerate(tasks):
        for case, item, image in _slices(context, unit):
            name = f"{i:03d}_{case.id}_{item.index:05d}"
            nnunet.link(image, source / f"{name}_0000.png")
            outputs[f"{unit} {item.index}"] = f"labels/{name}.png"
    if not outputs:
        raise Excluded("no test slices are usable")
    arguments = ["-i", source, "-o", context.folder / "labels", "-d", _number(context), "-c", "2d", "-f", o.fold]
    arguments += ["-tr", nnunet.trainer(o), "-p", nnunet.plans_name(o), "-chk", f"checkpoint_{o.checkpoint}.pth"]
    arguments += ["-device", o.device, "-npp", threads, "-nps", threads, *([] if o.tta else ["--disable_tta"])]
    _run(context, "nnUNetv2_predict", arguments)
    shutil.rmtree(source)
    _refuse_absent(context, "nnUNetv2_predict", outputs.values())
    for unit in [unit for unit in tasks if unit.startswith("slices/")]:
        case = Manifest.load(context.home(unit)).cases[0]
        assert case.geometry is not None
        files = {item.index: context.folder / outputs[f"{unit} {item.index}"] for item in case.slices}
        planes = {index: read_png(file).astype(np.uint8) for index, file in files.items()}
        write_volume(context.folder / f"{case.id}.nii.gz", *stitch(case.geometry, "axial", planes, 0, labels=True))
        outputs[unit] = f"{case.id}.nii.gz"
    return Made(outputs | {"log": LOG}, {"tasks": tasks}, nnunet.about())
