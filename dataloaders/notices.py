"""Warnings to the user, one line each."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from engine.files import not_read


@functools.cache
def warn_once(text: str) -> None:
    """The same warning is worth one line, however often an evaluation or a folder is looked at."""
    print(f"warning: {text}", file=sys.stderr)


def warn_of_unread(folder: Path, suffixes: str | tuple[str, ...], below: bool = False) -> None:
    """Say what images a folder holds that are not read; see `not_read`."""
    if unread := not_read(folder, suffixes, below):
        warn_once(unread)
