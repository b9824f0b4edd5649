"""Lesions one by one: which of them are found, whether their volumes agree, and what changed outside of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True)
class Lesions:
    """Numbers of lesions; they add up over cases, so that a case with many lesions weighs more.

    truth, pred: lesions in either mask. found: true lesions with a match. right: predicted lesions with a match.
    """

    truth: int = 0
    pred: int = 0
    found: int = 0
    right: int = 0

    def __add__(self, other: Lesions) -> Lesions:
        return Lesions(
            self.truth + other.truth, self.pred + other.pred, self.found + other.found, self.right + other.right
        )

    @property
    def recall(self) -> float:
        """Share of the true lesions that were found, 0..1; NaN where there are none."""
        return self.found / self.truth if self.truth else math.nan

    @property
    def precision(self) -> float:
        """Share of the predicted lesions that are right, 0..1; NaN where there are none."""
        return self.right / self.pred if self.pred else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0..1: NaN without any lesion, 0 where one mask has none."""
        if not self.truth and not self.pred:
            return math.nan
        if not (self.truth and self.pred and self.found):
            return 0.0
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def match_lesions(truth: NDArray[np.bool_], pred: NDArray[np.bool_], min_iou: float | None = None) -> Lesions:
    """`Lesions` of two masks (volumes or slices) of one shape. A lesion is a component connected by faces, edges, corners.

    min_iou None: lesions match where they share a voxel, so one may match several. Otherwise in (0, 1]: pairs with at
    least this intersection over union, each lesion in at most one pair, as many pairs as possible.
    """
    if np.shape(truth) != np.shape(pred):
        raise ValueError(f"lesion masks have shapes {np.shape(truth)} and {np.shape(pred)}")
    if min_iou is not None and not 0 < min_iou <= 1:
        raise ValueError(f"min_iou has to be in (0, 1] or None, got {min_iou}")
    structure = ndimage.generate_binary_structure(np.ndim(truth), np.ndim(truth))
    (ids_truth, n), (ids_pred, m) = (ndimage.label(np.asarray(mask) > 0, structure) for mask in (truth, pred))
    both = (ids_truth > 0) & (ids_pred > 0)
    pairs = (ids_truth[both].astype(np.int64) - 1) * m + ids_pred[both] - 1
    shared = np.bincount(pairs, minlength=n * m).reshape(n, m)  # voxels in common
    if min_iou is None:
        return Lesions(n, m, found=int(shared.any(axis=1).sum()), right=int(shared.any(axis=0).sum()))
    sizes = [np.bincount(ids.ravel(), minlength=k + 1)[1:] for ids, k in ((ids_truth, n), (ids_pred, m))]
    fits = shared >= min_iou * (sizes[0][:, None] + sizes[1] - shared) - 1e-9  # a threshold is met by equality
    matched = int(fits[linear_sum_assignment(fits.astype(np.int8), maximize=True)].sum())
    return Lesions(n, m, found=matched, right=matched)


def lesion_volume(mask: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """Volume of a mask in ml; spacing in mm per voxel along the three axes."""
    if len(spacing) != np.ndim(mask) or len(spacing) != 3:
        raise ValueError(f"a volume needs a mask (D, H, W) and three spacings, got {np.shape(mask)}, {tuple(spacing)}")
    return int((np.asarray(mask) > 0).sum()) * math.prod(spacing) / 1000


def volume_correlation(truth: Sequence[float], pred: Sequence[float]) -> float:
    """Pearson's correlation of the lesion volumes of cases, -1..1, higher is better.

    Cases without a number on either side are left out. NaN for fewer than three, since two points always lie on a
    line, and where all volumes of a side are equal. Blind to a common factor: all volumes halved still give 1.
    """
    a, b = np.asarray(truth, np.float64), np.asarray(pred, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"volumes of the same cases are needed, got {a.shape} and {b.shape}")
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))


def change_outside(before: NDArray, after: NDArray, lesion: NDArray[np.bool_], margin: int = 2) -> float:
    """Mean |after - before| in the images' unit at all voxels more than `margin` voxels away from the lesion; ~0 is right.

    Volumes or slices of one shape; distance in steps to any of the neighbours, diagonal ones included. NaN where the
    lesion and its margin fill the image.
    """
    if not np.shape(before) == np.shape(after) == np.shape(lesion):
        raise ValueError(
            f"images {np.shape(before)}, {np.shape(after)} and lesion mask {np.shape(lesion)} differ in shape"
        )
    if margin < 0:
        raise ValueError(f"margin has to be 0 or more voxels, got {margin}")
    near = np.asarray(lesion) > 0
    if margin:
        near = ndimage.maximum_filter(near.astype(np.uint8), 2 * margin + 1, mode="constant") > 0
    outside = ~near
    if not outside.any():
        return math.nan
    return float(np.abs(np.asarray(after, np.float64)[outside] - np.asarray(before, np.float64)[outside]).mean())
