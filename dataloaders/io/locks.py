"""One process at a time in a folder; two that write it would mix their files."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LOCK = ".lock"


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: a process of a machine, where there is Slurm also job and how often that was requeued.

    started: the process's start in clock ticks since boot; with it a number that was given anew is told apart.
    """

    host: str
    pid: int
    started: int
    job: str = ""
    restarts: int = 0

    @classmethod
    def this(cls) -> Holder:
        """This process."""
        job, restarts = os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT", 0))
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()), job, restarts)

    def gone(self) -> bool:
        """Whether it is surely over: dead on this machine, or an earlier life of the Slurm job that this process is in.

        Of other machines nothing is known.
        """
        here = Holder.this()
        if self.job and self.job == here.job and self.restarts < here.restarts:
            return True
        return self.host == here.host and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f", Slurm job {self.job}" if self.job else "")


def _started(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # dead, or a system without /proc
        return 0
    state, *numbers = stat.rpartition(")")[2].split()
    return 0 if state == "Z" else int(numbers[18])  # a zombie is dead, and only not buried


def runs(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return _started(pid) > 0 or not Path("/proc/self").exists()


class FolderLock:
    """A held folder; `close` or the end of the process lets it go. passing: a lock file that goes with it."""

    def __init__(self, handle: Any, passing: Path | None = None) -> None:
        self._handle, self._passing = handle, passing

    def close(self) -> None:
        """Let the folder go."""
        if not self._handle.closed:
            if self._passing is not None:
                self._passing.unlink(missing_ok=True)
            self._handle.truncate(0)
            self._handle.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lock_folder(folder: Path) -> FolderLock:
    """Hold the folder for this process; ValueError naming the holder where another one does.

    The system's lock decides. Its file says who holds it: that counts where the file system has no locks, or still has
    that of a node that died (a job that Slurm requeued elsewhere).
    """
    return FolderLock(_held(folder / LOCK, folder))


def lock_place(folder: Path) -> FolderLock:
    """Hold the place of a folder that a command writes as a whole or replaces; the lock lies beside it meanwhile.

    ValueError where another process holds it, or a file lies there.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose a folder")
    path = folder.absolute().with_name(f"{LOCK}-{folder.absolute().name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = _held(path, folder)
        with suppress(FileNotFoundError):  # or another file: the one before has just let go
            if os.fstat(handle.fileno()).st_ino == path.stat().st_ino:
                return FolderLock(handle, path)
        handle.close()


def _held(path: Path, folder: Path) -> Any:
    """The open lock file of `folder`, this process in it."""
    handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as the lock is held)
    holder = _read(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        busy = False
    except BlockingIOError:
        busy = holder is None or holder.host == socket.gethostname() or not holder.gone()
    except OSError:  # a file system without locks
        busy = holder is not None and not holder.gone()
    if busy:
        handle.close()
        advice = f"; if that is not so, delete {path}" if holder and holder.host != socket.gethostname() else ""
        raise ValueError(f"{folder} is in use by {holder or 'another process'}{advice}")
    handle.truncate(0)
    handle.write(json.dumps(asdict(Holder.this())) + "\n")
    handle.flush()
    return handle


def _read(handle: Any) -> Holder | None:
    handle.seek(0)
    try:
        return Holder(**json.loads(handle.read()))
    except (ValueError, TypeError):  # empty: let go; or half-written
        return None
