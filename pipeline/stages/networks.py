"""Stage 7: nnU-Net data set, plan, training and prediction of one combination."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.files import write_json
from dataloaders.io.geometry import stitch
from dataloaders.io.manifest import Manifest
from dataloaders.io.nifti import write_volume
from dataloaders.io.png import read_png
from pipeline import nnunet
from pipeline.commands import ToolFailed, run_command
from pipeline.context import Context, Excluded, Made


def _samples(context: Context) -> list[nnunet.Sample]:
    samples = []
    for unit in context.done(context.unit.gathers):
        home = context.home(unit)
        for case in Manifest.load(home).cases:
            for item in case.slices:
                picture = (item.generated or item.images)[0]
                name = f"{case.id}_{item.index:05d}"
                samples.append(nnunet.Sample(name, case.patient, case.split, home / picture, home / item.label))
    return sorted(samples, key=lambda sample: sample.name)


def dataset(context: Context) -> Made:
    """Synthetic training slices in nnU-Net's form, and folds by patient."""
    name = nnunet.dataset_name(context.unit.settings["number"], context.unit.name)
    samples = _samples(context)
    if not samples:
        raise Excluded("no training case is usable, so there are no synthetic slices")
    try:
        splits = nnunet.group_splits(samples)
    except ValueError as error:
        raise Excluded(str(error)) from None
    if context.study.nnunet.fold >= len(splits):
        raise Excluded(f"nnunet.fold = {context.study.nnunet.fold}: there are {len(splits)} folds of patients")
    nnunet.write_dataset(context.folder / "raw" / name, samples)
    write_json(context.folder / "splits_final.json", splits)
    outputs = {"dataset": f"raw/{name}/dataset.json", "splits": "splits_final.json"}
    for sample in samples:
        outputs[f"image {sample.name}"] = f"raw/{name}/imagesTr/{sample.name}_0000.png"
        outputs[f"label {sample.name}"] = f"raw/{name}/labelsTr/{sample.name}.png"
    patients = sorted({sample.patient for sample in samples})
    return Made(outputs, {"images": len(samples), "patients": patients, "name": name})


class Paths:
    """Where nnU-Net's three folders of a combination are; those of the running unit are in its own folder."""

    def __init__(self, context: Context) -> None:
        self.context = context
        stage, combination = context.unit.stage, context.unit.name

        def place(of: str, folder: str) -> Path:
            return (context.folder if stage == of else context.home(f"{of}/{combination}")) / folder

        self.raw, self.preprocessed, self.results = (
            place("dataset", "raw"),
            place("plan", "preprocessed"),
            place("train", "results"),
        )
        self.name = context.facts(f"dataset/{combination}")["name"]

    @property
    def number(self) -> str:
        """nnU-Net's id."""
        return str(int(self.name[len("Dataset") : len("Dataset") + 3]))

    def run(self, program: str, arguments: list[Any], limit: float | None) -> float:
        """One of nnU-Net's commands, logged in the unit's folder."""
        o, study = self.context.study.nnunet, self.context.study
        planning = self.context.unit.stage == "plan"
        environment = nnunet.environment(self.raw, self.preprocessed, self.results, o, study.threads, planning)
        folder = self.context.folder
        command: list[str | Path] = [nnunet.program(program), *map(str, arguments)]
        return run_command(command, folder, folder / "log.txt", limit, environment)

    @property
    def model(self) -> str:
        """Folder of the trained network below nnUNet_results."""
        o = self.context.study.nnunet
        return f"results/{self.name}/{nnunet.trainer(o)}__{nnunet.plans_name(o)}__2d"


def plan(context: Context) -> Made:
    """nnUNetv2_plan_and_preprocess, the folds by patient, and the small plan where it is asked for."""
    paths = Paths(context)
    threads = context.study.threads
    (context.folder / "preprocessed").mkdir()
    arguments = ["-d", paths.number, "-c", "2d", "-np", threads, "-npfp", threads, "--verify_dataset_integrity"]
    paths.run("nnUNetv2_plan_and_preprocess", arguments, context.study.time_limit)
    folder = paths.preprocessed / paths.name
    if not (folder / f"{nnunet.PLANS}.json").is_file():
        raise ToolFailed(f"nnUNetv2_plan_and_preprocess left no {nnunet.PLANS}.json; see {context.folder / 'log.txt'}")
    shutil.copyfile(context.path(f"dataset/{context.unit.name}", "splits"), folder / "splits_final.json")
    names = [f"{nnunet.PLANS}.json", "dataset.json", "splits_final.json"]
    if context.study.nnunet.plan == "small":
        nnunet.write_small_plans(folder, context.study.nnunet)
        names.append(f"{nnunet.SMALL_PLANS}.json")
    outputs = {name: f"preprocessed/{paths.name}/{name}" for name in names}
    return Made(outputs | {"log": "log.txt"}, {}, nnunet.about())


def train(context: Context) -> Made:
    """nnUNetv2_train of one fold; an interrupted one goes on from its last checkpoint."""
    o, paths = context.study.nnunet, Paths(context)
    fold = context.folder / paths.model / f"fold_{o.fold}"
    (context.folder / "results").mkdir(exist_ok=True)
    arguments = [paths.number, "2d", o.fold, "-device", o.device, "-tr", nnunet.trainer(o), "-p", nnunet.plans_name(o)]
    if (fold / "checkpoint_latest.pth").is_file():
        arguments.append("--c")
    seconds = paths.run("nnUNetv2_train", arguments, None)
    names = {"final": "checkpoint_final.pth", "best": "checkpoint_best.pth"}
    absent = [file for file in names.values() if not (fold / file).is_file()]
    if absent:
        raise ToolFailed(f"nnUNetv2_train left no {' and no '.join(absent)}; see {context.folder / 'log.txt'}")
    losses = nnunet.losses(context.folder / "log.txt")
    if losses and not math.isfinite(losses[-1]):
        raise ToolFailed(f"training diverged: its last loss is {losses[-1]}; see {context.folder / 'log.txt'}")
    outputs = {name: f"{paths.model}/fold_{o.fold}/{file}" for name, file in names.items()}
    outputs |= {name: f"{paths.model}/{name}.json" for name in ("dataset", "plans")}
    if (fold / "progress.png").is_file():
        outputs["progress"] = f"{paths.model}/fold_{o.fold}/progress.png"
    return Made(outputs | {"log": "log.txt"}, {"seconds": seconds, "losses": losses}, nnunet.about())


def predict(context: Context) -> Made:
    """Labels of all test slices, real and synthetic, in one call; those of real scans also as volumes on their grid."""
    o, paths = context.study.nnunet, Paths(context)
    tasks = context.done(context.unit.gathers)
    source, out = context.folder / "input", context.folder / "labels"
    expected = {}
    for i, unit in enumerate(tasks):
        for case in Manifest.load(context.home(unit)).cases:
            for item in case.slices:
                name = f"{i:03d}_{case.id}_{item.index:05d}"
                nnunet.link(context.home(unit) / (item.generated or item.images)[0], source / f"{name}_0000.png")
                expected[unit, item.index] = f"labels/{name}.png"
    if not expected:
        raise Excluded("no test slices are usable")
    arguments = ["-i", source, "-o", out, "-d", paths.number, "-c", "2d", "-f", o.fold, "-tr", nnunet.trainer(o)]
    arguments += ["-p", nnunet.plans_name(o), "-device", o.device, "-chk", f"checkpoint_{o.checkpoint}.pth"]
    arguments += ["-npp", max(1, context.study.threads), "-nps", max(1, context.study.threads)]
    arguments += [] if o.tta else ["--disable_tta"]
    seconds = paths.run("nnUNetv2_predict", arguments, None)
    shutil.rmtree(source)
    absent = [file for file in expected.values() if not (context.folder / file).is_file()]
    if absent:
        raise ToolFailed(f"nnUNetv2_predict left {len(absent)} of {len(expected)} slices out, e.g. {absent[0]}")
    outputs = {f"{unit} {index}": file for (unit, index), file in expected.items()} | {"log": "log.txt"}
    for unit in tasks:
        if unit.startswith("slices/"):
            outputs[unit] = _volume(context, unit, expected)
    seconds_each = seconds / len(expected)
    return Made(outputs, {"tasks": tasks, "seconds_per_slice": seconds_each}, nnunet.about())


def _volume(context: Context, unit: str, files: dict[tuple[str, int], str]) -> str:
    """The predictions of a real scan put back on its grid."""
    case = Manifest.load(context.home(unit)).cases[0]
    assert case.geometry is not None
    planes: dict[int, NDArray] = {
        item.index: read_png(context.folder / files[unit, item.index]).astype(np.uint8) for item in case.slices
    }
    data, affine = stitch(case.geometry, "axial", planes, 0, labels=True)
    name = f"{case.id}.nii.gz"
    write_volume(context.folder / name, data, affine)
    return name
