"""Prepared slices as tensors: dataset, resumable order, batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from dataloaders.intensity import levels_to_model
from dataloaders.manifest import FILE_NAME, Case, Manifest, Slice
from dataloaders.png import as_16_bit, read_png
from models.base import Batch, seeded_generator
from spec import DataSpec


@dataclass(frozen=True)
class Sample:
    """One slice as arrays: label (H, W) int64; image (C, H, W) float32 in [-1, 1] or None."""

    label: NDArray[np.int64]
    image: NDArray[np.float32] | None
    case: Case
    slice: Slice


class SliceDataset(Dataset[Sample]):
    """The slices of one split, in case and slice order.

    Items are read by `[i]`, unchanged, or by `[(i, position)]` for training, where `position` (the running number of
    images seen) decides about mirroring, so that augmentation needs no random state and resumes exactly.
    """

    def __init__(
        self, root: Path, manifest: Manifest, split: str, flip: bool = False, seed: int = 0, cache_gb: float = 0.0
    ) -> None:
        self.root, self.spec, self.seed = root, manifest.spec, seed
        self.entries = [(case, item) for case in manifest.split(split) for item in case.slices]
        if not self.entries:
            raise ValueError(f"{root}: the split {split!r} has no slices")
        self.flip_ids = flip_table(self.spec) if flip else None
        self.cache: dict[int, tuple[NDArray, NDArray | None]] | None = None
        if len(self.entries) * self._slice_bytes() <= cache_gb * 2**30:
            self.cache = {}

    def _slice_bytes(self) -> int:
        return self.spec.size[0] * self.spec.size[1] * 2 * (self.spec.num_channels + 1)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        index, position = key if isinstance(key, tuple) else (key, None)
        case, item = self.entries[index]
        label, levels = self._read(index)
        image = None if levels is None else levels_to_model(levels)
        sample = Sample(label.astype(np.int64), image, case, item)
        if position is not None and self.flip_ids is not None and self._toss(position):
            sample = mirrored(sample, self.flip_ids)
        return sample

    def _toss(self, position: int) -> bool:
        return bool(torch.randint(0, 2, (), generator=seeded_generator(self.seed, "flip", position)))

    def _read(self, index: int) -> tuple[NDArray, NDArray | None]:
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        _, item = self.entries[index]
        label = read_png(self.root / item.label)
        images = [as_16_bit(read_png(self.root / path)) for path in item.images]
        self._check(item, label, images)
        result = (label, np.stack(images) if images else None)
        if self.cache is not None:
            self.cache[index] = result
        return result

    def _check(self, item: Slice, label: NDArray, images: Sequence[NDArray]) -> None:
        size = tuple(self.spec.size)
        for path, array in zip([item.label, *item.images], [label, *images], strict=True):
            if array.shape != size:
                raise ValueError(f"{self.root / path}: is {array.shape}, the manifest says {size}")
        if label.max() >= self.spec.num_labels:
            raise ValueError(
                f"{self.root / item.label}: label id {label.max()}, allowed are 0..{self.spec.num_labels - 1}"
            )


def mirrored(sample: Sample, flip_ids: NDArray[np.int64]) -> Sample:
    """The sample mirrored along its columns, left and right labels exchanged."""
    image = None if sample.image is None else np.ascontiguousarray(sample.image[..., ::-1])
    return Sample(flip_ids[np.ascontiguousarray(sample.label[:, ::-1])], image, sample.case, sample.slice)


def flip_table(spec: DataSpec) -> NDArray[np.int64] | None:
    """Label ids after a left-right mirror: ``left`` and ``right`` in names change places. (N,) int64.

    None where columns are not left-right (sagittal slices): mirroring would turn patients face down.
    """
    if spec.axis == "sagittal":
        return None
    ids = {label.name.lower(): label.id for label in spec.labels}
    return np.array([ids.get(_other_side(label.name.lower()), label.id) for label in spec.labels], np.int64)


def _other_side(name: str) -> str:
    return name.replace("left", "\0").replace("right", "left").replace("\0", "right")


class EndlessSampler(Sampler[tuple[int, int]]):
    """(index, position) from position `start` on, for ever: every epoch a new permutation from (seed, epoch)."""

    def __init__(self, length: int, seed: int, start: int = 0) -> None:
        self.length, self.seed, self.start = length, seed, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position, epoch, order = self.start, -1, []
        while True:
            if position // self.length != epoch:
                epoch = position // self.length
                order = torch.randperm(self.length, generator=seeded_generator(self.seed, "order", epoch)).tolist()
            yield order[position % self.length], position
            position += 1


class SliceLoader:
    """Batches of a SliceDataset: endless and shuffled from any position, or once in order."""

    def __init__(self, dataset: SliceDataset, batch_size: int, seed: int = 0, num_workers: int = 0) -> None:
        self.dataset, self.batch_size, self.seed, self.num_workers = dataset, batch_size, seed, num_workers

    def __len__(self) -> int:
        return len(self.dataset)

    def endless(self, start: int = 0) -> Iterator[Batch]:
        """Training batches from image number `start` on; batch k carries the random stream of its first image."""
        sampler = EndlessSampler(len(self.dataset), self.seed, start)
        position = start
        for batch in self._loader(sampler):
            batch.rng = seeded_generator(self.seed, "step", position)
            position += len(batch)
            yield batch

    def once(self, limit: int = 0) -> Iterator[Batch]:
        """All slices in case order, unchanged; with `limit` that many, evenly spaced."""
        total = len(self.dataset)
        chosen = (
            range(total) if not 0 < limit < total else np.linspace(0, total - 1, limit).round().astype(int).tolist()
        )
        yield from self._loader(list(chosen))

    def _loader(self, sampler: Sampler | list[int]) -> DataLoader:
        # Workers are started per loader; a method of the spawn kind would pickle the cache, so fork stays the default.
        return DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples -> Batch; images are None when any sample has none."""
    images = [sample.image for sample in samples]
    return Batch(
        label=torch.from_numpy(np.stack([sample.label for sample in samples])),
        image=None if any(image is None for image in images) else torch.from_numpy(np.stack(images)),  # type: ignore[arg-type]
        cases=[sample.case.id for sample in samples],
        patients=[sample.case.patient for sample in samples],
        indices=[sample.slice.index for sample in samples],
    )


def fingerprint(root: Path) -> str:
    """SHA-256 of the folder's manifest: the identity of the data a run has learned from."""
    return hashlib.sha256((root / FILE_NAME).read_bytes()).hexdigest()
