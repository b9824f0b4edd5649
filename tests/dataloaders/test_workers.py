"""Worker processes end with the command that started them, leave Ctrl-C to it, and what kills one is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from multiprocessing import connection
from pathlib import Path

import pytest

from dataloaders.io.workers import WorkerLost, in_order, shared
from tests.launch import ROOT, running, wait_for

pytestmark = pytest.mark.slow

PARENT = """
import os, sys, time
from pathlib import Path

def name_and_wait(number):
    Path(f"{number}-{os.getpid()}").touch()
    time.sleep(1000)

class Waits:
    __getitem__ = staticmethod(name_and_wait)
    collate = list

if __name__ == "__main__":
    if sys.argv[1] == "shared":
        from dataloaders.io.workers import shared
        list(shared(name_and_wait, [(n,) for n in range(4)], 2))
    else:
        from dataloaders.batches import load
        next(load(Waits(), range(4), 1, 2))
"""


@pytest.mark.parametrize(
    ("how", "number"), [("shared", signal.SIGKILL), ("shared", signal.SIGTERM), ("load", signal.SIGKILL)]
)
def test_workers_end_with_their_parent(how: str, number: signal.Signals, tmp_path: Path) -> None:
    """However it ends, and although they are at work."""
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "parent.py", how], cwd=tmp_path, env=environment)
    wait_for(lambda: len(list(tmp_path.glob("[01]-*"))) == 2 or parent.poll() is not None)
    assert parent.poll() is None
    workers = [int(path.name.partition("-")[2]) for path in tmp_path.glob("[01]-*")]
    assert all(running(pid) for pid in workers)
    parent.send_signal(number)
    parent.wait()
    wait_for(lambda: not any(running(pid) for pid in workers))


def test_a_killed_worker_is_told() -> None:
    with pytest.raises(WorkerLost, match="a worker process was killed"):
        in_order(signal.raise_signal, [(0,), (signal.SIGKILL,)], 2, "die")
    with pytest.raises(WorkerLost, match="a worker process was killed"):
        list(shared(signal.raise_signal, [(signal.SIGKILL,)], 1))


def test_loader_processes_that_die_disturb_nothing_else_and_do_not_hang_the_end() -> None:
    """torch would raise an error in whatever is done meanwhile, and its farewell takes a lock that the dead may hold."""
    import torch  # not above: the workers of the other tests begin sooner without it
    from torch.utils.data import DataLoader, TensorDataset

    from dataloaders.batches import load

    list(DataLoader(torch.zeros(2), num_workers=1))  # somebody else's, for which torch watches children
    data = TensorDataset(torch.zeros(8))
    data.collate = list
    batches = load(data, range(8), 2, 1)
    next(batches)
    batches.gi_frame.f_locals["batches"]._workers_done_event._cond.acquire()
    for worker in batches.gi_frame.f_locals["workers"]:
        worker.kill()
        connection.wait([worker.sentinel])  # without fetching its exit code, which torch would look for
    end = threading.Thread(target=batches.close, daemon=True)
    end.start()
    end.join(20)
    assert not end.is_alive()
