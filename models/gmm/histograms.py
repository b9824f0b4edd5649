"""Intensity histograms by label, and the centre and spread that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 4096  # over [-1, 1]: half a bin is 0.5 HU in the CT window
MAD_TO_STD = 1.4826


def label_histograms(label: Tensor, image: Tensor, num_labels: int) -> Tensor:
    """Intensity histograms by label. label (H, W) int64, image (C, H, W) in [-1, 1] -> counts (C, N, BINS) int64."""
    level = ((image + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    index = label * BINS + level  # (C, H, W)
    counts = [torch.bincount(channel.flatten(), minlength=num_labels * BINS) for channel in index]
    return torch.stack(counts).view(len(image), num_labels, BINS)


@dataclass(frozen=True)
class SparseCounts:
    """Counts of which most are 0: where they stand in the flattened tensor, and how many; both int32."""

    places: NDArray[np.int32]
    counts: NDArray[np.int32]

    @classmethod
    def of(cls, counts: Tensor) -> SparseCounts:
        """Those of a tensor of integers."""
        flat = counts.flatten().cpu().numpy()
        places = flat.nonzero()[0]
        return cls(places.astype(np.int32), flat[places].astype(np.int32))

    def __add__(self, other: SparseCounts) -> SparseCounts:
        places, where = np.unique(np.concatenate([self.places, other.places]), return_inverse=True)
        counts = np.bincount(where, np.concatenate([self.counts, other.counts]))  # exact below 2^53
        return SparseCounts(places, counts.astype(np.int32))

    def dense(self, shape: Sequence[int]) -> Tensor:
        """The tensor, int64."""
        counts = torch.zeros(*shape, dtype=torch.int64)
        counts.view(-1)[torch.from_numpy(self.places).long()] = torch.from_numpy(self.counts).long()
        return counts


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
