"""One number of a validation: what training chooses the best weights by."""

from __future__ import annotations

import math
from collections.abc import Mapping

PARTS = ("mae_body", "ssim", "wasserstein", "spectrum_distance")  # all can be computed on every machine
LEAST = 1e-6  # a perfect part must not outweigh all others


def composite(metrics: Mapping[str, float]) -> float:
    """Geometric mean of error in the body, 1 - SSIM, label-wise Wasserstein and spectrum distance; less is better.

    metrics: as `headline` gives them, by channel; those of one metric are averaged over channels in the same way. A
    geometric mean changes by the same factor whatever unit a part is in, so neither units nor scales decide: to halve
    one part is worth as much as to halve any other. Each sees what others miss: intensities in the right place,
    structure, intensities by label wherever they are, texture and grids. Parts that the data do not allow (images too
    small for SSIM) are left out. ValueError where none is there.
    """
    logs = [sum(map(math.log, found)) / len(found) for part in PARTS if (found := _by_channel(metrics, part))]
    if not logs:
        raise ValueError(f"none of {', '.join(PARTS)} could be computed, so no weights are the best")
    return math.exp(sum(logs) / len(logs))


def _by_channel(metrics: Mapping[str, float], part: str) -> list[float]:
    values = [value for name, value in metrics.items() if name.startswith(f"{part}/")]
    return [max(LEAST, 1 - value if part == "ssim" else value) for value in values]
