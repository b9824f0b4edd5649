"""Intensity histograms by label, and the centre and spread that they give."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 4096  # over [-1, 1]: half a bin is 0.5 HU in the CT window
MAD_TO_STD = 1.4826


def label_histograms(label: Tensor, image: Tensor, num_labels: int) -> Tensor:
    """Intensity histograms by label. label (H, W) int64, image (C, H, W) in [-1, 1] -> counts (C, N, BINS) int64."""
    level = ((image + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    index = label * BINS + level  # (C, H, W)
    counts = [torch.bincount(channel.flatten(), minlength=num_labels * BINS) for channel in index]
    return torch.stack(counts).view(len(image), num_labels, BINS)


def histogram_moments(counts: Tensor, robust: bool) -> tuple[Tensor, Tensor]:
    """Centre and spread of each histogram. counts (C, N, BINS) -> two (C, N) tensors; NaN where a label is empty.

    robust: median and 1.4826·MAD; otherwise mean and standard deviation.
    """
    centers = (torch.arange(BINS, device=counts.device, dtype=torch.float64) + 0.5) * (2 / BINS) - 1
    total = counts.sum(-1)
    if robust:
        median = _weighted_median(centers.expand(counts.shape), counts)
        deviation = (centers - median[..., None]).abs()
        order = deviation.argsort(-1)
        mad = _weighted_median(deviation.gather(-1, order), counts.gather(-1, order))
        center, spread = median, MAD_TO_STD * mad
    else:
        weight = counts / total.clamp(min=1)[..., None]
        center = (weight * centers).sum(-1)
        spread = (weight * (centers - center[..., None]) ** 2).sum(-1).sqrt()
    empty = total == 0
    return center.masked_fill(empty, float("nan")).float(), spread.masked_fill(empty, float("nan")).float()


def _weighted_median(values: Tensor, counts: Tensor) -> Tensor:
    """Lower median of sorted `values` (..., n) with multiplicities `counts` (..., n) -> (...)."""
    cumulative = counts.cumsum(-1)
    half = (cumulative[..., -1:] + 1) // 2
    position = torch.searchsorted(cumulative, half.clamp(min=1)).clamp(max=values.shape[-1] - 1)
    return values.gather(-1, position).squeeze(-1)
