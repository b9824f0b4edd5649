"""Label distributions: exact moments and distances from histograms of 16-bit levels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Slice
from evaluation.metrics.intensity import LabelHistograms, LabelMoments, contrast, label_rows, wasserstein
from evaluation.metrics.metric import CaseSlices
from evaluation.pairs import Item

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


def test_many_labels_are_counted_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    label, levels = rng.integers(0, 300, (120, 120)), rng.integers(0, 65536, (120, 120)).astype(np.uint16)
    label[:, :90] = 7  # more pixels than an eighth of the levels
    histograms = LabelHistograms()
    histograms.add(label, levels)
    assert set(histograms.counts) == set(np.unique(label).tolist())
    for i in (0, 7, 299):
        assert np.array_equal(histograms.counts[i], np.bincount(levels[label == i], minlength=65536))


def test_contrast_is_the_deviation_of_the_painted_scan() -> None:
    assert contrast([50, 50], [300.0, 500.0]) == pytest.approx(100)  # half of white minus grey
    painted = np.repeat([10.0, 40.0, 90.0], [7, 20, 3])
    assert contrast([7, 20, 3], [10.0, 40.0, 90.0]) == pytest.approx(painted.std())
    assert np.isnan([contrast([9], [4.0]), contrast([], []), contrast([3, 4], [5.0, 5.0])]).all()


def test_relative_error_knows_no_scanners_gain() -> None:
    """A scan and its image, both 7 times as bright: absolute errors grow by 7, relative ones stay."""
    label = np.repeat(np.arange(3, dtype=np.uint8), 40).reshape(12, 10)
    real = np.array([0.0, 100.0, 300.0])[label]
    fake = np.array([5.0, 130.0, 290.0])[label]

    def errors(gain: float, labels: np.ndarray) -> tuple[list[float], list[float]]:
        window = Window(0.0, 400.0 * gain)
        case = Case("a", "a", "test", (window,), ())
        values = (gain * real, gain * fake)
        levels = [window.encode(image) for image in values]
        rows = label_rows(CaseSlices([Item(case, Slice(0, ""), 0, labels, *levels, values)], (1, 1, 1)))
        return [row["label_mean_error"] for row in rows], [row["label_mean_error_relative"] for row in rows]

    absolute, relative = errors(1.0, label)
    assert absolute == pytest.approx([5, 30, 10])
    assert relative == pytest.approx([0.05, 0.3, 0.1])  # of the contrast between 100 and 300 in equal parts: 100
    assert errors(7.0, label)[0] == pytest.approx([35, 210, 70])
    assert errors(7.0, label)[1] == pytest.approx(relative)
    assert np.isnan(errors(1.0, np.minimum(label, 1))[1]).all()  # one label has no contrast
