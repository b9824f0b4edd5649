"""What every method shares: batches, randomness, players and their optimiser, the interface.

Legend: B batch, C image channels, H W pixels, N labels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from config import Config
from dataloaders.io.ranks import world_size
from dataloaders.io.spec import DataSpec
from models.collectives import own_part


def seeded_generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by a stable hash of `key`, e.g. (seed, case id, slice, draw).

    Python's own hash is salted per process and arithmetic on seeds collides; SHA-256 does neither.
    """
    digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """One draw from U(low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """One draw from {low, ..., high}, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


@dataclass
class SampleRandom:
    """The two random streams of one sample: `case` repeats for all slices of a case, `slice` is the slice's own.

    Style noise drawn from `case` keeps stacked slices alike; grain drawn from `slice` must differ between them.
    labels: style streams of single labels, which are resampled while all others keep theirs.
    beside: copies of the slice streams of the slice before and the one after, for grain that goes on across slices.
    """

    case: torch.Generator
    slice: torch.Generator
    labels: dict[int, torch.Generator] = field(default_factory=dict)
    beside: tuple[torch.Generator, ...] = ()

    @classmethod
    def of(cls, seed: int, case_id: str, index: int, draw: int = 0) -> SampleRandom:
        """Streams of one slice, the same for any batch size, worker count or order."""
        before, own, after = (seeded_generator(seed, case_id, i, draw) for i in (index - 1, index, index + 1))
        return cls(seeded_generator(seed, case_id, "case", draw), own, beside=(before, after))


@dataclass
class Batch:
    """Slices on their way to a model.

    label: (B, H, W) int64 in 0..N-1. image: (B, C, H, W) float32 in [-1, 1], None where there is no ground truth.
    neighbours: (B, 2k, H, W) int64, label maps of the k slices before and the k after, in slice order (2.5-D); None for
    k = 0. position: (B,) float32 in [-1, 1], where in its case the slice lies: -1 the first, 1 the last.
    cases, patients, indices: one entry per sample. rng: stream of the training step (None outside training).
    source: (B, C, H, W), the image with its lesions filled; level: (B, H, W), how bright lesions are, None for that of the
    image; grey: (B, 2), mean and deviation of grey matter in the level's channel (lesion generator; None for others).
    fake: what one player leaves to the next, the images generated in this step. measures: numbers to log that are no
    losses, by name.
    part: (i, n) where this is the i-th of n parts of the step's batch; whole_label: (n·B, H, W), that of all of them.
    """

    label: Tensor
    image: Tensor | None
    cases: list[str]
    patients: list[str]
    indices: list[int]
    rng: torch.Generator | None = None
    neighbours: Tensor | None = None
    position: Tensor | None = None
    source: Tensor | None = None
    level: Tensor | None = None
    grey: Tensor | None = None
    fake: Tensor | None = None
    measures: dict[str, Tensor] = field(default_factory=dict)
    part: tuple[int, int] = (0, 1)
    whole_label: Tensor | None = None

    def parts(self, count: int) -> list[Batch]:
        """The batch in so many equal parts, in order, which share its stream. ValueError where it cannot be divided."""
        if count == 1:
            return [self]
        if len(self) % count:
            raise ValueError(f"--accumulate {count}: does not divide {len(self)} images; choose another --batch_size")

        size = len(self) // count
        whole: dict[str, Any] = {name: value for name, value in vars(self).items() if isinstance(value, (Tensor, list))}

        def part(i: int) -> Batch:
            own = {name: value[i * size : (i + 1) * size] for name, value in whole.items()}
            return replace(self, **own, whole_label=self.label, part=(i, count), measures={})

        return [part(i) for i in range(count)]

    def own_draws(self, draw: Callable[[int], Tensor]) -> Tensor:
        """Of what `draw` gives for so many images, this batch's (B, ...).

        It is asked for all images of the step, on all ranks and in all parts, so an image's share depends on neither.
        """
        number, count = self.part
        whole = draw(len(self) * count * world_size())
        return own_part(whole).chunk(count)[number]

    @property
    def real(self) -> Tensor:
        """The image, where there must be one."""
        assert self.image is not None
        return self.image

    def __len__(self) -> int:
        return len(self.label)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from where it moves to a GPU while the CPU goes on; for DataLoader."""
        return self._with(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def _with(self, move: Callable[[Tensor], Tensor]) -> Batch:
        moved: dict[str, Any] = {name: move(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


@dataclass
class Player:
    """One network in the game: the only parameters its optimiser moves, and the losses that move them.

    losses: batch -> named scalars, already weighted; they are summed for the step and logged by name.
    every: plays in every n-th step (lazy regularisers).
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Callable[[Batch], dict[str, Tensor]]
    every: int = 1


def adam(net: nn.Module, lr: float, config: Config, lazy: int = 0) -> torch.optim.Adam:
    """A player's Adam with the run's betas, in its fused form where `tuned`.

    lazy: a penalty joins every so many steps as a step of its own. Rate and memory are then scaled by
    c = lazy / (lazy + 1), so that a period of lazy + 1 steps moves as far as one of `lazy` without the extra step
    (StyleGAN2; Karras et al., CVPR 2020, appendix B). 0 for none.
    """
    c = lazy / (lazy + 1) if lazy else 1.0
    betas = (config.beta1**c, config.beta2**c)
    return torch.optim.Adam(net.parameters(), lr=lr * c, betas=betas, fused=config.tuned)


def lr_factor(config: Config, share: float) -> float:
    """Factor of the learning rates after `share` (0 to 1) of the run: 1 up to lr_decay_from, then falling to 0 at its end.

    It depends on nothing else, so a resumed run has it exactly, and one whose --num_epochs was changed follows its new
    length from there on.
    """
    if config.lr_decay == "none" or share <= config.lr_decay_from:
        return 1.0
    fallen = min(1.0, (share - config.lr_decay_from) / (1 - config.lr_decay_from))
    return 1 - fallen if config.lr_decay == "linear" else 0.5 * (1 + math.cos(math.pi * fallen))


@contextmanager
def scaled_rates(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """Within, the optimiser steps with its rates times `factor`; what it keeps, saves and lowers itself stays as it was."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


class Method(nn.Module):
    """Base of all methods: can be trained (players) or fitted, saved, and asked for images.

    `state_dict()` is everything a resumed run needs; `release()` only what `synthesize` needs.
    """

    spec: DataSpec

    def players(self) -> dict[str, Player]:
        """Networks that train.py moves; none for methods that are fitted."""
        return {}

    def fit(self, batches: Iterable[Batch]) -> None:
        """One pass over the training slices, for methods without players."""
        raise NotImplementedError

    def calibrate(self, batches: Iterable[Batch]) -> str:
        """Look at some training batches before the first step of a new run; what is to be warned of, '' for nothing."""
        return ""

    def current(self, batch: Batch) -> Tensor | None:
        """Images by the weights in training rather than their average, for previews; None where there is no such thing."""
        return None

    def after_step(self, step: int) -> None:
        """Called once after all players moved (moving averages); step: how many steps there were before this one."""

    @property
    def taught_by_pairs(self) -> bool:
        """Whether losses against the real image teach the generator also where a discriminator always wins."""
        return False

    def after_evaluation(self, stale: int) -> None:
        """Called after each evaluation (learning rate); stale: evaluations since the best one."""

    def before_synthesis(self, batches: Iterable[Batch]) -> None:
        """Make the synthesizing weights ready, given some training batches (recalibrates batch statistics)."""

    @property
    def resamples(self) -> bool:
        """Whether single labels can be drawn anew (`SampleRandom.labels`)."""
        return False

    def release(self) -> dict[str, Tensor]:
        """Tensors that `synthesize` needs, for a weight file."""
        raise NotImplementedError

    def load_release(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `release`."""
        raise NotImplementedError

    def start_from(self, tensors: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
        """Begin with what another run's weight file holds, and of its `state_dict()` (or nothing) the other networks.

        Returns the names of those. RuntimeError where the tensors are of another shape.
        """
        self.load_release(tensors)
        return []

    def realness(self, batch: Batch) -> Tensor | None:
        """(B,) how real a discriminator takes the batch's real images with their labels for; None where there is none."""
        return None

    def synthesize(self, batch: Batch, randoms: list[SampleRandom]) -> Tensor:
        """Labels (B, H, W) -> images (B, C, H, W) float32 in [-1, 1]; sample i depends on label i and randoms[i] only."""
        raise NotImplementedError

    def networks(self) -> dict[str, Any]:
        """Networks to describe in the log, by name."""
        found: dict[str, nn.Module] = {}
        for name, player in self.players().items():
            if all(player.net is not net for net in found.values()):  # a penalty plays with another player's network
                found[name] = player.net
        return found
