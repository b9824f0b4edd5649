"""The ten defects of the original study (Dice .31 to .40), each as a test that fails where one comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloaders.io.files import read_json
from dataloaders.io.manifest import Manifest
from dataloaders.io.nifti import read_volume
from dataloaders.io.png import read_png
from dataloaders.labelmaps.image_generator import ImageGenerator
from pipeline.nnunet import TrainingSlice, group_splits
from pipeline.project import Project
from pipeline.rules.slices import chosen_slices
from pipeline.rules.synthesis import scheme
from pipeline.study import SliceOptions, gmm_options
from pipeline.tools import TOOLS
from tests.pipeline.conftest import Fakes, finish, go
from tests.pipeline.heads import head, study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_tools(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished toy study with two segmenters."""
    return Project.load(finish(tmp_path_factory.mktemp("study"), '[segment]\ntools = ["fast", "fastsurfer"]\n'))


def tissue_of(project: Project, name: str, case: str) -> np.ndarray:
    return read_volume(project.study.work / "tissue" / name / case / "tissue.nii.gz").data


def test_1_fasts_grey_and_white_matter_are_not_exchanged(two_tools: Project) -> None:
    """FAST writes 1 CSF, 2 GM, 3 WM. The brightest class of a T1w scan is white matter."""
    image = read_volume(two_tools.study.work / "harmonise" / "sub-01" / "image.nii.gz").data
    tissue = tissue_of(two_tools, "fast_bet", "sub-01")
    means = [image[tissue == i].mean() for i in (3, 1, 2)]  # CSF, GM, WM in ours
    np.testing.assert_allclose(means, [60, 110, 160], atol=8)


def test_2_labels_come_from_hard_labels_not_from_pve_files(two_tools: Project) -> None:
    """An argmax of pve_0..2 is off by one and has no background. Without fast_seg a case fails: see test_tools.py."""
    folder = two_tools.study.work / "segment" / "fast_bet" / "sub-01"
    assert list(folder.glob("fast_pve_*.nii.gz"))
    labels = two_tools.records["segment/fast_bet/sub-01"].outputs["labels"].file
    assert labels == "fast_seg.nii.gz"
    assert set(np.unique(read_volume(folder / labels).data)) == {0, 1, 2, 3}


def test_3_tissues_have_contrast_and_the_background_is_dark() -> None:
    """The original's uniform(120, 80) gives all classes, the background too, means in 80..120 with spreads of 10..15."""
    _, tissue = head(0)
    plane = np.array([0, 3, 1, 2])[tissue[:, :, 20]]
    generator = ImageGenerator([plane], scheme=scheme(1), options=gmm_options("random", {}), seed=1)
    ratios = []
    for number in range(40):
        (image,), labels = generator.tensors(number)
        # Away from borders, where blur mixes: nothing but air.
        far = torch.nn.functional.max_pool2d((labels > 0).float()[None, None], 9, 1, 4)[0, 0] == 0
        assert image[far].numpy().max(initial=0) < 0.02
        groups = [image[labels == i].numpy() for i in (1, 2, 3)]
        ratios.append(np.std([group.mean() for group in groups]) / np.mean([group.std() for group in groups]))
    assert np.median(ratios) > 1.0


def test_3_fitted_contrast_is_that_of_the_training_scans(two_tools: Project) -> None:
    work = two_tools.study.work / "synthesise" / "fast_bet" / "sub-01"
    items = Manifest.load(work).cases[0].slices
    image = np.stack([read_png(work / item.images[0]) for item in items]) / 65535
    label = np.stack([read_png(work / item.label) for item in items])
    high = two_tools.records["tissue/fast_bet/sub-01"].facts["window"][1]
    means = [high * np.median(image[label == i]) for i in (3, 1, 2)]
    np.testing.assert_allclose(means, [60, 110, 160], rtol=0.25)


def test_4_blur_cannot_be_below_one() -> None:
    """blur_range 0.1 means a blur that is up to ten times too small or large; the refusal is in test_study.py."""
    assert gmm_options("t1", {}).blur_range >= 1


def test_5_labels_are_deformed_by_nearest_neighbour_once() -> None:
    """A disc of 3 in 0: linear interpolation makes a rim of 1 and 2 that is no tissue."""
    y, x = np.mgrid[-40:40, -40:40]
    disc = np.where(x**2 + y**2 < 30**2, 3, 0)
    options = gmm_options("t1", {"nonlin_std": [8.0], "rotation_bounds": [30.0]})
    generator = ImageGenerator([disc], scheme=scheme(1), options=options, seed=0)
    for number in range(20):
        _, labels = generator.tensors(number)
        assert set(np.unique(labels.numpy())) <= {0, 3}
        assert int((labels == 3).sum()) > 500


def test_6_slices_are_spread_over_the_brain(two_tools: Project) -> None:
    """The original deforms one central slice of each of three subjects 200 times."""
    used = two_tools.records["synthesise/fast_bet/sub-01"].facts["slices"]
    brain = np.flatnonzero((tissue_of(two_tools, "fast_bet", "sub-01") > 0).any((0, 1)))
    assert len(used) > 15
    assert used[-1] - used[0] > 0.7 * (brain[-1] - brain[0])
    area = np.array([0, 5, 50, 90, 100, 80, 60, 10, 0])
    for count, chosen in {0: [2, 3, 4, 5, 6], 3: [2, 4, 6], -1: [4]}.items():  # -1: the original's
        assert chosen_slices(area, SliceOptions(min_area=0.25, count=count)) == chosen


def test_6_all_tools_see_the_same_anatomy_at_the_same_size(two_tools: Project) -> None:
    """FastSurfer's labels come in a conformed frame, FAST's in a crop; both are brought to the scan's grid."""
    fast, fastsurfer = (tissue_of(two_tools, name, "sub-02") for name in ("fast_bet", "fastsurfer_bet"))
    assert fast.shape == fastsurfer.shape
    assert (fast == fastsurfer).mean() > 0.98


def samples_of(patients: int, count: int, val: int = -1) -> list[TrainingSlice]:
    return [
        TrainingSlice(f"p{p}_{i:02d}", f"p{p}", "val" if p == val else "train", Path(), Path())
        for p in range(patients)
        for i in range(count)
    ]


def test_7_no_patient_is_on_both_sides(two_tools: Project) -> None:
    samples = samples_of(7, 18)
    patient = {sample.name: sample.patient for sample in samples}
    folds = group_splits(samples)
    assert len(folds) == 5
    assert sorted(name for fold in folds for name in fold["val"]) == sorted(patient)  # each is validated on once
    for fold in folds:
        assert not {patient[n] for n in fold["train"]} & {patient[n] for n in fold["val"]}
        assert len(fold["train"]) + len(fold["val"]) == len(samples)
    with pytest.raises(ValueError, match="one training patient"):
        group_splits(samples[:18])
    (fold,) = group_splits(samples_of(4, 3, val=2))  # named validation patients are the fold
    assert {name[:2] for name in fold["val"]} == {"p2"}
    assert {name[:2] for name in fold["train"]} == {"p0", "p1", "p3"}
    written = next((two_tools.study.work / "plan" / "fast_bet" / "preprocessed").rglob("splits_final.json"))
    assert "sub-03" not in written.read_text()  # the test patient is in no fold


def test_8_networks_are_tested_on_real_slices_against_one_reference(two_tools: Project) -> None:
    work = two_tools.study.work
    for tables in read_json(work / "evaluate" / "scores.json")["real"].values():
        assert set(tables["dice"]) == {"reference", "fast_bet", "fastsurfer_bet"}
        assert set(tables["dice"]["reference"]["cases"]) == {"sub-03"}
    made = Manifest.load(work / "slices" / "bet" / "sub-03").cases[0]
    picture = read_png(work / "slices" / "bet" / "sub-03" / made.slices[9].images[0])
    image = read_volume(work / "harmonise" / "sub-03" / "image.nii.gz").data
    decoded = made.windows[0].decode(picture)
    plane = image[:, :, made.slices[9].index]
    assert abs(decoded[decoded > 0].mean() - plane[(plane > 30) & (plane < 230)].mean()) < 2
    assert two_tools.records["reference/sub-03"].facts["from"] == ["fast_bet", "fastsurfer_bet"]


def test_9_fastsurfer_sees_a_whole_head_and_evaluation_the_real_contrast(tmp_path: Path, tools: Fakes) -> None:
    """SynthSR's image is for stripping and segmenting; what networks are tested on is the scan."""
    assert TOOLS["fastsurfer"].wants == TOOLS["synthseg"].wants == TOOLS["samseg"].wants == "head"
    path = study(tmp_path, patients=2)
    path.write_text(path.read_text().replace("[harmonise]\n", '[harmonise]\nmethod = "synthsr"\n'))
    go(path, only=("harmonise/*", "strip/*", "crop/*", "slices/*"))
    home = tmp_path / "work"
    scan, painted = (read_volume(home / "harmonise" / "sub-02" / f).data for f in ("image.nii.gz", "harmonised.nii.gz"))
    np.testing.assert_allclose(painted, scan * 0.5, atol=1e-3)  # as the fake makes it
    assert read_volume(home / "crop" / "bet" / "sub-02" / "brain.nii.gz").data.max() < 120
    assert Manifest.load(home / "slices" / "bet" / "sub-02").cases[0].windows[0].high > 150


def test_10_one_bad_scan_does_not_end_the_study(tmp_path: Path, copied: Callable[..., Path], tools: Fakes) -> None:
    """And no subject is skipped by name: what is wrong with a scan is found out, said, and the scan left out."""
    path = copied()
    bad = tmp_path / "bids" / "sub-04" / "anat" / "sub-04_T1w.nii.gz"
    bad.parent.mkdir(parents=True)
    bad.write_bytes((tmp_path / "bids" / "sub-02" / "anat" / "sub-02_T1w.nii.gz").read_bytes()[:5000])
    project, _ = go(path)
    record = project.records["harmonise/sub-04"]
    assert record.state == "failed"
    assert "truncated or damaged gzip file" in record.reason
    assert project.records["report"].state == "done"
    for name in ("report.json", "report.html"):  # what is given away names no folder of this machine
        text = (tmp_path / "work" / "report" / name).read_text()
        assert "sub-04_T1w.nii.gz: truncated or damaged" in text
        assert str(tmp_path) not in text
    again, done = go(path)  # existing outputs are no error
    assert done == []
    assert again.records == project.records
