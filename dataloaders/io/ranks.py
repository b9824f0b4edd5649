"""Several processes that train one model together, its ranks: how they meet, what they exchange, what only rank 0 does.

torchrun and srun both say who is who in environment variables; nothing else needs to be given. A batch of B images lies on
R ranks as B/R each, in order; what is summed or averaged over them is in `models/collectives.py`. In one process everything
here is the identity, and torch, which takes seconds to import, is not needed.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
MEETING = timedelta(minutes=10)  # until all processes are there; a step takes no longer either
PATIENCE = timedelta(days=2)  # of the others while the first one evaluates
LOST = ("connection closed", "connection reset", "broken pipe", "timed out", "connection refused", "nccl")

_alone = False
_dist: Any = None  # torch.distributed, once this process has joined others
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
    return 1 if _alone or _dist is None else int(_dist.get_world_size())


def rank() -> int:
    """Which of them this is, 0 first."""
    return int(_dist.get_rank()) if world_size() > 1 else 0


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
    global _dist, _control
    if here is None or _dist is not None:
        return
    import torch
    from torch import distributed

    backend = "cpu:gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend += ",cuda:nccl"
    where = f"tcp://{here.address}:{here.port}"
    try:
        distributed.init_process_group(backend, where, MEETING, here.ranks, here.rank)
        _dist = distributed
        _control = distributed.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise LostRank(
            f"rank {here.rank} of {here.ranks} could not meet the others at {here.address}:{here.port} "
            f"({str(error).splitlines()[0]})"
        ) from None


def leave() -> None:
    """Close the connections, so that those who still wait for this process notice."""
    global _dist, _control
    if _dist is not None:
        _dist.destroy_process_group()
    _dist = _control = None


def means_lost_rank(error: BaseException) -> bool:
    """Whether the error is what torch raises when another process is gone."""
    if isinstance(error, LostRank):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and world_size() > 1 and any(sign in text for sign in LOST)


def broadcast(message: T) -> T:
    """The message of rank 0, on every rank; a few plain values."""
    if world_size() == 1:
        return message
    box = [message]
    _dist.broadcast_object_list(box, src=0, group=_control)
    return box[0]


def all_gather(message: T) -> list[T]:
    """The messages of all ranks, by rank."""
    if world_size() == 1:
        return [message]
    box: list[Any] = [None] * world_size()
    _dist.all_gather_object(box, message, group=_control)
    return box


def max_over_ranks(code: int | None) -> int | None:
    """The largest code that any rank has; None where none has one. So that all stop after the same step."""
    if world_size() == 1:
        return code
    import torch

    flag = torch.tensor([-1 if code is None else code])
    _dist.all_reduce(flag, op=_dist.ReduceOp.MAX, group=_control)
    return None if flag.item() < 0 else int(flag.item())
