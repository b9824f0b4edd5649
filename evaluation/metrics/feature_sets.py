"""Features of all real and generated slices, by extractor and channel, and what their distributions say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.files import atomic_path
from evaluation.metrics.distribution import distribution_metrics, floors, same_size
from evaluation.metrics.metric import AGREEMENT, Better, Metric
from evaluation.metrics.radiomics import FEATURE_NAMES, standardise

INCEPTION, RADIOMICS = "inception", "radiomics"
EFFICIENTNET = "efficientnet_lite0"  # its weights come with a package, so that it is named without a file
ALWAYS = (EFFICIENTNET, INCEPTION, RADIOMICS)  # measured wherever their weights are
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


DISTANCE = "distance"  # of two images, between their features; of networks with a prefix of their own
_TITLES = {INCEPTION: "Inception", EFFICIENTNET: "EfficientNet-Lite0"}


def title_of(extractor: str) -> str:
    """Name for people."""
    return _TITLES.get(extractor, extractor.replace("_", " "))


def group_of(extractor: str) -> str:
    """Title of the report's table."""
    return f"Distribution: {title_of(extractor)} features"


def of_extractor(extractor: str) -> dict[str, Metric]:
    """Kind of distance -> metric of sets on the features of an extractor. Only Inception's bear the names of the field."""
    names = {kind: (f"{extractor}_{kind}", f"{title_of(extractor)} {name}") for kind, (name, *_) in KINDS.items()}
    if extractor == INCEPTION:
        names = {kind: (kind, kind) for kind in KINDS} | {"frechet": ("fid", "FID"), "kid": ("kid", "KID")}
    if extractor == OASIS:
        names = {"frechet": ("oasis_fid", "FID of 8-bit files")}
    return {
        kind: Metric(
            *(key, name[:1].upper() + name[1:], "Protocol oasis" if extractor == OASIS else group_of(extractor), "set"),
            *(KINDS[kind][1], "", ("oasis",) if extractor == OASIS else ()),
            weights=INCEPTION if extractor in (INCEPTION, OASIS) else EFFICIENTNET * (extractor == EFFICIENTNET),
            windowed=True,
            setting=_SETTINGS.get(key, KINDS[kind][2] if extractor == INCEPTION else ""),
        )
        for kind, (key, name) in names.items()
    }


def paired_of(extractor: str) -> Metric:
    """Distance between the features of a generated and of its real image, for any network; see `feature_distances`."""
    return Metric(
        *(f"{extractor}_{DISTANCE}", f"{title_of(extractor)} feature distance", AGREEMENT, "slice", "lower", ""),
        weights=EFFICIENTNET * (extractor == EFFICIENTNET),
        windowed=True,
        setting="Euclidean, between features of length 1; of whole slices; not LPIPS",
    )


def feature_distances(real: NDArray, fake: NDArray) -> NDArray[np.float64]:
    """|r / |r| - g / |g|| of each row of features (n, d): 0 to 2, and to sqrt(2) where no feature is below 0; (n,).

    sqrt(2 - 2 c), c being their cosine. Length is left out, because networks react more strongly to more contrast.
    """
    unit = [
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in np.asarray((real, fake), np.float64)
    ]
    return np.linalg.norm(unit[0] - unit[1], axis=1)


_SETTINGS = {
    "fid": "pytorch-fid's Inception, 2048 features, window to [0, 1], three equal channels, its own resize to 299; "
    "kid, precision, recall, density and coverage on the same features",
    "oasis_fid": "FID of the images as 8-bit files, as `python -m pytorch_fid` reads and prints it",
    "radiomics_frechet": f"{len(FEATURE_NAMES)} weight-free features of each slice within the body, standardised by the "
    "real set; not FRD",
}


def set_entries(
    extractor: str, real: NDArray, fake: NDArray, patients: Sequence[str], wanted: set[str], paired: bool = True
) -> dict[str, dict[str, Any]]:
    """Entries of metrics.json for features (n, d) of real images with their patients and (m, d) of generated ones.

    paired: whether they are of the same slices in the same order.
    """
    chosen = {kind: metric for kind, metric in of_extractor(extractor).items() if metric.key in wanted}
    if not chosen:
        return {}
    dropped: Sequence[str] = ()
    if extractor == RADIOMICS and np.ptp(real, axis=0).any():  # one slice, or copies of one, have no scale
        real, fake, dropped = standardise(real=real, fake=fake)
    x, y = same_size(real=real, fake=fake)
    values = distribution_metrics(real=x, fake=y)
    floor = floors(real, patients, fake=fake if paired else None)
    cut = f"of {len(real)} real and {len(fake)} generated" if len(real) != len(fake) else ""
    entries = {}
    for kind, metric in chosen.items():
        entry: dict[str, Any] = {"value": values[kind], "ci95": None, "unit": "", "n": len(y), "n_real": len(x)}
        entry["better"] = metric.better
        entry["floor"] = {"of": "other people"} | floor[kind] if floor else None
        entry["note"] = _note(kind, len(x), not floor, cut)
        if kind == "kid":
            entry["sd_over_subsets"] = values["kid_std"]
        if extractor == RADIOMICS:
            entry["extractor"] = f"{len(FEATURE_NAMES) - len(dropped)} radiomics-style features, no weights"
        if entry["value"] is None:
            entry["reason"] = f"{len(x)} slice(s) are too few"
        entries[metric.key] = entry
    return entries


def packed(sets: Sets, arrays: dict[str, NDArray], real_alone: bool = False) -> list[dict[str, Any]]:
    """The sets for JSON; their features go to `arrays`: of real and generated image (n, 2, d), or of the real one (n, d)."""
    found = []
    for (extractor, channel), rows in sets.items():
        name = f"set{len(arrays)}"
        arrays[name] = np.stack([row[1] if real_alone else row[1:] for row in rows])
        found.append({"array": name, "extractor": extractor, "channel": channel, "patients": [row[0] for row in rows]})
    return found


def write_arrays(path: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
    """A .npz file, atomically; `about` is in it as JSON."""
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]


def _note(kind: str, n: int, alone: bool, cut: str) -> str:
    parts = [f"{n} a side, {cut} slices"] if cut else []
    if kind == "frechet":
        parts.append(
            "biased by n; compare only at equal n" + (f", and below {ENOUGH} trust KID more" if n < ENOUGH else "")
        )
    if alone:
        parts.append("no floor: one patient's slices cannot be split by patient")
    return "; ".join(parts)
