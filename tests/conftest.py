"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import signals

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, or one worker would still be at one when the others have long ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _signals_go_back() -> Iterator[None]:
    """A command that ran in the test's own process, to its end or refused, gives the signals back."""
    warnings = [number for number, code in signals._EXIT_CODES.items() if code == signals.EXIT_TIME_LIMIT]
    others = signals._EXIT_CODES.keys() - warnings
    before = {number: signal.getsignal(number) for number in others}
    yield
    assert {number: signal.getsignal(number) for number in others} == before
    for number in warnings:  # which a training that has ended leaves ignored
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans beside the checkout; skips where it is absent, fails where it is required."""
    if SHARED_DATA.is_dir():
        return SHARED_DATA
    if os.environ.get("MEDSIS_REQUIRE_DATA") == "1":
        pytest.fail(f"MEDSIS_REQUIRE_DATA=1 but the real data folder is absent: {SHARED_DATA}")
    pytest.skip(f"real data not found at {SHARED_DATA}")
