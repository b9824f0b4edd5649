"""Lesions one by one: components, matches, volumes, and what changed elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.metrics.lesions import Lesions, change_outside, lesion_volume, match_lesions, volume_correlation


def mask(*boxes: tuple[slice, ...], shape: tuple[int, ...] = (12, 20, 20)) -> NDArray[np.bool_]:
    found = np.zeros(shape, bool)
    for box in boxes:
        found[box] = True
    return found


A, B, C = np.s_[1:4, 1:4, 1:4], np.s_[6:9, 10:13, 10:13], np.s_[1:3, 15:18, 15:18]
A_MOVED = np.s_[1:4, 1:4, 2:5]  # 18 of 27 voxels in common: IoU 18 / 36


def test_found_missed_and_invented() -> None:
    lesions = match_lesions(mask(A, B), mask(A_MOVED, C))
    assert lesions == Lesions(truth=2, pred=2, found=1, right=1)
    assert (lesions.precision, lesions.recall, lesions.f1) == (0.5, 0.5, 0.5)
    assert match_lesions(mask(A, B), mask(A)).f1 == pytest.approx(2 / 3)


def test_identity_and_symmetry() -> None:
    truth, pred = mask(A, B), mask(A_MOVED, B, C)
    for min_iou in (None, 0.3, 1.0):
        assert match_lesions(truth, truth, min_iou).f1 == 1
        assert match_lesions(truth, pred, min_iou).f1 == match_lesions(pred, truth, min_iou).f1


def test_the_iou_threshold_is_met_by_equality() -> None:
    assert match_lesions(mask(A), mask(A_MOVED), 0.5) == Lesions(1, 1, 1, 1)
    assert match_lesions(mask(A), mask(A_MOVED), 0.51) == Lesions(1, 1, 0, 0)


def test_corners_connect() -> None:
    corner = mask(np.s_[1, 1, 1], np.s_[2, 2, 2])
    assert match_lesions(corner, corner) == Lesions(1, 1, 1, 1)
    flat = mask(np.s_[1, 1], np.s_[2, 2], np.s_[4, 4], shape=(6, 6))
    assert match_lesions(flat, flat) == Lesions(2, 2, 2, 2)


def test_one_large_prediction_over_two_lesions() -> None:
    """By overlap it finds both; in pairs it can answer for one only."""
    truth, pred = mask(np.s_[2:4, 2:5, 2:5], np.s_[2:4, 2:5, 7:10]), mask(np.s_[2:4, 2:5, 2:10])
    assert match_lesions(truth, pred) == Lesions(truth=2, pred=1, found=2, right=1)
    assert match_lesions(truth, pred, 0.3) == Lesions(truth=2, pred=1, found=1, right=1)


def test_as_many_pairs_as_possible() -> None:
    """The first true lesion fits both predictions, the second only one of them."""
    truth = mask(np.s_[0:1, 0, 0:4], np.s_[0:1, 0, 5:9], shape=(1, 3, 12))
    pred = mask(np.s_[0:1, 0, 3:6], np.s_[0:1, 2, 0:2], shape=(1, 3, 12))
    assert match_lesions(truth, pred, 0.1) == Lesions(2, 2, 1, 1)
    truth = mask(np.s_[0, 0:3], np.s_[0, 6:9], shape=(3, 12))
    pred = mask(np.s_[0, 0], np.s_[0, 2:7], shape=(3, 12))
    assert match_lesions(truth, pred, 0.1) == Lesions(2, 2, 2, 2)


def test_without_lesions() -> None:
    none = mask()
    for min_iou in (None, 0.5):
        empty = match_lesions(none, none, min_iou)
        assert empty == Lesions()
        assert all(math.isnan(value) for value in (empty.f1, empty.precision, empty.recall))
        assert match_lesions(mask(A), none, min_iou).f1 == 0
        assert match_lesions(none, mask(A), min_iou).f1 == 0
    assert math.isnan(match_lesions(none, mask(A)).recall)
    assert match_lesions(mask(A), mask(C)).f1 == 0


def test_cases_add_up_in_any_order() -> None:
    parts = [match_lesions(mask(A, B, C), mask(A)), match_lesions(mask(), mask(C)), match_lesions(mask(), mask())]
    total = sum(parts, Lesions())
    assert total == sum(parts[::-1], Lesions()) == Lesions(truth=3, pred=2, found=1, right=1)
    assert total.f1 == pytest.approx(2 * 0.5 * (1 / 3) / (0.5 + 1 / 3))


def test_volumes() -> None:
    assert lesion_volume(mask(A), (2.0, 0.5, 0.5)) == pytest.approx(27 * 0.5 / 1000)
    truth = [1.0, 2.0, 5.0, math.nan]
    assert volume_correlation(truth, [2.0, 4.0, 10.0, 3.0]) == pytest.approx(1)
    assert volume_correlation(truth, [-1.0, -2.0, -5.0, 3.0]) == pytest.approx(-1)
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 1, (2, 9))
    assert volume_correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert volume_correlation(a, b) == pytest.approx(volume_correlation(b[::-1], a[::-1]))


@pytest.mark.parametrize(
    ("truth", "pred"), [([1, 2], [1, 2]), ([], []), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [0, 0, 0])]
)
def test_too_little_for_a_correlation(truth: list[float], pred: list[float]) -> None:
    assert math.isnan(volume_correlation(truth, pred))


def test_change_outside_of_the_lesion_only() -> None:
    before = np.random.default_rng(0).uniform(0, 100, (12, 20, 20))
    after = before.copy()
    after[6:9, 10:13, 10:13] += 500
    assert change_outside(before, after, mask(B), margin=0) == 0
    after[5, 9, 9] += 500  # a corner of the margin
    assert change_outside(before, after, mask(B), margin=1) == 0
    assert change_outside(before, after, mask(B), margin=0) > 0
    assert change_outside(before, before + 3, mask(B)) == pytest.approx(3)
    assert change_outside(before + 3, before, mask(B)) == pytest.approx(3)


def test_the_margin_stops_at_the_volume() -> None:
    before, after = np.zeros((6, 6)), np.zeros((6, 6))
    lesion = mask(np.s_[0, 0], shape=(6, 6))
    after[:3, :3] = 9
    assert change_outside(before, after, lesion, margin=2) == 0
    assert change_outside(before, after, lesion, margin=1) == pytest.approx(9 * 5 / 32)
    assert math.isnan(change_outside(before, after, np.ones((6, 6), bool)))
    assert change_outside(before, after, np.zeros((6, 6), bool)) == pytest.approx(9 * 9 / 36)


def test_integers_do_not_wrap_around() -> None:
    a, b = np.full((5, 5), 3, np.uint8), np.full((5, 5), 250, np.uint8)
    assert change_outside(a, b, np.zeros((5, 5), bool)) == 247


def test_refusals() -> None:
    with pytest.raises(ValueError, match="lesion masks"):
        match_lesions(mask(), mask(shape=(3, 3, 3)))
    for bad in (0.0, 1.5):
        with pytest.raises(ValueError, match="min_iou"):
            match_lesions(mask(), mask(), bad)
    with pytest.raises(ValueError, match="three spacings"):
        lesion_volume(mask(), (1, 1))
    with pytest.raises(ValueError, match="same cases"):
        volume_correlation([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="differ in shape"):
        change_outside(np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((3, 4), bool))
    with pytest.raises(ValueError, match="margin"):
        change_outside(np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((3, 3), bool), -1)
