"""Training on windows of the slices: the same place of label, neighbours and image; images are made whole."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from config import parse_train
from dataloaders.io.manifest import Manifest
from dataloaders.slices import BatchLoader, SliceDataset
from dataloaders.unpaired import UnpairedDataset
from engine.methods.base import workflow_of
from engine.run import only_trains
from models import build_method
from models.base import SampleRandom
from tests.toy import prepared_folder

NETWORKS = ["channels_G", "8", "channels_D", "4", "spade_hidden", "4", "lambda_mask", "0", "lambda_lite", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("data"), channels=2, size=64)


def options(folder: Path, model: str = "oasis", *flags: str) -> list[str]:
    networks = [f"--{model}.{word}" if i % 2 == 0 else word for i, word in enumerate(NETWORKS)]
    start = ["--name", "t", "--dataroot", str(folder), "--model", model, "--preset", "demo", *networks]
    return [*start, "--gpu_ids", "-1", "--metrics", "none", f"--{model}.crop", "32", "32", *flags]


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


def test_windows_depend_on_seed_and_position_alone(folder: Path) -> None:
    data = Manifest.load(folder)
    loader, other = (
        BatchLoader(SliceDataset(folder, data, "train", flip=True, seed=seed, crop=(32, 32)), 2, seed=3)
        for seed in (3, 4)
    )
    through, resumed = list(islice(loader.endless(), 6)), list(islice(loader.endless(start=8), 2))
    for before, after in zip(through[4:], resumed, strict=True):
        assert torch.equal(before.real, after.real)
        assert torch.equal(before.label, after.label)
    assert not torch.equal(through[0].real, next(other.endless()).real)
    assert next(loader.share()).label.shape == (2, 64, 64)  # what is fitted sees whole slices


@pytest.mark.parametrize(
    "variant", ["oasis", "spade", "oasis --oasis.generator haar", "oasis --oasis.critic wavelet --oasis.channels_W 4"]
)
def test_what_trains_on_windows_makes_whole_slices(folder: Path, variant: str) -> None:
    model, *flags = variant.split()
    if model == "spade":
        flags = ["--spade.lambda_vgg", "0"]
    workflow = workflow_of(parse_train(options(folder, model, *flags)))
    workflow.read()
    loader = workflow.loader()
    method = build_method(workflow.config, workflow.data.spec)
    method.calibrate(islice(loader.endless(), 1))  # type: ignore[arg-type]
    batch = next(loader.endless())
    assert batch.label.shape == (2, 32, 32)
    players = method.players()
    for player in players.values():
        with only_trains(player, players):
            assert torch.stack(list(player.losses(batch).values())).isfinite().all()
    method.before_synthesis(islice(loader.endless(), 2))  # type: ignore[arg-type]
    whole = next(loader.once())  # type: ignore[union-attr]
    images = method.synthesize(whole, [SampleRandom.of(0, "a", i) for i in range(2)])
    assert images.shape == whole.real.shape == (2, 2, 64, 64)


def test_slices_smaller_than_the_windows_are_refused(folder: Path) -> None:
    workflow = workflow_of(parse_train(options(folder, "oasis", "--oasis.crop", "128", "32")))
    workflow.read()
    with pytest.raises(ValueError, match=r"slices of 64x64 are smaller than the windows of 128x32 \(--crop\)$"):
        workflow.loader()


def test_unpaired_images_have_windows_of_their_own(folder: Path) -> None:
    data = Manifest.load(folder)
    labels, images = (SliceDataset(folder, data, "train", read=half, crop=(32, 32)) for half in ("labels", "images"))
    batch = next(BatchLoader(labels, 4, training=UnpairedDataset(labels, images, 0)).endless())
    assert (batch.label.shape, batch.real.shape) == ((4, 32, 32), (4, 2, 32, 32))
    whole = [images.image(i) for i in range(len(images))]
    found = [place for part in batch.real.numpy() for image in whole for place in places(image, part)]
    assert len(found) == 4
    assert len({y for y, _ in found}) > 1
