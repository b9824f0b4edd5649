"""Label distributions: exact moments and distances from histograms of 16-bit levels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from dataloaders.io.intensity import Window
from evaluation.metrics.intensity import LabelHistograms, LabelMoments, wasserstein

WINDOW = Window(-1024.0, 3071.0)


def slices(seed: int, mean: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, levels, and the physical values that the levels stand for."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, (30, 30))
    levels = WINDOW.encode(rng.normal(mean, 60, label.shape) + 100 * label)
    return label, levels, WINDOW.decode(levels).astype(np.float64)


def test_moments_and_distance_are_those_of_the_raw_pixels() -> None:
    real, fake = LabelHistograms(), LabelHistograms()
    parts = [(slices(s, 40.0), slices(s + 10, 75.0)) for s in range(3)]
    for (label, levels_r, _), (_, levels_f, _) in parts:
        real.add(label, levels_r)
        fake.add(label, levels_f)
    for i in range(3):
        r = np.concatenate([v[label == i] for (label, _, v), _ in parts])
        f = np.concatenate([v[label == i] for (label, _, _), (_, _, v) in parts])
        assert real.moments(i, WINDOW) == pytest.approx((r.mean(), r.std()), rel=1e-5)
        assert wasserstein(real.counts[i], fake.counts[i], WINDOW) == pytest.approx(
            wasserstein_distance(r, f), rel=1e-5
        )


def test_a_label_missing_in_one_slice_is_only_counted_where_it_is() -> None:
    both = LabelHistograms()
    both.add(np.array([[0, 1]]), np.array([[5, 6]], np.uint16))
    both.add(np.array([[0, 0]]), np.array([[5, 7]], np.uint16))
    assert set(both.counts) == {0, 1}
    assert both.counts[1].sum() == 1
    assert both.counts[0].sum() == 3


def test_moments_of_values_know_no_window() -> None:
    """Slice by slice equal to all pixels at once, also far from zero and beyond any window."""
    rng = np.random.default_rng(3)
    labels = [rng.integers(0, 4, (20, 20)), np.zeros((9, 9), int), rng.integers(2, 4, (5, 7))]
    values = [(1e6 + 3 * label + rng.normal(0, 0.5, label.shape)) for label in labels]
    moments = LabelMoments()
    for label, of_slice in zip(labels, values, strict=True):
        moments.add(label, of_slice)
    for i in range(4):
        every = np.concatenate([v[label == i] for label, v in zip(labels, values, strict=True)])
        assert moments.moments(i) == pytest.approx((every.mean(), every.std()), rel=1e-9)


def test_moments_of_a_constant_label_have_no_spread() -> None:
    moments = LabelMoments()
    for _ in range(3):
        moments.add(np.ones((7, 7), int), np.full((7, 7), -1000.1))
    assert moments.moments(1) == pytest.approx((-1000.1, 0), abs=1e-9)


def test_many_labels_are_counted_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    label, levels = rng.integers(0, 300, (120, 120)), rng.integers(0, 65536, (120, 120)).astype(np.uint16)
    label[:, :90] = 7  # more pixels than an eighth of the levels
    histograms = LabelHistograms()
    histograms.add(label, levels)
    assert set(histograms.counts) == set(np.unique(label).tolist())
    for i in (0, 7, 299):
        assert np.array_equal(histograms.counts[i], np.bincount(levels[label == i], minlength=65536))
