"""Jobs shared among processes, and among the jobs of a Slurm array."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

_T = TypeVar("_T")


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of ``i/n``: part i of n that work at the same time or one after the other; ValueError for another form."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise ValueError(f"--shard {text}: must be i/n with i from 0 to n-1, such as 0/4")
    return int(match[1]), int(match[2])


def cores() -> int:
    """Cores that this process may use; all of the machine where the system does not say (macOS)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def as_ready(
    work: Callable[..., _T],
    jobs: Iterable[tuple],
    count: int,
    start: Callable[..., None] | None = None,
    start_arguments: tuple[Any, ...] = (),
) -> Iterator[_T]:
    """Results of `work` for the arguments in `jobs`, in any order, by `count` processes.

    start: what every process does first. ValueError where one is killed. After an error jobs under way are finished,
    the others left.
    """
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=start, initargs=start_arguments)
    try:
        futures = [pool.submit(work, *job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise ValueError(
            "a worker was killed, perhaps for memory; the same command with fewer --num_workers goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
