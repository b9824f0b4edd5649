from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloaders.dataset import EndlessSampler, SliceDataset, SliceLoader, flip_table, mirrored
from dataloaders.folder import load_manifest
from dataloaders.intensity import Window, levels_to_model, model_to_levels
from dataloaders.manifest import Manifest
from dataloaders.png import read_png, write_png
from spec import Channel, DataSpec, Label
from tests.toy import prepared_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("data"), channels=2)


def loader(folder: Path, split: str = "train", workers: int = 0, flip: bool = True, cache: float = 0.0) -> SliceLoader:
    return SliceLoader(SliceDataset(folder, Manifest.load(folder), split, flip, 3, cache), 4, 3, workers)


def take(iterator, n: int) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
    return [torch.cat([batch.image.flatten(), batch.label.flatten().float()]) for batch in islice(iterator, n)]


def test_levels_and_model_range_are_inverse() -> None:
    levels = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(model_to_levels(levels_to_model(levels)), levels)
    assert model_to_levels(np.array([-3.0, 3.0])).tolist() == [0, 65535]


def test_values_outside_are_clipped_not_wrapped() -> None:
    """The predecessor threw away the result of clamp, so bright pixels came out black."""
    assert Window(-1024, 3071).encode(np.array([-9999.0, 9999.0])).tolist() == [0, 65535]


def test_order_is_a_permutation_each_epoch_and_resumes_anywhere() -> None:
    first = list(islice(EndlessSampler(10, seed=1), 30))
    for epoch in range(3):
        assert sorted(i for i, _ in first[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert [i for i, _ in first[:10]] != [i for i, _ in first[10:20]]
    assert list(islice(EndlessSampler(10, seed=1, start=13), 17)) == first[13:]


def test_batches_do_not_depend_on_workers_cache_or_where_one_starts(folder: Path) -> None:
    reference = take(loader(folder).endless(), 6)
    for other in (
        take(loader(folder, workers=2).endless(), 6),
        take(loader(folder, cache=1.0).endless(), 6),
        reference[:2] + take(loader(folder).endless(start=8), 4),
    ):
        assert all(torch.equal(a, b) for a, b in zip(reference, other, strict=True))


def test_training_streams_follow_the_position(folder: Path) -> None:
    batches = list(islice(loader(folder).endless(), 3))
    again = next(loader(folder).endless(start=8))
    draws = [torch.rand(4, generator=batch.rng) for batch in batches]
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[2], torch.rand(4, generator=again.rng))


def test_about_half_of_the_slices_are_mirrored_and_labels_with_them(folder: Path) -> None:
    dataset = loader(folder).dataset
    plain = dataset[0]
    flipped = [dataset[(0, position)] for position in range(40)]
    changed = [not np.array_equal(sample.image, plain.image) for sample in flipped]
    assert 8 < sum(changed) < 32
    for sample, is_changed in zip(flipped, changed, strict=True):
        step = -1 if is_changed else 1
        assert np.array_equal(sample.image[..., ::step], plain.image)
        assert np.array_equal(sample.label[..., ::step], plain.label)


def test_mirroring_swaps_sides_and_never_turns_patients_over() -> None:
    def spec(axis: str) -> DataSpec:
        names = ("background", "kidney_left", "kidney_right", "liver")
        return DataSpec(
            tuple(Label(i, n) for i, n in enumerate(names)),
            (Channel("CT"),),
            (32, 32),
            axis=axis,  # type: ignore[arg-type]
        )

    assert flip_table(spec("axial")).tolist() == [0, 2, 1, 3]
    assert flip_table(spec("coronal")).tolist() == [0, 2, 1, 3]
    assert flip_table(spec("sagittal")) is None


def test_mirrored_is_its_own_inverse(folder: Path) -> None:
    sample = loader(folder).dataset[0]
    table = np.array([0, 2, 1, 3, 4])
    twice = mirrored(mirrored(sample, table), table)
    assert np.array_equal(twice.label, sample.label)
    assert np.array_equal(twice.image, sample.image)


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


def test_a_label_out_of_range_names_the_file(tmp_path: Path) -> None:
    root = prepared_folder(tmp_path, patients=3)
    victim = root / "train/labels/sub-00_z0003.png"
    write_png(victim, np.full((32, 32), 200, np.uint8))
    with pytest.raises(ValueError, match=r"sub-00_z0003.png: label id 200, allowed are 0..4"):
        list(loader(root).once())


def plain_folder(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, n in (("train", 3), ("test", 1)):
        for i in range(n):
            write_png(root / split / "images" / f"x{i}.png", rng.integers(0, 255, (32, 64)).astype(np.uint8))
            write_png(root / split / "labels" / f"x{i}.png", rng.integers(0, 4, (32, 64)).astype(np.uint8))
    return root


def test_a_folder_of_png_pairs_works_without_a_manifest(tmp_path: Path) -> None:
    manifest = load_manifest(plain_folder(tmp_path))
    assert (tmp_path / "manifest.json").is_file()
    assert (manifest.spec.num_labels, manifest.spec.size, len(manifest.cases)) == (4, (32, 64), 4)
    sample = SliceDataset(tmp_path, manifest, "train")[0]
    eight_bit = read_png(tmp_path / "train/images/x0.png")
    assert sample.image[0] == pytest.approx(eight_bit / 127.5 - 1, abs=1e-6)
    assert load_manifest(tmp_path) == manifest


def test_every_mismatch_of_a_plain_folder_is_listed(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    (root / "train/labels/x0.png").unlink()
    write_png(root / "train/labels/x1.png", np.zeros((8, 8), np.uint8))
    (root / "train/images/x2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="3 faults") as error:
        load_manifest(root)
    for text in ("x0.png: no label", "its label (8, 8)", "x2.png: unreadable"):
        assert text in str(error.value)
    assert not (root / "manifest.json").exists()
    with pytest.raises(ValueError, match=r"neither manifest\.json"):
        load_manifest(tmp_path / "nothing")


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    root = prepared_folder(tmp_path, patients=3)
    text = (root / "manifest.json").read_text()
    (root / "manifest.json").write_text(text.replace("train/labels/sub-00_z0002.png", "../../etc/passwd"))
    with pytest.raises(ValueError, match="leaves the folder"):
        Manifest.load(root)


def test_equal_file_names_in_two_splits_stay_apart(tmp_path: Path) -> None:
    """Most PNG data sets number each split from 0; validation must not show slices of the test split."""
    root = plain_folder(tmp_path)
    manifest = load_manifest(root)
    assert {case.id for case in manifest.cases} == {"train_x0", "train_x1", "train_x2", "test_x0"}
    with pytest.raises(ValueError, match="must be unique"):
        Manifest(manifest.spec, manifest.cases + manifest.cases[:1])


def test_a_plain_folder_that_changed_is_not_trusted(tmp_path: Path) -> None:
    root = plain_folder(tmp_path)
    load_manifest(root)
    write_png(root / "train/labels/x0.png", np.full((32, 64), 3, np.uint8))
    with pytest.raises(ValueError, match="files changed since"):
        load_manifest(root)
