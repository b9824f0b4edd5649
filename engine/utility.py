"""The utility study: the same network trained on real, synthetic and both, tested on real. What scripts/utility.py does.

Every training is a run of train.py and a call of test.py, so they resume, log and stop as any other, and an array of jobs
can share them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloaders.folder import load_manifest
from dataloaders.io.files import check_name, read_json, write_json
from dataloaders.io.manifest import FILE_NAME, Manifest
from dataloaders.slices import fingerprint
from engine.signals import EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_TIME_LIMIT
from evaluation.segmentation_results import SCHEMA as SCORES
from evaluation.utility import RunScores, read_scores, utility_table

STUDY = "study.json"
REAL, SYNTHETIC, BOTH = "real", "synthetic", "both"
GMM = "gmm"
STOPPED = (EXIT_TIME_LIMIT, EXIT_INTERRUPTED, EXIT_TERMINATED)  # exit codes of runs that were asked to stop
Command = Callable[[str, list[str]], int]  # train or test, and its arguments -> exit code


@dataclass(frozen=True, kw_only=True)
class UtilityOptions:
    """What synthetic images are worth: train a segmenter on real, synthetic and both; test it on real; compare in pairs.

    Options of train.py for all trainings follow after --, e.g. -- --preset small --num_epochs 20.
    """

    dataroot: Path
    """Prepared folder with patients split into train, val and test."""
    out: Path
    """Folder to write; the same command goes on where it stopped."""
    generators: tuple[str, ...] = (GMM,)
    """Sources of synthetic images: gmm for the generator on the training labels, or NAME=FOLDER of test.py --phase train."""
    arms: tuple[str, ...] = (REAL, SYNTHETIC, BOTH)
    """What to train on: real, synthetic, both; the first is what the others are compared with."""
    mix: float = 0.5
    """Share of real images in both."""
    seeds: int = 3
    """Trainings of each arm; at least three for an interval."""
    shard: str = "0/1"
    """Only trainings k with k % n == i of shard i/n."""
    only: int | None = None
    """Only training k, from 0 on: a job array's task number."""
    table: bool = False
    """Train nothing, only make the table of what is there."""
    dry_run: bool = False
    """Only list the trainings."""


@dataclass(frozen=True)
class Task:
    """One training: its arm, its seed's number, and the options of train.py that make the arm."""

    arm: str
    seed: int
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the run."""
        return f"{self.arm}-s{self.seed}"


def check_utility(o: UtilityOptions) -> None:
    """Raise ValueError naming the flag, the value and what is allowed."""
    for name, low in {"seeds": 1}.items():
        if getattr(o, name) < low:
            raise ValueError(f"--{name} {getattr(o, name)}: must be at least {low}")
    if not 0 < o.mix < 1:
        raise ValueError(f"--mix {o.mix}: must be above 0 and below 1")
    if wrong := [arm for arm in o.arms if arm not in (REAL, SYNTHETIC, BOTH)]:
        raise ValueError(f"--arms {' '.join(wrong)}: must be real, synthetic or both")
    for text in o.generators:
        _, folder = _source(text)
        if folder is not None and not folder.is_dir():
            raise ValueError(f"--generators {text}: no such folder; test.py --phase train makes one")
    if not o.arms or not o.generators:
        raise ValueError("--arms and --generators: name at least one each")
    match = re.fullmatch(r"(\d+)/(\d+)", o.shard)
    if match is None or not int(match[1]) < int(match[2]):
        raise ValueError(f"--shard {o.shard}: must be i/n with i from 0 to n-1, such as 0/4")


def all_tasks(o: UtilityOptions) -> list[Task]:
    """Every training of the study in a fixed order, seed by seed. ValueError for a generator that does not fit."""
    sources = dict(_source(text) for text in o.generators)
    several = len(sources) > 1
    arms: dict[str, tuple[str, ...]] = {}
    for arm in o.arms:
        if arm == REAL:
            arms[REAL] = ("--segmenter.real_fraction", "1")
            continue
        for name, folder in sources.items():
            share = "0" if arm == SYNTHETIC else f"{o.mix:g}"
            results = () if folder is None else ("--segmenter.results", str(folder))
            arms[f"{arm}-{name}" if several or folder else arm] = ("--segmenter.real_fraction", share, *results)
    return [Task(arm, seed, flags) for seed in range(o.seeds) for arm, flags in arms.items()]


def _source(text: str) -> tuple[str, Path | None]:
    if text == GMM:
        return GMM, None
    name, _, folder = text.partition("=")
    if not folder:
        raise ValueError(f"--generators {text}: must be gmm or NAME=FOLDER")
    return check_name(name, "--generators"), Path(folder)


def refuse_leaks(o: UtilityOptions, data: Manifest) -> None:
    """ValueError where synthetic images were made from label maps of patients that validate or test."""
    held = {case.patient for split in ("val", "test") for case in data.split(split)}
    for text in o.generators:
        name, folder = _source(text)
        if folder is None or not (folder / FILE_NAME).is_file():
            continue
        if leaked := sorted({case.patient for case in Manifest.load(folder).cases} & held):
            raise ValueError(
                f"--generators {name}={folder}: holds images of {', '.join(leaked[:5])}, who validate or test here; "
                "make them from the training split (test.py --phase train)"
            )


def run_study(o: UtilityOptions, options: Sequence[str], run: Command) -> tuple[dict[str, Any], list[str]]:
    """Train and test what is missing of the options' share; returns the table of all that is there, and faults.

    SystemExit with its code where a training was asked to stop (85 by Slurm's time limit): the same command goes on.
    """
    check_utility(o)
    data = load_manifest(o.dataroot)
    if not any(item.images for case in data.split("test") for item in case.slices):
        raise ValueError(f"--dataroot {o.dataroot}: the split 'test' has no images to test on")
    refuse_leaks(o, data)
    tasks = all_tasks(o)
    if o.only is not None and not 0 <= o.only < len(tasks):
        raise ValueError(f"--only {o.only}: there are trainings 0 to {len(tasks) - 1}")
    _claim(o, options, data)
    first, step = (int(part) for part in o.shard.split("/"))
    chosen = tasks[first::step] if o.only is None else [tasks[o.only]]
    faults = []
    for task in [] if o.table else chosen:
        if not _done(o, task) and (fault := _train_and_test(o, task, options, run)):
            faults.append(fault)
    return make_table(o, tasks), faults


def make_table(o: UtilityOptions, tasks: Sequence[Task]) -> dict[str, Any]:
    """The table of the trainings that are done."""
    done: list[RunScores] = [read_scores(task.arm, task.seed, _results(o, task)) for task in tasks if _done(o, task)]
    table = utility_table(done, list(dict.fromkeys(task.arm for task in tasks)))
    return table | {"missing": [task.name for task in tasks if not _done(o, task)]}


def _results(o: UtilityOptions, task: Task) -> Path:
    return o.out / "results" / task.name / "best"


def _done(o: UtilityOptions, task: Task) -> bool:
    path = _results(o, task) / "metrics.json"
    return path.is_file() and read_json(path).get("schema") == SCORES


def _claim(o: UtilityOptions, options: Sequence[str], data: Manifest) -> None:
    """Write down what the study is; ValueError where the folder holds another one."""
    study = {
        "data": fingerprint(o.dataroot),
        "options": list(options),
        "mix": o.mix,
        "patients": {split: sorted({case.patient for case in data.split(split)}) for split in ("train", "val", "test")},
    }
    path = o.out / STUDY
    if path.is_file():
        old = read_json(path)
        if changed := [key for key, value in study.items() if old.get(key) != value]:
            raise ValueError(f"--out {o.out}: holds a study with other {', '.join(changed)}; choose another folder")
        return
    if o.out.is_dir() and any(o.out.iterdir()):
        raise ValueError(f"--out {o.out}: is not empty and holds no study; choose another folder")
    write_json(path, study)


def commands(o: UtilityOptions, task: Task, options: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The two commands of a training, with their arguments."""
    where = ["--name", task.name, "--dataroot", str(o.dataroot), "--checkpoints_dir", str(o.out / "runs")]
    train = [*where, "--model", "segmenter", *options, *task.flags, "--seed", str(42 + task.seed)]
    test = [*where, "--results_dir", str(o.out / "results")]
    device = next((i for i, option in enumerate(options) if option == "--gpu_ids"), None)
    return [("train", train), ("test", test + list(options[device : device + 2] if device is not None else []))]


def _train_and_test(o: UtilityOptions, task: Task, options: Sequence[str], run: Command) -> str:
    """One line where a command failed, else nothing."""
    for command, arguments in commands(o, task, options):
        print(f"{task.name}: {command}.py {' '.join(arguments)}", flush=True)
        code = run(command, arguments)
        if code in STOPPED:
            raise SystemExit(code)
        if code:
            return f"{task.name}: {command}.py ended with exit code {code}"
    return ""
