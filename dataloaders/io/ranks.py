"""What the arithmetic of a training must know when several processes, its ranks, share each batch.

A batch of B images lies on R ranks as B/R each, in order. A rank's loss is the mean over its own images and its gradient
is averaged over the ranks (engine/processes.py), so sums and counts that belong to the whole batch come from here.
In one process everything here is the identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_alone = False
_Part = TypeVar("_Part", bound=Any)


def world_size() -> int:
    """How many processes train together; 1 inside `alone`."""
    return dist.get_world_size() if not _alone and dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, 0 first."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def alone() -> Iterator[None]:
    """This process works for itself for a while: batches are whole and nothing is exchanged."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def summed(x: Tensor) -> Tensor:
    """Sum over the ranks, the same bits on each; differentiable, also twice. Any shape -> the same shape."""
    if world_size() == 1:
        return x
    total: Tensor = _Sum.apply(x)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Every rank's output depends on x, so the gradients of all of them add up."""
        return summed(gradient)


def mean_over_all(total: Tensor, count: Tensor | float) -> Tensor:
    """total / count where both are sums over the whole batch: own sums -> the part whose mean over the ranks is it.

    For means whose counts differ between ranks, such as weighted ones. Gradients do not flow into the count.
    """
    return total / (summed(torch.as_tensor(count, dtype=total.dtype, device=total.device).detach()) / world_size())


def own_part(whole: Tensor) -> Tensor:
    """(B, ...) known to every rank -> this rank's (B/R, ...)."""
    return whole.chunk(world_size())[rank()]


def gathered(part: Tensor) -> Tensor:
    """(B/R, ...) of every rank -> (B, ...); differentiable, also twice."""
    ranks, size = world_size(), len(part)
    if ranks == 1:
        return part
    # A sum with zeros: its derivatives are sums again, on every backend.
    before, after = rank() * size, (ranks - rank() - 1) * size
    empty = part.new_zeros
    return summed(torch.cat([empty(before, *part.shape[1:]), part, empty(after, *part.shape[1:])]))


def sums_by_key(parts: dict[str, _Part]) -> dict[str, _Part]:
    """Sum over the ranks of what has the same key, integers for an exact result; keys in the order of the ranks."""
    if world_size() == 1:
        return parts
    everyones: list[dict[str, _Part]] = [{} for _ in range(world_size())]
    dist.all_gather_object(everyones, parts)
    total: dict[str, _Part] = {}
    for own in everyones:
        for key, part in own.items():
            total[key] = total[key] + part if key in total else part
    return total
