"""The study's trainings: which there are, what they may see, and how a stopped study goes on. Trainings are stand-ins."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from config import parse_test, parse_train
from dataloaders.io.manifest import Manifest
from scripts.utility import (
    RunScores,
    UtilityOptions,
    all_tasks,
    commands,
    draws,
    format_table,
    learning,
    run_study,
    seed_interval,
    units,
    utility_table,
    write_table,
)
from tests.toy import prepared_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("utility") / "data", patients=5)


@pytest.fixture
def options(data: Path, tmp_path: Path) -> UtilityOptions:
    return UtilityOptions(dataroot=data, out=tmp_path / "out")


def stand_in(log: list[str], code: Callable[[str], int] = lambda name: 0) -> Callable[[str, list[str]], int]:
    """A training that writes the scores that its arm and seed deserve."""

    def run(command: str, arguments: list[str]) -> int:
        if command == "train":
            config = parse_train(arguments)
            log.append(config.name)
            return code(config.name)
        config = parse_test(arguments)
        folder = config.results_dir / config.name / "best"
        folder.mkdir(parents=True)
        if config.phase == "train":
            data = Manifest.load(config.dataroot).only("train", config.only_patients)
            Manifest(data.spec, data.split("train"), {"kind": "results"}).save(folder)
            return 0
        value = 0.5 + 0.1 * config.name.startswith("both") + 0.01 * int(config.name[-1])
        scores = {"labels": ["a"], "per_patient": {"sub-04": {"dice": value, "dice/a": value}}}
        (folder / "metrics.json").write_text(json.dumps({"schema": "medsis-segmentation/1"} | scores))
        return 0

    return run


@pytest.mark.slow
def test_arms_seeds_and_their_options(options: UtilityOptions) -> None:
    o = replace(options, generators=("gmm", "gan=results/gan"), seeds=2, mix=0.25)
    tasks = all_tasks(o, Manifest.load(o.dataroot))
    arms = "real-s0 synthetic-gmm-s0 synthetic-gan-s0 both-gmm-s0 both-gan-s0"
    assert [task.name for task in tasks[:5]] == arms.split()
    assert len(tasks) == 10
    configs = [parse_train(commands(o, task, ["--preset", "small"])[0][1]) for task in tasks]
    assert [c.segmenter.real_fraction for c in configs[:5]] == [1, 0, 0, 0.25, 0.25]
    assert [c.segmenter.results for c in configs[:3]] == [(), (), (Path("results/gan"),)]
    assert {c.seed for c in configs} == {42, 43}
    assert len({c.name for c in configs}) == 10


@pytest.mark.slow
def test_a_stopped_study_goes_on_and_shards_share_it(options: UtilityOptions) -> None:
    log: list[str] = []
    with pytest.raises(SystemExit) as stop:
        run_study(options, [], stand_in(log, lambda name: 85 if name == "both-s1" else 0))
    assert stop.value.code == 85
    assert log == ["real-s0", "synthetic-s0", "both-s0", "real-s1", "synthetic-s1", "both-s1"]
    log.clear()
    study = stand_in(log, lambda name: 4 if name == "real-s2" else 0)
    table, faults = run_study(replace(options, shard="0/2"), [], study)
    assert log == ["real-s2", "both-s2"]  # numbers 6 and 8 of those that are missing
    assert faults == ["real-s2: train.py ended with exit code 4"]  # the others go on
    assert table["missing"] == ["both-s1", "real-s2", "synthetic-s2"]
    table, faults = run_study(replace(options, only=5), [], stand_in(log))
    assert log[-1] == "both-s1"
    table, faults = run_study(options, [], stand_in(log))
    assert (faults, table["missing"]) == ([], [])
    difference = next(d for d in table["differences"] if (d["metric"], d["arm"]) == ("dice", "both"))
    assert difference["mean"] == pytest.approx(0.1)
    assert difference["seed_ci95"] == pytest.approx((0.1, 0.1))
    log.clear()
    run_study(replace(options, table=True), [], stand_in(log))
    assert log == []


def test_synthetic_images_of_test_patients_are_refused(options: UtilityOptions, tmp_path: Path) -> None:
    data = Manifest.load(options.dataroot)
    for name, cases in (("leaky", data.cases), ("fine", data.split("train"))):
        (tmp_path / name).mkdir()
        Manifest(data.spec, cases, {"kind": "results"}).save(tmp_path / name)
    with pytest.raises(ValueError, match="holds images of sub-03, sub-04, who validate or test here"):
        run_study(replace(options, generators=(f"gan={tmp_path / 'leaky'}",)), [], stand_in([]))
    o = replace(options, generators=(f"gan={tmp_path / 'fine'}",), seeds=1)
    assert not run_study(o, [], stand_in([]))[1]
    Manifest(data.spec, data.split("train")[:1], {"kind": "results"}).save(tmp_path / "fine")  # other images, same name
    with pytest.raises(ValueError, match="made with other settings: --gan"):
        run_study(o, [], stand_in([]))


@pytest.mark.slow
def test_another_study_in_the_folder_is_refused(options: UtilityOptions) -> None:
    run_study(replace(options, seeds=1), [], stand_in([]))
    with pytest.raises(ValueError, match=r"made with other settings: --options: was \[\], now"):
        run_study(replace(options, seeds=1), ["--batch_size", "2"], stand_in([]))
    run_study(replace(options, seeds=2), [], stand_in([]))  # more seeds of the same


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("fake",)}, "--arms fake: must be 'real', 'synthetic' or 'both'"),
        ({"generators": ("gan",)}, "--generators gan: must be gmm, NAME=FOLDER,"),
        *(
            ({"generators": (text,)}, f"--generators {text}: must be gmm, NAME=FOLDER, 'NAME=--model")
            for text in (
                "gan=--maps all",
                "gan=--model spade --maps all",
                "gan=--maps=all --model spade",
                "gan=--maps all x",
            )
        ),
        ({"generators": ("gan=--maps all --model spade",)}, "--generators gan: --maps all is for --patients"),
        ({"generators": ("gmm", "gan=no/such")}, "--generators gan=no/such: no such folder"),
        ({"generators": ("a=--model gmm", "a=--model spade")}, "--generators a: is named twice"),
        ({"generators": ("real=--model gmm",)}, "--generators real: is called as the runs of an arm"),
        (
            {"patients": (1, 2, 3), "arms": ("both", "real")},
            "--arms both real: learning curves compare with real patients",
        ),
        ({"only": 9}, "--only 9: there are trainings 0 to 8"),
        ({"patients": (2, 4)}, "--patients 4: the split 'train' has 3 patients with images"),
        ({"patients": (2,), "seeds": 4}, "--seeds 4: 3 training patients give at most 3 draws that differ"),
    ],
)
def test_options_out_of_range(options: UtilityOptions, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_study(replace(options, **change), [], stand_in([]))


def scores(arm: str, seed: int, values: list[float | None]) -> RunScores:
    return RunScores(arm, seed, {"dice": {f"p{i}": value for i, value in enumerate(values)}})


def test_pairs_by_patient_and_by_seed(tmp_path: Path) -> None:
    """Five patients, three seeds: b is better by 0.1, 0.2 or 0.3 with the seed, in every patient."""
    base = np.array([0.5, 0.6, 0.7, 0.4, 0.55])
    runs = []
    for seed, gain in enumerate((0.1, 0.2, 0.3)):
        runs += [scores("real", seed, list(base + 0.01 * seed)), scores("both", seed, list(base + 0.01 * seed + gain))]
    table = utility_table(runs, ["real", "both"])
    (difference,) = table["differences"]
    assert difference["mean"] == pytest.approx(0.2)
    assert difference["patients"]["interval"] == pytest.approx((0.2, 0.2))
    assert difference["patients"]["p_value"] == pytest.approx(2 / 32)
    assert difference["seed_ci95"] == pytest.approx(seed_interval(np.array([0.1, 0.2, 0.3])))
    rows = {row["arm"]: row for row in table["rows"]}
    assert rows["real"]["mean"] == pytest.approx(base.mean() + 0.01)
    assert rows["real"]["seed_sd"] == pytest.approx(0.01)
    write_table(tmp_path, table)
    assert json.loads((tmp_path / "utility.json").read_text())["schema"] == "medsis-utility/1"
    written = list(csv.DictReader((tmp_path / "utility.csv").read_text().splitlines()))
    assert float(written[1]["difference"]) == pytest.approx(0.2)
    assert "| dice | 0 | both | 0.760 ± 0.110 | +0.200 |" in format_table(table)


def test_missing_values_and_seeds() -> None:
    runs = [
        scores("real", 0, [0.5, None]),
        scores("real", 1, [0.7, None]),
        scores("synthetic", 0, [0.4, 0.9]),
        scores("synthetic", 5, [0.0, 0.0]),  # a seed that real does not have
    ]
    table = utility_table(runs, ["real", "synthetic", "both"])
    (difference,) = table["differences"]
    assert difference["mean"] == pytest.approx(-0.1)
    assert (difference["seeds"], difference["patients"]["patients"]) == (1, 1)
    assert difference["seed_ci95"] is None
    assert "too few" in format_table(table)
    with pytest.raises(ValueError, match="different patients"):
        utility_table([*runs, RunScores("both", 0, {"dice": {"other": 0.1}})], ["real", "both"])


def test_draws_are_nested_differ_and_small_ones_share_nobody() -> None:
    names = [f"p{i}" for i in range(16)]
    found = draws(names, (4, 1, 8, 2, 16), 4)
    for sets in found:
        assert [len(s) for s in sets] == [1, 2, 4, 8, 16]
        assert all(set(small) < set(large) for small, large in itertools.pairwise(sets))
    assert len({p for sets in found for p in sets[2]}) == 16  # four draws of four
    assert draws(names[::-1], (4,), 2) == [[sets[2]] for sets in found[:2]]  # more draws or numbers change no other
    assert len({frozenset(s[0]) for s in draws(names[:5], (4,), 5)}) == 5
    assert len(draws(names[:2], (2,), 3)) == 3  # everybody: only the trainings differ


@pytest.mark.slow
def test_a_generator_is_trained_once_on_each_draw_and_on_nobody_else(options: UtilityOptions) -> None:
    gan = "gan=--model spade --preset demo --num_epochs 4"
    o = replace(options, generators=("gmm", gan), patients=(1, 3), seeds=2)
    tasks = all_tasks(o, Manifest.load(o.dataroot))
    jobs = [" ".join(task.name for task in job) for job in units(tasks)]
    assert jobs[:2] + jobs[3:4] == ["real-n1-s0", "synthetic-gmm-n1-s0", "both-gmm-n1-s0"]
    assert jobs[2] == "synthetic-gan-n1-s0 both-gan-n1-s0"  # which share a generator
    (_, train), (_, test), (_, segmenter), _ = commands(o, next(t for t in tasks if t.name == "both-gan-n1-s1"), [])
    made, trained = parse_train(train), parse_train(segmenter)
    assert (made.name, made.model, made.seed) == ("gan-n1-s1", "spade", 43)
    assert made.num_epochs == 12  # as many images as of three
    assert parse_train(commands(o, tasks[-1], [])[0][1]).num_epochs == 4
    assert made.only_patients == trained.only_patients == parse_test(test).only_patients
    assert len(made.only_patients) == 1
    assert trained.segmenter.results == (o.out / "images/gan-n1-s1/best",)
    more = replace(o, generators=(gan.replace("gan=", "more=--maps all "),))  # trained on one, paints everybody's maps
    alone = next(t for t in all_tasks(more, Manifest.load(o.dataroot)) if t.name == "both-more-n1-s1")
    (_, train), (_, test), (_, segmenter), _ = commands(more, alone, [])
    assert parse_train(train).only_patients == parse_train(segmenter).only_patients == made.only_patients
    assert parse_test(test).only_patients == ()
    log: list[str] = []
    table, faults = run_study(o, [], stand_in(log))
    assert (faults, table["missing"], len(set(log))) == ([], [], len(log))  # each training once
    assert log[2:5] == ["gan-n1-s0", "synthetic-gan-n1-s0", "both-gan-n1-s0"]
    rows = {(row["n"], row["arm"]): row["mean"] for row in table["rows"] if row["metric"] == "dice"}
    assert rows[1, "both-gan"] == pytest.approx(0.605)
    assert {d["n"] for d in table["differences"]} == {1, 3}
    with pytest.raises(ValueError, match="made with other settings: --gan"):
        run_study(replace(o, generators=(gan + "0",)), [], stand_in([]))
    with pytest.raises(ValueError, match="made with other settings: --gan"):
        run_study(replace(o, generators=(gan.replace("gan=", "gan=--maps all "),)), [], stand_in([]))
    folder = o.out / "images/gan-n3-s0/best"
    with pytest.raises(ValueError, match="holds images of sub-00, sub-01, sub-02, who test here or are in few draws"):
        run_study(replace(o, generators=(f"all={folder}",)), [], stand_in([]))


def test_learning_curves_from_the_scores_to_the_sentence(tmp_path: Path) -> None:
    """The arm reaches with n what real patients reach with 2 n: worth n patients, and beyond what was measured at 8."""
    rng = np.random.default_rng(1)
    people = rng.normal(0, 0.02, 6)
    runs = []
    for seed in range(3):
        for n in (1, 2, 4, 8):
            for arm, factor in (("real", 1), ("both", 2)):
                values = 0.9 - 0.4 * (factor * n) ** -0.7 + people + 0.001 * seed
                runs.append(RunScores(arm, seed, {"dice": {f"p{i}": v for i, v in enumerate(values)}}, n))
    table = utility_table(runs, ["real", "both"])
    table["learning"] = learning(runs, ["real", "both"], [1, 2, 4, 8])
    worth = table["learning"]["dice"]["worth"]
    assert [item["worth"] for item in worth] == pytest.approx([1, 2, 4], abs=0.05)
    assert all(item["interval"][0] - 0.05 < item["worth"] < item["interval"][1] + 0.05 for item in worth)
    said = "- both: with 1 real patient, synthetic images are worth 1.0 real patients (95 %: 1.0 to 1.0)"
    assert said in format_table(table)
    write_table(tmp_path, table)
    assert 5_000 < (tmp_path / "curves.png").stat().st_size < 200_000
    assert learning(runs[:8], ["real", "both"], [1, 2, 4, 8])["dice"]["worth"][0]["interval"] is None  # a single draw
    assert learning(runs[:7], ["real", "both"], [1, 2, 4, 8]) == {}  # a training is missing
