"""What benchmarks measure with: seconds of a call, figures of a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def seconds(work: Callable[[int], object], runs: int, device: torch.device, warm: int = 2) -> list[float]:
    """Of `runs` calls, each given its number, after `warm` that are not timed; a GPU is waited for."""
    times = []
    for run in range(warm + runs):
        start = time.perf_counter()
        work(run)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return times[warm:]


def in_process(file: str, *words: object) -> Any:
    """What a process of its own with these arguments prints last, which is JSON. ValueError where it fails."""
    done = subprocess.run([sys.executable, file, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ValueError(f"{' '.join(map(str, words))}: exit code {done.returncode}: {reason}")
    return json.loads(done.stdout.splitlines()[-1])
