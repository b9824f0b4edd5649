"""Jobs shared among processes, and among the jobs of a Slurm array."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process, resource_tracker
from typing import Any, TypeVar

from dataloaders.io.console import tracked

_T = TypeVar("_T")


class WorkerLost(RuntimeError):  # noqa: N818 (reads as what it is in `except WorkerLost`)
    """A worker process was killed or hangs; the message says what that usually means."""


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of a `Shard` ``i/n``: part i of n that work at the same time or one after the other."""
    first, step = text.split("/")
    return int(first), int(step)


def cores() -> int:
    """Cores that this process may use; all of the machine where the system does not say (macOS)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def shared(
    work: Callable[..., _T],
    jobs: Iterable[tuple],
    count: int,
    begin: Callable[..., tuple] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[_T]:
    """Results of `work` for the arguments in `jobs`, in their order, by `count` processes; 0 is this one.

    arguments: the first ones of all work; with `begin`, which every process does first, it makes those of them.
    """
    if count == 0:
        first = begin(*arguments) if begin is not None else arguments
        yield from (work(*first, *job) for job in jobs)
        return
    with _pool(count, begin, arguments) as pool:
        with held(_KEYBOARD):
            futures = [pool.submit(_work, work, job) for job in jobs]
        for future in futures:
            yield future.result()


def in_order(work: Callable[..., _T], jobs: Sequence[tuple], count: int, what: str) -> list[_T]:
    """As `shared`, with progress of the work named `what`; one process alone is this one, whose errors read easier."""
    count = min(count, len(jobs))
    return list(tracked(shared(work, jobs, count if count > 1 else 0), what, len(jobs)))


@contextmanager
def _pool(count: int, begin: Callable[..., tuple] | None, arguments: tuple[Any, ...]) -> Iterator[ProcessPoolExecutor]:
    """Processes that leave Ctrl-C to this one and end with it; jobs are given to them while `held`.

    WorkerLost where one is killed. After an error jobs under way are finished, the others left.
    """
    resource_tracker.ensure_running()  # whose start would let go what is held
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin, initargs=(begin, arguments))
    try:
        yield pool
    except BrokenProcessPool:
        raise WorkerLost(
            "a worker process was killed, perhaps for memory; the same command with fewer of them goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_KEYBOARD = (signal.SIGINT,)


_begun: tuple = ()  # in a worker: what its work begins with


def _begin(begin: Callable[..., tuple] | None, arguments: tuple[Any, ...]) -> None:
    global _begun
    leave_to_parent(_KEYBOARD)
    _begun = begin(*arguments) if begin is not None else arguments


def _work(work: Callable[..., _T], job: tuple) -> _T:
    return work(*_begun, *job)


@contextmanager
def held(signals: Collection[signal.Signals]) -> Iterator[None]:
    """Signals that come meanwhile wait until the end; processes started meanwhile let go with `leave_to_parent`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent(signals: Collection[signal.Signals]) -> None:
    """In a worker: ignore these signals, which the parent acts on, and end when the parent does, however that ends."""
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
