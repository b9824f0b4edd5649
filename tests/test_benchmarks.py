"""What the figures of the documentation are made with: tables of runs, the lesion study, a data set of 100,000 slices."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import gan_table
from benchmarks.benchmark_data import BenchmarkOptions, loading, make, resuming, run_stage, start_of_train
from benchmarks.gan_table import as_markdown, table_of
from benchmarks.lesion_study import Example, StudyOptions, test_segmenter, train_segmenter
from dataloaders.io.manifest import Manifest
from dataloaders.io.pictures import TITLE
from dataloaders.io.spec import Channel
from dataloaders.slices import SliceDataset
from evaluation.metrics.feature_sets import RADIOMICS
from evaluation.metrics.radiomics import FEATURE_NAMES
from tests.launch import call
from tests.toy import prepared_folder
from tests.toy_lesions import patient
from tests.toy_results import good_and_bad

pytestmark = pytest.mark.slow
PEOPLE = [f"p{i}" for i in range(6)]


def values(*of_people: float) -> dict[str, float]:
    return dict(zip(PEOPLE, of_people, strict=True))


def test_differences_are_of_distances_from_the_best_value() -> None:
    """A ratio of 0.9 is nearer to 1 than one of 1.2, though it is lower; of errors the lower one is better."""
    found = {
        "a": {"slice_jump_ratio/T1w": values(*[1.2] * 6), "mae_body/T1w": values(1, 2, 3, 4, 5, 6)},
        "b": {"slice_jump_ratio/T1w": values(*[0.9] * 6), "mae_body/T1w": values(2, 3, 4, 5, 6, 7)},
    }
    jump, mae = table_of(found, {"mae_body/T1w": {"p0": 0.5}}, "a")
    assert jump["b"]["difference"]["mean"] == pytest.approx(-0.1)
    assert mae["b"]["difference"]["mean"] == pytest.approx(1)
    assert mae["b"]["difference"]["interval"] == pytest.approx((1, 1))
    assert mae["a"]["value"] == pytest.approx(3.5)
    assert mae["floor"]["value"] == 0.5
    text = as_markdown([jump, mae], ["a", "b"])
    (only,) = table_of({"a": {"faithfulness_dice": values(*[0.5] * 6)}, "b": {}}, {}, "a")  # b was not segmented
    assert only["b"]["value"] is None
    assert "difference" not in only["b"]
    assert "| slice jump ratio, T1w | 1.2 [1.2, 1.2] | 0.9 [0.9, 0.9] (**-0.1 [-0.1, -0.1]**) | – |" in text


def test_radiomics_of_the_floor_are_in_the_unit_of_the_runs() -> None:
    """The same slices are as far apart in a folder of one person as beside people who differ more."""
    rng = np.random.default_rng(0)
    rows = {
        person: [(person, *(spread * rng.standard_normal((2, len(FEATURE_NAMES))))) for _ in range(8)]
        for person, spread in (("a", 1.0), ("b", 9.0))
    }
    run, repeats = {(RADIOMICS, 0): rows["a"] + rows["b"]}, {(RADIOMICS, 0): rows["a"]}
    key, channels = f"{RADIOMICS}_kid/T1w", (Channel("T1w"),)
    expected = gan_table.distances_of(run, run, channels)[key]["a"]
    assert gan_table.distances_of(repeats, run, channels)[key] == {"a": pytest.approx(expected)}
    assert gan_table.distances_of(repeats, repeats, channels)[key]["a"] != pytest.approx(expected)


def test_runs_of_other_people_are_refused_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = good_and_bad(tmp_path, channels=("T1w",), patients=3, slices=1)
    manifest = Manifest.load(good)
    replace(manifest, cases=manifest.cases[1:]).save(good)
    monkeypatch.setattr(gan_table, "values_of", None)
    command = ["gan_table.py", str(bad), "--reference", "bad", "--out", str(tmp_path / "table")]
    monkeypatch.setattr(sys, "argv", [*command[:1], str(good), *command[1:]])
    with pytest.raises(ValueError, match=r"cannot be compared: .* lacks 1 slice of the other \(sub-00 z0\)"):
        gan_table.run()
    replace(manifest, cases=(replace(manifest.cases[0], id="else"),)).save(good)
    monkeypatch.setattr(sys, "argv", [*command, "--repeats", str(good)])
    with pytest.raises(ValueError, match=f"--repeats {good}: has none of the cases of"):
        gan_table.run()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(path) for path in good_and_bad(tmp_path, size=(64, 72), channels=("T1w",), patients=3, slices=4)]
    arguments = ["--reference", "bad", "--out", str(tmp_path / "table")]
    monkeypatch.setattr(sys, "argv", ["gan_table.py", *folders, *arguments])
    assert gan_table.run() == 0
    found = json.loads((tmp_path / "table" / "table.json").read_text())
    rows = {row["metric"].partition("/")[0]: row for row in found["rows"]}
    assert set(rows) == {*gan_table.HEADINGS} - {"faithfulness_dice"}
    for key in ("ssim", "mae_body", "efficientnet_lite0_kid", "radiomics_kid", "spectrum_distance"):
        assert rows[key]["good"]["difference"]["mean"] < 0, key
    other = "sub-01" if found["person"] == "sub-00" else "sub-00"
    assert found["columns"] == ["label", "real", f"real, {other}", "good", "bad"]
    with Image.open(tmp_path / "table" / "people.png") as image:
        assert image.size == (5 * 72 + 4 * 2, 5 * 64 + 4 * 2 + TITLE)  # noise everywhere: nothing to cut away
    assert "EfficientNet-Lite0 kernel distance" in capsys.readouterr().out


test_segmenter.__test__ = False  # type: ignore[attr-defined]  # it tests a network, not this code


def options(**changes: object) -> StudyOptions:
    where = {"bids": Path("b"), "name": "n", "train": "a", "test": "b", "out": Path("o")}
    return StudyOptions(**where, **{"steps": 60, "batch_size": 6, "patch": 32} | changes)  # type: ignore[arg-type]


def phantom(seed: int) -> Example:
    p = patient(seed, lesions=10)
    images = np.stack([image * (0.8 / level) - 1 for image, level in ((p.t1, 220), (p.flair, 90))]).astype(np.float32)
    as_tensor = [torch.from_numpy(x) for x in (images, p.lesion, p.tissue > 0)]
    return Example(as_tensor[0].permute(0, 3, 2, 1).contiguous(), *(x.permute(2, 1, 0) for x in as_tensor[1:]))


def test_the_segmenter_finds_lesions_of_another_phantom() -> None:
    cpu = torch.device("cpu")
    net = train_segmenter(options(), [phantom(1)], ("real", 0), cpu)
    scores = test_segmenter(net, phantom(2), cpu)
    assert scores["dice"] > 0.25, scores  # it has seen 60 steps
    assert scores["lesion_sensitivity"] > 0.5
    assert set(scores) >= {"sensitivity", "precision", "lesion_precision", "lesion_f1"}


SLICES, CLASSES = 100_000, 38


def of_slices(root: Path, count: int) -> Path:
    """A prepared folder whose manifest lists so many training slices, the same few files again and again."""
    prepared_folder(root, patients=4, slices=50, size=32)
    tree = json.loads((root / "manifest.json").read_text())
    train = [case for case in tree["cases"] if case["split"] == "train"]
    histogram = {str(label): 1000 + label for label in range(CLASSES)}
    cases = []
    for number in range(count // 50):
        like = train[number % len(train)]
        slices = [{**item, "histogram": histogram} for item in like["slices"]]
        cases.append({**like, "id": f"sub-{number:06d}", "patient": f"sub-{number:06d}", "slices": slices})
    tree["cases"] = cases + [case for case in tree["cases"] if case["split"] != "train"]
    (root / "manifest.json").write_text(json.dumps(tree))
    return root


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return of_slices(tmp_path_factory.mktemp("large"), SLICES)


def test_a_training_set_is_listed_with_little_work_for_each_slice(tmp_path: Path) -> None:
    """Python's calls are counted and not the time they take: fifteen for each slice."""
    slices, calls = 10_000, 0
    root = of_slices(tmp_path, slices)

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        assert len(SliceDataset(root, Manifest.load(root), "train").entries) == slices
    finally:
        sys.setprofile(None)
    assert calls < 25 * slices


def test_training_of_100000_slices_starts_with_little_memory(large: Path) -> None:
    assert start_of_train(large)["peak_mb"] < 1000


def test_memory_stays_flat(large: Path) -> None:
    """Two loader processes over 6,000 slices; with the list of objects that the table replaced it grows by 60 MB."""
    figures = run_stage("memory", 2, large, BenchmarkOptions(epoch=6000, batch_size=40))
    assert 0 < figures["late_mb"] < figures["early_mb"] + 30, figures


def test_resuming_in_mid_epoch_reads_only_what_comes_next(large: Path) -> None:
    figures = resuming(large, BenchmarkOptions(batch_size=8), 0)
    assert figures["files_opened"] == 16


def test_the_benchmark_links_real_slices(tmp_path: Path) -> None:
    source = prepared_folder(tmp_path / "source", patients=3, slices=3)
    options = BenchmarkOptions(slices=200, source=source, read=16, batch_size=4)
    make(tmp_path / "data", options)
    assert [len(case.slices) for case in Manifest.load(tmp_path / "data").split("train")] == [100, 100]
    assert loading(tmp_path / "data", options, 0)["slices_per_second"] > 1


def test_the_benchmark_of_ranks_runs() -> None:
    tiny = ["--preset", "demo", "--size", 32, "--share", 1, "--steps", 1, "--labels", 3, "--gpu_ids", -1]
    call("benchmarks/benchmark_ranks.py", *tiny)
