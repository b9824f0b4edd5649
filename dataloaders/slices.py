"""Prepared slices as tensors: dataset, resumable order, batches."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from dataloaders.batches import load
from dataloaders.io.files import file_sha256
from dataloaders.io.intensity import levels_to_model
from dataloaders.io.manifest import FILE_NAME, SPLITS, Case, Manifest, Slice
from dataloaders.io.png import as_16_bit, read_slice
from dataloaders.io.ranks import rank, world_size
from dataloaders.io.spec import flip_table
from dataloaders.plain_folder import unwritten
from models.base import Batch, seeded_generator

Read = Literal["both", "labels", "images"]
Place = tuple[Any, slice, slice]  # index of rows and columns, after any other axes
MIRROR: Place = (..., slice(None), slice(None, None, -1))
SAMPLES = "samples.json"  # the index of scripts/generate.py


@dataclass(frozen=True)
class SliceSample:
    """One slice as arrays.

    label: (H, W) int64. image: (C, H, W) float32 in [-1, 1] or None. neighbours: (2k, H, W) int64, labels of the k
    slices before and the k after, in slice order; None for k = 0. position: in [-1, 1], -1 the first slice of the case
    and 1 the last; 0 where it has just one. source: (C, H, W) float32, the image with its lesions filled.
    """

    label: NDArray[np.int64]
    image: NDArray[np.float32] | None
    case: Case
    slice: Slice
    neighbours: NDArray[np.int64] | None = None
    position: float = 0.0
    source: NDArray[np.float32] | None = None


class SliceTable(Sequence[tuple[Case, Slice]]):
    """(case, slice) of all slices of `cases`, in their order; slices without histogram and generated images.

    A few arrays instead of hundreds of thousands of objects: looking at a Python object writes to it (its reference count),
    so every loader process would slowly get a copy of its own of each that it inherits. Arrays stay shared.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = tuple(cases)
        items = [item for case in cases for item in case.slices]
        channels = max((len(item.images) for item in items), default=0)
        self._case = np.repeat(np.arange(len(cases), dtype=np.int32), [len(case.slices) for case in cases])
        self._index = np.array([item.index for item in items], np.int64)
        self._label = np.array([item.label.encode() for item in items], np.bytes_)
        self._images = _paths([item.images for item in items], channels)
        self._filled = _paths([item.filled for item in items], max((len(item.filled) for item in items), default=0))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> tuple[Case, Slice]:  # type: ignore[override]
        images, filled = (
            tuple(path.decode() for path in paths[i].tolist() if path) for paths in (self._images, self._filled)
        )
        item = Slice(int(self._index[i]), self.label(i), images, filled=filled)
        return self.cases[self._case[i]], item

    def row(self, i: int, length: int) -> list[int]:
        """`length` slices of one case, one after the other, i among them; where it has fewer, its last one again."""
        first, end = np.searchsorted(self._case, [self._case[i], self._case[i] + 1]).tolist()
        start = max(first, min(i, end - length))
        return [min(start + k, end - 1) for k in range(length)]

    def label(self, i: int) -> str:
        """The label file alone of a slice."""
        return self._label[i].decode()

    def __iter__(self) -> Iterator[tuple[Case, Slice]]:
        return (self[i] for i in range(len(self)))


def _paths(rows: Sequence[Sequence[str]], width: int) -> NDArray[np.bytes_]:
    """(slices, width) of file names, empty where a slice has fewer."""
    full = [[path.encode() for path in row] + [b""] * (width - len(row)) for row in rows]
    return np.array(full, np.bytes_).reshape(len(rows), width)


class SliceDataset(Dataset[SliceSample]):
    """The slices of one split, in case and slice order.

    Items are read by `[i]`, unchanged, or by `[(i, position)]` for training, where `position` (the running number of
    images seen) decides about mirroring, so that augmentation needs no random state and resumes exactly.

    cache_gb: memory up to which slices are kept once read: all of them, else the labels alone, else nothing.
    neighbours: slices k before and after whose labels a sample carries. read: which files may be opened; with
    ``labels`` samples have no image, with ``images`` there are no samples but only `image`. filled: samples carry the
    image without its lesions too. classes: of a run that sees the labels, by their ids here. crop: size (H, W) of the
    windows that training sees, each at a place drawn from seed and position.
    ValueError where the split has no slices, slices without what is read (images with ``images``, else label maps), or
    slices smaller than the window.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        split: str,
        flip: bool = False,
        seed: int = 0,
        cache_gb: float = 0.0,
        neighbours: int = 0,
        read: Read = "both",
        filled: bool = False,
        classes: NDArray[np.int64] | None = None,
        crop: tuple[int, int] | None = None,
    ) -> None:
        assert neighbours >= 0, neighbours
        self.root, self.spec, self.seed, self.read, self.crop = root, manifest.spec, seed, read, crop
        if crop is not None and any(side > whole for side, whole in zip(crop, self.spec.size, strict=True)):
            (h, w), (own_h, own_w) = crop, self.spec.size
            raise ValueError(f"{root}: slices of {own_h}x{own_w} are smaller than the windows of {h}x{w} (--crop)")
        cases = manifest.split(split)
        self.entries = SliceTable(cases)
        if not self.entries:
            there = ", ".join(name for name in SPLITS if any(case.slices for case in manifest.split(name)))
            raise ValueError(
                f"{root}: the split {split!r} has no slices" + (f"; there are some of {there}" if there else "")
            )
        manifest.refuse_bare(root, split, "image" if read == "images" else "label map")
        if filled and (bare := [item.label for _, item in self.entries if not item.filled]):
            raise ValueError(
                f"{root}: {len(bare)} slices of the split {split!r} have no copy without lesions, the first is {bare[0]}; "
                "prepare the data with --fill lesion"
            )
        self.filled, self.classes = filled, classes
        self.flip_ids = flip_table(self.spec) if flip else None
        self.neighbours = np.array(neighbour_entries(cases, neighbours)) if neighbours else None
        self.positions = np.array(slice_positions(cases))
        plane = len(self.entries) * self.spec.size[0] * self.spec.size[1] * 2
        labels = plane * (read != "images")
        images = plane * self.spec.num_channels * (read != "labels") * (1 + filled)
        self.keeps = {"labels": labels <= cache_gb * 2**30, "images": labels + images <= cache_gb * 2**30}
        self._kept: dict[str | tuple[str, ...], NDArray] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: int | tuple[int, int]) -> SliceSample:
        index, position = key if isinstance(key, tuple) else (key, None)
        case, item = self.entries[index]
        label = self._label(item.label)
        neighbours = None if self.neighbours is None else self._neighbours(index, label)
        sample = SliceSample(
            label.astype(np.int64),
            None if self.read == "labels" else self._image(item.images),
            case,
            item,
            neighbours,
            float(self.positions[index]),
            self._image(item.filled) if self.filled else None,
        )
        if position is not None and self.flip_ids is not None and coin(self.seed, "flip", position):
            sample = mirrored(sample, self.flip_ids)
        if position is not None and self.crop is not None:
            sample = read_at(sample, window(self.spec.size, self.crop, self.seed, "crop", position))
        return sample

    def collate(self, samples: Sequence[SliceSample]) -> Batch:
        """See `collate`."""
        return collate(samples)

    def image(self, index: int) -> NDArray[np.float32] | None:
        """The image of one slice alone, unchanged: (C, H, W) in [-1, 1], None where there is none."""
        assert self.read != "labels", "images are not to be opened"
        return self._image(self.entries[index][1].images)

    def _neighbours(self, index: int, label: NDArray) -> NDArray[np.int64]:
        assert self.neighbours is not None
        others = self.neighbours[index].tolist()
        known = {other: self._label(self.entries.label(other)) for other in {*others} - {index}} | {index: label}
        return np.stack([known[other] for other in others]).astype(np.int64)

    def _label(self, name: str) -> NDArray:
        assert self.read != "images", "labels are not to be opened"
        if (label := self._kept.get(name)) is not None:
            return label
        label = read_slice(self.root / name, self.spec)
        label = label if self.classes is None else self.classes[label]
        if self.keeps["labels"]:
            self._kept[name] = label
        return label

    def _image(self, names: tuple[str, ...]) -> NDArray[np.float32] | None:
        if not names:
            return None
        if (levels := self._kept.get(names)) is None:
            planes = (read_slice(self.root / name, self.spec, image_only=True) for name in names)
            levels = np.stack([as_16_bit(plane) for plane in planes])
            if self.keeps["images"]:
                self._kept[names] = levels
        return levels_to_model(levels)


def neighbour_entries(cases: Sequence[Case], k: int) -> list[list[int]]:
    """For each slice, counted through all cases, the 2k slices index - k .. index - 1, index + 1 .. index + k.

    Only slices of the same case count. Where one does not exist (end of the case, gap), the nearest existing one
    towards the centre stands in, in the worst case the slice itself.
    """
    table: list[list[int]] = []
    for case in cases:
        start = len(table)
        where = {item.index: start + i for i, item in enumerate(case.slices)}
        for i, item in enumerate(case.slices):
            sides: list[list[int]] = []
            for step in (-1, 1):
                side = [start + i]
                for distance in range(1, k + 1):
                    side.append(where.get(item.index + step * distance, side[-1]))
                sides.append(side[1:])
            table.append(sides[0][::-1] + sides[1])
    return table


def slice_positions(cases: Sequence[Case]) -> list[float]:
    """For each slice, counted through all cases, its place between the case's first (-1) and last (1) slice index."""
    positions: list[float] = []
    for case in cases:
        indices = [item.index for item in case.slices]
        first, last = min(indices, default=0), max(indices, default=0)
        positions += [0.0 if first == last else 2 * (i - first) / (last - first) - 1 for i in indices]
    return positions


def coin(*key: object) -> bool:
    """One fair toss, decided by `key` alone."""
    return bool(torch.randint(0, 2, (), generator=seeded_generator(*key)))


def mirrored(sample: SliceSample, flip_ids: NDArray[np.int64]) -> SliceSample:
    """The sample mirrored along its columns, left and right labels exchanged."""
    sample = read_at(sample, MIRROR)
    neighbours = None if sample.neighbours is None else flip_ids[sample.neighbours]
    return replace(sample, label=flip_ids[sample.label], neighbours=neighbours)


def window(size: tuple[int, int], crop: tuple[int, int], *key: object) -> Place:
    """A window of size `crop` at a place of slices of `size` that `key` alone decides, every one as likely."""
    rng = seeded_generator(*key)
    starts = [int(torch.randint(whole - part + 1, (), generator=rng)) for whole, part in zip(size, crop, strict=True)]
    rows, columns = (slice(start, start + part) for start, part in zip(starts, crop, strict=True))
    return ..., rows, columns


def read_at(sample: SliceSample, place: Place) -> SliceSample:
    """The sample with the same pixels of label, image, neighbours and source."""
    arrays = ((name, getattr(sample, name)) for name in ("label", "image", "neighbours", "source"))
    parts: dict[str, Any] = {name: None if a is None else np.ascontiguousarray(a[place]) for name, a in arrays}
    return replace(sample, **parts)


@dataclass(frozen=True)
class Part:
    """What one rank loads of each batch: with R ranks, images r·B/R up to (r + 1)·B/R. B must be a multiple of R."""

    rank: int = 0
    ranks: int = 1

    @classmethod
    def own(cls) -> Part:
        """That of this process."""
        return cls(rank(), world_size())

    def positions(self, start: int, batch_size: int) -> Iterator[int]:
        """Running numbers of this rank's images from batch to batch, for ever; the first batch begins at `start`."""
        share = batch_size // self.ranks
        for first in itertools.count(start + self.rank * share, batch_size):
            yield from range(first, first + share)


@lru_cache(maxsize=8)
def epoch_order(length: int, seed: int, stream: str, epoch: int) -> torch.Tensor:
    """A permutation of 0..length-1 that these alone decide."""
    return torch.randperm(length, generator=seeded_generator(seed, stream, epoch))


def drawn_index(length: int, seed: int, stream: str, position: int) -> int:
    """Which of `length` items the running number `position` sees: every epoch goes through all, in an order of its own."""
    epoch, place = divmod(position, length)
    return int(epoch_order(length, seed, stream, epoch)[place])


class TrainingItems(Protocol):
    """What training reads, by (index, position): `position` is the running number of images seen."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Items -> Batch."""
        ...


class BatchLoader:
    """Batches of a data set: endless and shuffled from any position, or once in order.

    batch_size: images per step over all ranks. training: what `endless` reads instead of the data set itself, such as stacks
    of its slices. row: neighbouring slices of a case that `endless` gives one after the other, mirrored and cut alike; the
    batch size, and each rank's share of it, must be a multiple.
    """

    def __init__(
        self,
        dataset: TrainingItems,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        training: TrainingItems | None = None,
        row: int = 1,
    ) -> None:
        self.dataset, self.batch_size, self.seed, self.num_workers = dataset, batch_size, seed, num_workers
        self.row = row
        self.training = dataset if training is None else training

    def __len__(self) -> int:
        return len(self.training)

    def endless(self, start: int = 0, part: Part | None = None) -> Iterator[Batch]:
        """Training batches from image number `start` on; batch k carries the random stream of its first image.

        part: which share of each batch; by default that of this rank.
        """
        part = Part.own() if part is None else part
        keys = map(self._key, part.positions(start, self.batch_size))
        batches = load(self.training, keys, self.batch_size // part.ranks, self.num_workers)
        for step, batch in enumerate(batches):
            batch.rng = seeded_generator(self.seed, "step", start + step * self.batch_size)
            yield batch

    def _key(self, position: int) -> tuple[int, int]:
        position, place = divmod(position, self.row)
        index = drawn_index(len(self.training), self.seed, "order", position)
        if self.row > 1:
            assert isinstance(self.training, SliceDataset)
            index = self.training.entries.row(index, self.row)[place]
        return index, position

    def share(self) -> Iterator[Batch]:
        """All items in order, unchanged, but of R ranks each gets its block of them."""
        part, total = Part.own(), len(self.dataset)
        first, end = (total * r // part.ranks for r in (part.rank, part.rank + 1))
        return self._batches(range(first, end))

    def once(self, limit: int = 0) -> Iterator[Batch]:
        """All items in order, unchanged; with `limit` that many, evenly spaced."""
        total = len(self.dataset)
        chosen = np.linspace(0, total - 1, limit).round().astype(int) if 0 < limit < total else np.arange(total)
        return self._batches(chosen.tolist())

    def sample(self, limit: int) -> Iterator[Batch]:
        """Up to `limit` items, unchanged, drawn from all cases alike: their batches vary as those of training do.

        Neighbours in a batch would be alike, and statistics within batches too narrow.
        """
        order = torch.randperm(len(self.dataset), generator=seeded_generator(self.seed, "sample"))
        return self._batches(order[:limit].tolist())

    def _batches(self, keys: Iterable[int]) -> Iterator[Batch]:
        return load(self.dataset, keys, self.batch_size, self.num_workers)


def collate(samples: Sequence[SliceSample]) -> Batch:
    """Samples -> Batch; images, and likewise neighbours, are None when any sample has none."""
    return Batch(
        label=torch.from_numpy(np.stack([sample.label for sample in samples])),
        image=_stacked([sample.image for sample in samples]),
        cases=[sample.case.id for sample in samples],
        patients=[sample.case.patient for sample in samples],
        indices=[sample.slice.index for sample in samples],
        neighbours=_stacked([sample.neighbours for sample in samples]),
        position=torch.tensor([sample.position for sample in samples], dtype=torch.float32),
        source=_stacked([sample.source for sample in samples]),
        grey=_stacked([None if s.case.grey is None else np.array(s.case.grey, np.float32) for s in samples]),
    )


def _stacked(arrays: Sequence[NDArray | None]) -> torch.Tensor | None:
    there = [array for array in arrays if array is not None]
    return torch.from_numpy(np.stack(there)) if len(there) == len(arrays) else None


def fingerprint(root: Path) -> str:
    """SHA-256 of the folder's manifest, or of all label maps where there is none: what a run learns from."""
    for name in (FILE_NAME, SAMPLES):
        if (root / name).is_file():
            return hashlib.sha256((root / name).read_bytes()).hexdigest()
    if (inferred := unwritten(root)) is not None:
        return hashlib.sha256(inferred.text().encode()).hexdigest()
    from dataloaders.labelmaps.maps import LabelMaps  # with the generator's tables, which slices do without

    digest = hashlib.sha256()
    for path in LabelMaps(root).sources:
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
