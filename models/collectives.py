"""Tensors of several processes that train one model together: sums, means, parts; see `dataloaders/io/ranks.py`.

A rank's loss is the mean over its own images and its gradient is averaged over the ranks, so sums and counts that belong to
the whole batch come from here. Gradients are averaged after each backward pass: the players take turns, share networks and
differentiate twice, which a wrapper around one forward pass (torch's DistributedDataParallel) does not allow for. In one
process everything here is the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dataloaders.io.ranks import rank, world_size

_Part = TypeVar("_Part", bound=Any)
BUCKET_BYTES = 32 * 2**20  # gradients that travel together


def broadcast_module(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0, bit for bit."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            dense = tensor.contiguous()  # channels-last tensors are not what NCCL sends
            dist.broadcast(dense, src=0)
            tensor.copy_(dense)


def all_reduce_mean(values: Tensor) -> Tensor:
    """Mean over the ranks, the same bits on each."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the ranks."""
    if world_size() == 1:
        return
    under_way = []
    for gradients in _buckets([p.grad for p in parameters if p.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in gradients]).div_(world_size())
        under_way.append((gradients, flat, dist.all_reduce(flat, async_op=True)))
    for gradients, flat, work in under_way:
        work.wait()
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view(gradient.shape))


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(g.nbytes for g in bucket) >= BUCKET_BYTES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


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
