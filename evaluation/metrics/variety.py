"""How much a label's intensity varies between several draws of one label map."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dataloaders.labelmaps.labels import count_labels
from evaluation.metrics.metric import VARIETY, CaseSlices, Metric


def label_spread(case: CaseSlices) -> dict[str, float]:
    """Standard deviation over k draws of each label's mean in a case, mean over the labels other than background.

    In the images' unit; 0 where all draws are equal, NaN without draws or labels. Sample standard deviation (n - 1), since
    the draws are a sample of the endless others.
    """
    items = [item for item in case.scored if item.draws]
    known = np.array(sorted({label for item in items for label in count_labels(item.label)}), np.int64)
    pixels: NDArray[np.float64] = np.zeros(len(known))
    sums: NDArray[np.float64] = np.zeros((len(items[0].draws) if items else 0, len(known)))
    for item in items:
        flat = np.searchsorted(known, item.label.ravel())
        pixels += np.bincount(flat, minlength=len(known))
        sums += [np.bincount(flat, draw.ravel(), minlength=len(known)) for draw in item.draws]
    there = np.flatnonzero(known)
    if not len(there):
        return {"diversity_label_spread": math.nan}
    means = sums[:, there] / pixels[there]
    # From the first draw on: the mean of three equal numbers need not be that number.
    return {"diversity_label_spread": float((means - means[0]).std(axis=0, ddof=1).mean())}


METRICS = (
    Metric(
        *("diversity_label_spread", "Label mean, spread over draws", VARIETY, "case", None, None, ("draws",)),
        setting="standard deviation over draws of a label's mean, by case, mean over labels",
        of=label_spread,
    ),
)
