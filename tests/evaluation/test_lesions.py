"""Lesions one by one: components, matches, volumes, and what changed elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.metrics.lesions import Lesions, change_outside, lesion_row, match_lesions, pooled, volume_correlation


def mask(*boxes: tuple[slice, ...], shape: tuple[int, ...] = (12, 20, 20)) -> NDArray[np.bool_]:
    found = np.zeros(shape, bool)
    for box in boxes:
        found[box] = True
    return found


A, B, C = np.s_[1:4, 1:4, 1:4], np.s_[6:9, 10:13, 10:13], np.s_[1:3, 15:18, 15:18]
A_MOVED = np.s_[1:4, 1:4, 2:5]


TWO = mask(np.s_[2:4, 2:5, 2:5], np.s_[2:4, 2:5, 7:10])
CORNER, FLAT = mask(np.s_[1, 1, 1], np.s_[2, 2, 2]), mask(np.s_[1, 1], np.s_[2, 2], np.s_[4, 4], shape=(6, 6))


@pytest.mark.parametrize(
    ("truth", "pred", "expected"),
    [
        (mask(A, B), mask(A_MOVED, C), Lesions(truth=2, pred=2, found=1, right=1)),  # found, missed, invented
        (CORNER, CORNER, Lesions(1, 1, 1, 1)),  # corners connect
        (FLAT, FLAT, Lesions(2, 2, 2, 2)),
        (TWO, mask(np.s_[2:4, 2:5, 2:10]), Lesions(truth=2, pred=1, found=2, right=1)),  # one over two
        (mask(), mask(), Lesions(0, 0, 0, 0)),
        (mask(), mask(A), Lesions(0, 1, 0, 0)),
    ],
)
def test_components_are_matched(truth: NDArray, pred: NDArray, expected: Lesions) -> None:
    assert match_lesions(truth, pred) == expected
    swapped = Lesions(expected.pred, expected.truth, expected.right, expected.found)
    assert match_lesions(pred, truth) == swapped


def test_scores_of_matches() -> None:
    half = Lesions(truth=2, pred=2, found=1, right=1)
    assert (half.precision, half.recall, half.f1) == (0.5, 0.5, 0.5)
    assert Lesions(truth=2, pred=1, found=1, right=1).f1 == pytest.approx(2 / 3)
    none = Lesions(0, 0, 0, 0)
    assert all(math.isnan(value) for value in (none.f1, none.precision, none.recall))
    assert Lesions(1, 0, 0, 0).f1 == Lesions(0, 1, 0, 0).f1 == Lesions(1, 1, 0, 0).f1 == 0
    for one_sided in (Lesions(5, 0, 0, 0), Lesions(0, 1, 0, 0)):
        assert one_sided.precision == one_sided.recall == 0


def test_cases_are_pooled_and_volumes_have_a_unit() -> None:
    pairs = [(mask(A, B, C), mask(A)), (mask(), mask(C)), (mask(), mask())]
    rows = [lesion_row(truth, pred, (2.0, 0.5, 0.5)) for truth, pred in pairs]
    total = pooled(rows)
    assert total == pooled(rows[::-1]) == Lesions(truth=3, pred=2, found=1, right=1)
    assert total.f1 == pytest.approx(2 * 0.5 * (1 / 3) / (0.5 + 1 / 3))
    assert rows[0]["segmented_volume_ml"] == pytest.approx(27 * 0.5 / 1000)
    assert lesion_row(mask(A), mask(A), None)["volume_pixels"] == 27


def rows(truth: list[float], pred: list[float]) -> list[dict[str, float]]:
    return [{"volume_ml": a, "segmented_volume_ml": b} for a, b in zip(truth, pred, strict=True)]


def test_correlation_of_volumes() -> None:
    assert volume_correlation(rows([1, 2, 5], [2, 4, 10])) == pytest.approx(1)
    assert volume_correlation(rows([1, 2, 5], [-1, -2, -5])) == pytest.approx(-1)
    a, b = np.random.default_rng(0).uniform(0, 1, (2, 9))
    assert volume_correlation(rows([*a], [*b])) == pytest.approx(np.corrcoef(a, b)[0, 1])


def test_change_outside_of_the_lesion_only() -> None:
    before = np.random.default_rng(0).uniform(0, 100, (12, 20, 20))
    after = before.copy()
    after[6:9, 10:13, 10:13] += 500
    after[4, 8, 8] += 500  # a corner of the margin
    assert change_outside(before, after, mask(B)) == 0
    after[3, 8, 8] += 500
    assert change_outside(before, after, mask(B)) > 0
    assert change_outside(before, before + 3, mask(B)) == pytest.approx(3)
    assert change_outside(before + 3, before, mask(B)) == pytest.approx(3)
