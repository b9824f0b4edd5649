"""Learning rates over a run's length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch.optim import Optimizer

from config import CommonConfig


def decay(config: CommonConfig, share: float) -> float:
    """Factor of the learning rates after `share` (0 to 1) of the run: 1 up to lr_decay_from, then falling to 0 at its end.

    It depends on nothing else, so a resumed run has it exactly, and one whose --num_epochs was changed follows its new
    length from there on.
    """
    if config.lr_decay == "none" or share <= config.lr_decay_from:
        return 1.0
    fallen = min(1.0, (share - config.lr_decay_from) / (1 - config.lr_decay_from))
    return 1 - fallen if config.lr_decay == "linear" else 0.5 * (1 + math.cos(math.pi * fallen))


@contextmanager
def scaled(optimizer: Optimizer, factor: float) -> Iterator[None]:
    """Within, the optimiser steps with its rates times `factor`; what it keeps, saves and lowers itself stays as it was."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
