"""Processes on this machine: several that train together, as torchrun and srun start them, and dead ones."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from dataloaders.io import files

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(count: int, *command: object, environment: dict[str, str] | None = None) -> list[subprocess.Popen[str]]:
    """The command as `count` processes that meet on a free port."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    base = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **meeting, **(environment or {})}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=200)
        ended.append((process.returncode, out, err))
    return ended


def run_ranks(count: int, *command: object, code: int = 0) -> list[tuple[int, str, str]]:
    """Start, wait, and expect the exit code of every one."""
    ended = finish(start_ranks(count, *command))
    for found, out, err in ended:
        assert found == code, out + err
        assert "Traceback" not in err, err
    return ended


def left_by_the_dead(path: Path) -> Path:
    """Where a process of this machine that was killed while it wrote `path` has left the half; not swept up yet."""
    files._sweep.cache_clear()
    return path.with_name(
        f"{files.TEMPORARY}{files._machine()}-{2**22 + 1}-{path.name}"
    )  # no process has such a number
