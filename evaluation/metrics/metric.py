"""What a metric is: everything that choosing, scoring, tables and reports know of one, declared where it is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.pairs import Item
from evaluation.statistics import label_means, nan_mean

Row = dict[str, Any]
Better = Literal["higher", "lower"]
# What a row of its table is: a slice; a label of a case; a case; a label of a case as a segmenter sees it; a case's
# lesions. `set` has no rows: features of all images at once.
Level = Literal["slice", "label", "case", "overlap", "lesions", "set"]

AGREEMENT = "Agreement with the real image"
INTENSITIES = "Intensities within the labels"
TEXTURE = "Texture, borders and continuity"
FAITHFULNESS = "Label faithfulness"
LESIONS = "Lesions"
VARIETY = "Variety of draws"
GROUPS = (AGREEMENT, INTENSITIES, TEXTURE, FAITHFULNESS, LESIONS, VARIETY)  # of the report's tables, in their order


@dataclass(frozen=True)
class CaseSlices:
    """What can be seen of one case and channel: its slices by index, each cut to what the scan covers.

    spacing: mm between slices, rows, columns. lesion: id of the lesion label, where one was named.
    """

    items: Sequence[Item]
    spacing: tuple[float, float, float]
    lesion: int | None = None

    @property
    def scored(self) -> list[Item]:
        """Without slices of nothing but air, which only count where a volume is measured as a whole."""
        return [item for item in self.items if item.scored]

    @property
    def runs(self) -> list[list[Item]]:
        """The slices parted where an index is missing or the size changes: no run has a gap."""
        runs: list[list[Item]] = []
        for item in self.items:
            before = runs[-1][-1] if runs else None
            if before and item.slice.index - before.slice.index == 1 and item.real.shape == before.real.shape:
                runs[-1].append(item)
            else:
                runs.append([item])
        return runs


@dataclass(frozen=True)
class Metric:
    """One metric. Functions that share an `of` are computed together.

    key: in metrics.json. name, group: for people, and the table of the report. better: None where neither is. unit: None
    for the channel's. asked: what has to be given for it, of ``draws``, ``segmented``, ``lesion`` and protocols' names.
    weights: key of the pretrained file that it needs. windowed: whether it depends on the window. reason: why it may have
    no value. setting: the convention that it follows. quiet: without a value, and unless somebody asked for it by name, it
    is left out. column: of its table, where that has another name than the key.
    of: what computes it: an item (slice) or a `CaseSlices` (case) -> values by key; where there are `weights`, a network,
    items and a device -> values. patient: rows of one patient -> value, where it is no mean. every: all rows -> value,
    where patients have none. more: all rows -> further entries.
    """

    key: str
    name: str
    group: str
    level: Level
    better: Better | None
    unit: str | None = None
    asked: tuple[str, ...] = ()
    weights: str = ""
    windowed: bool = False
    reason: str = "no pixels to measure"
    setting: str = ""
    quiet: bool = False
    column: str = ""
    of: Callable[..., Any] | None = None
    patient: Callable[[Sequence[Row]], float] | None = None
    every: Callable[[Sequence[Row]], float] | None = None
    more: Callable[[Sequence[Row]], Row] | None = None

    def of_patient(self, rows: Sequence[Row]) -> float:
        """Value of one patient: mean over slices or cases; by label over cases first, so that each label weighs the same."""
        if self.patient is not None:
            return self.patient(rows)
        column = self.column or self.key
        if self.level in ("label", "overlap"):
            return mean_over_labels(rows, column)
        return nan_mean([row.get(column, float("nan")) for row in rows])


def mean_over_labels(rows: Sequence[Row], column: str) -> float:
    """Mean over cases of each label, then over labels."""
    return nan_mean(label_means((row["label"], row[column]) for row in rows).values())


def stacked(items: Sequence[Item]) -> tuple[NDArray, NDArray, NDArray]:
    """Real and generated image in physical units and the body of a run, each (D, H, W)."""
    real, fake = (np.stack([item.physical[side] for item in items]) for side in (0, 1))
    return real, fake, np.stack([item.body for item in items])
