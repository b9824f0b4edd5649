"""A data set of 100,000 slices: the manifest has full size, its entries name a few real files again and again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.benchmark_data import BenchmarkOptions, loading, make, resuming, run_stage, start_of_train
from dataloaders.io.manifest import Manifest
from tests.launch import call
from tests.toy import prepared_folder

pytestmark = pytest.mark.slow
SLICES, CLASSES = 100_000, 38


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = prepared_folder(tmp_path_factory.mktemp("large"), patients=4, slices=50, size=32)
    tree = json.loads((root / "manifest.json").read_text())
    train = [case for case in tree["cases"] if case["split"] == "train"]
    histogram = {str(label): 1000 + label for label in range(CLASSES)}
    cases = []
    for number in range(SLICES // 50):
        like = train[number % len(train)]
        slices = [{**item, "histogram": histogram} for item in like["slices"]]
        cases.append({**like, "id": f"sub-{number:06d}", "patient": f"sub-{number:06d}", "slices": slices})
    tree["cases"] = cases + [case for case in tree["cases"] if case["split"] != "train"]
    (root / "manifest.json").write_text(json.dumps(tree))
    return root


def test_training_starts_in_seconds_with_little_memory(large: Path) -> None:
    """Of the processor, since the tests share the machine: a quiet one takes no longer."""
    figures = start_of_train(large)
    assert figures["cpu_seconds"] < 10, figures
    assert figures["peak_mb"] < 1000, figures


def test_memory_stays_flat(large: Path) -> None:
    """Two loader processes over 6,000 slices; with the list of objects that the table replaced it grows by 60 MB."""
    figures = run_stage("memory", 2, large, BenchmarkOptions(epoch=6000, batch_size=40))
    assert 0 < figures["late_mb"] < figures["early_mb"] + 30, figures


def test_resuming_in_mid_epoch_reads_only_what_comes_next(large: Path) -> None:
    figures = resuming(large, BenchmarkOptions(batch_size=8), 0)
    assert figures["files_opened"] == 16
    assert figures["seconds"] < 2


def test_the_benchmark_links_real_slices(tmp_path: Path) -> None:
    source = prepared_folder(tmp_path / "source", patients=3, slices=3)
    options = BenchmarkOptions(slices=200, source=source, read=16, batch_size=4)
    make(tmp_path / "data", options)
    assert [len(case.slices) for case in Manifest.load(tmp_path / "data").split("train")] == [100, 100]
    assert loading(tmp_path / "data", options, 0)["slices_per_second"] > 1


def test_the_benchmark_of_ranks_runs() -> None:
    tiny = ["--preset", "demo", "--size", 32, "--share", 1, "--steps", 1, "--labels", 3, "--gpu_ids", -1]
    call("benchmarks/benchmark_ranks.py", *tiny)
