"""How every command ends: errors that a user can mend become one line and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, TypeVar

from config import set_by_preset
from dataloaders.io.ranks import LostRank, alone, broadcast, leave, means_lost_rank, rank, world_size
from dataloaders.io.weights import MissingWeights
from dataloaders.io.workers import WorkerLost
from engine.signals import EXIT_INTERRUPTED, EXIT_LOST_RANK, EXIT_MEMORY, EXIT_USAGE, EXIT_WEIGHTS_MISSING

T = TypeVar("T")
DEFECT = 1
_FORMAT = warnings.formatwarning
MEMORY = (
    "out of memory ({first}). Give --accumulate 2 or more, lower --batch_size, or channels_G and channels_D "
    "(--preset small), or prepare the data with a smaller --size; on a GPU --precision bf16. The same command resumes"
)


def exit_code(command: Callable[[], int]) -> int:
    """Run the command; an error that a user can mend gives one line on stderr and the code of `code_of`.

    Anything else is a defect of ours and keeps its traceback. Where nobody takes what it prints (a closed pipe, a full
    disk, a terminal that is gone), the command goes on.
    """
    warnings.formatwarning = _one_line
    with _steady(sys.stdout) as out, _steady(sys.stderr) as err, redirect_stdout(out), redirect_stderr(err):
        try:
            return command()
        except BaseException as error:
            code = code_of(error)
            if isinstance(error, SystemExit) or code == DEFECT:
                raise
            print(message_of(error), file=sys.stderr)
            return code
        finally:
            leave()


class _Steady:
    """A stream whose losses are nobody's error; all but writing is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As much as the stream takes; what its encoding lacks as escapes."""
        try:
            return self._stream.write(text)
        except UnicodeError:
            return self.write(text.encode("ascii", "backslashreplace").decode())
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Where the stream can."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _steady(stream: TextIO | None) -> Iterator[Any]:
    if stream is None:  # started with it closed
        yield None
        return
    try:
        yield _Steady(stream)
    finally:
        try:
            stream.flush()
        except OSError:  # as it would fail once more when Python ends, which would change the exit code
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _one_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    """A warning to the user as one line; those about code as they are."""
    return f"warning: {message}\n" if category is UserWarning else _FORMAT(message, category, *where, **more)


def code_of(error: BaseException) -> int:
    """ValueError and OSError 2, missing weights 3, memory and workers 6, another rank lost 7, Ctrl-C 130, our defects 1."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else DEFECT
    if isinstance(error, MissingWeights):
        return EXIT_WEIGHTS_MISSING
    if _is_memory(error) or isinstance(error, WorkerLost):
        return EXIT_MEMORY
    if means_lost_rank(error):
        return EXIT_LOST_RANK
    if isinstance(error, (ValueError, OSError)):
        return EXIT_USAGE
    return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else DEFECT


def on_rank_zero(work: Callable[[], T]) -> T | None:
    """Let rank 0 alone do something while the others wait; its result there, None on the others.

    What it raises ends all ranks: there as it is, on the others as SystemExit with the same exit code and no message.
    """
    if world_size() == 1:
        return work()
    if rank() > 0:
        code = broadcast(None)
        if code is not None:
            raise SystemExit(code)
        return None
    try:
        with alone():
            result = work()
    except BaseException as error:
        broadcast(code_of(error))
        raise
    broadcast(None)
    return result


def message_of(error: BaseException) -> str:
    """The line for the user."""
    if _is_memory(error):
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return "error: " + MEMORY.format(first=first or type(error).__name__)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on where it can"
    if means_lost_rank(error) and not isinstance(error, LostRank):
        return "error: another process of this training has ended, its own message says why; the same command resumes"
    return f"error: {error}{set_by_preset(str(error), sys.argv[1:])}"


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return True
    signs = ("can't allocate memory", "bad_alloc")  # of torch's plain RuntimeError on the CPU
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
