"""Two lines from label maps to images: sources, axes, affines, batches, seeds, files."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dataloaders.labelmaps.image_generator import ImageGenerator
from models.gmm.options import GmmConfig
from models.gmm.scheme import LabelScheme
from tests.dataloaders.test_prepare import reoriented
from tests.toy import oriented, phantom, save_nifti

STILL = GmmConfig(blur=(0.0,))  # no deformation, no noise, no bias: nothing is random but the priors
LEVELS = np.array([[0.0, 50.0, 100.0, 150.0, 200.0]] * 2)
EXACT: dict[str, Any] = {
    "options": STILL,
    "prior_means": LEVELS,
    "prior_stds": [0.0, 0.0],
    "scheme": LabelScheme.from_lists(range(5)),
}


def labels_of(image: NDArray) -> NDArray:
    """The labels that an image of `LEVELS` shows."""
    return np.rint(image * 255 / 50).astype(int)


def head(seed: int = 0, shape: tuple[int, int, int] = (24, 28, 20)) -> NDArray[np.int32]:
    return phantom(seed, shape)[0]


@pytest.fixture
def lia_file(tmp_path: Path) -> Path:
    path = save_nifti(tmp_path / "head.nii.gz", head().astype(np.int16), oriented("LIA", (24, 28, 20)))
    assert nib.aff2axcodes(nib.load(path).affine) == ("L", "I", "A")
    return path


# Axes and affine


@pytest.mark.parametrize("size", [(10,), (12, 9, 15), (40, 9, 15)])
def test_crops_keep_their_place_in_the_world(lia_file: Path, size: tuple[int, ...]) -> None:
    """output_shape is in RAS axes: the file's axes are L, I, A, so they are x, z, y."""
    source = nib.load(lia_file)
    for seed in range(6):
        generator = ImageGenerator(lia_file, **{**EXACT, "options": replace(STILL, output_shape=size)}, seed=seed)
        image, labels = (sample := generator.generate_image())
        ras = size * 3 if len(size) == 1 else size
        assert image.shape == labels.shape == (ras[0], ras[2], ras[1])
        assert np.array_equal(labels_of(image), labels)
        to_source = np.linalg.inv(source.affine) @ sample.affine
        assert np.allclose(to_source, np.rint(to_source))
        assert np.allclose(to_source[:3, :3], np.eye(3))
        first = np.rint(to_source[:3, 3]).astype(int)
        padded = np.pad(head(), 50)  # background beyond the map
        window = tuple(slice(50 + f, 50 + f + n) for f, n in zip(first, labels.shape, strict=True))
        assert np.array_equal(labels, padded[window])


def test_left_is_left_in_any_axes(tmp_path: Path) -> None:
    """One head stored in two orientations gives the same world image."""
    data = head()
    for name in "ab":
        save_nifti(tmp_path / f"{name}.nii.gz", data.astype(np.int16))
    reoriented(tmp_path / "b.nii.gz", "PIL")
    one, two = (ImageGenerator(tmp_path / f"{name}.nii.gz", preset="synthseg", seed=3).sample(1) for name in "ab")
    assert nib.aff2axcodes(two.affine) == ("P", "I", "L")
    back = nib.as_closest_canonical(nib.Nifti1Image(two.image, two.affine))
    assert np.array_equal(back.get_fdata(dtype=np.float32), one.image)
    assert np.allclose(back.affine, one.affine)


# Label lists and priors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"generation_classes": [0, 1]}, "generation_classes need generation_labels"),
        ({"prior_means": np.zeros((2, 3))}, "prior_means: expected 5 columns"),
        ({"prior_means": "absent.npy"}, r"absent\.npy: must be an existing \.npy file"),
        ({"prior_means": 1, "priors": "x.json"}, "priors and prior_means cannot both be given"),
        ({"options": STILL, "scaling_bounds": 0.1}, "options and scaling_bounds cannot both be given"),
        ({"batchsize": 0}, "batchsize"),
        ({"rotation_bounds": [1, 2, 3, 4]}, "rotation_bounds"),
        ({"generation_labels": [0, 1, 2, 3, 4], "n_neutral_labels": 2}, "n_neutral_labels"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageGenerator(head(), **given).generate_image()


# Channels and batches


def test_channels_are_the_last_axis(lia_file: Path) -> None:
    levels = np.concatenate([LEVELS, LEVELS[:, ::-1]])
    generator = ImageGenerator(
        lia_file,
        n_channels=2,
        options=replace(STILL, specific_channels=True),
        prior_means=levels,
        prior_stds=np.zeros((4, 5)),
    )
    image, labels = generator.generate_image()
    assert image.shape == (24, 28, 20, 2)
    assert np.array_equal(labels_of(image[..., 0]), head())
    assert np.array_equal(labels_of(image[..., 1]), 4 - head())
    assert labels.shape == (24, 28, 20)
    batch = ImageGenerator(lia_file, n_channels=2, batchsize=2).generate_image()
    assert batch.image.shape == (2, 24, 28, 20, 2)


def test_batches_are_stacks_of_the_sequence() -> None:
    generator = ImageGenerator(head(), batchsize=2, seed=4)
    for first in (0, 2):
        images, labels = generator.generate_image()
        assert images.shape == labels.shape == (2, 24, 28, 20)
        for i in range(2):
            image, label = ImageGenerator(head(), seed=4).sample(first + i)
            assert np.array_equal(images[i], image)
            assert np.array_equal(labels[i], label)


# Seeds


def test_seed_makes_the_sequence_and_order_plays_no_part() -> None:
    one, two = (ImageGenerator(head(), preset="synthseg", seed=11) for _ in range(2))
    forwards = [one.sample(k) for k in range(4)]
    backwards = [two.sample(k) for k in reversed(range(4))][::-1]
    drawn = [two.generate_image() for _ in range(4)]
    for a, b, c in zip(forwards, backwards, drawn, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.labels, b.labels)
        assert np.array_equal(a.image, c.image)
        assert a.number == c.number
    assert len({sample.params.seed for sample in forwards}) == 4
    other = ImageGenerator(head(), preset="synthseg", seed=12).sample(0)
    assert not np.array_equal(other.image, forwards[0].image)
    free = ImageGenerator(head())
    assert free.seed != ImageGenerator(head()).seed
    assert np.array_equal(free.sample(2).image, ImageGenerator(head(), seed=free.seed).sample(2).image)


def test_fixed_parameters_and_replay() -> None:
    generator = ImageGenerator(head(), preset="synthseg", seed=5)
    means = torch.full((1, 5), 90.0)
    sample = generator.sample(3, {"means": means})
    assert torch.equal(sample.params.means, means)
    assert sample.params.seed == generator.sample(3).params.seed
    again = generator.replay(sample.source, sample.params, 3)
    assert np.array_equal(again.image, sample.image)
    image, labels = generator.tensors(3)
    assert np.array_equal(image[0].numpy(), generator.sample(3).image)
    assert np.array_equal(labels.numpy(), generator.sample(3).labels)
    with pytest.raises(ValueError, match="zoom: no parameter"):
        generator.sample(0, {"zoom": 2})


def test_flips_keep_sides_in_the_world(tmp_path: Path) -> None:
    data = np.zeros((30, 20, 16), np.int16)
    data[3:13, 5:15, 4:12] = 3  # FreeSurfer: left cortex 3, right cortex 42, brain stem 16
    data[17:27, 5:15, 4:12] = 42
    data[13:17, 5:15, 4:12] = 16
    path = save_nifti(tmp_path / "head.nii.gz", data)
    reoriented(path, "LIA")
    generator = ImageGenerator(path, preset="synthseg", seed=0)
    flips = set()
    for number in range(14):
        sample = generator.sample(number)
        flips.add(sample.params.flip)
        x = {value: (sample.affine @ [*np.argwhere(sample.labels == value).mean(0), 1])[0] for value in (3, 42)}
        assert x[3] < x[42] - 5
    assert flips == {True, False}


# Files


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_saved_slices_stand_where_their_source_did(axis: int, tmp_path: Path) -> None:
    data = np.take(head(), [10], axis)
    path = save_nifti(tmp_path / "slice.nii.gz", data.astype(np.int16), oriented("LIA", data.shape, (1.0, 1.5, 2.0)))
    sample = ImageGenerator(path, **EXACT).generate_image()
    assert np.array_equal(sample.labels, data.squeeze(axis))
    assert np.array_equal(labels_of(sample.image), data.squeeze(axis))
    sample.save(tmp_path / "image.nii.gz", tmp_path / "labels.nii.gz")
    labels = nib.load(tmp_path / "labels.nii.gz")
    source = nib.load(path)
    assert labels.shape == source.shape
    assert np.array_equal(np.asarray(labels.dataobj), data)
    assert np.allclose(labels.affine, source.affine, atol=1e-5)


def test_maps_that_cannot_be_mirrored_are_told() -> None:
    values = np.zeros((16, 16, 16), np.uint8)
    values[4:12, 4:12, 4:12] = 5
    values[8:12, 4:12, 4:12] = 7
    with pytest.warns(UserWarning, match="label maps are not mirrored, as which labels are left and right is unknown"):
        ImageGenerator(values, preset="synthseg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageGenerator(values, preset="synthseg", flipping=False)
        ImageGenerator(values, [0, 5, 7], n_neutral_labels=1, preset="synthseg")


# Real label maps


REAL = [
    "labelmaps/lab2im/brain_label_map.nii.gz",
    *(f"labelmaps/synthseg/training_seg_0{i}.nii.gz" for i in (1, 4)),
    "fetal/sub-sta21/anat/sub-sta21_rec-irtk_T2w_dseg.nii.gz",
    "fetal/sub-sta30/anat/sub-sta30_rec-irtk_T2w_dseg.nii.gz",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_label_maps(shared_data: Path, name: str) -> None:
    preset = "fetal" if name.startswith("fetal") else "synthseg"
    generator = ImageGenerator(shared_data / name, preset=preset, output_shape=48, motion_prob=0, seed=1)
    assert generator.scheme.background is not None
    source = nib.load(shared_data / name)
    for number in range(2):
        sample = generator.sample(number)
        assert sample.image.shape == sample.labels.shape == (48, 48, 48)
        assert np.isfinite(sample.image).all()
        assert sample.image.std() > 0.01
        assert set(np.unique(sample.labels)) <= set(generator.scheme.outputs)
        assert nib.aff2axcodes(sample.affine) == nib.aff2axcodes(source.affine)
        assert nib.affines.voxel_sizes(sample.affine) == pytest.approx(nib.affines.voxel_sizes(source.affine))
    if preset == "synthseg":
        assert generator.scheme.partners is not None  # FreeSurfer's sides are known


@pytest.mark.slow
def test_real_label_map_back_voxel_for_voxel(shared_data: Path) -> None:
    """The lab2im sample with its own lists, nothing random: output labels in the file's own axes."""
    folder = shared_data / "labelmaps" / "lab2im"
    generator = ImageGenerator(
        folder / "brain_label_map.nii.gz",
        folder / "generation_labels.npy",
        folder / "segmentation_labels.npy",
        generation_classes=folder / "generation_classes.npy",
        options=replace(STILL, prior_distributions="normal"),
        prior_means=folder / "prior_means.npy",
        prior_stds=folder / "prior_stds.npy",
    )
    sample = generator.sample(0)
    source = nib.load(folder / "brain_label_map.nii.gz")
    values, outputs = (np.load(folder / f"{part}_labels.npy") for part in ("generation", "segmentation"))
    table = np.zeros(values.max() + 1, int)
    table[values] = outputs
    assert np.array_equal(sample.labels, table[np.asarray(source.dataobj).astype(int)])
    assert np.allclose(sample.affine, source.affine, atol=1e-4)


def test_sagittal_slices_of_files_are_never_mirrored(tmp_path: Path) -> None:
    """Their first axis is front-back: a mirror would turn patients around and exchange left and right labels."""
    data = np.zeros((1, 20, 24), np.int32)
    data[0, 2:8, 4:20], data[0, 10:14, 4:20] = 2, 41
    save_nifti(tmp_path / "sagittal.nii.gz", data)
    save_nifti(tmp_path / "axial.nii.gz", data.transpose(1, 2, 0))
    for name, expected in (("sagittal", False), ("axial", True)):
        generator = ImageGenerator(tmp_path / f"{name}.nii.gz", preset="synthseg", seed=0)
        assert any(generator.params(number)[1].flip for number in range(20)) == expected
