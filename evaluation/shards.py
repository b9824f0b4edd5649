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
from dataloaders.io.ledger import Ledger
from evaluation.pairs import Pairs, file_states
from evaluation.request import Request
from evaluation.scoring import TABLES, Scored, Scores


class Parts(Ledger):
    """Scores of the shards of one evaluation. sources: its key; outputs: of each a file of arrays."""

    @classmethod
    def of(cls, out: Path) -> Parts:
        """Below the folder of the results."""
        return cls(out / "shards", "medsis-scores/4", records="", renew=True)

    def save_part(self, shard: tuple[int, int], key: str, scored: Scored, seen: dict[str, Any]) -> None:
        """Write the scores of a shard's groups, every number exactly, and what reading has told, atomically."""
        arrays: dict[str, NDArray] = {}
        groups = [
            {"number": number, "sides": [_plain(scores, arrays) for scores in of_sides]}
            for number, of_sides in scored.items()
        ]
        about, name = json.dumps({"groups": groups, "seen": seen}), _name(shard)
        self.path(name).unlink(missing_ok=True)
        with atomic_path(self.folder / f"{name}.npz") as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, about=np.array(about), **arrays)  # type: ignore[arg-type]
        self.record(name, key, outputs=[f"{name}.npz"])

    def load_all(self, shards: int, key: str, pairs: Pairs) -> Scored | None:
        """Scores of all shards, or None while any of them is missing, damaged or of another evaluation.

        What their reading has told is shown to `pairs`, which may refuse it.
        """
        names = [_name((number, shards)) for number in range(shards)]
        if any(self.done(name, key) is None for name in names):
            return None
        scored: Scored = {}
        found: list[dict[str, Any]] = []
        try:
            for name in names:
                with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
                    about = json.loads(str(file["about"]))
                    found.append(about["seen"])
                    for group in about["groups"]:
                        scored[group["number"]] = [_scores(side, file) for side in group["sides"]]
        except (OSError, ValueError, BadZipFile):
            return None
        for seen in found:
            pairs.see(seen)
        return scored

    def remove(self) -> None:
        """Once they are merged; another shard may be doing the same."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _name(shard: tuple[int, int]) -> str:
    return f"{shard[0]}-of-{shard[1]}"


def key_of(pairs: Pairs, request: Request) -> str:
    """Changes with every image and with what is asked for, so that parts of another evaluation are not merged."""
    fields = {field.name for field in dataclasses.fields(request)} - {"progress", "device", "cache"}
    asked = {name: str(getattr(request, name)) for name in sorted(fields)}
    named = [request.weights, *(Path(text.partition(":")[2]) for text in request.extractors)]
    folders = [*request.draws, request.segmented, request.segmented_real, request.repeats]
    named += [path for folder in folders if folder is not None for path in files_in(folder, "")]
    about = [pairs.fingerprint(), pairs.groups(), asked, file_states(path for path in named if path is not None)]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def _plain(scores: Scores, arrays: dict[str, NDArray]) -> dict[str, Any]:
    """Scores for JSON; their features go to `arrays`."""
    sets = []
    for (extractor, channel), rows in scores.sets.items():
        name = f"set{len(arrays) // 2}"
        arrays[f"{name}_real"], arrays[f"{name}_fake"] = (np.stack([row[i] for row in rows]) for i in (1, 2))
        sets.append({"array": name, "extractor": extractor, "channel": channel, "patients": [r[0] for r in rows]})
    return {"sets": sets, "counts": scores.counts} | {name: getattr(scores, name) for name in TABLES.values()}


def _scores(group: dict[str, Any], file: Any) -> Scores:
    scores = Scores(**{name: group[name] for name in (*TABLES.values(), "counts")})
    for one in group["sets"]:
        real, fake = (file[f"{one['array']}_{side}"] for side in ("real", "fake"))
        rows: Sequence[tuple[str, NDArray, NDArray]] = list(zip(one["patients"], real, fake, strict=True))
        scores.sets[one["extractor"], one["channel"]] = list(rows)
    return scores
