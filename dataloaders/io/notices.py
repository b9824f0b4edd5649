"""Warnings to the user, one line each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_told: set[str] = set()
_collecting: list[list[str]] = []


def warn_once(text: str, kind: str = "") -> None:
    """The same warning is worth one line, however often an evaluation or a folder is looked at; of a kind, the first is."""
    if _collecting:
        _collecting[-1].append(text)
    elif (kind or text) not in _told:
        _told.add(kind or text)
        more = "; others like it are not named" if kind else ""
        print(f"warning: {text}{more}", file=sys.stderr, flush=True)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Warnings go into this list, each time they occur, instead of being printed."""
    lines: list[str] = []
    _collecting.append(lines)
    try:
        yield lines
    finally:
        _collecting.pop()
