"""From rows to metrics.json: the work grows with the rows, not with rows times patients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataloaders.io.manifest import Manifest
from evaluation.pairs import ManifestPairs
from evaluation.request import Request, plan
from evaluation.scoring import merged, score
from evaluation.summary import Summary
from tests.toy_results import noisy, write_results


class Counted(list[Any]):
    passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return super().__iter__()


def passes(folder: Path, patients: int) -> list[int]:
    write_results(folder, noisy(0.05), patients=patients, slices=2, channels=("CT",))
    pairs = ManifestPairs(folder, Manifest.load(folder))
    request = Request("mae,label_mean_error,edge_sharpness_ratio,faithfulness_dice", segmented=folder / "label")
    planned = plan(request, pairs)
    scores = merged(score(pairs, planned))
    for name in ("rows", "labels", "cases", "overlap", "lesions"):
        setattr(scores, name, Counted(getattr(scores, name)))
    Summary(pairs, scores, planned).result()
    return [getattr(scores, name).passes for name in ("rows", "labels", "cases", "overlap", "lesions")]


def test_rows_are_not_read_once_a_patient(tmp_path: Path) -> None:
    assert passes(tmp_path / "a", 2) == passes(tmp_path / "b", 7)
