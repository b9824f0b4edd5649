"""Features of all real and generated slices, by extractor and channel, and what their distributions say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.distribution import METRICS, distribution_metrics, floors, same_size
from evaluation.metrics.radiomics import FEATURE_NAMES, standardise

INCEPTION, RADIOMICS = "inception", "radiomics"
OASIS = "oasis"  # Inception on 8-bit images, as pytorch-fid's own script reads files
ENOUGH = 2048  # samples from which FID is worth more than KID
HIGHER = {"precision", "recall", "density", "coverage"}


def names(extractor: str) -> dict[str, str]:
    """Key in the results -> metric of `evaluation.metrics.distribution`. Inception's bear the names of the field."""
    if extractor == INCEPTION:
        return {"fid" if metric == "frechet" else metric: metric for metric in METRICS}
    if extractor == OASIS:
        return {"oasis_fid": "frechet"}
    return {f"{extractor}_{metric}": metric for metric in METRICS}


class FeatureSets:
    """Gathers the features of one channel after the other; a slice adds a row to both sets."""

    def __init__(self) -> None:
        self.sets: dict[tuple[str, int], list[tuple[str, NDArray, NDArray]]] = {}

    def add(self, extractor: str, channel: int, patient: str, real: NDArray, fake: NDArray) -> None:
        """One slice: features (d,) of the real and of the generated image."""
        self.sets.setdefault((extractor, channel), []).append((patient, real, fake))

    def metrics(self, extractor: str, channel: int, wanted: Sequence[str] | None) -> dict[str, dict[str, Any]]:
        """Entries by key for the extractor's wanted metrics, each with n and its floor between halves of the patients."""
        rows = self.sets.get((extractor, channel), [])
        if not rows:
            return {}
        real, fake = (np.stack([row[side] for row in rows]) for side in (1, 2))
        return metric_entries(extractor, real, fake, [patient for patient, _, _ in rows], wanted)


def metric_entries(
    extractor: str, real: NDArray, fake: NDArray, patients: Sequence[str], wanted: Sequence[str] | None
) -> dict[str, dict[str, Any]]:
    """Entries of metrics.json for features (n, d) of real images with their patients and (m, d) of generated ones."""
    keys = {key: metric for key, metric in names(extractor).items() if wanted is None or key in wanted}
    if not keys:
        return {}
    dropped: Sequence[str] = ()
    if extractor == RADIOMICS and np.ptp(real, axis=0).any():  # one slice, or copies of one, have no scale
        real, fake, dropped = standardise(real=real, fake=fake)
    x, y = same_size(real=real, fake=fake)
    values = distribution_metrics(real=x, fake=y)
    floor = floors(real, patients)
    entries = {}
    for key, metric in keys.items():
        entry: dict[str, Any] = {"value": values[metric], "ci95": None, "unit": "", "n": len(y), "n_real": len(x)}
        entry["better"] = "higher" if metric in HIGHER else "lower"
        entry["floor"] = None if floor is None else {"value": floor[metric], "n": floor["n"]}
        cut = f"of {len(real)} real and {len(fake)} generated" if len(real) != len(fake) else ""
        entry["note"] = _note(metric, min(len(real), len(fake)), floor is None, cut)
        if metric == "kid":
            entry["sd_over_subsets"] = values["kid_std"]
        if extractor == RADIOMICS:
            entry["extractor"] = f"{len(FEATURE_NAMES) - len(dropped)} radiomics-style features, no weights"
        if entry["value"] is None:
            entry["reason"] = f"{min(len(real), len(fake))} slice(s) are too few"
        entries[key] = entry
    return entries


def _note(metric: str, n: int, alone: bool, cut: str) -> str:
    parts = [f"{n} a side, {cut} slices"] if cut else []
    if metric == "frechet":
        parts.append(
            "biased by n; compare only at equal n" + (f", and below {ENOUGH} trust KID more" if n < ENOUGH else "")
        )
    if alone:
        parts.append("no floor: one patient's slices cannot be split by patient")
    return "; ".join(parts)
