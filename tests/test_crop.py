"""Training on windows of the slices: the same place of label, neighbours and image; images are made whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from config import parse_train
from dataloaders.io.manifest import Manifest
from dataloaders.slices import BatchLoader, SliceDataset
from dataloaders.unpaired import UnpairedDataset
from engine.methods.base import workflow_of
from tests.toy import prepared_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("data"), channels=2, size=64)


def places(whole: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
    """Where (C, h, w) lies within (C, H, W)."""
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape)[0]
    return [(int(y), int(x)) for y, x in np.argwhere((windows == part).all((-1, -2, -3)))]


def test_label_neighbours_and_image_are_of_one_place(folder: Path) -> None:
    data = Manifest.load(folder)
    whole = SliceDataset(folder, data, "train", neighbours=1)
    cut = SliceDataset(folder, data, "train", neighbours=1, seed=3, crop=(32, 48))
    seen = set()
    for position in range(40):
        index = position % len(whole)
        full, sample = whole[index], cut[index, position]
        (place,) = places(full.image, sample.image)
        assert place in places(full.label[None], sample.label[None])
        assert place in places(full.neighbours, sample.neighbours)
        assert sample.label.shape == sample.image.shape[1:] == (32, 48)
        seen.add(place)
    for found, last in zip(zip(*seen, strict=True), (32, 16), strict=True):
        assert min(found) < last / 4 < 3 * last / 4 < max(found) <= last


def test_windows_are_of_the_seed_and_what_is_fitted_sees_whole_slices(folder: Path) -> None:
    data = Manifest.load(folder)
    sets = [SliceDataset(folder, data, "train", seed=seed, crop=(32, 32)) for seed in (3, 4)]
    loader, other = (BatchLoader(dataset, 2, seed=3) for dataset in sets)
    assert not torch.equal(next(loader.endless()).real, next(other.endless()).real)
    assert next(loader.share()).label.shape == (2, 64, 64)


def test_the_option_cuts_windows_that_fit(folder: Path) -> None:
    """Training on them, resuming and making whole slices: tests/test_gan_end_to_end.py."""

    def loader(*crop: str) -> BatchLoader:
        workflow = workflow_of(parse_train(["--name", "t", "--dataroot", str(folder), "--oasis.crop", *crop]))
        workflow.read()
        return workflow.loader()  # type: ignore[return-value]

    assert next(loader("32", "64").endless()).label.shape == (8, 32, 64)
    with pytest.raises(ValueError, match=r"slices of 64x64 are smaller than the windows of 128x32 \(--crop\)$"):
        loader("128", "32")


def test_unpaired_images_have_windows_of_their_own(folder: Path) -> None:
    data = Manifest.load(folder)
    labels, images = (SliceDataset(folder, data, "train", read=half, crop=(32, 32)) for half in ("labels", "images"))
    batch = next(BatchLoader(labels, 4, training=UnpairedDataset(labels, images, 0)).endless())
    assert (batch.label.shape, batch.real.shape) == ((4, 32, 32), (4, 2, 32, 32))
    whole = [images.image(i) for i in range(len(images))]
    found = [place for part in batch.real.numpy() for image in whole for place in places(image, part)]
    assert len(found) == 4
    assert len({y for y, _ in found}) > 1
