"""What synthetic images are worth: ``python scripts/utility.py --dataroot DATA --out DIR -- --preset small``.

The same network is trained on real, synthetic and both, and tested on real. Every training is a run of train.py and a call
of test.py, so they resume, log and stop as any other, and an array of jobs can share them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import parse_test, parse_train
from dataloaders.folder import load_manifest
from dataloaders.io.files import csv_text, read_json, write_json, write_text
from dataloaders.io.ledger import Ledger
from dataloaders.io.manifest import FILE_NAME, Manifest
from dataloaders.io.schema import NAME, AtLeast0, AtLeast1, Must, Shard, check
from dataloaders.io.workers import parse_shard
from dataloaders.slices import fingerprint
from engine.command import exit_code
from engine.signals import EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_TIME_LIMIT
from evaluation.segmentation_results import SCHEMA as SCORES
from evaluation.statistics import PairedDifference, bootstrap_interval, paired_difference, student_half_width
from test import test
from train import train

Arm = Literal["real", "synthetic", "both"]
REAL: Arm = "real"
SYNTHETIC: Arm = "synthetic"
BOTH: Arm = "both"
GMM = "gmm"
STOPPED = (EXIT_TIME_LIMIT, EXIT_INTERRUPTED, EXIT_TERMINATED)  # exit codes of runs that were asked to stop
MIN_SEEDS = 3
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
    arms: tuple[Arm, ...] = (REAL, SYNTHETIC, BOTH)
    """What to train on: real, synthetic, both; the first is what the others are compared with."""
    mix: Annotated[float, Must("above 0 and below 1", lambda share: 0 < share < 1)] = 0.5
    """Share of real images in both."""
    seeds: AtLeast1 = 3
    """Trainings of each arm; at least three for an interval."""
    shard: Shard = "0/1"
    """Only trainings k with k % n == i of shard i/n."""
    only: AtLeast0 | None = None
    """Only training k, from 0 on: a job array's task number."""
    table: bool = False
    """Train nothing, only make the table of what is there."""
    dry_run: bool = False
    """Only list the trainings."""

    def check_together(self) -> None:
        """ValueError where there is nothing to do, or a generator's folder is missing."""
        for text in self.generators:
            _, folder = _source(text)
            if folder is not None and not folder.is_dir():
                raise ValueError(f"--generators {text}: no such folder; test.py --phase train makes one")
        if not self.arms or not self.generators:
            raise ValueError("--arms and --generators: name at least one each")


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


def parse(arguments: Sequence[str] | None = None) -> tuple[UtilityOptions, list[str]]:
    """Options of the study, and those of train.py after ``--``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    place = given.index("--") if "--" in given else len(given)
    return tyro.cli(UtilityOptions, args=given[:place], description=UtilityOptions.__doc__), given[place + 1 :]


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
    return NAME.of(name, "--generators"), Path(folder)


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


class StudyLedger(Ledger):
    """study.json says what the study is; its trainings and their scores are folders of train.py and test.py."""

    def settings_in(self, found: dict[str, Any]) -> Any:
        """Also of studies of version 0.1, which had nothing else in their file."""
        return found.get("settings", found if "mix" in found else None)


def run_study(o: UtilityOptions, options: Sequence[str], run: Command) -> tuple[dict[str, Any], list[str]]:
    """Train and test what is missing of the options' share; returns the table of all that is there, and faults.

    SystemExit with its code where a training was asked to stop (85 by Slurm's time limit): the same command goes on.
    """
    check(o)
    data = load_manifest(o.dataroot)
    if not any(item.images for case in data.split("test") for item in case.slices):
        raise ValueError(f"--dataroot {o.dataroot}: the split 'test' has no images to test on")
    refuse_leaks(o, data)
    tasks = all_tasks(o)
    if o.only is not None and not 0 <= o.only < len(tasks):
        raise ValueError(f"--only {o.only}: there are trainings 0 to {len(tasks) - 1}")
    settings = {
        "data": fingerprint(o.dataroot),
        "options": list(options),
        "mix": o.mix,
        "patients": {split: sorted({case.patient for case in data.split(split)}) for split in ("train", "val", "test")},
    }
    StudyLedger.claim(o.out, settings, file="study.json", records="results")
    first, step = parse_shard(o.shard)
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


def run(command: str, arguments: list[str]) -> int:
    """train.py or test.py with these arguments, in this process; its exit code, its errors printed."""

    def work() -> int:
        if command == "train":
            return train(parse_train(arguments))
        test(parse_test(arguments))
        return 0

    try:
        return exit_code(work)
    except SystemExit as stop:  # of a diverged run, or of bad options
        return stop.code if isinstance(stop.code, int) else 1


# -- the table ----------------------------------------------------------------------------------------------------
# Values: mean over a patient's cases (evaluation/segmentation_results.py), by label and over all labels. An arm's value is
# the mean over seeds and patients. Two arms are compared in pairs: by patient, each the mean over the seeds, with a
# bootstrap interval and a sign-flip test; and by seed, each the mean over the patients, with Student's interval. The first
# says whether the difference holds for other patients, the second whether it holds for another training.


@dataclass(frozen=True)
class RunScores:
    """Scores of one training: metric -> patient -> value, None where there is none."""

    arm: str
    seed: int
    values: dict[str, dict[str, float | None]]


def read_scores(arm: str, seed: int, folder: Path) -> RunScores:
    """Dice of one results folder of a segmenter. ValueError where it holds something else."""
    data = read_json(folder / "metrics.json")
    if data.get("schema") != SCORES:
        raise ValueError(f"{folder}: schema {data.get('schema')!r}, a segmenter's results have {SCORES!r}")
    names = ["dice", *(f"dice/{label}" for label in data["labels"])]
    patients = data["per_patient"]
    return RunScores(arm, seed, {name: {p: patients[p].get(name) for p in sorted(patients)} for name in names})


def seed_interval(differences: NDArray) -> tuple[float, float] | None:
    """95 % interval of the mean over seeds by Student's t; None for fewer than three."""
    d = np.asarray(differences, np.float64)
    d = d[np.isfinite(d)]
    if len(d) < MIN_SEEDS:
        return None
    half = student_half_width(d)
    return float(d.mean()) - half, float(d.mean()) + half


def utility_table(runs: Sequence[RunScores], arms: Sequence[str]) -> dict[str, Any]:
    """Contents of utility.json: a row for each metric and arm, and the paired difference of each arm to the first.

    A difference takes the seeds that both arms have. ValueError where the runs were tested on different patients.
    """
    patients = {tuple(next(iter(run.values.values()))) for run in runs}
    if len(patients) > 1:
        raise ValueError("the runs were tested on different patients, so they cannot be compared in pairs")
    metrics = list(dict.fromkeys(name for run in runs for name in run.values))
    rows, differences = [], []
    for metric in metrics:
        by_arm = {arm: {run.seed: _values(run, metric) for run in runs if run.arm == arm} for arm in arms}
        rows += [_row(metric, arm, seeds) for arm, seeds in by_arm.items() if seeds]
        for arm in arms[1:]:
            if both := sorted(by_arm[arm].keys() & by_arm[arms[0]].keys()):
                pair = tuple(np.stack([by_arm[name][seed] for seed in both]) for name in (arm, arms[0]))
                differences.append({"metric": metric, "arm": arm, "against": arms[0]} | _difference(*pair))
    return {
        "schema": "medsis-utility/1",
        "arms": list(arms),
        "runs": len(runs),
        "rows": rows,
        "differences": differences,
    }


def _values(run: RunScores, metric: str) -> NDArray[np.float64]:
    return np.array([math.nan if v is None else v for v in run.values[metric].values()], np.float64)


def _row(metric: str, arm: str, seeds: Mapping[int, NDArray]) -> dict[str, Any]:
    table = np.stack(list(seeds.values()))  # (seeds, patients)
    by_seed, by_patient = _means(table, 1), _means(table, 0)
    known = by_patient[np.isfinite(by_patient)]
    finite = by_seed[np.isfinite(by_seed)]
    interval = bootstrap_interval(known)
    return {
        "metric": metric,
        "arm": arm,
        "mean": float(known.mean()) if len(known) else None,
        "seed_sd": float(finite.std(ddof=1)) if len(finite) > 1 else None,
        "patient_ci95": list(interval) if interval else None,
        "seeds": len(seeds),
        "patients": len(known),
    }


def _difference(a: NDArray, b: NDArray) -> dict[str, Any]:
    """a - b, (seeds, patients) each."""
    patients: PairedDifference = paired_difference(_means(a, 0), _means(b, 0))
    interval = seed_interval(_means(a - b, 1))
    return {
        "mean": patients.mean if math.isfinite(patients.mean) else None,
        "patients": {k: v for k, v in asdict(patients).items() if k != "mean"},
        "seed_ci95": list(interval) if interval else None,
        "seeds": len(a),
    }


def _means(table: NDArray, axis: int) -> NDArray[np.float64]:
    """Means of the finite values along an axis; NaN where there are none."""
    known = np.isfinite(table)
    count = known.sum(axis)
    return np.where(count > 0, np.where(known, table, 0).sum(axis) / np.maximum(count, 1), np.nan)


def write_table(folder: Path, table: Mapping[str, Any]) -> None:
    """utility.json, and utility.csv with the rows."""
    write_json(folder / "utility.json", dict(table))
    columns = ("metric", "arm", "mean", "seed_sd", "seeds", "patients")
    head = [*columns, "difference", "patient_low", "patient_high", "p_value", "seed_low", "seed_high"]
    lines = []
    found = {(item["metric"], item["arm"]): item for item in table["differences"]}
    for row in table["rows"]:
        item = found.get((row["metric"], row["arm"]))
        extra = [""] * 6
        if item is not None:
            low, high = item["patients"]["interval"] or ("", "")
            extra = [item["mean"], low, high, item["patients"]["p_value"], *(item["seed_ci95"] or ("", ""))]
        lines.append([*(row[column] for column in columns), *extra])
    write_text(folder / "utility.csv", csv_text(head, lines))


def format_table(table: Mapping[str, Any]) -> str:
    """For people: Markdown, one line for each metric and arm."""
    first = table["arms"][0] if table["arms"] else ""
    lines = [
        f"| metric | trained on | mean ± sd of seeds | minus {first} | over patients | over seeds |",
        "|---" * 6 + "|",
    ]
    found = {(item["metric"], item["arm"]): item for item in table["differences"]}
    for row in table["rows"]:
        spread = f" ± {row['seed_sd']:.3f}" if row["seed_sd"] is not None else ""
        mean = "-" if row["mean"] is None else f"{row['mean']:.3f}{spread}"
        cells = ["", "", ""]
        if (item := found.get((row["metric"], row["arm"]))) is not None:
            n = item["patients"]["patients"]
            of_patients = _interval(item["patients"]["interval"]) or f"too few ({n})"
            p = item["patients"]["p_value"]
            cells = [
                "-" if item["mean"] is None else f"{item['mean']:+.3f}",
                of_patients + (f", p {p:.3f}" if p is not None else ""),
                _interval(item["seed_ci95"]) or f"too few ({item['seeds']})",
            ]
        lines.append(f"| {row['metric']} | {row['arm']} | {mean} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _interval(values: Sequence[float] | None) -> str:
    return f"{values[0]:+.3f} to {values[1]:+.3f}" if values else ""


def main() -> int:
    """Exit codes: 0 fine, 1 some trainings failed, 2 bad options, 85 stopped by the time limit."""
    o, options = parse()
    if o.dry_run:
        check(o)
        for number, task in enumerate(all_tasks(o)):
            print(number, task.name, *task.flags)
        return 0
    table, faults = run_study(o, options, run)
    write_table(o.out, table)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    print(format_table(table))
    if table["missing"]:
        print(f"{len(table['missing'])} trainings are missing: {', '.join(table['missing'])}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
