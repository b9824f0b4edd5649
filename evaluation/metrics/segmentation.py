"""Agreement of two label maps: Dice and the 95th percentile of the Hausdorff distance, label by label."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from dataloaders.labelmaps.labels import count_labels

PERCENTILE = 95


def dice(truth: NDArray, pred: NDArray, labels: Iterable[int]) -> dict[int, float]:
    """2·|A ∩ B| / (|A| + |B|) of each label of two label maps of one shape, 0..1, higher is better.

    NaN for a label that is in neither (as in nnU-Net: there is nothing to find), 0 for one that is in one of them only.
    """
    _check(truth, pred)
    wanted = list(labels)
    of_truth, of_pred = count_labels(truth), count_labels(pred)
    of_both = count_labels(truth[truth == pred])
    scores = {}
    for label in wanted:
        size = of_truth.get(label, 0) + of_pred.get(label, 0)
        scores[label] = 2 * of_both.get(label, 0) / size if size else math.nan
    return scores


def hd95(truth: NDArray, pred: NDArray, labels: Iterable[int], spacing: Sequence[float]) -> dict[int, float]:
    """95 % Hausdorff distance of each label in mm, >= 0, lower is better: the larger of the two directions.

    One direction: 95th percentile of the distances from the border voxels of one map to the nearest border voxel of the
    other. Border: voxels of the label with a face neighbour outside of it or of the volume. spacing: mm per voxel along
    each axis. NaN for a label that is in neither, inf for one that is in one of them only: no distance would be
    large enough, and a finite one would be made up (`nan_mean` leaves both out).
    """
    _check(truth, pred)
    if len(spacing) != np.ndim(truth) or not all(math.isfinite(size) and size > 0 for size in spacing):
        raise ValueError(f"spacing has to be {np.ndim(truth)} positive numbers in mm, got {tuple(spacing)}")
    wanted = list(labels)
    boxes = [_boxes(ids, wanted) for ids in (truth, pred)]
    distances = {}
    for label in wanted:
        found = [of.get(label) for of in boxes]
        if found[0] is None or found[1] is None:
            distances[label] = math.nan if found[0] is found[1] else math.inf
        else:
            box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(*found, strict=True))
            distances[label] = _hd95(truth[box] == label, pred[box] == label, spacing)
    return distances


def _boxes(ids: NDArray, labels: Sequence[int]) -> dict[int, tuple[slice, ...]]:
    """The box around each of the labels that is there."""
    compact = np.zeros(ids.shape, np.int32)  # find_objects wants small ids
    known = np.array(sorted(set(labels)))
    if known.size:
        place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        np.add(place, 1, out=compact, where=known[place] == ids, casting="unsafe")
    found = ndimage.find_objects(compact, len(known))
    return {int(label): box for label, box in zip(known, found, strict=True) if box is not None}


def _hd95(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """Of two masks, neither empty."""
    borders = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * spacing for mask in (a, b)]
    # Nearest neighbours among border voxels: exact like a distance transform, which would fill the whole box instead.
    distances = [cKDTree(there).query(here)[0] for here, there in (borders, borders[::-1])]
    return max(float(np.percentile(of, PERCENTILE)) for of in distances)


def _check(truth: NDArray, pred: NDArray) -> None:
    if np.shape(truth) != np.shape(pred):
        raise ValueError(f"label maps to compare have shapes {np.shape(truth)} and {np.shape(pred)}")
    for name, ids in (("truth", truth), ("pred", pred)):
        if ids.dtype.kind not in "iub":
            raise ValueError(f"label maps hold integers, {name} has {ids.dtype}")
