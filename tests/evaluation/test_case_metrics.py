"""Metrics of a case's slices: continuity, borders, spread of draws. Closed forms on arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from evaluation.metrics.continuity import jumps
from evaluation.metrics.sharpness import edges, gradient_sum, label_borders
from evaluation.metrics.variety import label_spread
from tests.toy_cases import case_of

ALL_BODY = np.ones((6, 5), bool)


def ramp(slices: int, step: float) -> NDArray[np.float64]:
    """(slices, H, W): a volume that changes by `step` from slice to slice, not the same at every pixel."""
    base = np.arange(30, dtype=np.float64).reshape(6, 5)
    return base + step * np.arange(slices)[:, None, None]


def found(real: NDArray, fake: NDArray, indices: list[int] | None = None) -> tuple[float, float, int]:
    """Ratio, error, pairs."""
    row = jumps(case_of(real, fake, indices=indices))
    return row["slice_jump_ratio"], row["slice_difference_mae"], int(row["slice_pairs"])


# -- continuity ---------------------------------------------------------------------------------------------------


def test_identity_offset_and_no_change() -> None:
    """An offset of the whole volume is no flicker; a volume without change costs the real jump."""
    assert found(ramp(4, 3.0), ramp(4, 3.0)) == (1, 0, 3)
    assert found(ramp(4, 3.0), ramp(4, 3.0) + 50) == (1, 0, 3)
    assert found(ramp(4, 3.0), np.zeros((4, 6, 5))) == (0, 3, 3)


@pytest.mark.parametrize(("step", "d"), [(3.0, 1.0), (3.0, 1.5), (3.0, 10.0)])
def test_alternating_offsets(step: float, d: float) -> None:
    """Offsets ±d make jumps of step + 2d and step - 2d in turn, and an error of 2d everywhere."""
    real = ramp(5, step)  # four pairs, so as many up as down
    ratio, error, _ = found(real, real + d * np.array([1, -1, 1, -1, 1])[:, None, None])
    assert ratio == pytest.approx((abs(step - 2 * d) + abs(step + 2 * d)) / 2 / step)
    assert error == pytest.approx(2 * d)


def test_sums_come_before_the_division() -> None:
    """Jumps of 1 and 9 answered by 3 and 9: (3 + 9) / (1 + 9), not the mean of 3 and 1."""
    real, fake = (np.array(levels, float)[:, None, None] * np.ones((6, 5)) for levels in ([0, 1, 10], [0, 3, 12]))
    assert found(real, fake)[0] == pytest.approx(1.2)


def test_only_indices_that_differ_by_one_are_neighbours() -> None:
    real = ramp(5, 3.0)
    for indices, pairs in (([0, 2, 4, 6, 8], 0), ([0, 1, 5, 6, 7], 3), ([7, 7, 7, 7, 7], 0)):
        assert found(real, real, indices)[2] == pairs
    sizes = [np.zeros(size) for size in [(6, 5), (5, 6), (5, 6)]]
    assert jumps(case_of(sizes, sizes))["slice_pairs"] == 1  # of another size: another grid


def test_nothing_to_compare_is_not_a_number() -> None:
    assert all(math.isnan(value) for value in found(ramp(1, 3.0), ramp(1, 3.0))[:2])
    ratio, error, _ = found(np.zeros((2, 6, 5)), ramp(2, 3.0))  # a ratio to nothing, but an error all the same
    assert (math.isnan(ratio), error) == (True, 3)


def test_only_pixels_that_are_body_in_both_count() -> None:
    body = np.stack([ALL_BODY, ALL_BODY])
    body[0, :2], body[1, 4:] = False, False
    real, fake = np.zeros((2, 6, 5)), np.zeros((2, 6, 5))
    real[1], fake[1] = 2, 3
    real[1, :2], fake[1, 4:] = 900, -900  # outside of one of the two masks
    row = jumps(case_of(real, fake, body))
    assert (row["slice_jump_ratio"], row["slice_difference_mae"]) == (30 / 20, 10 / 10)
    assert jumps(case_of(real, fake, [ALL_BODY, ~ALL_BODY]))["slice_pairs"] == 0


# -- borders ------------------------------------------------------------------------------------------------------


def halves(size: int = 20) -> NDArray[np.uint8]:
    """Two labels, side by side."""
    label = np.zeros((size, size), np.uint8)
    label[:, size // 2 :] = 1
    return label


def ratio(label: NDArray, real: NDArray, fake: NDArray) -> float:
    return edges(case_of([real], [fake], [label]))["edge_sharpness_ratio"]


def test_borders_have_two_sides() -> None:
    assert label_borders(halves(6)).all(axis=0).tolist() == [False, False, True, True, False, False]
    lone = np.zeros((5, 5), int)
    lone[2, 2] = 3
    expected = np.zeros((5, 5), bool)
    expected[1:4, 2] = expected[2, 1:4] = True
    assert np.array_equal(label_borders(lone), expected)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (3.0, 0.5)])
def test_gradients_are_per_mm_and_those_of_numpy(spacing: tuple[float, float]) -> None:
    """A step of 80 over two columns: 80 / (2 · spacing) on both sides, by central differences."""
    label = halves()
    border = label_borders(label)
    assert gradient_sum(80.0 * label, border, spacing) == pytest.approx(80 / (2 * spacing[1]) * border.sum())
    assert gradient_sum(80.0 * label.T, border.T, spacing) == pytest.approx(80 / (2 * spacing[0]) * border.sum())
    rng = np.random.default_rng(0)
    label, image = rng.integers(0, 4, (17, 23)), rng.normal(0, 1, (17, 23))
    expected = np.hypot(*np.gradient(image, *spacing))[label_borders(label)].sum()
    assert gradient_sum(image, label_borders(label), spacing) == pytest.approx(expected, rel=1e-12)
    image = (200 * (1 - halves(8))).astype(np.uint8)  # integers do not wrap around
    assert gradient_sum(image, label_borders(halves(8)), (1, 1)) == 1600
    assert gradient_sum(10.0 * halves(8)[:1], label_borders(halves(8)[:1]), (1, 1)) == 10  # one row


def test_identity_offset_blur_and_sums_before_the_division() -> None:
    label = halves(40)
    real = 100.0 * label + np.random.default_rng(0).normal(0, 1, label.shape)
    assert ratio(label, real, real) == 1
    assert ratio(label, real, real + 500) == pytest.approx(1)
    blurred = ratio(label, real, gaussian_filter(real, 2))
    assert blurred < 0.6
    assert ratio(label, gaussian_filter(real, 2), real) == pytest.approx(1 / blurred)
    label = halves()
    row = edges(case_of([2.0 * label, 18.0 * label], [6.0 * label, 18.0 * label], [label, label]))
    assert (row["edge_sharpness_ratio"], row["edge_pixels"]) == (pytest.approx(1.2), 80)


def test_without_borders_or_contrast_there_is_no_ratio() -> None:
    flat = np.zeros((8, 8))
    assert math.isnan(ratio(np.ones((8, 8), int), flat, flat))
    assert math.isnan(ratio(halves(8), flat, 1.0 * halves(8)))
    assert ratio(halves(8), 1.0 * halves(8), flat) == 0


# -- draws --------------------------------------------------------------------------------------------------------


def spread(label: list[NDArray], draws: list[list[NDArray]]) -> float:
    first = [of_slice[0] for of_slice in draws]
    return label_spread(case_of(first, first, label, draws=draws))["diversity_label_spread"]


def test_spread_is_the_standard_deviation_of_label_means() -> None:
    """Label 1 differs by 0, 3, 6 between draws (sd 3), label 2 by 0, 10, 20 (sd 10); background does not count."""
    label = np.repeat(np.array([[0, 1, 2, 2]]), 6, axis=0).repeat(4, axis=1)
    shifts = np.array([[100.0, 0, 0], [-50.0, 3, 10], [0.0, 6, 20]])
    parts = [label[:2], label[2:]]  # slices of different size
    base = [np.random.default_rng(0).uniform(0, 1, part.shape) for part in parts]
    draws = [[image + shift[part] for shift in shifts] for image, part in zip(base, parts, strict=True)]
    assert spread(parts, draws) == pytest.approx((3 + 10) / 2)
