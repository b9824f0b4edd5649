"""Padding and what was never synthesised are no part of a score: both are easy to hit, or impossible."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataloaders.io.geometry import field_of_view
from dataloaders.io.manifest import Geometry, Manifest, affine_rows
from dataloaders.io.nifti import write_volume
from dataloaders.io.png import read_png, write_png
from engine.results import write_results as write_generated
from evaluation import evaluate_results
from evaluation.compare import load_entrants
from evaluation.evaluate import evaluate_pairs
from evaluation.folders import Folders
from evaluation.metrics.lesion_regions import evaluate_lesion_regions
from evaluation.pairs import ManifestPairs
from evaluation.report.gather import gather
from evaluation.request import Request
from tests.toy_results import WINDOWS, noisy, write_results

pytestmark = pytest.mark.usefixtures("no_weights")

METRICS = "mae,rmse,mae_body,rmse_body,psnr,ssim,ssim_3d,wasserstein,label_std_error,slice_jump_ratio,"
METRICS += "slice_difference_mae,spectrum_distance,edge_sharpness_ratio"


def scan(shape: tuple[int, int, int], crop: tuple[int, int]) -> Geometry:
    affine = affine_rows(np.eye(4))
    return Geometry(affine, shape, affine, shape, crop)


def results(folder: Path, padded: bool, slices: int = 12) -> Path:
    """Slices of 48×40 pixels that fill their scan's planes; or the same in 64×64 pixels, with padding all around.

    The body reaches the border of the planes, where padding does the most harm.
    """
    write_results(folder, noisy(0.1), patients=1, slices=slices, channels=("CT",))
    manifest = Manifest.load(folder)
    size, crop = ((64, 64), (-8, -12)) if padded else ((48, 40), (0, 0))
    case = replace(manifest.cases[0], geometry=scan((40, 48, slices), crop))
    for item in case.slices:
        for path in (item.label, *item.images, *item.generated):
            image = read_png(folder / path)
            image = np.maximum(image, 1) if path == item.label else image
            write_png(folder / path, np.pad(image, [(8, 8), (12, 12)]) if padded else image)
    replace(manifest, spec=replace(manifest.spec, size=size, axis="axial"), cases=(case,)).save(folder)
    return folder


def test_two_folders_score_as_their_results_folder_does(tmp_path: Path) -> None:
    folder = results(tmp_path / "exp", padded=True)
    wanted = evaluate_results(folder, METRICS)
    kinds = (folder / "groundtruth", folder / "generated", folder / "label")
    pairs = Folders(*kinds, window=(WINDOWS["CT"].low, WINDOWS["CT"].high)).pairs()
    found = evaluate_pairs(pairs, tmp_path / "out", Request(METRICS))
    assert found["n"] == wanted["n"]
    for key in METRICS.split(","):
        value = wanted["metrics"][f"{key}/CT"]["value"]
        assert found["metrics"][f"{key}/image"]["value"] == pytest.approx(value, rel=1e-6), key
    assert "without the padding" in pairs.region


def test_padding_changes_no_score_of_pairs(tmp_path: Path) -> None:
    whole, padded = (evaluate_results(results(tmp_path / str(p), p), METRICS) for p in (False, True))
    assert whole["metrics"]["ssim/CT"]["value"] < 0.9
    for key, entry in whole["metrics"].items():
        assert padded["metrics"][key]["value"] == pytest.approx(entry["value"], rel=1e-9), key
    assert padded["settings"]["region"].startswith("the scan's field of view (48×40 of 64×64 pixels)")
    assert whole["settings"]["region"] == "whole slices"
    regions = [evaluate_lesion_regions(tmp_path / str(p)) for p in (False, True)]
    assert regions[0] is not None
    assert regions[0] == regions[1]


def test_each_case_has_the_voxels_of_its_own_scan(tmp_path: Path) -> None:
    """Data that were not resampled have scans of 1×1×1 and of 2×2×5 mm; the manifest's spec knows the first one's alone."""
    folder = write_results(tmp_path / "exp", noisy(0.1), patients=2, slices=2, channels=("CT",))
    manifest, cases = Manifest.load(folder), []
    for case, mm in zip(manifest.cases, ((1, 1, 1), (2, 2, 5)), strict=True):
        affine = affine_rows(np.diag([*mm, 1.0]))
        cases.append(replace(case, geometry=Geometry(affine, (40, 48, 2), affine, (40, 48, 2), (0, 0))))
    replace(manifest, spec=replace(manifest.spec, axis="axial"), cases=tuple(cases)).save(folder)
    (folder / "seen").mkdir()
    for item in (item for case in cases for item in case.slices):
        write_png(folder / "seen" / Path(item.label).name, np.roll(read_png(folder / item.label), 1, axis=1))
    pairs = ManifestPairs(folder, Manifest.load(folder))
    asked = Request("faithfulness_hd95,lesion_f1", segmented=folder / "seen", lesion="4")
    found = evaluate_pairs(pairs, tmp_path / "out", asked)
    of_plain = Folders(*(folder / kind for kind in ("groundtruth", "generated")), window=(0, 1)).pairs()
    for of in (pairs, of_plain):
        assert [of.spacing(case) for case in of.cases] == [(1, 1, 1), (5, 2, 2)]  # type: ignore[attr-defined]
    moved = {case.id: {row["hd95"] for row in found["per_overlap"] if row["case"] == case.id} for case in cases}
    assert list(moved.values()) == [{1}, {2}]
    for case, row in zip(cases, found["per_lesion_case"], strict=True):
        ml = {"sub-00": 0.001, "sub-01": 0.02}[case.id]
        assert row["volume_ml"] == pytest.approx(sum(item.histogram.get(4, 0) for item in case.slices) * ml)
    evaluate_results(folder, "mae")
    ((_, spectra),) = gather(load_entrants([folder]))
    assert spectra is not None
    assert spectra.frequencies[-1] < 0.5 / 2  # cycles/mm, which both scans have
    assert np.isfinite(spectra.real[0]).all()


def test_results_that_were_scored_over_other_regions_are_not_compared(tmp_path: Path) -> None:
    """As those of an earlier version, which scored the padding too."""
    folders = [results(tmp_path / name, True, slices=2) for name in "ab"]
    for folder in folders:
        evaluate_results(folder, METRICS)
    file = folders[1] / "metrics.json"
    file.write_text(file.read_text().replace('"region"', '"regions"'))
    with pytest.raises(ValueError, match=r"over the scan's field of view .* and over whole slices with their pad"):
        load_entrants(folders)


def test_a_slice_beside_its_scan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside of the scan's planes"):
        field_of_view(scan((40, 48, 12), (50, 0)), "axial", (64, 64))
    folder = results(tmp_path / "r", True, slices=2)
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace("-12", "-1200"))
    with pytest.raises(ValueError, match="case sub-00: slices of"):
        evaluate_results(folder, METRICS)


class Made(list):  # type: ignore[type-arg]
    """Slices that nobody had to synthesise."""

    seconds = 0.0


def stacked(root: Path, indices: range, axis: str = "axial") -> Folders:
    """Volumes of test.py with only some of the slices and a window smaller than the planes, beside the real scan."""
    rng = np.random.default_rng(0)
    real = rng.uniform(-900, 900, (40, 48, 16)).astype(np.float32)
    data = write_results(root / "data", noisy(0.1), patients=1, slices=16, channels=("CT",))
    manifest = Manifest.load(data)
    case = replace(manifest.cases[0], geometry=scan(real.shape, (8, 4)))
    manifest = replace(manifest, spec=replace(manifest.spec, size=(32, 32), axis="axial"), cases=(case,))
    window, made = case.windows[0], []
    for index in indices:
        shown = real.transpose(2, 1, 0)[index, ::-1, ::-1][8:40, 4:36] + 25
        made.append(("sub-00", index, ((shown - window.low) / window.width * 2 - 1)[None]))
    (root / "results").mkdir()
    write_generated(root / "results", data, manifest, Made(made), {})  # type: ignore[arg-type]
    write_volume(root / "real/sub-00_CT.nii.gz", real, np.eye(4))
    return Folders(root / "real", root / "results/volumes", None, window=(-1024, 3071), axis=axis)  # type: ignore[arg-type]


@pytest.mark.parametrize(("axis", "slices"), [("axial", 9), ("coronal", 32), ("sagittal", 32)])
def test_only_what_was_synthesised_is_compared(
    tmp_path: Path, axis: str, slices: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every voxel that was made is off by 25 HU; the filling of the others would be off by about 1000."""
    pairs = stacked(tmp_path, range(3, 12), axis).pairs()
    told = capsys.readouterr().err
    every = {"axial": 16, "coronal": 48, "sagittal": 40}[axis]
    assert f"sub-00_CT.nii.gz: {every - slices} of {every} {axis} slices were never synthesised" in told
    assert "only the 32×32×9 voxels that were are compared, of 40×48×16" in told
    result = evaluate_pairs(pairs, tmp_path / "out", Request("mae"))
    assert result["metrics"]["mae/image"]["value"] == pytest.approx(25, abs=0.1)
    assert result["n"]["slices"] == slices
    assert result["settings"]["region"] == f"what was synthesised ({slices} of {every} slices, inside their window)"
