"""From patients to intervals and p-values: exact tests, SciPy, few patients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import permutation_test

from evaluation.statistics import bootstrap_interval, paired_difference, sign_flip_p


def samples(n: int, shift: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    a = rng.normal(10, 2, n)
    return a, a - shift + rng.normal(0, 1, n)


def test_the_difference_is_a_minus_b() -> None:
    found = paired_difference([3.0, 4, 5, 6, 7], [1.0, 2, 3, 4, 5])
    assert (found.mean, found.interval, found.patients, found.note) == (2, (2, 2), 5, "")
    assert found.p_value == 2 / 2**5  # all up or all down


@pytest.mark.parametrize("n", [5, 8, 12])
def test_exact_p_value_is_that_of_scipy(n: int) -> None:
    a, b = samples(n)
    reference = permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    assert sign_flip_p(a - b) == pytest.approx(reference.pvalue, abs=1e-12)


def test_random_flips_come_close_to_all_of_them() -> None:
    a, b = samples(13)
    differences = a - b
    flips = 1 - 2 * ((np.arange(2**13)[:, None] >> np.arange(13)) & 1)
    exact = np.mean(np.abs(flips @ differences) >= abs(differences.sum()) - 1e-9)
    assert 0.01 < exact < 0.9
    assert paired_difference(a, b).p_value == pytest.approx(exact, abs=4 * math.sqrt(exact / 10_000))


def test_ties_by_rounding_are_ties() -> None:
    """0.1 + 0.2 - 0.3 is not 0 to the last digit."""
    differences = np.array([0.1, 0.2, 0.3, -0.1, -0.2, -0.3])
    assert sign_flip_p(differences) == 1
    assert sign_flip_p(differences * 1e-9) == 1


@pytest.mark.parametrize("n", [6, 30])
def test_order_of_patients_and_of_methods(n: int) -> None:
    a, b = samples(n)
    order = np.random.default_rng(1).permutation(n)
    found = paired_difference(a, b)
    assert paired_difference(a[order], b[order]) == found
    mirrored = paired_difference(b, a)
    assert (mirrored.mean, mirrored.p_value) == (-found.mean, found.p_value)
    assert mirrored.interval == (-found.interval[1], -found.interval[0])


@pytest.mark.slow
def test_interval_covers_about_95_percent() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        differences = rng.normal(1, 1, 40)
        interval = paired_difference(differences, np.zeros(40)).interval
        hits += interval[0] <= 1 <= interval[1]
    assert 0.88 <= hits / 200 <= 0.99


def test_only_patients_with_both() -> None:
    a = [1.0, None, 3.0, 4.0, math.nan, 6.0, 7.0, math.inf, None]
    b = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, None]
    found = paired_difference(a, b)
    assert (found.mean, found.patients, found.left_out) == (1, 5, 3)
    assert found.p_value == 2 / 2**5


@pytest.mark.parametrize("n", [0, 1, 4])
def test_with_few_patients_it_says_so(n: int) -> None:
    found = paired_difference(np.arange(n) + 2.0, np.arange(n) * 1.0)
    assert found.interval is None
    assert found.p_value is None
    assert f"{n} patient(s)" in found.note
    assert "at least 5" in found.note
    assert found.mean == 2 if n else math.isnan(found.mean)


def test_interval_of_one_method() -> None:
    values = np.random.default_rng(0).normal(5, 1, 20)
    interval = bootstrap_interval(values)
    assert interval[0] < values.mean() < interval[1]
    assert bootstrap_interval(values) == interval
    assert bootstrap_interval(values[:4]) is None
    assert bootstrap_interval(np.full(5, 3.0)) == (3, 3)


def test_never_zero() -> None:
    assert paired_difference(np.arange(40.0) + 100, np.zeros(40)).p_value == pytest.approx(1 / 10_001)
