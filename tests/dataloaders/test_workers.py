"""Worker processes end with the command that started them, leave Ctrl-C to it, and what kills one is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from dataloaders.batches import load
from dataloaders.io.workers import WorkerLost, in_order, shared
from tests.launch import ROOT, running, wait_for

pytestmark = pytest.mark.slow


def name_and_wait(folder: Path, number: int) -> None:
    (folder / f"{number}-{os.getpid()}").touch()
    time.sleep(1000)


def die(number: int) -> int:
    if number:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("how", ["shared", "in_order", "load"])
def test_workers_end_with_their_parent(how: str, number: signal.Signals, tmp_path: Path) -> None:
    """However it ends, and although they are at work."""
    work = {
        "shared": "list(shared(name_and_wait, jobs, 2))",
        "in_order": "in_order(name_and_wait, jobs, 2, 'wait')",
        "load": """
from dataloaders.batches import load
class Waits:
    def __getitem__(self, key):
        name_and_wait(*key)
    collate = list
next(load(Waits(), jobs, 1, 2))""",
    }
    script = f"""
from pathlib import Path
from dataloaders.io.workers import shared, in_order
from tests.dataloaders.test_workers import name_and_wait
if __name__ == "__main__":
    jobs = [(Path({str(tmp_path)!r}), n) for n in range(4)]
    {work[how].replace(chr(10), chr(10) + "    ")}
"""
    (tmp_path / "parent.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], cwd=ROOT, env=environment)
    wait_for(lambda: len(list(tmp_path.glob("[01]-*"))) == 2 or parent.poll() is not None, 60)
    assert parent.poll() is None
    workers = [int(path.name.partition("-")[2]) for path in tmp_path.glob("[01]-*")]
    assert all(running(pid) for pid in workers)
    parent.send_signal(number)
    parent.wait()
    wait_for(lambda: not any(running(pid) for pid in workers))


def test_a_killed_worker_is_told() -> None:
    with pytest.raises(WorkerLost, match="a worker process was killed"):
        in_order(die, [(0,), (1,)], 2, "die")
    with pytest.raises(WorkerLost, match="a worker process was killed"):
        list(shared(die, [(1,)], 1))


def test_a_loader_process_that_dies_with_a_lock_does_not_hang_the_end() -> None:
    """torch tells its processes by an event that they are done; one that is killed may hold the event's lock."""
    data = TensorDataset(torch.zeros(8))
    data.collate = list  # type: ignore[attr-defined]
    batches = load(data, range(8), 2, 1)
    next(batches)
    batches.gi_frame.f_locals["batches"]._workers_done_event._cond.acquire()  # type: ignore[attr-defined]
    end = threading.Thread(target=batches.close, daemon=True)  # type: ignore[attr-defined]
    end.start()
    end.join(20)
    assert not end.is_alive()
