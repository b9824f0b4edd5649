"""Synthetic images and their labels as PyTorch data sets: made while training, never written to disk."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from dataloaders.image_generator import ImageGenerator
from dataloaders.label_maps import Source
from spec import BACKGROUND


class _Samples:
    """Samples of an `ImageGenerator` as dictionaries."""

    def __init__(self, labels_dir: Source, contiguous: bool, keywords: dict[str, Any]) -> None:
        if keywords.get("batchsize", 1) != 1:
            raise ValueError(f"batchsize {keywords['batchsize']}: the DataLoader makes the batches")
        seed = keywords.pop("seed", None)
        self.generator = ImageGenerator(labels_dir, seed=secrets.randbits(62) if seed is None else seed, **keywords)
        self.contiguous = contiguous

    @property
    def output_values(self) -> tuple[int, ...]:
        """Values of the generator's label maps, ascending, 0 first; with `contiguous` their places in this list."""
        return tuple(sorted({BACKGROUND, *self.generator.scheme.outputs}))

    def __getitem__(self, number: int) -> dict[str, Any]:
        image, label = self.generator.tensors(number)
        if self.contiguous:
            table = torch.zeros(max(self.output_values) + 1, dtype=torch.int64, device=label.device)
            table[list(self.output_values)] = torch.arange(len(self.output_values), device=label.device)
            label = table[label.long()]
        return {"image": image, "label": label.long()[None], "number": number}


class _Pairs:
    """What both data sets tell of their source."""

    source: _Samples

    @property
    def output_values(self) -> tuple[int, ...]:
        """Values of the label maps, ascending; with `contiguous`, label i stands for the i-th of them."""
        return self.source.output_values

    @property
    def generator(self) -> ImageGenerator:
        """What makes the images; `generator.sample(number)` also has affine and parameters."""
        return self.source.generator


class SyntheticPairs(_Pairs, IterableDataset[dict[str, Any]]):
    """Endless pairs, or `samples` of them an epoch: ``{"image": (C, *S), "label": (1, *S), "number": int}``.

    image: float32 in [0, 1] in RAS axes; label: int64 output values, with `contiguous` 0..N-1 (see `output_values`).
    labels_dir and the keywords: of `ImageGenerator`; give output_shape where maps differ in shape. start: first number.
    rank, world_size: of a distributed run. Over all ranks and workers every number comes once an epoch, and which
    numbers come does not depend on how many there are; where `samples` is no multiple of world_size, the first ranks
    get one sample more. `set_epoch(e)` goes on with the numbers after those of epoch e - 1, also in persistent workers;
    without it every epoch repeats the first.
    """

    def __init__(
        self,
        labels_dir: Source,
        *,
        samples: int | None = None,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        contiguous: bool = False,
        **keywords: Any,
    ) -> None:
        if samples is not None and samples < 1:
            raise ValueError(f"samples {samples}: must be at least 1, or None for endless")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank}: must be in 0..{world_size - 1}, world_size {world_size} less one")
        self.source = _Samples(labels_dir, contiguous, keywords)
        self.samples, self.start, self.rank, self.world_size = samples, start, rank, world_size
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # so that running workers see it change

    def set_epoch(self, epoch: int) -> None:
        """The next iteration yields epoch `epoch`, counted from 0; of no effect where endless."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Samples of this rank in an epoch; TypeError where endless."""
        if self.samples is None:
            raise TypeError("endless: give samples for an epoch of known length")
        return len(range(self.rank, self.samples, self.world_size))

    def numbers(self, worker: int = 0, workers: int = 1) -> Iterator[int]:
        """Sample numbers of one worker of this rank in the current epoch, in order."""
        place, step = self.rank + self.world_size * worker, self.world_size * workers
        first = self.start + (self.samples or 0) * int(self._epoch)
        while self.samples is None or place < self.samples:
            yield first + place
            place += step

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        for number in self.numbers(info.id, info.num_workers) if info else self.numbers():
            yield self.source[number]


class SyntheticDataset(_Pairs, Dataset[dict[str, Any]]):
    """The first `samples` pairs of a generator, by index, for MONAI, TorchIO and whatever wants len and indices.

    Items, `contiguous` and keywords as in `SyntheticPairs`; item k is sample start + k, the same whenever it is asked for.
    """

    def __init__(
        self, labels_dir: Source, samples: int, *, start: int = 0, contiguous: bool = False, **keywords: Any
    ) -> None:
        if samples < 1:
            raise ValueError(f"samples {samples}: must be at least 1")
        self.source = _Samples(labels_dir, contiguous, keywords)
        self.samples, self.start = samples, start

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = index + self.samples if index < 0 else index
        if not 0 <= place < self.samples:
            raise IndexError(f"sample {index} of {self.samples}")
        return self.source[self.start + place]


def one_hot(label: Tensor, classes: int) -> Tensor:
    """(1, *S) labels 0..N-1 -> (N, *S) float32, for losses that want it."""
    return (label == torch.arange(classes, device=label.device).view(-1, *[1] * (label.ndim - 1))).float()
