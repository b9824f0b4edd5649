"""What commands say on stderr: warnings, one line each, and how far they are: a bar in a terminal, elsewhere a plain line
now and then, so that a log shows that they live.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

from tqdm import tqdm

EVERY = 30.0  # seconds between lines; later a twentieth of the time gone, so that logs of days stay short

_T = TypeVar("_T")
_warned: set[str] = set()
_collecting: list[list[str]] = []


def due(now: float, start: float, last: float) -> bool:
    """Whether another line is due, all in seconds: now, the start, the line before (or the start)."""
    return now - last >= max(EVERY, (now - start) / 20)


class Progress:
    """Counts what is done, on stderr.

    what: the work's name. total: how much there is, None where nobody knows. unit: ``B`` is shown in kB, MB, … shown: False
    for nothing at all. Lines that cannot be written are lost; they never end the work.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "it", shown: bool = True) -> None:
        terminal = sys.stderr.isatty()
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self._bar = tqdm(
            desc=what, total=total, unit=unit, unit_scale=unit == "B", leave=False, disable=not (shown and terminal)
        )
        self._lines = shown and not terminal
        self._start = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, n: int = 1) -> None:
        """So many more are done."""
        self._bar.update(n)
        self.done += n
        now = time.monotonic()
        if self._lines and due(now, self._start, self._said):
            self._said = now
            say(self.line(now - self._start))

    def line(self, seconds: float) -> str:
        """``prepare: 12 of 40, 3.1 s each, 0:01:27 left`` after so many seconds; ``20/s`` where they are fast."""
        rate = self.done / max(seconds, 1e-9)
        count = self._count(self.done) + ("" if self.total is None else f" of {self._count(self.total)}")
        slow = self.unit != "B" and rate < 1
        speed = f"{1 / max(rate, 1e-9):.3g} s each" if slow else f"{self._count(rate)}/s"
        left = "" if self.total is None else f", {duration(max(self.total - self.done, 0) / max(rate, 1e-9))} left"
        return f"{self.what}: {count}, {speed}{left}"

    def _count(self, value: float) -> str:
        if self.unit == "B":
            return tqdm.format_sizeof(value, "B", 1000)
        return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def say(line: str) -> None:
    """A line on stderr, above the bar where there is one; lost where it cannot be written."""
    with suppress(OSError, ValueError):
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


def tracked(
    items: Iterable[_T],
    what: str,
    total: int | None = None,
    shown: bool = True,
    count: Callable[[_T], int] = lambda _: 1,
) -> Iterator[_T]:
    """The items, one after the other, with their progress.

    total: their number where `len` does not say. count: how many an item counts for, as a batch does.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(what, total, shown=shown) as progress:
        for item in items:
            yield item
            progress.update(count(item))


def duration(seconds: float) -> str:
    """``0:01:27``, from two days on ``3 days, 4:00:00``."""
    return str(timedelta(seconds=round(seconds)))


def warn_once(text: str, kind: str = "") -> None:
    """The same warning is worth one line, however often an evaluation or a folder is looked at; of a kind, the first is."""
    if _collecting:
        _collecting[-1].append(text)
    elif (kind or text) not in _warned:
        _warned.add(kind or text)
        more = "; others like it are not named" if kind else ""
        say(f"warning: {text}{more}")


@contextmanager
def collected() -> Iterator[list[str]]:
    """Warnings go into this list, each time they occur, instead of being printed."""
    lines: list[str] = []
    _collecting.append(lines)
    try:
        yield lines
    finally:
        _collecting.pop()
