"""Batches by torch's DataLoader, whose processes can fail, hang and be signalled without costing a training."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import Event, active_children, connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from dataloaders.io.workers import WorkerLost, held, leave_to_parent
from models.base import Batch

POLL = 5.0  # seconds between looks at processes that deliver nothing
PATIENCE = 600.0  # seconds until they count as hung
SIGNALS = [getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "XCPU")]


def load(dataset: Any, keys: Iterable[Any], batch_size: int, count: int) -> Iterator[Batch]:
    """Batches (`dataset.collate`) of the items `keys`, read by `count` processes, or by this one where that is 0.

    What stops a training is the training's alone to answer: the processes ignore it, and end when this one does.
    ValueError for damaged data, WorkerLost for a process that died or delivers nothing for `PATIENCE` seconds.
    """
    # Workers are started per loader; a method of the spawn kind would pickle the cache, so fork stays the default.
    loader = DataLoader(
        _Reporting(dataset),
        batch_size=batch_size,
        sampler=keys,
        num_workers=count,
        collate_fn=partial(_collate_or_fault, dataset.collate),
        worker_init_fn=_start,
        timeout=POLL if count else 0,
        pin_memory=torch.cuda.is_available(),
    )
    before = set(active_children())
    with held(SIGNALS if count else ()):
        batches: Any = iter(loader)
    if count:
        # Whatever the training does just then would fail by torch's handler where a process dies; `_next` asks after them.
        signal_handling._remove_worker_pids(id(batches))
        batches._worker_pids_set = False
    workers = set(active_children()) - before if count else set()
    try:
        while (batch := _next(batches, workers)) is not None:
            if isinstance(batch, _Fault):
                raise ValueError(batch.message)
            yield batch
    finally:
        for worker in workers:  # first, because torch waits for each, and one may hang
            worker.kill()
        if workers:
            # A process that was killed may have held the lock of torch's event for its farewell, which would wait for ever.
            batches._workers_done_event = Event()
        del batches


def _start(worker: int) -> None:
    del worker
    leave_to_parent(SIGNALS)


def _next(batches: Iterator[Any], workers: set[BaseProcess]) -> Any:
    waited = 0.0
    while True:
        try:
            return next(batches, None)
        except (RuntimeError, OSError, EOFError) as error:
            late = isinstance(error, RuntimeError) and "timed out" in str(error)
            if workers and not late:  # it may die a moment after what it held was lost
                connection.wait([worker.sentinel for worker in workers], timeout=1)
            if dead := [worker.exitcode for worker in workers if worker.exitcode is not None]:
                raise WorkerLost(_cause(dead[0])) from None
            if not late:
                raise
            waited += POLL
            if waited >= PATIENCE:
                raise WorkerLost(
                    f"the loader processes delivered nothing for {waited:g} seconds: they hang, most often on a disk that "
                    "does not answer; the same command resumes, with --num_workers 0 without them"
                ) from None


def _cause(code: int) -> str:
    """Why a process that ended with this exit code did so."""
    if code == -signal.SIGKILL:
        why = "was killed (SIGKILL), as a system short of memory does; lower --num_workers or --cache_gb, or get more memory"
    elif code == -signal.SIGBUS:
        why = "found no shared memory (SIGBUS); a larger /dev/shm or --num_workers 0 mends that"
    elif code < 0:
        why = f"was ended by {signal.Signals(-code).name}"
    else:
        why = f"ended with exit code {code}"
    return f"a loader process {why}; the same command resumes"


@dataclass(frozen=True)
class _Fault:
    """An error on its way out of a loader process, which would wrap it in a traceback."""

    message: str


class _Reporting(Dataset[Any]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except (ValueError, OSError) as error:
            return _Fault(str(error))


def _collate_or_fault(collate: Callable[[Sequence[Any]], Batch], samples: Sequence[Any]) -> Batch | _Fault:
    return next((sample for sample in samples if isinstance(sample, _Fault)), None) or collate(samples)
