"""Lesions one by one: which of them are found, whether their volumes agree, and what changed outside of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.lesions.filling import near
from evaluation.metrics.metric import LESIONS, CaseSlices, Metric, Row

MARGIN = 2  # voxels around a lesion that may change


@dataclass(frozen=True)
class Lesions:
    """Numbers of lesions.

    truth, pred: lesions in either mask. found: true lesions with a match. right: predicted lesions with a match.
    """

    truth: int
    pred: int
    found: int
    right: int

    @property
    def recall(self) -> float:
        """Share of the true lesions that were found, 0..1: NaN without any lesion, 0 where one mask has none."""
        return self._share(self.found, self.truth)

    @property
    def precision(self) -> float:
        """Share of the predicted lesions that are right, 0..1: NaN without any lesion, 0 where one mask has none."""
        return self._share(self.right, self.pred)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0..1: NaN without any lesion, 0 where one mask has none."""
        if not self.found:
            return self._share(0, self.truth)
        return 2 * self.precision * self.recall / (self.precision + self.recall)

    def _share(self, part: int, of: int) -> float:
        """NaN where nobody has a lesion: a patient whose lesions were all missed must not drop out of a mean."""
        return part / of if of else 0.0 if self.truth or self.pred else math.nan


def match_lesions(truth: NDArray[np.bool_], pred: NDArray[np.bool_]) -> Lesions:
    """`Lesions` of two masks (volumes or slices) of one shape. A lesion is a component connected by faces, edges, corners.

    Lesions match where they share a voxel, so one may match several.
    """
    structure = ndimage.generate_binary_structure(np.ndim(truth), np.ndim(truth))
    (ids_truth, n), (ids_pred, m) = (ndimage.label(mask, structure) for mask in (truth, pred))
    both = truth & pred
    return Lesions(n, m, found=len(np.unique(ids_truth[both])), right=len(np.unique(ids_pred[both])))


def lesion_row(
    condition: NDArray[np.bool_], segmented: NDArray[np.bool_], spacing: tuple[float, float, float] | None
) -> Row:
    """Lesions of the label map and those segmented in the generated image: counts, and volumes in ml.

    spacing: mm along the axes; volumes are in pixels where it is not known.
    """
    counts = match_lesions(condition, segmented)
    pixels = int(condition.sum()), int(segmented.sum())
    unit, volumes = ("ml", [n * math.prod(spacing) / 1000 for n in pixels]) if spacing else ("pixels", [*pixels])
    return {
        **{f"volume_{unit}": volumes[0], f"segmented_volume_{unit}": volumes[1]},
        **{"lesions": counts.truth, "segmented": counts.pred, "found": counts.found, "right": counts.right},
    }


def pooled(rows: Sequence[Row]) -> Lesions:
    """Counts of several cases together, so that a case with many lesions weighs more."""
    return Lesions(*(sum(row[key] for row in rows) for key in ("lesions", "segmented", "found", "right")))


def volume_correlation(rows: Sequence[Row]) -> float:
    """Pearson's correlation of the lesion volumes of cases, -1..1, higher is better.

    NaN for fewer than three, since two points always lie on a line, and where all volumes of a side are equal. Blind to a
    common factor: all volumes halved still give 1.
    """
    unit = "ml" if rows and "volume_ml" in rows[0] else "pixels"
    a, b = (np.array([row[key] for row in rows], np.float64) for key in (f"volume_{unit}", f"segmented_volume_{unit}"))
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))


def change_outside(before: NDArray, after: NDArray, lesion: NDArray[np.bool_]) -> float:
    """Mean |after - before| in the images' unit at all voxels more than 2 voxels away from the lesion; ~0 is right.

    Volumes or slices of one shape; distance in steps to any of the neighbours, diagonal ones included. NaN where the
    lesion and its margin fill the image.
    """
    outside = ~near(lesion, MARGIN)
    if not outside.any():
        return math.nan
    return float(np.abs(np.asarray(after, np.float64)[outside] - np.asarray(before, np.float64)[outside]).mean())


def _change_of_case(case: CaseSlices) -> dict[str, float]:
    total, slices = 0.0, 0
    for item in case.items:
        change = change_outside(*item.physical, item.label == case.lesion)
        if not math.isnan(change):
            total, slices = total + change, slices + 1
    return {"lesion_change_outside": total / slices if slices else math.nan}


def _found(key: str, setting: str = "") -> Metric:
    def more(rows: Sequence[Row]) -> Row:
        every = pooled(rows)
        value = getattr(every, key)
        counts = {"condition": every.truth, "segmented": every.pred}
        return {"pooled": value if math.isfinite(value) else None, "lesions": counts}

    return Metric(
        *(f"lesion_{key}", f"Lesion-wise {key.replace('f1', 'F1')}", LESIONS, "lesions", "higher", ""),
        asked=("segmented", "lesion"),
        reason="no lesion in any map",
        setting=setting,
        patient=lambda rows: float(getattr(pooled(rows), key)),
        more=more,
    )


METRICS = (
    Metric(
        *("lesion_change_outside", "Change outside lesions", LESIONS, "case", "lower", None, ("lesion",)),
        reason="no case with pixels outside of lesions",
        setting="mean |generated - real| more than 2 pixels away from the lesion label",
        of=_change_of_case,
    ),
    _found(
        "f1",
        "components (faces, edges, corners) of the lesion label against those segmented in the generated image; a shared "
        "voxel is a match; counts pooled over a patient's cases",
    ),
    _found("precision"),
    _found("recall"),
    Metric(
        *("lesion_volume_correlation", "Lesion volume correlation", LESIONS, "lesions", "higher", ""),
        asked=("segmented", "lesion"),
        reason="needs three cases with volumes that differ",
        every=volume_correlation,
    ),
)
