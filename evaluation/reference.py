"""Features of a real data set, saved once, so that generated images can be scored without the real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.intensity import LEVELS
from evaluation.metrics.distribution import frechet_of_moments
from evaluation.metrics.extractors import Extractor
from evaluation.metrics.feature_sets import (
    INCEPTION,
    RADIOMICS,
    Sets,
    of_extractor,
    packed,
    set_entries,
    write_arrays,
)
from evaluation.pairs import Pairs

SCHEMA = "medsis-reference/2"


@dataclass(frozen=True)
class Reference:
    """Features (n, d) of the real images, by extractor and channel, with each image's patient.

    images: `Pairs.about` of the real images. keys: extractor -> its `Extractor.key`, which changes with weights and
    preparation; radiomics has none. moments: mean and covariance instead, of a file written by pytorch-fid, which knows
    neither channels nor patients.
    """

    features: dict[tuple[str, str], NDArray]
    patients: dict[tuple[str, str], list[str]]
    keys: dict[str, str]
    moments: tuple[NDArray, NDArray] | None = None
    images: dict[str, Any] = field(default_factory=dict)


def save_reference(path: Path, features: Sets, extractors: Mapping[str, Extractor], pairs: Pairs) -> None:
    """Write the real images' features to a .npz file, atomically, with how the images were read."""
    arrays: dict[str, NDArray] = {}
    sets = [one | {"channel": pairs.channels[one["channel"]].name} for one in packed(features, arrays, real_alone=True)]
    keys = {name: network.key for name, network in extractors.items()}
    write_arrays(path, {"schema": SCHEMA, "sets": sets, "keys": keys, "images": pairs.about}, arrays)


def load_reference(path: Path) -> Reference:
    """Read what `save_reference` wrote, or pytorch-fid's statistics (``mu``, ``sigma``). ValueError for anything else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if {"mu", "sigma"} <= set(file.files):
                return Reference({}, {}, {}, (file["mu"], file["sigma"]))
            about = json.loads(str(file["about"]))
            if about["schema"] != SCHEMA:
                raise ValueError(f"schema {about['schema']!r}")
            sets = {(one["extractor"], one["channel"]): one for one in about["sets"]}
            features = {key: file[one["array"]] for key, one in sets.items()}
            patients = {key: one["patients"] for key, one in sets.items()}
            return Reference(features, patients, about["keys"], images=about["images"])
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise ValueError(f"--reference {path}: not a reference of evaluate.py or pytorch-fid ({error})") from None


def refuse_other_reading(reference: Reference, pairs: Pairs) -> None:
    """ValueError where the generated images are not read as the real ones were: window, unit, axis, label maps.

    A window that only reading will tell is let through.
    """
    ours, theirs = pairs.about, reference.images
    for channel in pairs.channels:
        name = channel.name if channel.name in theirs["windows"] else next(iter(theirs["windows"]))
        for what, flag in (("windows", "window"), ("units", "unit")):
            there, here = _plain(theirs[what][name]), _plain(ours[what][channel.name])
            if there != here and ours[what][channel.name] is not None:
                raise ValueError(f"the reference was made with the {flag} {there}, not {here}: give --{flag}")
    if theirs["axis"] is not None and ours["axis"] is not None and theirs["axis"] != ours["axis"]:
        raise ValueError(f"the reference was made of {theirs['axis']} slices, not {ours['axis']}: give --axis")
    if theirs["labels"] != ours["labels"]:
        made, give = ("with", "give") if theirs["labels"] else ("without", "leave out")
        raise ValueError(f"the reference was made {made} label maps: {give} --labels")


def _plain(value: Any) -> str:
    if value in ([0, 255], [0, LEVELS]):
        return "of PNG levels"  # 8 and 16 bits are the same shares of it
    return " ".join(f"{number:g}" for number in value) if isinstance(value, list) else str(value)


def usable(reference: Reference, networks: Mapping[str, Extractor]) -> list[str]:
    """Extractors that the reference has features of; radiomics needs no weights.

    Empty where only Inception's weights are missing. ValueError where the reference was made with another network, other
    weights or another preparation of the images, or with further extractors that are not at hand.
    """
    kinds = {kind for kind, _ in reference.features}
    for name, network in networks.items():
        if name in kinds and reference.keys.get(name) != network.key:
            raise ValueError(f"the reference was made with another {network.name}: weights or preparation differ")
    found = [name for name in (*networks, RADIOMICS) if name in kinds]
    if not found and INCEPTION not in kinds:
        raise ValueError(
            f"none of the reference's extractors ({', '.join(sorted(kinds))}) is at hand; see --extractors"
        )
    return found


def reference_entries(reference: Reference, extractor: str, channel: str, fake: NDArray) -> dict[str, dict[str, Any]]:
    """Entries of the distribution metrics of generated features (m, d) against the reference.

    A reference of one channel is taken whatever its name. ValueError where it has several and none of this name.
    """
    if reference.moments is not None:
        value = frechet_of_moments(*reference.moments, fake)
        note = "against pytorch-fid's statistics; biased by n; compare only at equal n"
        return {"fid": {"value": value, "ci95": None, "unit": "", "better": "lower", "n": len(fake), "note": note}}
    there = [name for kind, name in reference.features if kind == extractor]
    name = there[0] if len(there) == 1 else channel
    if name not in there:
        raise ValueError(f"the reference has no channel {channel!r}; there are {', '.join(sorted(there))}")
    key = (extractor, name)
    every = {metric.key for metric in of_extractor(extractor).values()}
    return set_entries(extractor, reference.features[key], fake, reference.patients[key], every, paired=False)
