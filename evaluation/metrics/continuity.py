"""Continuity from slice to slice: does a volume stacked from generated slices change along z as the real one does?"""

from __future__ import annotations

import itertools
import math

import numpy as np

from evaluation.metrics.metric import TEXTURE, CaseSlices, Metric


def jumps(case: CaseSlices) -> dict[str, float]:
    """Change between slices whose indices differ by 1, over the pixels that are body in both, summed over a case.

    slice_jump_ratio: mean jump of the generated over that of the real slices, 0..inf: 1 as continuous, above flickers;
    NaN without a pair, and where the real slices are all the same. slice_difference_mae: mean absolute error of the
    change, in the images' unit; NaN without a pair. slice_pairs: how many pairs of slices had such pixels.
    """
    real_sum, fake_sum, difference, pixels, pairs = 0.0, 0.0, 0.0, 0, 0
    for before, item in (pair for run in case.runs for pair in itertools.pairwise(run)):
        both = before.body & item.body
        real, fake = (
            np.asarray(b[both], np.float64) - np.asarray(a[both], np.float64)
            for a, b in zip(before.physical, item.physical, strict=True)
        )
        real_sum += float(np.abs(real).sum())
        fake_sum += float(np.abs(fake).sum())
        difference += float(np.abs(fake - real).sum())
        pixels += int(both.sum())
        pairs += int(both.any())
    return {
        "slice_pairs": pairs,
        "slice_jump_ratio": fake_sum / real_sum if real_sum > 0 else math.nan,
        "slice_difference_mae": difference / pixels if pixels else math.nan,
    }


METRICS = (
    Metric(
        *("slice_jump_ratio", "Slice jump relative to real", TEXTURE, "case", None, ""),
        reason="no adjacent slices that share body pixels, or the real ones do not change",
        setting="pairs of slices whose indices differ by 1, pixels that are body in both, sums over a case",
        of=jumps,
    ),
    Metric(
        *("slice_difference_mae", "Slice jump error", TEXTURE, "case", "lower"),
        reason="no adjacent slices that share body pixels",
        setting="the same pairs and pixels, mean over a case's pixels",
        of=jumps,
    ),
)
