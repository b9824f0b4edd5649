"""Sharpness at label borders: steps and ramps have closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from evaluation.metrics.sharpness import Edges, label_borders, label_edges


def halves(size: int = 20) -> NDArray[np.uint8]:
    """Two labels, side by side."""
    label = np.zeros((size, size), np.uint8)
    label[:, size // 2 :] = 1
    return label


def test_borders_have_two_sides() -> None:
    border = label_borders(halves(6))
    assert border.all(axis=0).tolist() == [False, False, True, True, False, False]
    assert border.sum() == 12
    lone = np.zeros((5, 5), int)
    lone[2, 2] = 3
    assert label_borders(lone).astype(int).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (3.0, 0.5)])
def test_a_step_in_unit_per_mm(spacing: tuple[float, float]) -> None:
    """A step of 80 over two columns: 80 / (2 · spacing) on both sides, by central differences."""
    label = halves()
    real, fake = 80.0 * label, 40.0 * label
    edges = label_edges(label, real, fake, spacing)
    assert edges.real_mean == pytest.approx(80 / (2 * spacing[1]))
    assert (edges.ratio, edges.pixels) == (0.5, 40)
    turned = label_edges(label.T, real.T, fake.T, spacing)
    assert turned.real_mean == pytest.approx(80 / (2 * spacing[0]))


def test_a_diagonal_ramp_has_its_slope_everywhere() -> None:
    y, x = np.indices((20, 20))
    label = ((x + y) % 3).astype(np.uint8)  # every pixel is a border, the slice's edge too
    edges = label_edges(label, 3.0 * y + 4.0 * x, 6.0 * y + 8.0 * x, (1, 1))
    assert (edges.real_mean, edges.fake_mean, edges.ratio) == pytest.approx((5, 10, 2))
    assert edges.pixels == 400


def test_gradient_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    label, image = rng.integers(0, 4, (17, 23)), rng.normal(0, 1, (17, 23))
    gradient = np.hypot(*np.gradient(image, 0.7, 1.3))
    edges = label_edges(label, image, image, (0.7, 1.3))
    assert edges.real == pytest.approx(gradient[label_borders(label)].sum(), rel=1e-12)


def test_identity_offset_and_blur() -> None:
    rng = np.random.default_rng(0)
    label = halves(40)
    real = 100.0 * label + rng.normal(0, 1, label.shape)
    assert label_edges(label, real, real, (1, 1)).ratio == 1
    assert label_edges(label, real, real + 500, (1, 1)).ratio == pytest.approx(1)
    assert label_edges(label, real, gaussian_filter(real, 2), (1, 1)).ratio < 0.6
    swapped = label_edges(label, gaussian_filter(real, 2), real, (1, 1)).ratio
    assert swapped == pytest.approx(1 / label_edges(label, real, gaussian_filter(real, 2), (1, 1)).ratio)


def test_sums_over_slices_in_any_order_before_the_division() -> None:
    """Gradients of 1 and 9 answered by 3 and 9: (3 + 9) / (1 + 9), not the mean of 3 and 1."""
    label = halves()
    parts = [label_edges(label, 2.0 * r * label, 2.0 * f * label, (1, 1)) for r, f in ((1, 3), (9, 9))]
    assert sum(parts, Edges()).ratio == sum(parts[::-1], Edges()).ratio == pytest.approx(1.2)


def test_without_borders_or_contrast_there_is_no_ratio() -> None:
    flat = np.zeros((8, 8))
    none = label_edges(np.ones((8, 8), int), flat, flat, (1, 1))
    assert none == Edges()
    assert math.isnan(none.ratio)
    assert math.isnan(none.real_mean)
    assert math.isnan(none.fake_mean)
    invisible = label_edges(halves(8), flat, 1.0 * halves(8), (1, 1))
    assert math.isnan(invisible.ratio)
    assert invisible.fake_mean == 0.5
    assert label_edges(halves(8), 1.0 * halves(8), flat, (1, 1)).ratio == 0


def test_integers_do_not_wrap_around() -> None:
    label = halves(8)
    image = (200 * (1 - label)).astype(np.uint8)
    assert label_edges(label, image, image, (1, 1)).real_mean == 100


def test_one_row() -> None:
    label = halves(8)[:1]
    assert label_edges(label, 10.0 * label, 10.0 * label, (1, 1)) == Edges(10, 10, 2)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        label_edges(halves(8), np.zeros((8, 8)), np.zeros((8, 9)), (1, 1))
    with pytest.raises(ValueError, match="positive"):
        label_edges(halves(8), np.zeros((8, 8)), np.zeros((8, 8)), (1, 0))
