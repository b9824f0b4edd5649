"""Is the image what its label map says? A segmenter's view of the generated image against the conditioning label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.lesions import Lesions, lesion_volume, match_lesions
from evaluation.metrics.segmentation import dice, hd95, mean_over_cases
from evaluation.source_ids import occurring

BACKGROUND = 0


@dataclass
class CaseMaps:
    """Label maps of one case, slice by slice: the condition, and what a segmenter sees in the images.

    of: ``generated`` or ``real`` (the ceiling) -> segmented slices. millimetres: whether spacing is known; else volumes are
    in pixels.
    """

    patient: str
    case: str
    spacing: tuple[float, float, float]
    millimetres: bool = True
    indices: list[int] = field(default_factory=list)
    condition: list[NDArray] = field(default_factory=list)
    of: dict[str, list[NDArray]] = field(default_factory=dict)

    def add(self, index: int, condition: NDArray, segmented: dict[str, NDArray]) -> None:
        """The next slice."""
        self.indices.append(index)
        self.condition.append(condition)
        for key, ids in segmented.items():
            self.of.setdefault(key, []).append(ids)

    def _volume(self, slices: Sequence[NDArray]) -> NDArray:
        """Slices at their places along z, so that a gap stays a gap for distances."""
        if len({ids.shape for ids in slices}) > 1:
            sizes = ", ".join(sorted({str(ids.shape) for ids in slices}))
            raise ValueError(
                f"case {self.case}: slices of different sizes ({sizes}); segmentations need one size a case"
            )
        first = min(self.indices)
        volume = np.zeros((max(self.indices) - first + 1, *slices[0].shape), np.result_type(*slices))
        for index, ids in zip(self.indices, slices, strict=True):
            volume[index - first] = ids
        return volume

    def overlap(self) -> list[dict[str, Any]]:
        """One row a kind of image and label in either map: Dice and HD95 (mm) of the segmented volume and the condition."""
        condition, rows = self._volume(self.condition), []
        for kind, slices in self.of.items():
            segmented = self._volume(slices)
            labels = labels_of((condition, segmented))
            overlaps, distances = dice(condition, segmented, labels), hd95(condition, segmented, labels, self.spacing)
            for label in labels:
                row = {"patient": self.patient, "case": self.case, "of": kind, "label": label}
                rows.append(row | {"dice": overlaps[label], "hd95": distances[label]})
        return rows

    def lesions(self, label: int) -> dict[str, Any]:
        """Lesions of the condition and those segmented in the generated image: counts, and volumes in ml (pixels)."""
        wanted, found = (self._volume(slices) == label for slices in (self.condition, self.of["generated"]))
        counts = match_lesions(wanted, found)
        row = {"patient": self.patient, "case": self.case, "counts": counts}
        if not self.millimetres:
            return row | {"volume_pixels": int(wanted.sum()), "segmented_volume_pixels": int(found.sum())}
        volumes = [lesion_volume(mask, self.spacing) for mask in (wanted, found)]
        return row | {"volume_ml": volumes[0], "segmented_volume_ml": volumes[1]}


def labels_of(maps: Sequence[NDArray]) -> list[int]:
    """Label ids in any of the maps, background left out."""
    return sorted({i for ids in maps for i in occurring(ids)} - {BACKGROUND})


def mean_of_patient(rows: Sequence[dict[str, Any]], metric: str) -> float:
    """Dice or HD95 of one patient's rows: mean over cases of each label, then over labels; NaN where there is nothing."""
    cases: dict[str, dict[int, float]] = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["label"]] = row[metric]
    return mean_over_cases(list(cases.values())).mean if cases else math.nan


def pooled(rows: Sequence[dict[str, Any]]) -> Lesions:
    """Counts of several cases together."""
    return sum((row["counts"] for row in rows), Lesions())
