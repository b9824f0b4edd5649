"""Sharpness of the borders between labels: is the step from tissue to tissue as steep as in the real image?"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.metric import TEXTURE, CaseSlices, Metric


def edges(case: CaseSlices) -> dict[str, float]:
    """edge_sharpness_ratio: mean gradient at borders of the generated over that of the real images, summed over a case.

    0..inf: 1 as sharp, below blurred, above harsh; NaN without a border, and where the real images are flat there.
    edge_pixels: how many border pixels were summed. Gradients are central differences per mm, one-sided at the slice's
    edge.
    """
    real_sum, fake_sum, pixels = 0.0, 0.0, 0
    for item in case.scored:
        border = label_borders(item.label)
        real, fake = (gradient_sum(image, border, case.spacing[1:]) for image in item.physical)
        real_sum, fake_sum, pixels = real_sum + real, fake_sum + fake, pixels + int(border.sum())
    return {"edge_pixels": pixels, "edge_sharpness_ratio": fake_sum / real_sum if real_sum > 0 else math.nan}


def label_borders(label: NDArray) -> NDArray[np.bool_]:
    """Pixels with a pixel of another label above, below, left or right of them: both sides of each border."""
    border = np.zeros(label.shape, bool)
    for near, far in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differs = label[near] != label[far]
        border[near] |= differs
        border[far] |= differs
    return border


def gradient_sum(image: NDArray, border: NDArray[np.bool_], spacing: tuple[float, float]) -> float:
    """Sum of the gradient magnitude at border pixels; an axis of a single pixel has no slope."""
    values = np.asarray(image, np.float64)
    along = [axis for axis in range(2) if values.shape[axis] > 1]
    slopes = [np.gradient(values, spacing[axis], axis=axis)[border] for axis in along]
    return float(np.sqrt(sum(slope * slope for slope in slopes)).sum())


METRICS = (
    Metric(
        *("edge_sharpness_ratio", "Edge sharpness relative to real", TEXTURE, "case", None, ""),
        reason="no borders between labels, or the real images are flat there",
        setting="mean gradient at borders between labels, generated over real, sums over a case",
        of=edges,
    ),
)
