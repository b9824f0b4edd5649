"""Features of all real and generated slices, by extractor and channel, and what their distributions say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.distribution import distribution_metrics, floors, same_size
from evaluation.metrics.metric import Better, Metric
from evaluation.metrics.radiomics import FEATURE_NAMES, standardise

INCEPTION, RADIOMICS = "inception", "radiomics"
OASIS = "oasis"  # Inception on 8-bit images, as pytorch-fid's own script reads files
ENOUGH = 2048  # samples from which FID is worth more than KID
KINDS: dict[str, tuple[str, Better, str]] = {  # of `distribution_metrics` -> name, direction, convention
    "frechet": ("Fréchet distance", "lower", ""),
    "kid": ("kernel distance", "lower", "kernel (x·y/d + 1)³, unbiased, mean over 100 subsets of min(1000, n), seed 0"),
    "precision": ("precision", "higher", "3 neighbours"),
    "recall": ("recall", "higher", "3 neighbours"),
    "density": ("density", "higher", "5 neighbours"),
    "coverage": ("coverage", "higher", "5 neighbours"),
}
# Extractor and channel -> patient and features (d,) of the real and of the generated image, a slice after the other.
Sets = dict[tuple[str, int], list[tuple[str, NDArray, NDArray]]]


def group_of(extractor: str) -> str:
    """Title of the report's table."""
    return f"Distribution: {'Inception' if extractor == INCEPTION else extractor.replace('_', ' ')} features"


def of_extractor(extractor: str) -> dict[str, Metric]:
    """Kind of distance -> metric on the features of an extractor. Only Inception's bear the names of the field."""
    names = {
        kind: (f"{extractor}_{kind}", f"{extractor.replace('_', ' ')} {name}") for kind, (name, *_) in KINDS.items()
    }
    if extractor == INCEPTION:
        names = {kind: (kind, kind) for kind in KINDS} | {"frechet": ("fid", "FID"), "kid": ("kid", "KID")}
    if extractor == OASIS:
        names = {"frechet": ("oasis_fid", "FID of 8-bit files")}
    return {
        kind: Metric(
            *(key, name[:1].upper() + name[1:], "Protocol oasis" if extractor == OASIS else group_of(extractor), "set"),
            *(KINDS[kind][1], "", ("oasis",) if extractor == OASIS else ()),
            weights=INCEPTION if extractor in (INCEPTION, OASIS) else "",
            windowed=True,
            setting=_SETTINGS.get(key, KINDS[kind][2] if extractor == INCEPTION else ""),
        )
        for kind, (key, name) in names.items()
    }


_SETTINGS = {
    "fid": "pytorch-fid's Inception, 2048 features, window to [0, 1], three equal channels, its own resize to 299; "
    "kid, precision, recall, density and coverage on the same features",
    "oasis_fid": "FID of the images as 8-bit files, as `python -m pytorch_fid` reads and prints it",
    "radiomics_frechet": f"{len(FEATURE_NAMES)} weight-free features of each slice within the body, standardised by the "
    "real set; not FRD",
}


def set_entries(
    extractor: str, real: NDArray, fake: NDArray, patients: Sequence[str], wanted: set[str]
) -> dict[str, dict[str, Any]]:
    """Entries of metrics.json for features (n, d) of real images with their patients and (m, d) of generated ones."""
    chosen = {kind: metric for kind, metric in of_extractor(extractor).items() if metric.key in wanted}
    if not chosen:
        return {}
    dropped: Sequence[str] = ()
    if extractor == RADIOMICS and np.ptp(real, axis=0).any():  # one slice, or copies of one, have no scale
        real, fake, dropped = standardise(real=real, fake=fake)
    x, y = same_size(real=real, fake=fake)
    values = distribution_metrics(real=x, fake=y)
    floor = floors(real, patients)
    cut = f"of {len(real)} real and {len(fake)} generated" if len(real) != len(fake) else ""
    entries = {}
    for kind, metric in chosen.items():
        entry: dict[str, Any] = {"value": values[kind], "ci95": None, "unit": "", "n": len(y), "n_real": len(x)}
        entry["better"] = metric.better
        entry["floor"] = None if floor is None else {"value": floor[kind], "n": floor["n"]}
        entry["note"] = _note(kind, len(x), floor is None, cut)
        if kind == "kid":
            entry["sd_over_subsets"] = values["kid_std"]
        if extractor == RADIOMICS:
            entry["extractor"] = f"{len(FEATURE_NAMES) - len(dropped)} radiomics-style features, no weights"
        if entry["value"] is None:
            entry["reason"] = f"{len(x)} slice(s) are too few"
        entries[metric.key] = entry
    return entries


def _note(kind: str, n: int, alone: bool, cut: str) -> str:
    parts = [f"{n} a side, {cut} slices"] if cut else []
    if kind == "frechet":
        parts.append(
            "biased by n; compare only at equal n" + (f", and below {ENOUGH} trust KID more" if n < ENOUGH else "")
        )
    if alone:
        parts.append("no floor: one patient's slices cannot be split by patient")
    return "; ".join(parts)
