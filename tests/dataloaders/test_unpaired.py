from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloaders.io.intensity import Window, levels_to_model
from dataloaders.io.manifest import Manifest
from dataloaders.io.png import as_16_bit, read_png
from dataloaders.slices import BatchLoader, SliceDataset
from dataloaders.unpaired import UnpairedDataset, typical_windows, unpaired_manifest
from models.base import Batch
from tests.dataloaders.test_dataset import take
from tests.toy import prepared_folder


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("labels"), patients=5, slices=6)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("images"), patients=4, slices=5, channels=2)


def loader(labels: Path, images: Path, workers: int = 0, cache: float = 0.0, seed: int = 3) -> BatchLoader:
    data, other = Manifest.load(labels), Manifest.load(images)
    chosen = SliceDataset(labels, unpaired_manifest(data, other), "train", True, seed, cache, 1, read="labels")
    shown = SliceDataset(images, other, "train", True, seed, cache, read="images")
    return BatchLoader(chosen, 4, seed, workers, UnpairedDataset(chosen, shown, seed))


def sources(root: Path) -> dict[bytes, tuple[int, bool]]:
    """Pixels -> (number of the training slice, mirrored), for recognising images in batches."""
    found = {}
    items = [item for case in Manifest.load(root).split("train") for item in case.slices]
    for number, item in enumerate(items):
        image = levels_to_model(np.stack([as_16_bit(read_png(root / path)) for path in item.images]))
        found[image.tobytes()] = (number, False)
        found[np.ascontiguousarray(image[..., ::-1]).tobytes()] = (number, True)
    assert len(found) == 2 * len(items)
    return found


def seen(batches: list[Batch], root: Path) -> list[tuple[int, bool]]:
    known = sources(root)
    return [known[image.numpy().tobytes()] for batch in batches for image in batch.real]


# -- no pairing -------------------------------------------------------------------------------------------------------


def test_labels_and_images_are_those_of_the_two_training_splits(labels: Path, images: Path) -> None:
    batches = list(islice(loader(labels, images).endless(), 9))  # two epochs of 18 labels
    assert {case for batch in batches for case in batch.cases} == {"sub-00", "sub-01", "sub-02"}
    keys = [key for batch in batches for key in zip(batch.cases, batch.indices, strict=True)]
    assert sorted(keys[:18]) == sorted(keys[18:]) == sorted(set(keys))
    assert keys[:18] != keys[18:]  # each epoch has its own order
    numbers = [number for number, _ in seen(batches, images)]
    assert batches[0].real.shape == (4, 2, 32, 32)
    for epoch in range(3):  # ten images are gone through three times meanwhile
        assert sorted(numbers[10 * epoch : 10 * epoch + 10]) == list(range(10))


def test_labels_come_as_from_a_loader_of_their_own(labels: Path, images: Path) -> None:
    alone = BatchLoader(SliceDataset(labels, Manifest.load(labels), "train", True, 3, neighbours=1), 4, 3)
    for batch, own in islice(zip(loader(labels, images).endless(), alone.endless(), strict=False), 10):
        assert (batch.cases, batch.patients, batch.indices) == (own.cases, own.patients, own.indices)
        assert torch.equal(batch.label, own.label)
        assert torch.equal(batch.neighbours, own.neighbours)
        assert torch.equal(batch.position, own.position)
        assert torch.equal(torch.rand(3, generator=batch.rng), torch.rand(3, generator=own.rng))


@pytest.mark.slow
def test_one_folder_for_both_is_not_paired(labels: Path) -> None:
    """Otherwise an unpaired run on paired data would see pairs and prove nothing."""
    epochs = 20
    paired = BatchLoader(SliceDataset(labels, Manifest.load(labels), "train", True, 3), 18, 3)
    unpaired = loader(labels, labels)
    unpaired.batch_size = 18
    own = seen(list(islice(paired.endless(), epochs)), labels)  # the image that belongs to each label, and how it lies
    shown = seen(list(islice(unpaired.endless(), epochs)), labels)
    together = [a[0] == b[0] for a, b in zip(own, shown, strict=True)]
    assert sum(together) < 2.5 * epochs  # one an epoch is chance
    assert len({(a[0], b[0]) for a, b in zip(own, shown, strict=True)}) > 150  # of 324; a fixed pairing has 18
    alike = np.mean([a[1] == b[1] for a, b in zip(own, shown, strict=True)])
    assert 0.4 < alike < 0.6


# -- resuming, order of work ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_resuming_workers_and_cache_change_nothing(labels: Path, images: Path) -> None:
    reference = take(loader(labels, images).endless(), 12)
    for start, workers, cache in ((0, 2, 0.0), (0, 0, 1.0), (4, 0, 0.0), (20, 1, 1.0), (40, 0, 0.0)):
        # the last epochs of labels and of images begin within batches
        again = take(loader(labels, images, workers, cache).endless(start), 12 - start // 4)
        assert all(torch.equal(a, b) for a, b in zip(reference[start // 4 :], again, strict=True)), (start, workers)


# -- the manifest -----------------------------------------------------------------------------------------------------


def test_images_of_another_kind_lend_channels_and_windows(labels: Path, images: Path) -> None:
    data, other = Manifest.load(labels), Manifest.load(images)
    windows = [(Window(0, 100), Window(5, 9)), (Window(-10, 300), Window(1, 7)), (Window(-900, 900),) * 2]
    other = replace(
        other,
        cases=tuple(
            replace(case, windows=windows[min(i, 2)])  # the third and the fourth neither train nor count
            for i, case in enumerate(other.cases)
        ),
    )
    assert typical_windows(other) == (Window(-5, 200), Window(3, 8))
    made = unpaired_manifest(data, other)
    assert made.spec == replace(data.spec, channels=other.spec.channels)
    assert [case.windows for case in made.cases] == [typical_windows(other)] * 5
    for case, old in zip(made.cases, data.cases, strict=True):
        assert all(item.images == () for item in case.slices)
        kept = tuple(replace(item, images=o.images) for item, o in zip(case.slices, old.slices, strict=True))
        assert replace(case, windows=old.windows, slices=kept) == old
    test = next(BatchLoader(SliceDataset(labels, made, "test"), 4).once())
    assert test.image is None


def test_images_are_mirrored_by_themselves_and_sagittal_ones_never(labels: Path, images: Path, tmp_path: Path) -> None:
    root = shutil.copytree(images, tmp_path / "b")
    other = Manifest.load(root)
    Manifest(replace(other.spec, axis="sagittal"), other.cases).save(root)
    unknown = shutil.copytree(labels, tmp_path / "a")
    data = Manifest.load(unknown)
    Manifest(replace(data.spec, axis=None), data.cases).save(unknown)
    assert not any(flipped for _, flipped in seen(list(islice(loader(unknown, root).endless(), 10)), root))
    turned = [flipped for _, flipped in seen(list(islice(loader(labels, images).endless(), 10)), images)]
    assert 10 < sum(turned) < 30
