"""Tissues divided by intensity, so that synthetic slices are not three flat colours: deep grey matter, partial volume."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.gmm.labels import LabelScheme
from pipeline.tissue import LABELS, TISSUES

SMOOTHING_MM = 1.0  # so that subclasses are places, not noise


def scheme(count: int) -> LabelScheme:
    """Labels of the generator: background 0, then `count` subclasses of each tissue, dark to bright; their output is the
    tissue.
    """
    tissues = [label for label in LABELS if label.id]
    names = [label.name if count == 1 else f"{label.name} {k + 1}" for label in tissues for k in range(count)]
    values = tuple(range(1 + len(names)))
    outputs = (0, *(label.id for label in tissues for _ in range(count)))
    return LabelScheme(values, (LABELS[0].name, *names), values, outputs, None)


def divide(image: NDArray, tissue: NDArray[np.uint8], count: int, mm: NDArray) -> NDArray[np.uint8]:
    """Ids of `scheme` from a tissue map: each tissue in `count` parts of one size, by its intensity smoothed within itself.

    image, tissue: (I, J, K). mm: voxel size.
    """
    if count == 1:
        return tissue
    out = np.zeros(tissue.shape, np.uint8)
    sigma = SMOOTHING_MM / np.asarray(mm, float)
    for label in TISSUES.values():
        inside = tissue == label
        weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
        smooth = ndimage.gaussian_filter(np.where(inside, image, 0).astype(np.float32), sigma)
        values = smooth[inside] / weight[inside]
        part = np.empty(len(values), np.int64)
        part[np.argsort(values, kind="stable")] = np.arange(len(values)) * count // max(1, len(values))
        out[inside] = 1 + (label - 1) * count + part
    return out
