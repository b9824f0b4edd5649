"""Single random numbers from a CPU generator."""

from __future__ import annotations

import torch


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """One draw from U(low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """One draw from {low, ..., high}, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
