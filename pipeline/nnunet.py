"""nnU-Net v2: its data set's form on disk, a plan for CPUs, its commands. Nothing of nnU-Net is imported."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloaders.io.files import write_json
from dataloaders.io.workers import cores
from pipeline.programs import ToolMissing, find_program
from pipeline.study import NnunetOptions
from pipeline.tissue import LABELS
from pipeline.tools import TOOLS

TRAINER = "nnUNetTrainerMedsis"
PLANS = "nnUNetPlans"
SMALL_PLANS = "medsisPlans"
TRAINERS = Path(__file__).parent / "trainers"
FOLDS = 5
_WORKER_GB = 2.0  # memory that an augmentation process may want


@dataclass(frozen=True)
class TrainingSlice:
    """A slice of the training set: its name in nnU-Net's data set, its patient, split, and files."""

    name: str
    patient: str
    split: str
    image: Path
    label: Path


def program(name: str) -> Path:
    """A command of nnU-Net, as nnUNetv2_train; ToolMissing where it is not installed."""
    found = find_program([name])
    if found is None:
        raise ToolMissing(f"{name} is not installed: {TOOLS['nnunetv2'].get}")
    return found


def about() -> dict[str, str]:
    """For records."""
    return TOOLS["nnunetv2"].about(program("nnUNetv2_train"))


def dataset_name(number: int, combination: str) -> str:
    """``Dataset101_hmrf_bet``."""
    return f"Dataset{number:03d}_{combination}"


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_dataset(folder: Path, samples: Sequence[TrainingSlice]) -> list[str]:
    """imagesTr/<name>_0000.png, labelsTr/<name>.png (ids 0..3), dataset.json; the files in the folder."""
    files = ["dataset.json"]
    for sample in samples:
        pair = {f"imagesTr/{sample.name}_0000.png": sample.image, f"labelsTr/{sample.name}.png": sample.label}
        for file, source in pair.items():
            link(source, folder / file)
        files += pair
    data = {
        "channel_names": {"0": "MRI"},
        "labels": {label.name: label.id for label in LABELS},
        "numTraining": len(samples),
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
    }
    write_json(folder / "dataset.json", data)
    return files


def group_splits(samples: Sequence[TrainingSlice]) -> list[dict[str, list[str]]]:
    """splits_final.json: folds in which no patient is on both sides.

    Where validation patients are named, they are the validation of the one fold. Otherwise patients are dealt to five
    folds, or to as many as there are patients. A single patient cannot be divided: ValueError.
    """
    named = sorted({sample.patient for sample in samples if sample.split == "val"})
    patients = sorted({sample.patient for sample in samples if sample.split != "val"})
    if named and not patients:
        raise ValueError("all usable patients are validation patients: nothing to train on")
    if named:
        groups = [named]
    elif len(patients) < 2:
        raise ValueError(f"one training patient ({', '.join(patients)}): nobody to validate on; two are needed")
    else:
        count = min(FOLDS, len(patients))
        groups = [patients[i::count] for i in range(count)]
    return [
        {
            "train": [s.name for s in samples if s.patient not in held],
            "val": [s.name for s in samples if s.patient in held],
        }
        for held in groups
    ]


def small_plans(plans: Mapping[str, Any], o: NnunetOptions) -> dict[str, Any]:
    """nnU-Net's own 2-D plan with a smaller network, patch and batch; the preprocessed data stay as they are."""
    changed: dict[str, Any] = copy.deepcopy(dict(plans))
    configuration = changed["configurations"]["2d"]
    stages = len(o.features)
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(o.features),
        "kernel_sizes": [[3, 3]] * stages,
        "strides": [[1, 1]] + [[2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    configuration |= {"patch_size": [o.patch, o.patch], "batch_size": o.batch}
    return changed | {"plans_name": SMALL_PLANS, "configurations": {"2d": configuration}}


def trainer(o: NnunetOptions) -> str:
    """The trainer class to ask for."""
    return o.trainer or TRAINER


def plans_name(o: NnunetOptions) -> str:
    """The plan to train and predict with."""
    return SMALL_PLANS if o.plan == "small" else PLANS


def free_gb() -> float:
    """Memory that is available, GB; infinity where the system does not say."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return float("inf")
    words = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines() if ":" in line)
    return int(words["MemAvailable"].split()[0]) / 2**20


def workers(o: NnunetOptions) -> int:
    """Augmentation processes: as asked for, or as many as cores and memory bear; 0 works in the training process."""
    if o.workers >= 0:
        return o.workers
    spare = cores() - 1
    return max(0, min(spare, 12, int(free_gb() / _WORKER_GB)))


def environment(folders: Mapping[str, Path], o: NnunetOptions, threads: int, planning: bool = False) -> dict[str, str]:
    """Variables that nnU-Net reads. folders: raw, preprocessed, results.

    A command that plans stops with 0 augmentation processes (2.8.1), so it gets one.
    """
    variables = {
        "nnUNet_n_proc_DA": max(1, workers(o)) if planning else workers(o),
        "nnUNet_def_n_proc": max(1, threads),
        "OMP_NUM_THREADS": max(1, threads),
        "MEDSIS_EPOCHS": o.epochs,
        "MEDSIS_ITERATIONS": o.iterations,
        "MEDSIS_VAL_ITERATIONS": o.val_iterations,
        **({"nnUNet_compile": "f", "MEDSIS_THREADS": threads} if o.device == "cpu" else {}),
        **{f"nnUNet_{name}": folder for name, folder in folders.items()},
        "nnUNet_extTrainer": TRAINERS,
    }
    return {name: str(value) for name, value in variables.items()}
