"""EfficientNet-Lite0's distances on real T1w slices: real people are nearer to each other than to anything made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from dataloaders.io.geometry import to_ras
from dataloaders.io.nifti import read_ids, read_volume
from dataloaders.io.weights import resolve
from dataloaders.prepare.slicing import mr_window
from evaluation.metrics.distribution import frechet_distance, kid
from evaluation.metrics.extractors import Extractor, efficientnet_extractor
from evaluation.metrics.feature_sets import feature_distances
from evaluation.privacy import painted

pytestmark = pytest.mark.slow
PEOPLE = ("1000", "1001", "1002", "1003", "1004", "1006", "1007", "1008", "1009", "1011", "1012", "1013")
Images = Sequence[NDArray]


@pytest.fixture(scope="module")
def slices(shared_data: Path) -> tuple[Images, Images]:
    """Three axial slices of twelve people in [0, 1], the two halves behind each other, and their label maps."""
    folder, images, labels = shared_data / "manual", [], []
    for name in (f"sub-{number}" for number in PEOPLE):
        scan = read_volume(folder / name / "anat" / f"{name}_T1w.nii.gz")
        ids = read_ids(folder / "derivatives" / "manual" / name / "anat" / f"{name}_dseg.nii.gz")
        data, label = (to_ras(one.data, one.affine)[0] for one in (scan, ids))
        window = mr_window(data)
        for share in (0.45, 0.55, 0.65):
            z = int(share * data.shape[2])
            shares = np.clip((data[..., z].T[::-1] - window.low) / window.width, 0, 1)
            images.append(np.pad(shares, [(0, 240 - n) for n in shares.shape]).astype(np.float32))
            labels.append(np.pad(label[..., z].T[::-1].astype(np.int64), [(0, 240 - n) for n in shares.shape]))
    return images, labels


@pytest.fixture(scope="module")
def net() -> Extractor:
    return efficientnet_extractor(torch.device("cpu"), resolve("efficientnet_lite0"))


def noisy(image: NDArray, strength: float) -> NDArray:
    noise = np.random.default_rng(0).normal(0, strength, image.shape)
    return np.asarray((image + noise * (image > 0)).clip(0, 1), np.float32)


FAULTS: dict[str, tuple[Callable[[NDArray, float], NDArray], tuple[float, ...]]] = {
    "blur": (gaussian_filter, (0.7, 1.2, 2.4)),
    "noise": (noisy, (0.03, 0.08, 0.2)),
    "contrast": (lambda image, gamma: np.asarray(image**gamma, np.float32), (1.3, 1.8, 3.0)),
}


def test_worse_images_are_farther(slices: tuple[Images, Images], net: Extractor) -> None:
    images, labels = slices
    half = len(images) // 2
    real = net.features(np.stack(images))
    between = {"kid": kid(real=real[:half], fake=real[half:])[0], "frechet": frechet_distance(real[:half], real[half:])}
    others = images[half:]
    worst = {fault: [make(image, grades[-1]) for image in others] for fault, (make, grades) in FAULTS.items()}
    worst["painted"] = [painted(x[None], ids)[0] for x, ids in zip(others, labels[half:], strict=True)]
    for fault, made in worst.items():
        fake = net.features(np.stack(made))
        assert kid(real=real[:half], fake=fake)[0] > between["kid"], fault
        assert frechet_distance(real[:half], fake) > between["frechet"], fault


@pytest.mark.parametrize("fault", FAULTS)
def test_strength_is_ranked(fault: str, slices: tuple[Images, Images], net: Extractor) -> None:
    """Against the same slices as they are: the paired distance and both distances of sets grow with the fault."""
    images = slices[0][::2]
    real, (make, strengths) = net.features(np.stack(images)), FAULTS[fault]
    found = []
    for strength in strengths:
        fake = net.features(np.stack([make(image, strength) for image in images]))
        paired = feature_distances(real, fake).mean()
        found.append((paired, kid(real=real, fake=fake)[0], frechet_distance(real, fake)))
    assert (np.diff(found, axis=0) > 0).all(), found
    assert 0 < found[0][0] < found[-1][0] < np.sqrt(2)
