"""What synthetic images are worth: ``python scripts/utility.py --dataroot DATA --out DIR -- --preset small``.

The same network is trained on real, synthetic and both, and tested on real; with ``--patients 1 2 4 8 16`` on so many real
patients, which says how many patients synthetic images are worth. Every training is a run of train.py and a call of
test.py, so they resume, log and stop as any other, and an array of jobs can share them.
"""

from __future__ import annotations

import itertools
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip
import numpy as np
from numpy.typing import NDArray

from config import parse_test, parse_train
from dataloaders.io.files import csv_text, read_json, write_json, write_text
from dataloaders.io.ledger import Ledger
from dataloaders.io.manifest import FILE_NAME, Manifest
from dataloaders.io.schema import NAME, AtLeast0, AtLeast1, Must, Shard, check, options_of
from dataloaders.io.workers import parse_shard
from dataloaders.plain_folder import load_manifest
from dataloaders.slices import fingerprint
from engine.command import exit_code
from engine.signals import EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_TIME_LIMIT
from evaluation.learning_curves import MIN_TRAININGS, learning_curves, power_law, worth_sentences
from evaluation.report.kit import SOFT, color_of, render
from evaluation.segmentation_results import SCHEMA as SCORES
from evaluation.statistics import finite, over_patients, paired_difference, student_half_width
from test import test
from train import train

Arm = Literal["real", "synthetic", "both"]
REAL: Arm = "real"
SYNTHETIC: Arm = "synthetic"
BOTH: Arm = "both"
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
    """Sources of synthetic images: gmm for the generator on the training labels, NAME=FOLDER of test.py --phase train, or
    'NAME=--model spade --preset demo' for a method of train.py that is trained on the same patients first and paints their
    label maps, 'NAME=--maps all --model …' those of all training patients, as if there were maps of people without scans."""
    arms: tuple[Arm, ...] = (REAL, SYNTHETIC, BOTH)
    """What to train on: real, synthetic, both; the first is what the others are compared with."""
    mix: Annotated[float, Must("above 0 and below 1", lambda share: 0 < share < 1)] = 0.5
    """Share of real images in both."""
    seeds: AtLeast1 = 3
    """Trainings of each arm, with --patients each on other patients; at least three for an interval."""
    patients: tuple[AtLeast1, ...] = ()
    """Numbers of training patients, such as 1 2 4 8 16, from three on with learning curves; by default all of them."""
    shard: Shard = "0/1"
    """Only trainings k with k % n == i of shard i/n."""
    only: AtLeast0 | None = None
    """Only training k, from 0 on: a job array's task number."""
    table: bool = False
    """Train nothing, only make the table of what is there."""
    dry_run: bool = False
    """Only list the trainings."""

    @property
    def sources(self) -> list[Generator]:
        """The generators; ValueError for a text that is none."""
        return [Generator.of(text) for text in self.generators]

    def check_together(self) -> None:
        """ValueError where there is nothing to do, or a generator's folder is missing."""
        for source in self.sources:
            if source.all_maps and not self.patients:
                raise ValueError(
                    f"--generators {source.name}: --maps all is for --patients; without, all maps are painted"
                )
            if source.folder is not None and not source.folder.is_dir():
                raise ValueError(
                    f"--generators {source.name}={source.folder}: no such folder; test.py --phase train makes one"
                )
        if not self.arms or not self.generators:
            raise ValueError("--arms and --generators: name at least one each")
        if self.numbers >= MIN_TRAININGS and self.arms[0] != REAL:
            raise ValueError(
                f"--arms {' '.join(self.arms)}: learning curves compare with real patients; name real first"
            )
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"--generators {name}: is named twice; give each a name of its own")
            if name.partition("-")[0] in get_args(Arm):  # runs are called by arm, generator, number and seed
                raise ValueError(f"--generators {name}: is called as the runs of an arm; choose another name")

    @property
    def numbers(self) -> int:
        """How many numbers of patients there are."""
        return len(set(self.patients))


@dataclass(frozen=True)
class Generator:
    """A source of synthetic images: a folder of them, options of train.py for a method, or neither: the GMM on the fly.

    all_maps: the method paints the label maps of all training patients, not of those alone that it was trained on.
    """

    name: str
    folder: Path | None = None
    options: tuple[str, ...] = ()
    all_maps: bool = False

    @classmethod
    def of(cls, text: str) -> Generator:
        """Of ``gmm``, ``NAME=FOLDER`` or ``NAME=--model …``; ValueError for another text."""
        name, _, what = text.partition("=")
        if text == GMM:
            return cls(GMM)
        words = shlex.split(what) if what.startswith("--") else []
        everyone = words[:2] == ["--maps", "all"]
        options = words[2:] if everyone else words
        misplaced = not (options and options[0].startswith("--")) or any(w.startswith("--maps") for w in options)
        if not what or (words and misplaced):
            raise ValueError(
                f"--generators {text}: must be gmm, NAME=FOLDER, 'NAME=--model … --preset …' or 'NAME=--maps all --model …'"
            )
        NAME.of(name, "--generators")
        return cls(name, None, tuple(options), everyone) if words else cls(name, Path(what))


@dataclass(frozen=True)
class Task:
    """One training: its arm, its seed's number, and the options of train.py that make the arm.

    patients: whom it is trained on, () for everybody. n: how many they are, of: how many there are.
    """

    arm: str
    seed: int
    flags: tuple[str, ...]
    generator: Generator | None = None
    patients: tuple[str, ...] = ()
    n: int = 0
    of: int = 0

    @property
    def ending(self) -> str:
        """Of the names of runs: the seed's number, and where patients are drawn how many."""
        return f"-n{self.n}-s{self.seed}" if self.patients else f"-s{self.seed}"

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.arm + self.ending

    @property
    def images(self) -> str:
        """Name of the run of the generator that is trained for it, if any."""
        return self.generator.name + self.ending if self.generator is not None and self.generator.options else ""

    @property
    def who(self) -> tuple[str, ...]:
        """The option of train.py and test.py that names the patients."""
        return ("--only_patients", *self.patients) if self.patients else ()


def parse(arguments: Sequence[str] | None = None) -> tuple[UtilityOptions, list[str]]:
    """Options of the study, and those of train.py after ``--``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    place = given.index("--") if "--" in given else len(given)
    return options_of(UtilityOptions, given[:place]), given[place + 1 :]


def draws(patients: Sequence[str], counts: Sequence[int], seeds: int) -> list[list[tuple[str, ...]]]:
    """For each seed the patients of each count, the smaller sets within the larger ones; no two draws are the same.

    The patients stand on a circle in an order drawn once; each draw goes round from a place of its own, as far as can be
    from those of the draws before, so that small sets share nobody where that can be. ValueError for draws that cannot be.
    """
    total = len(patients)
    if max(counts) > total:
        raise ValueError(f"--patients {max(counts)}: the split 'train' has {total} patients with images")
    if min(counts) < total < seeds:
        raise ValueError(f"--seeds {seeds}: {total} training patients give at most {total} draws that differ")
    order = [sorted(patients)[i] for i in np.random.default_rng(0).permutation(total)]
    starts = [0]
    while len(starts) < min(seeds, total):
        starts.append(max(range(total), key=lambda i: min(min((i - s) % total, (s - i) % total) for s in starts)))
    places = [starts[seed % total] for seed in range(seeds)]
    return [[tuple((order * 2)[start : start + count]) for count in sorted(set(counts))] for start in places]


def all_tasks(o: UtilityOptions, data: Manifest) -> list[Task]:
    """Every training of the study in a fixed order, seed by seed. ValueError for a generator or numbers that do not fit."""
    training = _with_images(data, "train")
    arms: list[tuple[str, Generator | None, str]] = []
    for arm in o.arms:
        if arm == REAL:
            arms.append((REAL, None, "1"))
            continue
        for source in o.sources:
            name = f"{arm}-{source.name}" if o.patients or len(o.generators) > 1 or source.name != GMM else arm
            arms.append((name, source, "0" if arm == SYNTHETIC else f"{o.mix:g}"))
    # Without a validation split the newest weights count in every arm; synthetic patches would choose for some.
    blind = () if _with_images(data, "val") else ("--segmenter.val_samples", "0")
    drawn: list[list[tuple[str, ...]]] = draws(training, o.patients, o.seeds) if o.patients else [[()]] * o.seeds
    found = []
    for seed, sets in enumerate(drawn):
        for patients in sets:
            for name, generator, share in arms:
                flags = ("--segmenter.real_fraction", share, *blind)
                n = len(patients) or len(training)
                found.append(Task(name, seed, flags, generator, patients, n, len(training)))
    return found


def units(tasks: Sequence[Task]) -> list[list[Task]]:
    """Trainings that one job does: those that need the same trained generator together, all others alone."""
    found: dict[str, list[Task]] = {}
    for task in tasks:
        found.setdefault(task.images or task.name, []).append(task)
    return list(found.values())


def _with_images(data: Manifest, split: str) -> list[str]:
    return sorted({case.patient for case in data.split(split) if any(item.images for item in case.slices)})


def refuse_leaks(o: UtilityOptions, data: Manifest) -> None:
    """ValueError where synthetic images were made from label maps of patients that validate or test, or may be left out."""
    splits = ("val", "test", "train") if o.patients else ("val", "test")
    held = {case.patient for split in splits for case in data.split(split)}
    for source in o.sources:
        if source.folder is None or not (source.folder / FILE_NAME).is_file():
            continue
        if leaked := sorted({case.patient for case in Manifest.load(source.folder).cases} & held):
            where = f"--generators {source.name}={source.folder}: holds images of {', '.join(leaked[:5])}, who "
            if o.patients:
                raise ValueError(
                    f"{where}test here or are in few draws; give '{source.name}=--model …', which is trained on each draw"
                )
            raise ValueError(f"{where}validate or test here; make them from the training split (test.py --phase train)")


def run_study(o: UtilityOptions, options: Sequence[str], run: Command) -> tuple[dict[str, Any], list[str]]:
    """Train and test what is missing of the options' share; returns the table of all that is there, and faults.

    SystemExit with its code where a training was asked to stop (85 by Slurm's time limit): the same command goes on.
    """
    check(o)
    data = load_manifest(o.dataroot)
    if not any(item.images for case in data.split("test") for item in case.slices):
        raise ValueError(f"--dataroot {o.dataroot}: the split 'test' has no images to test on")
    refuse_leaks(o, data)
    tasks = all_tasks(o, data)
    jobs = units(tasks)
    if o.only is not None and not 0 <= o.only < len(jobs):
        raise ValueError(f"--only {o.only}: there are trainings 0 to {len(jobs) - 1}")
    settings = {
        "data": fingerprint(o.dataroot),
        "options": list(options),
        "mix": o.mix,
        "patients": {split: sorted({case.patient for case in data.split(split)}) for split in ("train", "val", "test")},
    }
    Ledger.claim(o.out, settings, file="study.json", records="results")
    for source in o.sources:  # more generators may come at any time
        given = [*(["--maps", "all"] if source.all_maps else []), *source.options]
        what = given if source.folder is None else fingerprint(source.folder)
        if what:
            Ledger.claim(o.out / "generators" / source.name, {source.name: what}, flag="--generators", records=".")
    first, step = parse_shard(o.shard)
    chosen = jobs[first::step] if o.only is None else [jobs[o.only]]
    faults = []
    for task in [] if o.table else [task for job in chosen for task in job]:
        if read_scores(o, task) is None and (fault := _train_and_test(o, task, options, run)):
            faults.append(fault)
    return make_table(o, tasks), faults


def make_table(o: UtilityOptions, tasks: Sequence[Task]) -> dict[str, Any]:
    """The table of the trainings that are done."""
    found = {task.name: read_scores(o, task) for task in tasks}
    done = [scores for scores in found.values() if scores is not None]
    table = utility_table(done, list(dict.fromkeys(task.arm for task in tasks)))
    if o.numbers >= MIN_TRAININGS:
        table["learning"] = learning(done, table["arms"], sorted(set(o.patients)))
    return table | {"missing": [name for name, scores in found.items() if scores is None]}


def commands(o: UtilityOptions, task: Task, options: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The commands of a training with their arguments, after those of the generator that is trained for it, unless done."""
    where, seed = (
        ["--dataroot", str(o.dataroot), "--checkpoints_dir", str(o.out / "runs")],
        ["--seed", str(42 + task.seed)],
    )
    found, results = [], []
    if task.generator is not None and (task.images or task.generator.folder):
        made = task.generator.folder or o.out / "images" / task.images / "best"
        results = ["--segmenter.results", str(made)]
        if task.images and not (made / FILE_NAME).is_file():
            found = _generator_commands(task, ["--name", task.images, *where], made.parents[1], seed)
    run = ["--name", task.name, *where]
    train = [*run, "--model", "segmenter", *options, *task.flags, *results, *task.who, *seed]
    test = [*run, "--results_dir", str(o.out / "results"), "--metrics", "dice", *_device(options)]
    return [*found, ("train", train), ("test", test)]


def _generator_commands(task: Task, run: list[str], images: Path, seed: list[str]) -> list[tuple[str, list[str]]]:
    """Training on the task's patients, for as many images as with all patients, and synthesis of label maps."""
    assert task.generator is not None
    options = [*task.generator.options]
    config = parse_train([*run, *options])
    if task.n < task.of and not config.method.fitted:
        options += ["--num_epochs", str(math.ceil(config.num_epochs * task.of / task.n))]
    made = ["--results_dir", str(images), "--phase", "train", "--metrics", "none", "--no-volumes", *_device(options)]
    painted = () if task.generator.all_maps else task.who
    return [("train", [*run, *options, *task.who, *seed]), ("test", [*run, *made, *painted])]


def _device(options: Sequence[str]) -> list[str]:
    place = next((i for i, option in enumerate(options) if option == "--gpu_ids"), None)
    return [] if place is None else list(options[place : place + 2])


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
    n: int = 0  # patients that it was trained on


def read_scores(o: UtilityOptions, task: Task) -> RunScores | None:
    """Dice of a training; None of one that is not done."""
    path = o.out / "results" / task.name / "best" / "metrics.json"
    data = read_json(path) if path.is_file() else {}
    if data.get("schema") != SCORES:
        return None
    names = ["dice", *(f"dice/{label}" for label in data["labels"])]
    patients = sorted(data["per_patient"].items())
    values = {name: {patient: of.get(name) for patient, of in patients} for name in names}
    return RunScores(task.arm, task.seed, values, task.n)


def seed_interval(differences: NDArray) -> list[float] | None:
    """95 % interval of the mean over seeds by Student's t; None for fewer than three."""
    known = differences[np.isfinite(differences)]
    if len(known) < MIN_TRAININGS:
        return None
    mean, half = float(known.mean()), student_half_width(known)
    return [mean - half, mean + half]


def utility_table(runs: Sequence[RunScores], arms: Sequence[str]) -> dict[str, Any]:
    """Contents of utility.json: a row for each metric, number of patients and arm, and its paired difference to the first.

    A difference takes the seeds that both arms have, with as many patients. ValueError where the runs were tested on
    different patients.
    """
    patients = {tuple(next(iter(run.values.values()))) for run in runs}
    if len(patients) > 1:
        raise ValueError("the runs were tested on different patients, so they cannot be compared in pairs")
    metrics = dict.fromkeys(name for run in runs for name in run.values)
    rows, differences = [], []
    for metric, n in itertools.product(metrics, sorted({run.n for run in runs})):
        of = [run for run in runs if run.n == n]
        by_arm = {arm: {run.seed: _values(run, metric) for run in of if run.arm == arm} for arm in arms}
        rows += [{"metric": metric, "n": n, "arm": arm} | _row(seeds) for arm, seeds in by_arm.items() if seeds]
        for arm in arms[1:]:
            if both := sorted(by_arm[arm].keys() & by_arm[arms[0]].keys()):
                pair = (np.stack([by_arm[name][seed] for seed in both]) for name in (arm, arms[0]))
                head = {"metric": metric, "n": n, "arm": arm, "against": arms[0]}
                differences.append(head | _difference(*pair))
    about = {"schema": "medsis-utility/1", "arms": list(arms), "runs": len(runs)}
    return about | {"rows": rows, "differences": differences}


def _values(run: RunScores, metric: str) -> NDArray[np.float64]:
    return np.array(list(run.values[metric].values()), np.float64)


def _row(seeds: Mapping[int, NDArray]) -> dict[str, Any]:
    table = np.stack(list(seeds.values()))  # (seeds, patients)
    of_seeds, patients = _means(table, 1), over_patients(_means(table, 0))
    known = of_seeds[np.isfinite(of_seeds)]
    return {
        "mean": patients["value"],
        "seed_sd": float(known.std(ddof=1)) if len(known) > 1 else None,
        "patient_ci95": patients["ci95"],
        "seeds": len(seeds),
        "patients": patients["n_patients"],
    }


def _difference(a: NDArray, b: NDArray) -> dict[str, Any]:
    """a - b, (seeds, patients) each."""
    patients = asdict(paired_difference(_means(a, 0), _means(b, 0)))
    mean = finite(patients.pop("mean"))
    return {"mean": mean, "patients": patients, "seed_ci95": seed_interval(_means(a - b, 1)), "seeds": len(a)}


def _means(table: NDArray, axis: int) -> NDArray[np.float64]:
    """Means of the finite values along an axis; NaN where there are none."""
    found: NDArray[np.float64] = np.ma.masked_invalid(table).mean(axis).filled(np.nan)
    return found


def learning(runs: Sequence[RunScores], arms: Sequence[str], counts: Sequence[int]) -> dict[str, Any]:
    """Metric -> `learning_curves` of the seeds and test patients of which every arm has every number."""
    scores = {(run.arm, run.n, run.seed): run for run in runs}
    whole = [s for s in sorted({run.seed for run in runs}) if all((a, n, s) in scores for a in arms for n in counts)]
    found = {}
    for metric in runs[0].values if whole else ():
        table = np.array([[[_values(scores[arm, n, s], metric) for n in counts] for s in whole] for arm in arms])
        table = table[..., np.isfinite(table).all(axis=(0, 1, 2))]
        if table.shape[-1]:
            alone = [arm for arm in arms if arm.startswith(SYNTHETIC)]
            found[metric] = learning_curves(counts, dict(zip(arms, table, strict=True)), arms[0], alone)
    return found


def draw_curves(path: Path, learned: Mapping[str, Any]) -> None:
    """Mean Dice against the number of real patients: means with their intervals and fitted curves, one colour an arm."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure((6.4, 4.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="real patients that train", ylabel="Dice of test patients")
    n = np.array(learned["n"], float)
    fine = np.geomspace(n[0], n[-1], 100)
    for i, (arm, curve) in enumerate(learned["curves"].items()):
        fit = [np.array([part]) for part in curve["fit"]]
        axes.plot(fine, power_law(fine, (fit[0], fit[1], fit[2]))[0], color=color_of(i), lw=1.4)
        means, x = np.array(curve["means"]), n * 1.02 ** (i - (len(learned["curves"]) - 1) / 2)
        ends = np.array(curve["intervals"] or [[mean, mean] for mean in means]).T
        spread = np.clip(np.stack([means - ends[0], ends[1] - means]), 0, None)
        axes.errorbar(x, means, spread, fmt="o", ms=4.5, lw=1, capsize=2, color=color_of(i), label=arm)
    axes.set_xticks(n, [f"{value:g}" for value in n])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=SOFT, alpha=0.2)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def _with_differences(table: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Rows, each with its difference to the first arm, which has none."""
    key = itemgetter("metric", "n", "arm")
    found = {key(item): item for item in table["differences"]}
    return ((row, found.get(key(row))) for row in table["rows"])


def write_table(folder: Path, table: Mapping[str, Any]) -> None:
    """utility.json, utility.csv with the rows, and with learning curves curves.png."""
    write_json(folder / "utility.json", dict(table))
    columns = ("metric", "n", "arm", "mean", "seed_sd", "seeds", "patients")
    head = [*columns, "difference", "patient_low", "patient_high", "p_value", "seed_low", "seed_high"]
    lines = []
    for row, item in _with_differences(table):
        lines.append([row[column] for column in columns])
        if item is not None:
            of, empty = item["patients"], (None, None)
            lines[-1] += [item["mean"], *(of["interval"] or empty), of["p_value"], *(item["seed_ci95"] or empty)]
    write_text(folder / "utility.csv", csv_text(head, lines))
    if learned := table.get("learning"):
        draw_curves(folder / "curves.png", learned["dice"])


def format_table(table: Mapping[str, Any]) -> str:
    """For people: Markdown, one line for each metric and arm."""
    learned = table.get("learning", {}).get("dice")
    said = worth_sentences(learned) if learned else []
    return render("utility.txt", rows=[*_with_differences(table)], first=table["arms"][:1], said=said).rstrip()


def main() -> int:
    """Exit codes: 0 fine, 1 some trainings failed, 2 bad options, 85 stopped by the time limit."""
    o, options = parse()
    if o.dry_run:
        check(o)
        for number, job in enumerate(units(all_tasks(o, load_manifest(o.dataroot)))):
            for task in job:
                print(number, task.name, *task.flags, *task.who)
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
