"""Synthetic images and their labels as PyTorch data sets: made while training, never written to disk."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from dataloaders.io.spec import BACKGROUND
from dataloaders.labelmaps.image_generator import ImageGenerator
from dataloaders.labelmaps.maps import Source

PASSES = 2**16  # that are told apart after one set_epoch
ENDLESS = 2**40  # numbers from one pass of an endless data set to the next


class _Pairs:
    """What both data sets have: samples of an `ImageGenerator`, as dictionaries.

    generator: makes the images; `generator.sample(number)` also has affine and parameters.
    """

    def __init__(self, labels_dir: Source, contiguous: bool, keywords: dict[str, Any]) -> None:
        if keywords.get("batchsize", 1) != 1:
            raise ValueError(f"batchsize {keywords['batchsize']}: the DataLoader makes the batches")
        self.generator = ImageGenerator(labels_dir, **keywords)
        self.contiguous = contiguous

    @property
    def output_values(self) -> tuple[int, ...]:
        """Values of the label maps, ascending, 0 first; with `contiguous`, label i stands for the i-th of them."""
        return tuple(sorted({BACKGROUND, *self.generator.scheme.outputs}))

    def pair(self, number: int) -> dict[str, Any]:
        """Sample `number` of the generator's sequence."""
        image, label = self.generator.tensors(number)
        if self.contiguous:
            table = torch.zeros(max(self.output_values) + 1, dtype=torch.int64, device=label.device)
            table[list(self.output_values)] = torch.arange(len(self.output_values), device=label.device)
            label = table[label.long()]
        return {"image": image, "label": label.long()[None], "number": number}


class SyntheticPairs(_Pairs, IterableDataset[dict[str, Any]]):
    """Endless pairs, or `samples` of them an epoch: ``{"image": (C, *S), "label": (1, *S), "number": int}``.

    image: float32 in [0, 1] in RAS axes; label: int64 output values, with `contiguous` 0..N-1 (see `output_values`).
    labels_dir and the keywords: of `ImageGenerator`; give output_shape where maps differ in shape. start: first number.
    rank, world_size: of a distributed run. Over all ranks and workers every number comes once an epoch, and which
    numbers come does not depend on how many there are; where `samples` is no multiple of world_size, the first ranks
    get one sample more. Every pass is a new epoch, whose numbers come after those of the one before (endless: 2^40 later),
    also in persistent workers: pass e of a seed is always the same. `set_epoch(e)` names the epoch of the next pass, to
    resume for example. repeat: every pass is the epoch that was set, to validate for example.
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
        repeat: bool = False,
        **keywords: Any,
    ) -> None:
        if samples is not None and samples < 1:
            raise ValueError(f"samples {samples}: must be at least 1, or None for endless")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank}: must be in 0..{world_size - 1}, world_size {world_size} less one")
        _Pairs.__init__(self, labels_dir, contiguous, keywords)
        self.samples, self.start, self.rank, self.world_size = samples, start, rank, world_size
        self.repeat = repeat
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # so that running workers see it change
        # Keys of the passes since set_epoch, in their order. The workers of a pass write the same key to the same place.
        self._passes = torch.zeros(PASSES, dtype=torch.int64).share_memory_()
        self._begun = 0  # passes in this process

    def set_epoch(self, epoch: int) -> None:
        """The next pass yields epoch `epoch`, counted from 0, those after it the following ones."""
        self._passes.zero_()
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Samples of this rank in an epoch; TypeError where endless."""
        if self.samples is None:
            raise TypeError("endless: give samples for an epoch of known length")
        return len(range(self.rank, self.samples, self.world_size))

    def numbers(self, worker: int = 0, workers: int = 1, epoch: int | None = None) -> Iterator[int]:
        """Sample numbers of one worker of this rank in an epoch (that of `set_epoch` unless told), in order."""
        place, step = self.rank + self.world_size * worker, self.world_size * workers
        first = self.start + (self.samples or ENDLESS) * (int(self._epoch) if epoch is None else epoch)
        while self.samples is None or place < self.samples:
            yield first + place
            place += step

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        self._begun += 1
        # All workers of a DataLoader's pass have its seed; persistent ones keep it from pass to pass.
        key = secrets.randbits(62) if info is None else info.seed - info.id + self._begun
        epoch = int(self._epoch) + (0 if self.repeat else self._place(key or 1))
        numbers = self.numbers(info.id, info.num_workers, epoch) if info else self.numbers(epoch=epoch)
        return (self.pair(number) for number in numbers)

    def _place(self, key: int) -> int:
        """Which pass since set_epoch has this key: the one that claimed it, else the next."""
        passes = self._passes.clone()  # read once: another worker of this pass may claim the place between two looks
        found = ((passes == key) | (passes == 0)).nonzero()
        if len(found) == 0:
            return PASSES + key % PASSES
        place = int(found[0])
        self._passes[place] = key
        return place


class SyntheticDataset(_Pairs, Dataset[dict[str, Any]]):
    """`samples` pairs of a generator by index, for MONAI, TorchIO and whatever wants len and indices.

    Items, `contiguous` and keywords as in `SyntheticPairs`. As with random transforms, an item is new each time it is asked
    for: item k of epoch e, its e-th time, is sample start + k + e · samples, whatever the order and the workers.
    `set_epoch(e)` names the epoch of all items. repeat: items stay those of the epoch that was set, to validate for example.
    """

    def __init__(
        self,
        labels_dir: Source,
        samples: int,
        *,
        start: int = 0,
        contiguous: bool = False,
        repeat: bool = False,
        **keywords: Any,
    ) -> None:
        if samples < 1:
            raise ValueError(f"samples {samples}: must be at least 1")
        _Pairs.__init__(self, labels_dir, contiguous, keywords)
        self.samples, self.start, self.repeat = samples, start, repeat
        self._epochs = torch.zeros(samples, dtype=torch.int32).share_memory_()  # of each item, the next one

    def __len__(self) -> int:
        return self.samples

    def set_epoch(self, epoch: int) -> None:
        """Every item is next that of epoch `epoch`, counted from 0; also in running workers."""
        self._epochs.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = index + self.samples if index < 0 else index
        if not 0 <= place < self.samples:
            raise IndexError(f"sample {index} of {self.samples}")
        epoch = int(self._epochs[place])
        if not self.repeat:
            self._epochs[place] += 1
        return self.pair(self.start + place + epoch * self.samples)


def one_hot(label: Tensor, classes: int) -> Tensor:
    """(1, *S) labels 0..N-1 -> (N, *S) float32, for losses that want it."""
    return (label == torch.arange(classes, device=label.device).view(-1, *[1] * (label.ndim - 1))).float()
