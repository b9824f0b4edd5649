"""Folders and files that are whole or absent, whoever writes at the same time and whatever was killed before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dataloaders.io import files, locks
from dataloaders.io.files import atomic_path, whole_folder, write_text
from dataloaders.io.locks import lock_place
from tests.launch import ROOT

HALF = """
import os, signal, sys
from pathlib import Path
from dataloaders.io.files import atomic_path, whole_folder
with whole_folder(Path("out")) as staging, atomic_path("file.txt") as temporary:
    (staging / "half").touch()
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a command was killed while it wrote."""
    monkeypatch.chdir(tmp_path)
    files._sweep.cache_clear()
    done = subprocess.run([sys.executable, "-c", HALF], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".tmp-*"))) == 2
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_killed_command_left_is_cleared_by_the_next(left: Path) -> None:
    alive = left / f".tmp-{files._machine()}-{os.getppid()}-b.txt"
    elsewhere = left / ".tmp-0badcafe-4000000-c.txt"
    own = left / ".tmp-notes"
    for path in (alive, elsewhere, own):
        path.touch()
    write_text(left / "file.txt", "whole")
    assert names(left) == {"file.txt", ".tmp-out", ".lock-out", alive.name, elsewhere.name, own.name}
    with whole_folder(left / "out") as staging:
        assert not names(staging)
        (staging / "whole").touch()
    assert names(left) == {"file.txt", "out", alive.name, elsewhere.name, own.name}
    assert names(left / "out") == {"whole"}


def test_a_process_that_nobody_has_buried_is_dead() -> None:
    """As in containers, whose first process need not look after others."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert locks.runs(child.pid)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not locks.runs(child.pid)
    child.wait()
    assert not locks.runs(child.pid)


def test_two_commands_cannot_replace_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with whole_folder(out) as staging:
        (staging / "first").touch()
        with pytest.raises(ValueError, match=f"out is in use by process {os.getpid()}"), whole_folder(out):
            pass
    assert names(tmp_path) == {"out"}
    assert names(out) == {"first"}


def fail(out: Path) -> None:
    with whole_folder(out) as staging:
        (staging / "second").touch()
        raise OSError("disk full")


def test_a_folder_is_as_before_where_its_replacement_fails(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "first").touch()
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            fail(out)
        assert (names(tmp_path), names(out)) == ({"out"}, {"first"})
        out.rename(tmp_path / ".old-out")  # as where it is killed between the two moves


def test_a_lock_whose_file_has_just_gone_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before lets go between opening and locking."""
    held, first = locks._held, [True]

    def late(path: Path, folder: Path) -> object:
        handle = held(path, folder)
        if first.pop() if first else False:
            path.unlink()
        return handle

    monkeypatch.setattr(locks, "_held", late)
    with lock_place(tmp_path / "out"):
        assert names(tmp_path) == {".lock-out"}
        monkeypatch.undo()
        with pytest.raises(ValueError, match="in use"):
            lock_place(tmp_path / "out")
    assert not names(tmp_path)


def test_a_file_is_as_before_where_its_writing_fails(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def half() -> None:
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        half()
    assert (names(tmp_path), (tmp_path / "a.txt").read_text()) == ({"a.txt"}, "old")


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; choose a folder"):
        lock_place(tmp_path / "file")
    assert names(tmp_path) == {"file"}
