"""The Fréchet distance: closed forms, and agreement with pytorch-fid's."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics.distribution import frechet_distance


def samples(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def test_identical_sets_are_zero_even_with_fewer_samples_than_features() -> None:
    features = samples(20, 64)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)


def test_a_shift_gives_its_squared_length() -> None:
    features = samples(50, 8)
    assert frechet_distance(features, features + 3) == pytest.approx(8 * 9)


def test_a_scale_of_uncorrelated_features_has_a_closed_form() -> None:
    """tr(C) (1 - s)² for Y = s X about the same mean."""
    features = samples(400, 6)
    features -= features.mean(0)
    trace = np.cov(features, rowvar=False).trace()
    assert frechet_distance(features, 2.5 * features) == pytest.approx(trace * 1.5**2)


@pytest.mark.parametrize(("n", "m", "d"), [(10, 14, 32), (300, 200, 16), (8, 200, 16), (200, 8, 16)])
def test_any_shape_symmetry_and_order(n: int, m: int, d: int) -> None:
    x, y = samples(n, d), samples(m, d, 1) * 1.3 + 0.2
    value = frechet_distance(x, y)
    assert value > 0
    assert frechet_distance(y, x) == pytest.approx(value)
    assert frechet_distance(x[::-1], y) == pytest.approx(value)


def test_agrees_with_pytorch_fid() -> None:
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    x, y = samples(500, 24), samples(400, 24, 1) @ np.diag(np.linspace(0.5, 2, 24)) + 0.1
    statistics = [part for z in (x, y) for part in (z.mean(0), np.cov(z, rowvar=False))]
    try:
        expected = fid_score.calculate_frechet_distance(*statistics)
    except TypeError:
        pytest.skip("this SciPy no longer has sqrtm(disp=...), which pytorch-fid uses")
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="two samples a side, got 1 and 5"):
        frechet_distance(samples(1, 4), samples(5, 4))
