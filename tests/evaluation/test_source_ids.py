"""Ids of label files as contiguous ids."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.source_ids import SourceIds


@pytest.mark.parametrize("found", [[0, 1, 2], [5, 300], [7, 20_000_000], []])
def test_there_and_back(found: list[int]) -> None:
    ids = SourceIds(found)
    source = np.array([[0, *found]], np.int32)
    assert ids.apply(source).tolist() == [[sorted({0, *found}).index(i) for i in source[0]]]
    assert [ids.source(int(i)) for i in ids.apply(source)[0]] == source[0].tolist()


@pytest.mark.parametrize("unknown", [4, 600, 30_000_000])
def test_an_unknown_id_comes_behind(unknown: int) -> None:
    ids = SourceIds([5, 300])
    found = ids.apply(np.array([5, unknown, 300, 0]))
    assert found[[0, 2, 3]].tolist() == [1, 2, 0]
    assert found[1] >= 3
    assert ids.source(int(found[1])) == unknown


def test_names() -> None:
    assert [(label.id, label.name) for label in SourceIds([9]).labels] == [(0, "background"), (1, "label_9")]
    assert len(SourceIds([]).labels) == 2  # what a spec needs
