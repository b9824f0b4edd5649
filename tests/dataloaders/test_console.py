"""Long commands say how far they are without a terminal too."""

from __future__ import annotations

import io
import sys

import pytest

from dataloaders.io import console
from dataloaders.io.console import tracked


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until its one entry is changed."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_half_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """tqdm with disable=None is silent where stderr is no terminal."""
    for _ in tracked(range(100), "prepare"):
        clock[0] += 10
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "prepare: 3 of 100, 10 s each, 0:16:10 left"
    assert lines[1].startswith("prepare: 6 of 100")
    assert 15 <= len(lines) <= 34  # farther apart towards the end


def test_a_line_that_cannot_be_written_does_not_end_the_work(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    done = 0
    for _ in tracked(range(3), "prepare"):
        clock[0] += 50
        done += 1
    assert done == 3
