"""Scoring a results folder: levels, invariances, missing weights, and what is written."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import torch

from dataloaders.io.manifest import Manifest
from dataloaders.io.png import read_png, write_png
from dataloaders.io.weights import MissingWeights
from evaluation import evaluate_results, format_table, headline, request, scoring
from evaluation.metrics import extractors, perceptual
from evaluation.metrics.perceptual import LPIPS
from tests.toy_results import identity, noisy, write_results

pytestmark = pytest.mark.usefixtures("no_weights")

NO_WEIGHTS = (
    "mae,rmse,mae_body,rmse_body,psnr,ssim,label_mean_error,label_std_error,wasserstein,"
    "slice_jump_ratio,slice_difference_mae"
)


def values(result: dict[str, Any]) -> dict[str, float | None]:
    return {key: entry["value"] for key, entry in result["metrics"].items()}


def test_a_perfect_method(tmp_path: Path) -> None:
    """And what has no value is null in JSON and nothing in CSV, never NaN."""
    folder = write_results(tmp_path / "r", identity)
    evaluate_results(folder, NO_WEIGHTS)

    def refuse(text: str) -> None:
        raise AssertionError(text)

    result = json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)
    for channel in ("T1w", "CT"):
        for name in ("mae", "rmse", "mae_body", "rmse_body", "label_mean_error", "label_std_error", "wasserstein"):
            assert result["metrics"][f"{name}/{channel}"]["value"] == 0
        assert result["metrics"][f"ssim/{channel}"]["value"] == pytest.approx(1)
        assert result["metrics"][f"psnr/{channel}"]["value"] is None
        assert "identical" in result["metrics"][f"psnr/{channel}"]["reason"]
    assert result["metrics"]["wasserstein"]["value"] == 0
    assert result["counts"] == {"constant_images": 0, "psnr_identical": 12, "clipped_real": 0, "clipped_generated": 0}
    assert result["schema"] == "medsis-metrics/1"
    assert result["settings"]["ssim"]
    assert "nan" not in (folder / "metrics.csv").read_text()


def test_an_offset_comes_out_in_physical_units(tmp_path: Path) -> None:
    """+10 everywhere in the body of both channels, in each channel's own unit."""
    folder = write_results(tmp_path / "r", lambda real, label, rng: real + 10.0 * (label > 0))
    result = evaluate_results(folder, NO_WEIGHTS)
    metrics = result["metrics"]
    assert [metrics["mae_body/CT"]["unit"], metrics["mae_body/T1w"]["unit"]] == ["HU", "a.u."]
    for channel in ("T1w", "CT"):
        assert metrics[f"mae_body/{channel}"]["value"] == pytest.approx(10, abs=0.3)  # clipping at the window's ends
    labels = [row for row in result["per_label"] if row["channel"] == "CT" and row["name"] == "grey_matter"]
    assert all(row["label_mean_error"] == pytest.approx(10, abs=0.1) for row in labels)
    assert all(row["label_std_error"] < 0.1 for row in labels)
    # Four of five labels are off by 10, the background is not.
    assert metrics["wasserstein/CT"]["value"] == pytest.approx(8, abs=0.1)


def test_patients_weigh_the_same_however_many_slices_they_have(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=2, slices=4)
    manifest = Manifest.load(folder)
    first, second = manifest.cases
    replace(manifest, cases=(replace(first, slices=first.slices[:1]), second)).save(folder)
    result = evaluate_results(folder, NO_WEIGHTS)
    rows = [row for row in csv.DictReader((folder / "metrics.csv").open()) if row["channel"] == "CT"]
    by_patient = [np.mean([float(r["mae"]) for r in rows if r["patient"] == p]) for p in ("sub-00", "sub-01")]
    assert len(rows) == 5
    assert result["metrics"]["mae/CT"]["value"] == pytest.approx(np.mean(by_patient))
    assert result["per_patient"]["sub-00"]["mae/CT"] == pytest.approx(by_patient[0])


def test_psnr_is_averaged_over_images_not_over_errors(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.02), patients=1, slices=2, channels=("T1w",))
    path = folder / Manifest.load(folder).cases[0].slices[0].generated[0]
    write_png(path, 65535 - read_png(path))  # one bad slice
    result = evaluate_results(folder, NO_WEIGHTS)
    rows = [float(row["psnr"]) for row in csv.DictReader((folder / "metrics.csv").open())]
    assert result["metrics"]["psnr/T1w"]["value"] == pytest.approx(np.mean(rows))


@pytest.mark.slow
def test_order_of_cases_and_slices_does_not_matter(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=3)
    before = evaluate_results(folder, NO_WEIGHTS)
    manifest = Manifest.load(folder)
    turned = tuple(replace(case, slices=case.slices[::-1]) for case in manifest.cases[::-1])
    replace(manifest, cases=turned).save(folder)
    after = evaluate_results(folder, NO_WEIGHTS)
    for key, value in values(before).items():
        assert values(after)[key] == pytest.approx(value, rel=1e-12), key


def test_labels_weigh_the_same_when_one_is_missing_in_a_case(tmp_path: Path) -> None:
    """A patient with two scans, one without lesion: mean over scans first, then over labels."""
    folder = write_results(tmp_path / "r", noisy(0.0, 0.05), patients=2, slices=2, channels=("T1w",))
    manifest = Manifest.load(folder)
    one = replace(manifest.cases[0], patient="p", slices=manifest.cases[0].slices[1:])  # slice 1 has no lesion
    two = replace(manifest.cases[1], patient="p")
    replace(manifest, cases=(one, two)).save(folder)
    result = evaluate_results(folder, NO_WEIGHTS)
    rows: dict[str, list[float]] = {}
    for row in result["per_label"]:
        rows.setdefault(row["name"], []).append(row["wasserstein"])
    assert [len(rows["lesion"]), len(rows["csf"])] == [1, 2]
    assert result["n"] == {"slices": 3, "cases": 2, "patients": 1}
    expected = np.mean([np.mean(of_label) for of_label in rows.values()])
    assert result["metrics"]["wasserstein/T1w"]["value"] == pytest.approx(expected)


def test_slices_without_a_real_image_are_left_out(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=1)
    manifest = Manifest.load(folder)
    case = manifest.cases[0]
    lone = replace(case.slices[0], images=())
    replace(manifest, cases=(replace(case, slices=(lone, *case.slices[1:])),)).save(folder)
    assert evaluate_results(folder, NO_WEIGHTS)["n"]["slices"] == 2
    replace(manifest, cases=(replace(case, slices=(lone,)),)).save(folder)
    with pytest.raises(ValueError, match="nothing to compare"):
        evaluate_results(folder, NO_WEIGHTS)


def test_faults_of_files_name_the_file(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=1)
    item = Manifest.load(folder).cases[0].slices[1]
    good = read_png(folder / item.label)
    write_png(folder / item.label, np.full_like(good, 9))
    with pytest.raises(ValueError, match=r"sub-00_z0001\.png: label id 9, allowed are 0\.\.4"):
        evaluate_results(folder, NO_WEIGHTS)
    write_png(folder / item.label, good)
    write_png(folder / item.generated[0], np.zeros((5, 5), np.uint16))
    with pytest.raises(ValueError, match=r"sub-00_z0001_0000\.png"):
        evaluate_results(folder, NO_WEIGHTS)


def test_constant_images_are_counted_and_said(tmp_path: Path) -> None:
    result = evaluate_results(write_results(tmp_path / "r", lambda real, *_: np.zeros_like(real)), NO_WEIGHTS)
    assert result["counts"]["constant_images"] == 12
    assert "12 generated images are constant" in format_table(result)


@pytest.mark.slow
def test_missing_weights_give_null_and_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=1, slices=2)
    result = evaluate_results(folder, "auto")
    for key in ("fid/T1w", "fid/CT", f"{LPIPS}/T1w"):
        assert result["metrics"][key]["value"] is None
    assert result["metrics"]["fid/CT"]["reason"] == "weights missing: pt_inception-2015-12-05-6726825d.pth"
    assert capsys.readouterr().err.count("warning: fid") == 1
    table = format_table(result)
    one = format_table(result | {"n": {"slices": 3, "cases": 1, "patients": 1}})
    assert one.splitlines()[0] == "3 slices, 1 case, 1 patient (patients: as in the manifest)"
    assert "n/a" in table
    assert "fid/CT" not in headline(result)
    assert headline(result)["wasserstein"] > 0
    assert str(tmp_path) not in (folder / "metrics.json").read_text()


@pytest.mark.parametrize("metrics", ["fid", "mae,lpips", LPIPS])
def test_asking_by_name_without_weights_is_an_error(tmp_path: Path, metrics: str) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=1, slices=1)
    with pytest.raises(MissingWeights, match=r"download_weights\.py --keys"):
        evaluate_results(folder, metrics)
    assert not (folder / "metrics.json").exists()


def test_unknown_metrics_are_listed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--metrics psnrr: unknown; there are auto, mae"):
        evaluate_results(write_results(tmp_path / "r", identity, patients=1, slices=1), "mae,psnrr")


class _Mean(torch.nn.Module):
    """Stands for a network: FID features and LPIPS distances that can be computed by hand."""

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> Any:
        if y is not None:
            return (x - y).abs().mean((1, 2, 3))
        return [torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], 1).repeat(1, 1024)[:, :, None, None]]


class _Inception(_Mean):
    BLOCK_INDEX_BY_DIM: ClassVar = {2048: 3}

    def __init__(self, blocks: list[int]) -> None:
        super().__init__()


@pytest.mark.slow
def test_network_metrics_do_not_depend_on_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_results(tmp_path / "r", noisy(0.05), patients=3)
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"x")
    monkeypatch.setattr(request, "resolve", lambda key, explicit: weights)
    monkeypatch.setattr("pytorch_fid.inception.InceptionV3", _Inception)
    monkeypatch.setattr(extractors, "load_state", lambda path: {})
    monkeypatch.setattr(perceptual, "lpips_alex", lambda path: _Mean())
    found = []
    for batch in (32, 4, 1):
        with mock.patch.object(scoring, "BATCH", batch):
            found.append(evaluate_results(folder, f"mae,ssim,fid,kid,{LPIPS}"))
    for other in found[1:]:
        for key, value in values(found[0]).items():
            expected = value if value is None else pytest.approx(value, rel=1e-5, abs=1e-9)
            assert values(other)[key] == expected, key
    entry = found[0]["metrics"]["fid/CT"]
    assert entry["value"] > 0
    assert entry["n"] == 9
    assert entry["extractor"] == "pt_inception-2015-12-05-6726825d"
    assert len(entry["weights_sha256"]) == 64
    rows = [row for row in csv.DictReader((folder / "metrics.csv").open()) if row["channel"] == "CT"]
    lpips = [float(row[LPIPS]) for row in rows]
    assert found[0]["metrics"][f"{LPIPS}/CT"]["value"] == pytest.approx(np.mean(lpips))
    # [-1, 1] is twice as wide as the window in [0, 1].
    assert lpips == pytest.approx([2 * float(row["mae"]) / 4095 for row in rows], rel=1e-3)


def test_windows_that_differ_between_cases_are_undone(tmp_path: Path) -> None:
    """The same physical images under another window give the same physical errors."""
    folder = write_results(tmp_path / "r", noisy(0.02), patients=1, channels=("T1w",))
    before = evaluate_results(folder, NO_WEIGHTS)["metrics"]
    manifest = Manifest.load(folder)
    case = manifest.cases[0]
    old, new = case.windows[0], replace(case.windows[0], low=-500.0, high=1500.0)
    for item in case.slices:
        for path in (*item.images, *item.generated):
            write_png(folder / path, new.encode(old.decode(read_png(folder / path))))
    replace(manifest, cases=(replace(case, windows=(new,)),)).save(folder)
    after = evaluate_results(folder, NO_WEIGHTS)["metrics"]
    for name in ("mae/T1w", "rmse_body/T1w", "wasserstein/T1w", "label_std_error/T1w"):
        assert after[name]["value"] == pytest.approx(before[name]["value"], abs=0.05)
    assert after["psnr/T1w"]["value"] == pytest.approx(before["psnr/T1w"]["value"] + 20 * math.log10(2), abs=0.05)
