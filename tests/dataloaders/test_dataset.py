from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloaders.io.intensity import Window, model_to_levels
from dataloaders.io.manifest import Case, Manifest, Slice
from dataloaders.io.png import read_png, write_png
from dataloaders.io.spec import Channel, DataSpec, Label, flip_table
from dataloaders.slices import BatchLoader, SliceDataset
from models.base import Batch
from models.gmm.scheme import LabelScheme
from tests.toy import prepared_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("data"), channels=2)


def loader(folder: Path, split: str = "train", workers: int = 0, flip: bool = True, cache: float = 0.0) -> BatchLoader:
    return BatchLoader(SliceDataset(folder, Manifest.load(folder), split, flip, 3, cache, neighbours=1), 4, 3, workers)


def take(batches: Iterable[Batch], n: int) -> list[torch.Tensor]:
    """Everything in a batch, and what its random stream gives."""
    return [
        torch.cat(
            [b.real.flatten(), b.label.flatten(), b.neighbours.flatten(), b.position, torch.rand(4, generator=b.rng)]
        )
        for b in islice(batches, n)
    ]


def test_values_outside_are_clipped_not_wrapped() -> None:
    """The predecessor threw away the result of clamp, so bright pixels came out black."""
    assert Window(-1024, 3071).encode(np.array([-9999.0, 9999.0])).tolist() == [0, 65535]


def test_batches_do_not_depend_on_workers_cache_or_where_one_starts(folder: Path) -> None:
    reference = take(loader(folder).endless(), 6)
    assert not torch.equal(reference[0][-4:], reference[1][-4:])
    for other in (
        take(loader(folder, workers=2).endless(), 6),
        take(loader(folder, cache=1.0).endless(), 6),
        reference[:2] + take(loader(folder).endless(start=8), 4),
    ):
        assert all(torch.equal(a, b) for a, b in zip(reference, other, strict=True))


def test_about_half_of_the_slices_are_mirrored_and_labels_and_neighbours_with_them(folder: Path) -> None:
    data = Manifest.load(folder)
    names = ("background", "fluid", "kidney_left", "kidney_right", "fat")
    labels = tuple(replace(label, name=name) for label, name in zip(data.spec.labels, names, strict=True))
    data = replace(data, spec=replace(data.spec, labels=labels))
    dataset = SliceDataset(folder, data, "train", True, 3, neighbours=1)
    plain, exchanged = dataset[2], np.array([0, 1, 3, 2, 4])
    assert {2, 3} <= set(np.unique(plain.label))
    changed = 0
    for sample in (dataset[2, position] for position in range(40)):
        assert sample.position == plain.position
        if np.array_equal(sample.image, plain.image):
            assert np.array_equal(sample.label, plain.label)
            assert np.array_equal(sample.neighbours, plain.neighbours)
            continue
        changed += 1
        assert np.array_equal(sample.image, plain.image[..., ::-1])
        assert np.array_equal(sample.label, exchanged[plain.label][..., ::-1])
        assert np.array_equal(sample.neighbours, exchanged[plain.neighbours][..., ::-1])
    assert 8 < changed < 32


def test_a_mirror_knows_the_sides_of_every_atlas() -> None:
    """FreeSurfer's lh and rh, AAL's and HCP's L and R: their label stayed while the image was mirrored."""
    names = ["background", "ctx-lh-cuneus", "ctx-rh-cuneus", "Hippocampus_L", "Hippocampus_R", "L_V1_ROI", "R_V1_ROI"]
    names += ["KidneyLeft", "KidneyRight", "rightLung", "leftLung"]
    alone = ["bright lesion", "vertebrae_L1", "lung_middle_lobe_right", "Vermis L 3", "cleft", "a b", "a_b"]
    spec = DataSpec(tuple(Label(i, name) for i, name in enumerate(names + alone)), (Channel("T1w"),), (32, 32))
    assert flip_table(spec).tolist() == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, *range(11, 18)]
    assert flip_table(replace(spec, axis="coronal")).tolist() == flip_table(spec).tolist()
    assert flip_table(replace(spec, axis="sagittal")) is None  # would turn patients over
    assert LabelScheme.from_spec(replace(spec, labels=spec.labels[:16])).partners == tuple(flip_table(spec)[:16])


def test_splits_are_what_they_are_called(folder: Path) -> None:
    """The predecessor's test phase read the validation split."""
    cases = {split: {c for b in loader(folder, split).once() for c in b.cases} for split in ("train", "val", "test")}
    assert cases == {"train": {"sub-00", "sub-01"}, "val": {"sub-02"}, "test": {"sub-03"}}


def test_once_is_in_order_and_unchanged(folder: Path) -> None:
    batches = list(loader(folder).once())
    assert [i for b in batches for i in b.indices] == [*range(2, 8), *range(2, 8)]
    assert sum(len(b) for b in loader(folder).once(limit=5)) == 5
    levels = read_png(folder / "train/images/sub-00_z0002_0001.png")
    assert np.array_equal(model_to_levels(batches[0].image[0, 1].numpy()), levels)


# -- 2.5-D ------------------------------------------------------------------------------------------------------------


def case_of(name: str, indices: list[int], split: str = "train") -> Case:
    slices = tuple(Slice(i, f"{split}/labels/{name}_z{i:04d}.png") for i in indices)
    return Case(name, name.split("_")[0], split, (Window(0, 1),), slices)


def labelled_folder(root: Path, cases: tuple[Case, ...]) -> Manifest:
    """Label maps of 10 * (number of the case) + index."""
    spec = DataSpec(tuple(Label(i, f"label_{i}") for i in range(20)), (Channel("CT"),), (4, 4), axis="axial")
    for number, case in enumerate(cases):
        for item in case.slices:
            write_png(root / item.label, np.full((4, 4), 10 * number + item.index, np.uint8))
    return Manifest(spec, cases)


def marks(dataset: SliceDataset) -> list[list[int]]:
    """For each slice its own mark and those of its neighbours."""
    samples = [dataset[i] for i in range(len(dataset))]
    return [[int(s.label[1, 0]), *(int(n[1, 0]) for n in s.neighbours)] for s in samples]


@pytest.mark.parametrize(
    ("cases", "neighbours", "expected"),
    [
        (
            (case_of("a", [1, 2, 3, 6]), case_of("b", [1])),
            2,
            [[1, 1, 1, 2, 3], [2, 1, 1, 3, 3], [3, 1, 2, 3, 3], [6, 6, 6, 6, 6], [11, 11, 11, 11, 11]],
        ),
        # slice 2 is missing: for slice 1 the slice itself stands in for it, but slice 3 is two away and there
        ((case_of("a", [3, 1]),), 2, [[3, 1, 3, 3, 3], [1, 1, 1, 1, 3]]),
        # one scan split by blocks of slices: the slices next door may be those of the test split
        ((case_of("a", [1, 2, 5, 6]), case_of("b", [3, 4], "test")), 1, [[1, 1, 2], [2, 1, 2], [5, 5, 6], [6, 5, 6]]),
    ],
)
def test_neighbours_at_ends_and_gaps_are_the_nearest_towards_the_centre(
    tmp_path: Path, cases: tuple[Case, ...], neighbours: int, expected: list[list[int]]
) -> None:
    data = labelled_folder(tmp_path, cases)
    assert marks(SliceDataset(tmp_path, data, "train", neighbours=neighbours)) == expected


def test_batches_carry_neighbours_and_position(folder: Path) -> None:
    data = Manifest.load(folder)
    batch = next(BatchLoader(SliceDataset(folder, data, "train", neighbours=2), 6).once())
    assert (batch.neighbours.shape, batch.neighbours.dtype) == ((6, 4, 32, 32), torch.int64)
    assert batch.indices == [2, 3, 4, 5, 6, 7]
    for i, chosen in enumerate([[0, 0, 1, 2], [0, 0, 2, 3], [0, 1, 3, 4], [1, 2, 4, 5], [2, 3, 5, 5], [3, 4, 5, 5]]):
        assert torch.equal(batch.neighbours[i], batch.label[chosen])
    assert batch.position.dtype == torch.float32
    assert torch.allclose(batch.position, torch.linspace(-1, 1, 6))
    assert next(BatchLoader(SliceDataset(folder, data, "train"), 4).once()).neighbours is None


# -- large data -------------------------------------------------------------------------------------------------------


def test_a_sample_is_drawn_from_all_cases_alike(tmp_path: Path) -> None:
    """Batches of neighbours would be alike: running variances of batch norm came out some per cent low."""
    root = prepared_folder(tmp_path, patients=8, slices=8)
    whole = BatchLoader(SliceDataset(root, Manifest.load(root), "train"), 4, seed=3)

    def keys(batches: Iterator[Batch]) -> list[list[tuple[str, int]]]:
        return [list(zip(batch.cases, batch.indices, strict=True)) for batch in batches]

    first = keys(whole.sample(16))
    assert first == keys(whole.sample(16))
    assert first != keys(whole.once(limit=16))
    assert len(set(chain(*first))) == 16
    assert all(len({case for case, _ in batch}) > 1 for batch in first)
    every = list(chain(*keys(whole.sample(10**6))))
    assert len(set(every)) == len(every) == len(whole)


def test_some_patients_of_a_split_alone(tmp_path: Path) -> None:
    data = Manifest.load(prepared_folder(tmp_path, patients=5), histograms=False)
    whole = Manifest.load(tmp_path)
    few = whole.only("train", ["sub-01"])
    assert [case.id for case in few.cases] == ["sub-01", "sub-03", "sub-04"]
    assert few.pixels("train") == {k: v for k, v in few.pixels("train").items() if v < whole.pixels("train")[k]}
    assert data.only("train", ()) is data
    with pytest.raises(
        ValueError, match="--only_patients sub-04: is not in the split 'train', which has sub-00, sub-01"
    ):
        whole.only("train", ["sub-00", "sub-04"])
