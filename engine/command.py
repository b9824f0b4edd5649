"""How every command ends: errors that a user can mend become one line and an exit code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from config import set_by_preset
from engine import processes
from engine.signals import EXIT_INTERRUPTED, EXIT_LOST_RANK, EXIT_MEMORY, EXIT_USAGE, EXIT_WEIGHTS_MISSING
from engine.weights import MissingWeights

DEFECT = 1
_FORMAT = warnings.formatwarning
MEMORY = (
    "out of memory ({first}). Lower --batch_size, or --oasis.channels_G and channels_D (--preset small), or prepare "
    "the data with a smaller --size; on a GPU --precision bf16; where a DataLoader worker was killed --num_workers 0, a "
    "lower --cache_gb or a larger /dev/shm. The same command resumes"
)


def exit_code(command: Callable[[], int]) -> int:
    """Run the command; an error that a user can mend gives one line on stderr and the code of `code_of`.

    Anything else is a defect of ours and keeps its traceback.
    """
    warnings.formatwarning = _one_line
    try:
        return command()
    except BaseException as error:
        code = code_of(error)
        if isinstance(error, SystemExit) or code == DEFECT:
            raise
        print(message_of(error), file=sys.stderr)
        return code
    finally:
        processes.leave()


def _one_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    """A warning to the user as one line; those about code as they are."""
    return f"warning: {message}\n" if category is UserWarning else _FORMAT(message, category, *where, **more)


def code_of(error: BaseException) -> int:
    """ValueError and OSError 2, missing weights 3, memory 6, another process lost 7, Ctrl-C 130, a defect of ours 1."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else DEFECT
    if isinstance(error, MissingWeights):
        return EXIT_WEIGHTS_MISSING
    if _is_memory(error):
        return EXIT_MEMORY
    if processes.means_lost_rank(error):
        return EXIT_LOST_RANK
    if isinstance(error, (ValueError, OSError)):
        return EXIT_USAGE
    return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else DEFECT


def message_of(error: BaseException) -> str:
    """The line for the user."""
    if _is_memory(error):
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return "error: " + MEMORY.format(first=first or type(error).__name__)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on where it can"
    if processes.means_lost_rank(error) and not isinstance(error, processes.LostRank):
        return "error: another process of this training has ended, its own message says why; the same command resumes"
    return f"error: {error}{set_by_preset(str(error), sys.argv[1:])}"


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # On the CPU, and when a loader process is killed, torch raises a plain RuntimeError.
    signs = ("can't allocate memory", "bad_alloc", "DataLoader worker")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
