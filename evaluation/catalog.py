"""All metrics, from the files that declare them; a new file is one more entry here, and its metrics are in everything."""

from __future__ import annotations

from evaluation.metrics import (
    continuity,
    errors,
    faithfulness,
    intensity,
    lattice,
    lesions,
    perceptual,
    protocols,
    sharpness,
    similarity,
    spectrum,
    variety,
)
from evaluation.metrics.feature_sets import (
    ALWAYS,
    DISTANCE,
    EFFICIENTNET,
    KINDS,
    OASIS,
    group_of,
    of_extractor,
    paired_of,
)
from evaluation.metrics.metric import GROUPS, Metric
from evaluation.metrics.perceptual import LPIPS
from evaluation.statistics import DRAWS, MIN_PATIENTS

SCHEMA = "medsis-metrics/1"
FILES = (
    *(errors, similarity, perceptual, intensity, continuity, spectrum, lattice, sharpness, protocols, variety),
    *(faithfulness, lesions),
)
METRICS: dict[str, Metric] = {metric.key: metric for file in FILES for metric in file.METRICS}
METRICS |= {metric.key: metric for metric in (paired_of(EFFICIENTNET),)}
METRICS |= {metric.key: metric for key in (*ALWAYS, OASIS) for metric in of_extractor(key).values()}
PROTOCOLS = ("synthrad2023", "oasis")
TITLES = (  # of the report's tables, in their order; those of further extractors come behind
    *GROUPS,
    *("Protocol synthrad2023", "Protocol oasis"),
    *(group_of(key) for key in ALWAYS),
)
SETTINGS = {  # of all metrics
    "levels": "mean over a patient's slices, then over patients; by label: over a patient's cases, labels, patients; "
    "by case: over a patient's cases, patients",
    "interval": f"95 % percentile bootstrap over patients, {DRAWS} draws, seed 0, from {MIN_PATIENTS} patients on",
    "body": "pixels with a label other than 0; where label maps mark a lesion only, that is the lesion",
    "by label": "means and standard deviations of the stored values; wasserstein on the window's 65536 levels",
    "slices": "of volumes: without a label and with a constant real image they count for volumes and segmentations only",
    "floor": "the same metric between two halves of the real slices, split by patient",
}


def described(key: str) -> Metric | None:
    """What is known of a metric by its key, also of one on a further extractor's features; None for a foreign key."""
    if key in METRICS:
        return METRICS[key]
    extractor, _, kind = key.rpartition("_")
    if not extractor or kind not in (*KINDS, DISTANCE):
        return None
    return paired_of(extractor) if kind == DISTANCE else of_extractor(extractor)[kind]


def named(text: str, allowed: dict[str, Metric]) -> dict[str, Metric]:
    """Metrics of a comma-separated list (``lpips`` for its full name), all for ``auto``; ValueError lists what there is."""
    if text == "auto":
        return allowed
    given = [LPIPS if name.strip() == "lpips" else name.strip() for name in text.split(",")]
    if unknown := [name for name in given if name not in allowed]:
        raise ValueError(f"--metrics {','.join(unknown)}: unknown; there are auto, {', '.join(allowed)}")
    return {key: metric for key, metric in allowed.items() if key in given}
