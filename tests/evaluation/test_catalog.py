"""One declaration is all that a metric needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import evaluation.metrics
from dataloaders.io.manifest import Manifest
from evaluation import catalog
from evaluation.evaluate import evaluate_pairs
from evaluation.metrics.metric import AGREEMENT, Metric
from evaluation.pairs import ManifestPairs
from evaluation.request import Request
from tests.toy_results import noisy, write_results

DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def test_every_metric_has_a_name_a_group_and_a_line_in_the_docs() -> None:
    names = [metric.name for metric in catalog.METRICS.values()]
    assert len(set(names)) == len(names)
    assert {metric.group for metric in catalog.METRICS.values()} == {*catalog.TITLES}
    text = DOCS.read_text(encoding="utf-8")
    shown = text.replace("`, `_psnr`, `_ssim`", "`, `synthrad2023_psnr`, `synthrad2023_ssim`")
    assert [key for key in catalog.METRICS if f"`{key}`" not in shown and not key.startswith("radiomics_")] == []


def test_every_file_with_metrics_is_in_the_catalog() -> None:
    folder = Path(next(iter(evaluation.metrics.__path__)))
    declaring = {path.stem for path in folder.glob("*.py") if "\nMETRICS = (" in path.read_text(encoding="utf-8")}
    listed = {str(file.__name__).rpartition(".")[2] for file in catalog.FILES}
    assert declaring - {"distribution"} == listed


def test_a_further_metric_is_chosen_scored_summed_up_and_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    median = Metric(
        *("median_error", "Median error", AGREEMENT, "slice", "lower"),
        setting="of the whole image",
        of=lambda item: {"median_error": float(np.median(np.abs(item.physical[1] - item.physical[0])))},
    )
    monkeypatch.setitem(catalog.METRICS, median.key, median)
    folder = write_results(tmp_path / "r", noisy(0.05), patients=5, channels=("CT",))
    pairs = ManifestPairs(folder, Manifest.load(folder))
    result = evaluate_pairs(pairs, tmp_path / "o", Request(metrics="median_error"))
    entry = result["metrics"]["median_error/CT"]
    assert (entry["unit"], entry["better"], entry["n_patients"]) == ("HU", "lower", 5)
    assert entry["ci95"][0] < entry["value"] < entry["ci95"][1]
    assert result["settings"]["median_error"] == "of the whole image"
    assert "median_error,CT" in (tmp_path / "o" / "summary.csv").read_text()
    assert catalog.described("median_error") is median
