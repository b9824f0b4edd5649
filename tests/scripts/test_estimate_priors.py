"""scripts/estimate_priors.py: closed forms, faults, and the readers of its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from dataloaders.io.files import file_sha256
from dataloaders.io.manifest import Manifest
from dataloaders.labelmaps.image_generator import ImageGenerator
from models.gmm.priors import FittedPrior
from tests.dataloaders.test_prepare import reoriented
from tests.launch import Done, call
from tests.launch import run as run_process
from tests.toy import prepared_folder, save_nifti

SHAPE = (10, 11, 12)
LPS = np.diag([-1.0, -1.0, 2.0, 1.0])
MEANS = np.array([0.0, 50.0, 100.0, 255.0])


def label_map(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, SHAPE).astype(np.uint8)


def steps(label: np.ndarray, shift: float) -> np.ndarray:
    """Constant classes; 0 and 255 have more than 2 % of the voxels, so the percentiles are 0 and 255."""
    means = MEANS + np.array([0, shift, -shift, 0])
    return means[label].astype(np.float32)


def words(folder: Path) -> list[object]:
    where = ["--images", folder / "images", "--labels", folder / "labels", "--out", folder / "priors.json"]
    return ["scripts/estimate_priors.py", *where]


def run(folder: Path, *extra: object, code: int = 0) -> Done:
    return call(*words(folder), *extra, code=code)


def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "priors.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, shift in enumerate((-10.0, 0.0, 10.0)):
        label = label_map(i)
        save_nifti(tmp_path / "labels" / f"s{i}.nii.gz", label, LPS)
        save_nifti(tmp_path / "images" / f"s{i}.nii.gz", 3 * steps(label, shift) + 7, LPS)  # any units
    return tmp_path


@pytest.mark.parametrize("robust", ["--robust", "--no-robust"])
def test_closed_form(folder: Path, robust: str) -> None:
    text = run(folder, robust, "--channel", "T1w", "--arrays", folder / "t1").stdout
    data = found(folder)
    channels, names, prior = FittedPrior.from_dict(data)
    assert channels == ("T1w",)
    assert names == ("background", "label 1", "label 2", "label 3")
    np.testing.assert_allclose(prior.mean_center[0], MEANS, atol=0.05)
    np.testing.assert_allclose(prior.mean_spread[0], [0, 10, 10, 0], atol=0.05)
    assert float(prior.std_center.abs().max()) < 0.1
    means, stds = (np.load(folder / f"t1_{name}.npy") for name in ("means", "stds"))
    assert means.shape == stds.shape == (2, 4)
    np.testing.assert_allclose(means, [MEANS, [0, 10, 10, 0]], atol=0.05)
    assert [subject["id"] for subject in data["subjects"]] == ["s0", "s1", "s2"]
    np.testing.assert_allclose(data["subjects"][0]["means"], [[0, 40, 110, 255]], atol=0.05)
    source = data["subjects"][0]["sources"]["label"]
    assert source == {"file": "s0.nii.gz", "sha256": file_sha256(folder / "labels" / "s0.nii.gz")}
    assert str(folder) not in json.dumps(data)
    assert "T1w, 0-255, 3 subjects" in text
    assert "100.0 ±   10.0" in text


@pytest.mark.slow
def test_workers_do_not_change_it(folder: Path) -> None:
    run(folder)
    alone = (folder / "priors.json").read_bytes()
    run_process(*words(folder), "--num_workers", 2)
    assert (folder / "priors.json").read_bytes() == alone


def test_orientations_may_differ_but_grids_may_not(folder: Path) -> None:
    label = label_map(0)
    run(folder)
    before = found(folder)
    reoriented(folder / "images" / "s0.nii.gz", "SRP")
    run(folder)
    assert found(folder)["mean_center"] == before["mean_center"]
    moved = np.eye(4)
    moved[0, 3] = 3
    save_nifti(folder / "images" / "s0.nii.gz", steps(label, 0), LPS @ moved)
    save_nifti(folder / "images" / "s1.nii.gz", steps(label, 0)[1:], LPS)
    one, two = run(folder, code=1).stderr.splitlines()
    assert "by up to 3 voxels" in one
    assert "s1.nii.gz: shape (9, 11, 12), " in two


def test_channels(folder: Path) -> None:
    for i in range(3):
        path = folder / "images" / f"s{i}.nii.gz"
        path.rename(folder / "images" / f"s{i}_0000.nii.gz")
        save_nifti(folder / "images" / f"s{i}_0001.nii.gz", 255 - steps(label_map(i), 0.0), LPS)
    run(folder, "--channel", "T1w", "T2w")
    channels, _, prior = FittedPrior.from_dict(found(folder))
    assert channels == ("T1w", "T2w")
    # of the last class, which is 0 in T2w, nothing is left to be counted
    np.testing.assert_allclose(prior.mean_center[1, :3], (255 - MEANS)[:3], atol=0.05)
    run(folder)
    assert found(folder)["channels"] == ["channel_0", "channel_1"]
    assert "--channel has 1 names (T1w)" in run(folder, "--channel", "T1w", code=2).stderr
    (folder / "images" / "s1_0001.nii.gz").unlink()
    assert "case 's1' has no channel 0001" in run(folder, code=1).stderr


def test_channels_are_those_of_the_images_that_were_named(folder: Path) -> None:
    """Of a pattern or a list, in any format; numbers of cases, as in amos_0001, are no channels."""
    images, labels = folder / "images", folder / "labels"
    for i in range(3):
        path = images / f"s{i}.nii.gz"
        nib.save(nib.MGHImage(steps(label_map(i), 0.0), LPS), images / f"s{i}_0000.mgz")
        path.rename(images / f"s{i}_0001.nii.gz")
    save_nifti(images / "test_0000.nii.gz", steps(label_map(0), 0.0), LPS)
    run(folder, "--images", f"{images}/s*_000?.*")
    assert [subject["id"] for subject in found(folder)["subjects"]] == ["s0", "s1", "s2"]
    assert found(folder)["channels"] == ["channel_0", "channel_1"]
    (folder / "list.txt").write_text("".join(f"{images}/s{i}_000{c}.*\n" for i in (0, 2) for c in (0, 1)))
    assert "no image for case 's1'" in run(folder, "--images", folder / "list.txt", code=1).stderr
    run(folder, "--images", images / "s0_0000.mgz", "--labels", labels / "s0.nii.gz")
    assert found(folder)["channels"] == ["channel_0"]
    for i in range(3):
        (images / f"s{i}_0001.nii.gz").rename(folder / f"amos_000{i}.nii.gz")
        (labels / f"s{i}.nii.gz").rename(labels / f"amos_000{i}.nii.gz")
    run(folder, "--images", folder / "amos_*.nii.gz")
    assert [subject["id"] for subject in found(folder)["subjects"]] == ["amos_0000", "amos_0001", "amos_0002"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ("--scheme nonsense", 2, "--scheme nonsense: must be"),
        ("--images missing", 2, "--images missing: no .nii"),
        ("--out priors.txt", 2, "--out priors.txt: must be a file ending in .json"),
        ("--scheme seeds", 2, "seed codes are"),
    ],
)
def test_errors_are_one_line(folder: Path, flags: str, code: int, message: str) -> None:
    error = run(folder, *flags.split(), code=code).stderr
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_generator_paints_what_was_measured(folder: Path) -> None:
    run(folder)
    still = {"scaling_bounds": 0, "rotation_bounds": 0, "shearing_bounds": 0, "nonlin_std": 0, "vary": False}
    still |= {"bias_field_std": 0, "gamma_std": 0, "normalise": "window", "blur": 0}
    generator = ImageGenerator(folder / "labels", priors=folder / "priors.json", **still)
    image, label = generator.sample(0)
    for value, mean in enumerate(MEANS):
        assert abs(float(image[label == value].mean()) * 255 - mean) < 0.1
    drawn = ImageGenerator(folder / "labels", priors=folder / "priors.json", seed=2)
    means = torch.stack([drawn.params(number)[1].means[0] for number in range(200)])
    np.testing.assert_allclose(means.std(0), [0, 10, 10, 0], atol=2)
    out = folder / "out"
    flags = ["--n", 1, "--preset", "fitted", "--priors", folder / "priors.json"]
    call("scripts/generate.py", "--labels", folder / "labels", "--out", out, *flags)
    assert len(list((out / "images").iterdir())) == 1


@pytest.mark.slow
def test_training_takes_the_file(tmp_path: Path) -> None:
    """The scheme of a prepared folder gives the classes its names."""
    data = prepared_folder(tmp_path / "data")
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, SHAPE).astype(np.uint8)
    save_nifti(tmp_path / "labels" / "a.nii.gz", label)
    save_nifti(tmp_path / "images" / "a.nii.gz", (label * 60 + rng.normal(0, 3, SHAPE)).astype(np.float32))
    run(tmp_path, "--scheme", data)
    assert found(tmp_path)["names"] == [item.name for item in Manifest.load(data).spec.labels]
    common = ["--name", "given", "--checkpoints_dir", tmp_path / "runs", "--dataroot", data]
    call("train.py", *common, "--model", "gmm", "--gmm.priors", tmp_path / "priors.json", "--gpu_ids", -1)
    call("test.py", *common, "--results_dir", tmp_path / "results", "--metrics", "none", "--gpu_ids", -1)
    results = Manifest.load(tmp_path / "results" / "given" / "best")
    assert all(item.generated for case in results.cases for item in case.slices)


def test_a_window_is_the_same_scale_in_every_image(folder: Path) -> None:
    for i in range(3):
        label = label_map(i)
        save_nifti(folder / "images" / f"s{i}.nii.gz", np.array([-1000.0, -500, 0, 40], np.float32)[label], LPS)
    run(folder, "--window", -1000, 1040)
    data = found(folder)
    assert data["scale"] == {"window": [-1000, 1040]}
    np.testing.assert_allclose(data["mean_center"], [[0, 62.5, 125, 130]], atol=0.05)
    assert FittedPrior.from_dict(data)[1] == ("background", "label 1", "label 2", "label 3")
    assert "image: above --window's 0 in all" in run(folder, "--window", -1000, 0).stderr
    assert "--window 5 3: must be low and high" in run(folder, "--window", 5, 3, code=2).stderr


@pytest.mark.parametrize("label_name", ["{}_T2w_dseg", "{}_dseg"])
def test_bids_names(tmp_path: Path, label_name: str) -> None:
    for i, name in enumerate(("sub-01", "sub-02", "sub-03")):
        where = tmp_path / f"bids/{name}/anat"
        if name != "sub-03":
            save_nifti(where / f"{name}_T2w.nii.gz", steps(label_map(i), 0.0), LPS)
        save_nifti(where / f"{label_name.format(name)}.nii.gz", label_map(i), LPS)
    both = ["--images", tmp_path / "bids", "--labels", tmp_path / "bids", "--out", tmp_path / "priors.json"]
    done = call("scripts/estimate_priors.py", *both)
    assert [subject["id"] for subject in found(tmp_path)["subjects"]] == ["sub-01_T2w", "sub-02_T2w"]
    assert f"{label_name.format('sub-03')}.nii.gz: no image for this label map, left out" in done.stderr


def test_labelled_voxels_without_a_number_are_refused(folder: Path) -> None:
    label = label_map(0)
    save_nifti(folder / "images" / "s0.nii.gz", np.where(label == 0, np.nan, steps(label, 0)), LPS)
    run(folder)
    save_nifti(folder / "images" / "s0.nii.gz", np.where(label == 1, np.nan, steps(label, 0)), LPS)
    done = run(folder, code=1)
    assert f"s0.nii.gz: {(label == 1).sum()} labelled voxels are NaN or infinite" in done.stderr
