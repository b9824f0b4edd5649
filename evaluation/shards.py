"""Evaluation as a job array: each shard leaves its part, and the one that finds all parts there merges them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.find import files_in
from dataloaders.io.ledger import Ledger
from evaluation.metrics.feature_sets import packed, write_arrays
from evaluation.pairs import Pairs, file_states
from evaluation.request import Request
from evaluation.scoring import Scored, Scores


class Parts(Ledger):
    """Scores of the shards of one evaluation. sources: its key; outputs: of each a file of arrays."""

    @classmethod
    def of(cls, out: Path) -> Parts:
        """Below the folder of the results."""
        return cls(out / "shards", "medsis-scores/5", records="", renew=True)

    def save_part(self, shard: tuple[int, int], key: str, scored: Scored, seen: dict[str, Any]) -> None:
        """Write the scores of a shard's groups, every number exactly, and what reading has told, atomically."""
        arrays: dict[str, NDArray] = {}
        groups = [
            {"number": number, "sides": [_plain(scores, arrays) for scores in of_sides]}
            for number, of_sides in scored.items()
        ]
        name = _name(shard)
        self.path(name).unlink(missing_ok=True)
        write_arrays(self.folder / f"{name}.npz", {"groups": groups, "seen": seen}, arrays)
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
    fields = {field.name for field in dataclasses.fields(Request)} - {"progress", "device", "cache"}
    asked = {name: str(getattr(request, name)) for name in sorted(fields)}
    named = [request.weights, *(Path(text.partition(":")[2]) for text in request.extractors)]
    folders = [*request.draws, request.segmented, request.segmented_real, request.repeats]
    named += [path for folder in folders if folder is not None for path in files_in(folder, "")]
    about = [pairs.fingerprint(), pairs.groups(), asked, file_states(path for path in named if path is not None)]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def _plain(scores: Scores, arrays: dict[str, NDArray]) -> dict[str, Any]:
    """Scores for JSON; their features go to `arrays`."""
    return {"sets": packed(scores.sets, arrays), "tables": scores.tables, "counts": scores.counts}


def _scores(side: dict[str, Any], file: Any) -> Scores:
    scores = Scores(side["tables"], counts=side["counts"])
    for one in side["sets"]:
        rows = [(patient, *pair) for patient, pair in zip(one["patients"], file[one["array"]], strict=True)]
        scores.sets[one["extractor"], one["channel"]] = rows
    return scores
