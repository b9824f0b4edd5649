"""Other people's programs: run without a shell, with a time limit and a log, and never left behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

BESIDE = Path(sys.executable).parent  # commands of this environment, activated or not
GRACE = 5.0  # seconds between asking a program to stop and killing it
_PR_SET_PDEATHSIG = 1  # Linux, sys/prctl.h


class ToolMissing(ValueError):  # noqa: N818 (as MissingWeights: a state of the machine, not a defect)
    """A program that is not installed; the message says how to get it."""


class ToolFailed(ValueError):  # noqa: N818
    """A program that ended with an error, ran out of time, or did not leave what it should."""


def find_program(names: Iterable[str], folders: Iterable[Path] = ()) -> Path | None:
    """The first of `names` in the folders, on PATH, or beside this Python; None where there is none."""
    path = os.environ.get("PATH", os.defpath)
    places = os.pathsep.join([*map(str, folders), path, str(BESIDE)])
    for name in names:
        found = shutil.which(name, path=places)
        if found:
            return Path(found).absolute()
    return None


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """In the child: get this signal when the process that waits for it ends, so that a killed run leaves nothing behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))


def run_command(
    command: Sequence[str | Path],
    folder: Path,
    log: Path,
    limit: float | None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a program in `folder`; what it prints goes to `log`, below the command itself.

    limit: seconds, None for none. ToolFailed for a non-zero end, with the log's last line, and when time is over.
    """
    words = [str(word) for word in command]
    with open(log, "ab") as out:
        out.write(f"$ {' '.join(words)}\n".encode())
        out.flush()
        try:
            process = subprocess.Popen(
                words,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # a group of its own, so that its children can be stopped with it
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            raise ToolFailed(f"{words[0]} could not be started ({error})") from None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            raise ToolFailed(f"{Path(words[0]).name} ran longer than {limit:g} s and was stopped; see {log}") from None
        finally:
            _stop_group(process)
    if code != 0:
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        raise ToolFailed(f"{Path(words[0]).name} {ended}: {last_line(log)}; see {log}")


def _stop_group(process: subprocess.Popen) -> None:
    """End the program and whatever it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def last_line(log: Path, limit: int = 300) -> str:
    """The last line of a log that says something; progress bars are no lines of their own."""
    text = log.read_bytes()[-20000:].decode("utf-8", "replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    said = [line for line in lines if line and not line.startswith("$ ")]
    return said[-1][:limit] if said else "it printed nothing"


def answer(command: Sequence[str | Path], limit: float = 60.0) -> str:
    """What a program prints, e.g. for its version; empty where it fails or takes too long."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""
