"""What the checks of options share: ranges, and messages that name flag, value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def is_range(values: Sequence[float]) -> bool:
    """One value, or low and high in this order."""
    return len(values) in (1, 2) and values[0] <= values[-1]


def words(values: Sequence[Any]) -> str:
    """Values as they stand on a command line."""
    return " ".join(str(value) if isinstance(value, str) else f"{value:g}" for value in values)


def check_at_least(flag: str, value: float, low: float) -> None:
    """ValueError unless `value` is `low` or more."""
    if not value >= low:
        raise ValueError(f"--{flag} {value}: must be at least {low}")


def check_positive(flag: str, value: float) -> None:
    """ValueError unless `value` is above 0."""
    if not value > 0:
        raise ValueError(f"--{flag} {value}: must be above 0")


def check_fraction(flag: str, value: float) -> None:
    """ValueError unless `value` is in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"--{flag} {value}: must be in [0, 1)")
