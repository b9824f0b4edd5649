"""The calls of lab2im's three and SynthSeg's two tutorials, on small maps; what else their scripts ask for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dataloaders.io.geometry import spacing
from models.gmm import BrainGenerator, ImageGenerator, utils
from tests.toy import phantom, save_nifti

SHAPE = (16, 20, 12)
LABELS = [0, 24, 2, 3, 41, 42]
AFFINE = np.array([[-1, 0, 0, 9], [0, 0, 2, -4], [0, -1.5, 0, 3], [0, 0, 0, 1.0]])  # left, inferior, anterior


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    folder = tmp_path / "maps"
    for i in range(2):
        label = np.array([0, 24, 2, 3, 3])[phantom(i, SHAPE)[0]]
        label[8:] = np.where(np.isin(label[8:], (2, 3)), label[8:] + 39, label[8:])
        save_nifti(folder / f"seg_{i}.nii.gz", label.astype(np.int32), AFFINE)
    return folder


@pytest.fixture
def lists(tmp_path: Path) -> dict[str, str]:
    """Paths as the tutorials give them."""
    arrays: dict[str, Any] = {
        "generation_labels": LABELS,
        "output_labels": [0, 0, 2, 3, 41, 42],
        "generation_classes": [0, 1, 2, 3, 2, 3],
        "prior_means": [[0.0, 50, 100, 150], [1, 1, 1, 1]],
        "prior_stds": [[0.0, 5, 5, 5], [1, 1, 1, 1]],
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return {name: str(tmp_path / f"{name}.npy") for name in arrays}


def save(generator: ImageGenerator, im: np.ndarray, lab: np.ndarray, folder: Path, n: int = 0) -> None:
    """The last lines of every tutorial."""
    utils.mkdir(folder)
    utils.save_volume(im, generator.aff, generator.header, str(folder / f"brain_{n}.nii.gz"))
    utils.save_volume(lab, generator.aff, generator.header, str(folder / f"labels_{n}.nii.gz"))
    for name, array in (("brain", im), ("labels", lab)):
        image = nib.load(folder / f"{name}_{n}.nii.gz")
        assert np.array_equal(np.asarray(image.dataobj), array)
        assert np.allclose(image.affine, generator.aff)
    other = nib.Nifti1Image(im, generator.aff, generator.header)  # as lab2im's save_volume does
    assert np.allclose(other.get_fdata(), im)


CLASSES = ("generation_labels", "output_labels", "generation_classes")
SYNTHSEG = {"n_neutral_labels": 2, "prior_distributions": "uniform", "n_channels": 2, "target_res": None}
SYNTHSEG |= {"output_shape": 8, "flipping": True, "scaling_bounds": 0.2, "rotation_bounds": 15}
SYNTHSEG |= {"shearing_bounds": 0.012, "translation_bounds": False, "nonlin_std": 4.0, "bias_field_std": 0.7}
TUTORIALS: dict[str, tuple[type[ImageGenerator], tuple[str, ...], dict[str, Any]]] = {
    "lab2im simple example": (ImageGenerator, (), {}),
    "lab2im random contrast": (ImageGenerator, CLASSES, {}),
    "lab2im T1w": (
        ImageGenerator,
        (*CLASSES, "prior_means", "prior_stds"),
        {"prior_distributions": "normal", "output_shape": None},
    ),
    "SynthSeg visualisation": (BrainGenerator, (), {}),
    "SynthSeg explained": (BrainGenerator, CLASSES, SYNTHSEG | {"randomise_res": True}),
}


@pytest.mark.parametrize("name", TUTORIALS)
def test_calls_of_the_tutorials(name: str, maps: Path, lists: dict[str, str], tmp_path: Path) -> None:
    kind, files, words = TUTORIALS[name]
    generator = kind(labels_dir=str(maps / "seg_0.nii.gz"), **{key: lists[key] for key in files}, **words)
    assert generator.options.preset == name.partition(" ")[0].lower()
    assert np.allclose(generator.aff, AFFINE)
    for n in range(2):
        im, lab = generator.generate_brain() if isinstance(generator, BrainGenerator) else generator.generate_image()
        assert im.shape == ((8, 8, 8, 2) if words.get("n_channels") else nib.load(maps / "seg_0.nii.gz").shape)
        assert set(np.unique(lab)) <= ({0, 2, 3, 41, 42} if files else {0, 24, 2, 3, 41, 42})
        save(generator, im, lab, tmp_path / "out", n)
    if "prior_means" in files:
        assert generator.prior_means.shape == (2, 4)
        assert generator.prior_distributions == "normal"


def test_what_is_generated_is_a_pair(maps: Path) -> None:
    generator = ImageGenerator(maps, seed=4, target_res=2, output_shape=6)
    pair = generator.generate_image()
    assert len(pair) == 2
    assert pair[0] is pair.image
    assert pair[1] is pair[-1] is pair.labels
    with pytest.raises(IndexError):
        pair[2]
    assert np.allclose(generator.aff, pair.affine)  # of the crop, at 2 mm
    assert spacing(generator.aff) == pytest.approx((2, 2, 2), rel=0.2)
    assert generator.header.get_zooms() == pytest.approx(spacing(generator.aff))
    image, _ = next(generator)
    assert np.array_equal(image, ImageGenerator(maps, seed=4, target_res=2, output_shape=6).sample(1).image)
    images, labels = next(generator.image_generator)
    assert (images.shape, labels.shape) == ((1, 6, 6, 6, 1), (1, 6, 6, 6, 1))
    assert generator.made == 3
    assert pickle.loads(pickle.dumps(generator.options)) == generator.options


def test_attributes(maps: Path, lists: dict[str, str]) -> None:
    generator = BrainGenerator(
        str(maps), lists["generation_labels"], 2, lists["output_labels"], n_channels=3, batchsize=2
    )
    assert generator.labels_paths == [str(maps / f"seg_{i}.nii.gz") for i in range(2)]
    assert generator.labels_shape == [16, 12, 20]
    assert generator.n_dims == 3
    assert generator.atlas_res == pytest.approx([1, 2, 1.5])
    assert (generator.n_channels, generator.batchsize, generator.n_neutral_labels) == (3, 2, 2)
    assert generator.generation_labels.tolist() == LABELS
    assert generator.output_labels.tolist() == [0, 0, 2, 3, 41, 42]
    assert generator.generation_classes.tolist() == [0, 1, 2, 3, 4, 5]
    assert generator.model_output_shape == [16, 12, 20, 3]
    assert generator.target_res is None
    assert generator.flipping is None or generator.flipping is True
    assert generator.nonlin_std == generator.options.nonlin_std  # not given: ours
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = generator.colour


def test_positions_are_theirs(maps: Path, lists: dict[str, str]) -> None:
    labels, outputs, classes = (lists[name] for name in ("generation_labels", "output_labels", "generation_classes"))
    one = ImageGenerator(maps, labels, outputs, 2, 3, 2.0, 6, None, classes, "normal", [100, 5], [5, 1], True)
    assert (one.batchsize, one.n_channels, one.options.target_res, one.options.output_shape) == (2, 3, (2.0,), (6,))
    assert (one.options.prior_distributions, one.options.specific_channels) == ("normal", True)
    assert one.scheme.classes == (0, 1, 2, 3, 2, 3)
    assert one.priors is not None
    two = BrainGenerator(maps, labels, 2, outputs, [1, 0], 2, 3, None, 6, 2, "normal", classes, [100, 5], [5, 1])
    assert (two.batchsize, two.n_channels, two.scheme.partners) == (2, 3, (0, 1, 4, 5, 2, 3))
    assert two.weights.tolist() == [1, 0]
    assert (two.options.output_div_by_n, two.options.prior_distributions) == (2, "normal")


def test_files_for_every_list(maps: Path, tmp_path: Path) -> None:
    arrays = {
        "target_res": [2.0, 2.0, 1.0],
        "output_shape": [6, 5, 7],
        "output_div_by_n": [2, 1, 3],
        "scaling_bounds": [[0.9, 0.9, 1.0], [1.1, 1.1, 1.0]],
        "rotation_bounds": [-5.0, 5.0],
        "data_res": [1.0, 1.0, 6.0],
        "thickness": [1.0, 1.0, 4.0],
        "subjects_prob": [0.0, 1.0],
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    files = {name: str(tmp_path / f"{name}.npy") for name in arrays}
    generator = ImageGenerator(maps, **files)
    for name in arrays.keys() - {"subjects_prob"}:
        assert getattr(generator.options, name) == pytest.approx(tuple(np.ravel(arrays[name])))
        assert np.array_equal(getattr(generator, name), arrays[name])
    assert generator.map_index(0) == 1
    assert generator.tensors(0)[0].shape == (1, 6, 5, 6)
    with pytest.raises(ValueError, match=r"^rotation_bounds .*no.npy: must be an existing .npy file"):
        ImageGenerator(maps, rotation_bounds=str(tmp_path / "no.npy"))


def test_lists_that_are_none_are_one_line_with_their_file(maps: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.npy"
    for content, message in (
        (b"", "is no .npy file"),
        (b"0 1 2", "is no .npy file"),
        (3, "must hold a list of numbers"),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content)
        with pytest.raises(ValueError, match=rf"^generation_labels .*list.npy: {message}"):
            ImageGenerator(maps, str(path))


def test_output_labels_to_keep(maps: Path) -> None:
    generator = ImageGenerator(maps, output_labels=[3, 42])
    assert dict(zip(generator.scheme.values, generator.scheme.outputs, strict=True)) == {
        0: 0, 24: 0, 2: 0, 3: 3, 41: 0, 42: 42
    }  # fmt: skip
    assert ImageGenerator(maps, LABELS, [0, 3]).scheme.outputs == (0, 0, 0, 3, 0, 0)
    with pytest.raises(ValueError, match="output_labels has 2 entries for 6"):
        ImageGenerator(maps, LABELS, [0, 5])
