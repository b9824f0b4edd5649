"""What training on several processes costs in communication: seconds of arithmetic and of exchange in one step.

Starts its own processes on this machine (gloo on the CPU, NCCL where there are GPUs). Arithmetic is a step of one process
with its share of the batch and nothing exchanged; exchange is what the same step takes longer when the processes train
together, measured directly for the gradients.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import config as options
from benchmarks.benchmark_train import train_step
from benchmarks.measuring import seconds
from dataloaders.io import ranks
from dataloaders.io.ranks import alone, rank, world_size
from dataloaders.io.spec import Channel, DataSpec, Label
from engine import device
from engine.command import exit_code
from engine.methods.base import workflow_of
from models import build_method
from models.base import Batch, seeded_generator
from models.collectives import average_gradients


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Arithmetic and exchange in one training step on several processes."""

    processes: int = 2
    """Processes, each with one GPU where there are any."""
    preset: Literal["oasis", "small", "demo"] = "small"
    """Preset of train.py that gives the widths."""
    size: int = 128
    """Pixels per side."""
    share: int = 2
    """Images of a process in each step."""
    labels: int = 38
    """Classes."""
    steps: int = 3
    """Timed steps."""
    gpu_ids: str = "auto"
    """auto, or -1 for the CPU."""
    worker: bool = False
    """Internal: this is one of the processes."""


def random_batch(o: BenchmarkOptions, spec: DataSpec, where: torch.device) -> Batch:
    """Labels and images of noise; only their size matters."""
    stream = seeded_generator("benchmark", rank())
    label = torch.randint(0, o.labels, (o.share, o.size, o.size), generator=stream)
    image = torch.rand(o.share, 1, o.size, o.size, generator=stream) * 2 - 1
    names = ["x"] * o.share
    rng = seeded_generator("step")
    beside = torch.stack([label, label], dim=1)
    return Batch(label, image, names, names, list(range(o.share)), rng, neighbours=beside).to(where)


def measure(o: BenchmarkOptions) -> dict[str, Any]:
    """In each of the processes."""
    here = ranks.place(os.environ)
    where = device.select_device(o.gpu_ids, here.local_rank if here else 0)
    ranks.join(here, where)
    device.keep_freed_memory()
    channels, names = (Channel("MR"),), tuple(Label(i, f"label_{i}") for i in range(o.labels))
    spec = DataSpec(names, channels, (o.size, o.size))
    config = options.parse_train(["--name", "x", "--dataroot", "x", "--model", "oasis", "--preset", o.preset])
    torch.manual_seed(0)
    config = replace(config, batch_size=o.share * world_size(), precision="fp32")
    method = build_method(config, spec).to(where)
    workflow_of(config).equip(method)
    players, batch = method.players(), random_batch(o, spec, where)

    def mean(work: Callable[[int], object]) -> float:
        return sum(seconds(work, o.steps, where, warm=1)) / o.steps

    def spent(exchange: bool) -> float:
        step = train_step(method, players, config, where, exchange)
        return mean(lambda i: step(replace(batch, rng=seeded_generator("step"), fake=None), 0))

    with alone():
        compute = spent(False)
    ranks.all_gather(None)
    together = spent(True)
    parameters = [p for player in players.values() for p in player.net.parameters()]

    def gradients(_: int) -> None:
        for player in players.values():
            average_gradients(player.net.parameters())

    ranks.all_gather(None)
    exchange = mean(gradients)
    return {
        "processes": world_size(),
        "device": str(where),
        "gradient_mb": round(sum(p.nbytes for p in parameters) / 1e6, 1),
        "arithmetic_s": round(compute, 4),
        "together_s": round(together, 4),
        "gradients_s": round(exchange, 4),
        "efficiency": round(compute / together, 3),
    }


def main() -> int:
    """Exit codes: 0 fine, 2 bad options."""
    o = tyro.cli(BenchmarkOptions, description=BenchmarkOptions.__doc__)
    if o.worker:
        figures = measure(o)
        if rank() == 0:
            print(json.dumps(figures))
        return 0
    if o.processes < 2:
        raise ValueError(f"--processes {o.processes}: must be at least 2")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meeting = {**os.environ, "WORLD_SIZE": str(o.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    started = [
        subprocess.Popen(words, env={**meeting, "RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(o.processes)
    ]
    return max(abs(process.wait()) for process in started)


if __name__ == "__main__":
    sys.exit(exit_code(main))
