"""Several processes that train one model together, its ranks: how they meet, what they exchange, what only rank 0 does.

torchrun and srun both say who is who in environment variables; nothing else needs to be given. A batch of B images lies on
R ranks as B/R each, in order. A rank's loss is the mean over its own images and its gradient is averaged over the ranks,
so sums and counts that belong to the whole batch come from here. Gradients are averaged after each backward pass: the
players take turns, share networks and differentiate twice, which a wrapper around one forward pass (torch's
DistributedDataParallel) does not allow for. In one process everything here is the identity.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
_Part = TypeVar("_Part", bound=Any)
MEETING = timedelta(minutes=10)  # until all processes are there; a step takes no longer either
PATIENCE = timedelta(days=2)  # of the others while the first one evaluates
BUCKET_BYTES = 32 * 2**20  # gradients that travel together
LOST = ("connection closed", "connection reset", "broken pipe", "timed out", "connection refused", "nccl")

_alone = False
_control: Any = None  # a group over TCP for flags and messages, which must neither touch the GPU nor its time limits


class LostRank(RuntimeError):  # noqa: N818 (reads as what it is in `except LostRank`)
    """Another process of this training ended or cannot be reached."""


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that train together, and where they meet."""

    rank: int
    ranks: int
    local_rank: int
    address: str
    port: int


def place(environment: Mapping[str, str]) -> Place | None:
    """The place that torchrun or srun has written into the environment; None for a process on its own."""
    if int(environment.get("WORLD_SIZE", 1)) > 1 and "RANK" in environment:
        rank, ranks = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        return Place(rank, ranks, int(environment.get("LOCAL_RANK", 0)), address, port)
    # Of a step of srun. SLURM_NTASKS alone is also there in a batch script, whose process is on its own.
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        job = int(environment["SLURM_JOB_ID"])
        address = environment.get("MASTER_ADDR") or _first_node(environment)
        port = int(environment.get("MASTER_PORT") or 20000 + job % 20000)
        ranks = int(environment["SLURM_STEP_NUM_TASKS"])
        return Place(int(environment["SLURM_PROCID"]), ranks, int(environment["SLURM_LOCALID"]), address, port)
    return None


def _first_node(environment: Mapping[str, str]) -> str:
    """The node of rank 0, by a name or address that this machine can reach."""
    name = first_of_nodelist(environment["SLURM_STEP_NODELIST"])
    try:
        socket.getaddrinfo(name, None)
    except OSError:  # Slurm's names need not be the network's; srun was started on the first node
        return environment.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    return name


def first_of_nodelist(nodes: str) -> str:
    """First name of Slurm's short form: ``gpu[07-09,12],cpu1`` -> ``gpu07``. (`scontrol` may be absent in a container.)"""
    found = re.match(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\])?([^\[,]*)", nodes)
    assert found is not None
    return "".join(part or "" for part in found.groups())


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


def join(here: Place | None, device: torch.device) -> None:
    """Meet the other processes, if any. LostRank where they do not come."""
    global _control
    if here is None or dist.is_initialized():
        return
    backend = "cpu:gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend += ",cuda:nccl"
    where = f"tcp://{here.address}:{here.port}"
    try:
        dist.init_process_group(backend, where, MEETING, here.ranks, here.rank)
        _control = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise LostRank(
            f"rank {here.rank} of {here.ranks} could not meet the others at {here.address}:{here.port} "
            f"({str(error).splitlines()[0]})"
        ) from None


def leave() -> None:
    """Close the connections, so that those who still wait for this process notice."""
    global _control
    _control = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def means_lost_rank(error: BaseException) -> bool:
    """Whether the error is what torch raises when another process is gone."""
    if isinstance(error, LostRank):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and world_size() > 1 and any(sign in text for sign in LOST)


# -- messages ---------------------------------------------------------------------------------------------------------


def broadcast(message: T) -> T:
    """The message of rank 0, on every rank; a few plain values."""
    if world_size() == 1:
        return message
    box = [message]
    dist.broadcast_object_list(box, src=0, group=_control)
    return box[0]


def all_gather(message: T) -> list[T]:
    """The messages of all ranks, by rank."""
    if world_size() == 1:
        return [message]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, message, group=_control)
    return box


def max_over_ranks(code: int | None) -> int | None:
    """The largest code that any rank has; None where none has one. So that all stop after the same step."""
    if world_size() == 1:
        return code
    flag = torch.tensor([-1 if code is None else code])
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=_control)
    return None if flag.item() < 0 else int(flag.item())


# -- tensors ----------------------------------------------------------------------------------------------------------


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
