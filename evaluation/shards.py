"""Evaluation as a job array: each shard leaves its part, and the one that finds all parts there merges them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.files import atomic_path
from dataloaders.io.find import files_in
from evaluation.pairs import Pairs, file_states
from evaluation.request import Request
from evaluation.scoring import TABLES, Scores

SCHEMA = "medsis-scores/3"
FOLDER = "shards"
Scored = list[tuple[int, Scores]]


def part_path(out: Path, shard: tuple[int, int]) -> Path:
    """File of one shard's scores."""
    return out / FOLDER / f"{shard[0]}-of-{shard[1]}.npz"


def key_of(pairs: Pairs, request: Request) -> str:
    """Changes with every image and with what is asked for, so that parts of another evaluation are not merged."""
    fields = {field.name for field in dataclasses.fields(request)} - {"progress", "device", "cache"}
    asked = {name: str(getattr(request, name)) for name in sorted(fields)}
    named = [request.weights, *(Path(text.partition(":")[2]) for text in request.extractors)]
    folders = [*request.draws, request.segmented, request.segmented_real]
    named += [path for folder in folders if folder is not None for path in files_in(folder, "")]
    about = [pairs.fingerprint(), pairs.groups(), asked, file_states(path for path in named if path is not None)]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def save_part(out: Path, shard: tuple[int, int], key: str, scored: Scored) -> None:
    """Write the scores of a shard's groups, every number exactly, atomically."""
    arrays: dict[str, NDArray] = {}
    groups = []
    for number, scores in scored:
        sets = []
        for (extractor, channel), rows in scores.sets.items():
            name = f"set{len(arrays) // 2}"
            arrays[f"{name}_real"], arrays[f"{name}_fake"] = (np.stack([row[side] for row in rows]) for side in (1, 2))
            sets.append({"array": name, "extractor": extractor, "channel": channel, "patients": [r[0] for r in rows]})
        tables = {name: getattr(scores, name) for name in TABLES}
        groups.append({"number": number, "sets": sets, "counts": scores.counts} | tables)
    about = json.dumps({"schema": SCHEMA, "key": key, "groups": groups})
    path = part_path(out, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, about=np.array(about), **arrays)  # type: ignore[arg-type]


def remove_parts(out: Path) -> None:
    """Remove the shards' scores once they are merged; another shard may be doing the same."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def load_parts(out: Path, shards: int, key: str) -> Scored | None:
    """Scores of all shards, or None while any of them is missing, damaged or of another evaluation."""
    scored: Scored = []
    for number in range(shards):
        part = _load(part_path(out, (number, shards)), key)
        if part is None:
            return None
        scored += part
    return scored


def _load(path: Path, key: str) -> Scored | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if about["schema"] != SCHEMA or about["key"] != key:
                return None
            return [(group["number"], _scores(group, file)) for group in about["groups"]]
    except (OSError, ValueError, KeyError, TypeError, BadZipFile):
        return None


def _scores(group: dict[str, Any], file: Any) -> Scores:
    scores = Scores(**{name: group[name] for name in (*TABLES, "counts")})
    for one in group["sets"]:
        real, fake = (file[f"{one['array']}_{side}"] for side in ("real", "fake"))
        rows: Sequence[tuple[str, NDArray, NDArray]] = list(zip(one["patients"], real, fake, strict=True))
        scores.sets[one["extractor"], one["channel"]] = list(rows)
    return scores
