"""Masks as tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def filled(mask: Tensor, axes: Iterable[int] = (1, 2)) -> Tensor:
    """Places that have mask on both sides along each of the axes, or are mask: bool, by default (B, H, W) -> the same.

    Fills holes, whole body cavities included, without labelling regions, so it runs on the device in one go. It also fills
    bays that are enclosed from all sides; where image and label are filled alike, that cancels.
    """
    enclosed = torch.ones_like(mask)
    for axis in axes:
        before = mask.cumsum(axis, dtype=torch.int16)
        enclosed &= (before > 0) & (before < before.narrow(axis, -1, 1))
    return mask | enclosed
