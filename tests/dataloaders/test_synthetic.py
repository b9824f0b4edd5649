"""Synthetic pairs as PyTorch data sets: who makes which sample, and other people's loaders."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dataloaders.labelmaps.image_generator import ImageGenerator
from dataloaders.labelmaps.synthetic import ENDLESS, SyntheticDataset, SyntheticPairs, one_hot
from tests.toy import phantom, save_nifti

SHAPE = (12, 14, 8)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    for i in range(2):
        label = phantom(i, SHAPE)[0].astype(np.uint8)
        label[label == 4] = 77
        save_nifti(folder / f"m{i}.nii.gz", label)
    return folder


def by_number(loader: object) -> dict[int, torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for batch in loader:
        for number, image in zip(batch["number"].tolist(), batch["image"], strict=True):
            assert number not in found
            found[number] = image
    return found


def test_items_are_the_generators(maps: Path) -> None:
    pairs = SyntheticPairs(maps, samples=3, seed=1, preset="synthseg", output_shape=8, n_channels=2)
    generator = ImageGenerator(maps, seed=1, preset="synthseg", output_shape=8, n_channels=2)
    assert len(pairs) == 3
    for number, item in enumerate(pairs):
        image, label = generator.tensors(number)
        assert item["number"] == number
        assert (item["image"].shape, item["image"].dtype) == ((2, 8, 8, 8), torch.float32)
        assert (item["label"].shape, item["label"].dtype) == ((1, 8, 8, 8), torch.int64)
        assert torch.equal(item["image"], image)
        assert torch.equal(item["label"][0], label.long())


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_samples_do_not_depend_on_the_workers(maps: Path, batch_size: int) -> None:
    pairs = SyntheticPairs(maps, samples=5, seed=1, repeat=True)
    alone, together = (by_number(DataLoader(pairs, batch_size=batch_size, num_workers=workers)) for workers in (0, 2))
    assert sorted(alone) == [0, 1, 2, 3, 4]
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[number], together[number]) for number in alone)


def test_workers_that_begin_at_once_are_of_one_pass(maps: Path) -> None:
    """Another worker claims the pass while this one looks: both are of the same."""
    pairs = SyntheticPairs(maps, samples=4)
    key, taken = 7, pairs._passes

    class Shared:
        def __eq__(self, other: object) -> torch.Tensor:
            seen = taken == other
            taken[0] = key
            return seen

        clone = taken.clone
        __setitem__ = taken.__setitem__

    pairs._passes = Shared()
    assert pairs._place(key) == 0
    assert pairs._place(key + 1) == 1
    assert pairs._place(key) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, True)])
def test_every_pass_is_new_and_can_be_repeated(maps: Path, workers: int, persistent: bool) -> None:
    pairs = SyntheticPairs(maps, samples=4, start=10, seed=1)
    loader = DataLoader(pairs, batch_size=2, num_workers=workers, persistent_workers=persistent)
    first = by_number(loader)
    assert sorted(first) == [10, 11, 12, 13]
    assert sorted(by_number(loader)) == [14, 15, 16, 17]
    pairs.set_epoch(3)
    assert sorted(by_number(loader)) == [22, 23, 24, 25]
    assert sorted(by_number(loader)) == [26, 27, 28, 29]
    pairs.set_epoch(0)
    again = by_number(loader)
    assert all(torch.equal(first[number], again[number]) for number in first)
    same = SyntheticPairs(maps, samples=4, seed=1, repeat=True)
    for _ in range(2):
        assert sorted(by_number(DataLoader(same, batch_size=2, num_workers=workers))) == [0, 1, 2, 3]


def test_a_pass_that_is_broken_off_counts(maps: Path) -> None:
    pairs = SyntheticPairs(maps, samples=6, seed=1)
    for _ in zip(range(1), DataLoader(pairs, num_workers=2), strict=False):
        pass
    assert sorted(by_number(DataLoader(pairs, num_workers=1))) == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 3), (2, 1), (3, 2), (4, 3)])
def test_ranks_and_workers_share_an_epoch(maps: Path, ranks: int, workers: int) -> None:
    found, lengths = [], 0
    for rank in range(ranks):
        pairs = SyntheticPairs(maps, samples=11, rank=rank, world_size=ranks, seed=1)
        pairs.set_epoch(1)
        numbers = [number for worker in range(workers) for number in pairs.numbers(worker, workers)]
        assert len(numbers) == len(pairs)
        lengths += len(pairs)
        found += numbers
    assert sorted(found) == list(range(11, 22))
    assert lengths == 11


def test_endless(maps: Path) -> None:
    pairs = SyntheticPairs(maps)
    with pytest.raises(TypeError, match="endless"):
        len(pairs)
    numbers = pairs.numbers(1, 2)
    assert [next(numbers) for _ in range(3)] == [1, 3, 5]
    passes = [next(iter(DataLoader(pairs)))["number"].item() for _ in range(3)]
    assert passes == [0, ENDLESS, 2 * ENDLESS]
    pairs.set_epoch(1)
    assert next(iter(pairs))["number"] == ENDLESS
    assert pairs.generator.seed != SyntheticPairs(maps).generator.seed  # drawn, but the same in all workers
    assert pickle.loads(pickle.dumps(pairs)).generator.seed == pairs.generator.seed


@pytest.mark.slow
def test_by_index(maps: Path) -> None:
    data = SyntheticDataset(maps, 3, start=5, seed=1, preset="synthseg")
    assert len(data) == 3
    assert [[item["number"] for item in data] for _ in range(2)] == [[5, 6, 7], [8, 9, 10]]
    assert data[-1]["number"] == 13
    with pytest.raises(IndexError):
        data[3]
    data.set_epoch(0)
    loader = DataLoader(data, batch_size=3, shuffle=True, num_workers=2, multiprocessing_context="fork")
    first = by_number(loader)
    assert sorted(first) == [5, 6, 7]
    assert sorted(by_number(loader)) == [8, 9, 10]
    same = SyntheticDataset(maps, 3, start=5, seed=1, preset="synthseg", repeat=True)
    assert [item["number"] for item in same] == [item["number"] for item in same] == [5, 6, 7]
    assert torch.equal(same[-1]["image"], first[7])


def test_contiguous_labels(maps: Path) -> None:
    data = SyntheticDataset(maps, 1, seed=1, contiguous=True, repeat=True)
    plain = SyntheticDataset(maps, 1, seed=1)
    assert data.output_values == (0, 1, 2, 3, 77)
    values = torch.tensor(data.output_values)
    assert torch.equal(values[data[0]["label"]], plain[0]["label"])
    hot = one_hot(data[0]["label"], 5)
    assert hot.shape == (5, *SHAPE)
    assert torch.equal(hot.argmax(0), data[0]["label"][0])
    assert torch.equal(hot.sum(0), torch.ones(SHAPE))


def test_monai(maps: Path) -> None:
    """Dictionaries are what MONAI's transforms and loaders take."""
    data = pytest.importorskip("monai.data")
    transforms = pytest.importorskip("monai.transforms")
    change = transforms.Compose(
        [transforms.RandGaussianNoised("image", prob=1.0), transforms.RandFlipd(["image", "label"], prob=0.5)]
    )
    source = data.Dataset(SyntheticDataset(maps, 4, seed=1, contiguous=True), change)
    loader = data.DataLoader(source, batch_size=2)
    assert [[batch["number"].tolist() for batch in loader] for _ in range(2)] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    batch = next(iter(loader))
    assert tuple(batch["image"].shape) == tuple(batch["label"].shape) == (2, 1, *SHAPE)
