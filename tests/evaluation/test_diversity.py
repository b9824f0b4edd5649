"""Diversity of draws: closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dataloaders.io.intensity import Window
from evaluation.metrics.diversity import LabelSpread, pairwise_similarity
from evaluation.metrics.paired import ssim

WINDOW = Window(0.0, 100.0)
LABEL = np.repeat(np.array([[0, 1, 2, 2]]), 6, axis=0).repeat(4, axis=1)


def draws(k: int, noise: float = 5.0, size: tuple[int, int] = (20, 24)) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    base = rng.uniform(20, 80, size)
    return [base + rng.normal(0, noise, size) for _ in range(k)]


def test_equal_draws_are_not_diverse() -> None:
    image = draws(1)[0]
    similarity, multi = pairwise_similarity([image] * 3, WINDOW)
    assert similarity == 1
    assert math.isnan(multi)  # too small for five scales
    spread = LabelSpread()
    spread.add(LABEL, [np.full(LABEL.shape, 7.0)] * 3)
    assert spread.spread == 0


def test_every_pair_counts_once() -> None:
    a, b, c = draws(3)
    expected = np.mean([ssim(*pair, WINDOW.low, WINDOW.width) for pair in ((a, b), (a, c), (b, c))])
    for order in ([a, b, c], [c, a, b]):
        assert pairwise_similarity(order, WINDOW)[0] == pytest.approx(expected, rel=1e-12)


def test_more_noise_is_less_similar_at_five_scales_too() -> None:
    calm, wild = (pairwise_similarity(draws(3, noise, (176, 180)), WINDOW) for noise in (1.0, 20.0))
    assert calm[0] > wild[0]
    assert calm[1] > wild[1]
    assert calm[1] < 1


def test_spread_is_the_standard_deviation_of_label_means() -> None:
    """Label 1 differs by 0, 3, 6 between draws (sd 3), label 2 by 0, 10, 20 (sd 10); background does not count."""
    spread = LabelSpread()
    shifts = np.array([[100.0, 0, 0], [-50.0, 3, 10], [0.0, 6, 20]])
    for part in (slice(0, 2), slice(2, 6)):  # slices of different size
        rng = np.random.default_rng(0)
        base = rng.uniform(0, 1, LABEL[part].shape)
        spread.add(LABEL[part], [base + shift[LABEL[part]] for shift in shifts])
    assert spread.spread == pytest.approx((3 + 10) / 2)


def test_labels_that_come_later_are_counted() -> None:
    spread = LabelSpread()
    spread.add(np.ones((2, 2), int), [np.zeros((2, 2)), np.full((2, 2), 2.0)])
    spread.add(np.full((2, 2), 5), [np.zeros((2, 2)), np.full((2, 2), 4.0)])
    assert spread.spread == pytest.approx((np.sqrt(2) + np.sqrt(8)) / 2)


def test_background_alone_has_no_spread() -> None:
    spread = LabelSpread()
    spread.add(np.zeros((2, 2), int), [np.zeros((2, 2)), np.ones((2, 2))])
    assert math.isnan(spread.spread)


@pytest.mark.parametrize("k", [2, 3, 5, 7])
def test_equal_draws_give_exactly_zero_and_one(k: int) -> None:
    """Of any values: no rounding in the means of the draws, and none in the quotients of SSIM."""
    image = np.random.default_rng(k).normal(0.1, 33.3, (170, 165)).astype(np.float32)
    spread = LabelSpread()
    spread.add(np.ones(image.shape, int), [image] * k)
    assert spread.spread == 0
    assert pairwise_similarity([image] * k, WINDOW) == (1, 1)
