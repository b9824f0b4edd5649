"""Is the image what its label map says? A segmenter's view of the generated image against the conditioning label."""

from __future__ import annotations

import math
from collections.abc import Sequence

from numpy.typing import NDArray

from dataloaders.labelmaps.labels import count_labels
from evaluation.metrics.metric import FAITHFULNESS, Metric, Row
from evaluation.metrics.segmentation import dice, hd95


def overlap_rows(condition: NDArray, segmented: NDArray, spacing: tuple[float, float, float]) -> list[Row]:
    """One row a label in either volume, background left out: Dice and HD95 (mm) of the segmentation and the condition."""
    labels = sorted({*count_labels(condition), *count_labels(segmented)} - {0})
    overlaps, distances = dice(condition, segmented, labels), hd95(condition, segmented, labels, spacing)
    return [{"label": label, "dice": overlaps[label], "hd95": distances[label]} for label in labels]


def _missed(rows: Sequence[Row]) -> Row:
    """Labels that are in one map only, for which no distance is large enough."""
    return {"missed": sum(math.isinf(row["hd95"]) for row in rows)}


METRICS = (
    Metric(
        *("faithfulness_dice", "Label Dice seen by a segmenter", FAITHFULNESS, "overlap", "higher", "", ("segmented",)),
        column="dice",
        setting="segmented generated image against the conditioning label; over cases, then labels; ceiling: segmented "
        "real image against the same label",
    ),
    Metric(
        *(
            "faithfulness_hd95",
            "Label HD95 seen by a segmenter",
            FAITHFULNESS,
            "overlap",
            "lower",
            "mm",
            ("segmented",),
        ),
        column="hd95",
        reason="no label that is in both maps",
        setting="as faithfulness_dice; cases where a label is in one map only are counted in `missed`",
        more=_missed,
    ),
)
