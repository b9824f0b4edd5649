"""Exponential moving average of a network, and fresh batch statistics for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import nn


def ema_copy(net: nn.Module) -> nn.Module:
    """A frozen copy of `net` in evaluation mode, the start of its moving average."""
    average = deepcopy(net).eval()
    return average.requires_grad_(False)


@torch.no_grad()
def ema_update(average: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """Parameters: a <- d·a + (1 - d)·p with d = min(decay, (1 + step) / (10 + step)). Buffers are copied.

    step: optimiser steps before this one. The warm-up keeps the window of the average at a tenth of the run until the
    decay's own window, 1 / (1 - decay) steps, is shorter; without it a short run's average would still hold its random
    start (as in TensorFlow's ExponentialMovingAverage with num_updates).

    Averaging the spectral norm's u and v or integer counters would leave vectors that are no longer unit length and
    belong to no weight; that is why buffers are copied.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for copy, original in zip(average.buffers(), net.buffers(), strict=True):
        copy.copy_(original)


@torch.no_grad()
def recalibrate_batchnorm(net: nn.Module, forwards: Iterator[Callable[[], object]]) -> None:
    """Recompute the running statistics of all batch norms as the plain average over the given forward passes.

    The statistics copied from the trained network belong to its newest weights, not to the average. Only the norms
    go to train mode, so spectral norm takes no power step. Nets without batch norm consume nothing.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None means a plain average over the batches
        norm.train()
    try:
        for forward in forwards if norms else ():
            forward()
    finally:  # a training outlives data that could not be read once
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
