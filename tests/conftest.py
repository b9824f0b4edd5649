"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, or one worker would still be at one when the others have long ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans beside the checkout; skips where it is absent, fails where it is required."""
    if SHARED_DATA.is_dir():
        return SHARED_DATA
    if os.environ.get("MEDSIS_REQUIRE_DATA") == "1":
        pytest.fail(f"MEDSIS_REQUIRE_DATA=1 but the real data folder is absent: {SHARED_DATA}")
    pytest.skip(f"real data not found at {SHARED_DATA}")
