"""Several processes that train one model together: who they are, how they meet, and what only the first one does.

torchrun and srun both say it in environment variables; nothing else needs to be given. Gradients are averaged over the
ranks after each backward pass: the players take turns, share networks and differentiate twice, which a wrapper around
one forward pass (torch's DistributedDataParallel) does not allow for.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dataloaders.io.ranks import alone, rank, world_size
from engine.device import select_device

T = TypeVar("T")
MEETING = timedelta(minutes=10)  # until all processes are there; a step takes no longer either
PATIENCE = timedelta(days=2)  # of the others while the first one evaluates
BUCKET_BYTES = 32 * 2**20  # gradients that travel together
LOST = ("connection closed", "connection reset", "broken pipe", "timed out", "connection refused", "nccl")

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


def join(gpu_ids: str) -> torch.device:
    """Meet the other processes, if any, and return this one's device. LostRank where they do not come."""
    global _control
    here = place(os.environ)
    device = select_device(gpu_ids, here.local_rank if here else 0)
    if here is None or dist.is_initialized():
        return device
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
    return device


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


def on_first(work: Callable[[], T]) -> T | None:
    """Let rank 0 alone do something while the others wait; its result there, None on the others.

    What it raises ends all ranks: there as it is, on the others as SystemExit with the same exit code and no message.
    """
    from engine.command import code_of  # here, because every command's end closes the connections made here

    if world_size() == 1:
        return work()
    if rank() > 0:
        code = told(None)
        if code is not None:
            raise SystemExit(code)
        return None
    try:
        with alone():
            result = work()
    except BaseException as error:
        told(code_of(error))
        raise
    told(None)
    return result


def told(message: T) -> T:
    """What rank 0 says, on every rank; a few plain values."""
    if world_size() == 1:
        return message
    box = [message]
    dist.broadcast_object_list(box, src=0, group=_control)
    return box[0]


def said_by_all(message: T) -> list[T]:
    """What every rank says, by rank."""
    if world_size() == 1:
        return [message]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, message, group=_control)
    return box


def agreed(code: int | None) -> int | None:
    """The largest code that any rank has; None where none has one. So that all stop after the same step."""
    if world_size() == 1:
        return code
    flag = torch.tensor([-1 if code is None else code])
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=_control)
    return None if flag.item() < 0 else int(flag.item())


# -- tensors ----------------------------------------------------------------------------------------------------------


def share(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0, bit for bit."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            dense = tensor.contiguous()  # channels-last tensors are not what NCCL sends
            dist.broadcast(dense, src=0)
            tensor.copy_(dense)


def average(values: Tensor) -> Tensor:
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
