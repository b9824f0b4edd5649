"""The fit of learning curves and its inverse against curves that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit

from evaluation.learning_curves import (
    EXPONENTS,
    fit_power_law,
    learning_curves,
    patients_of,
    power_law,
    worth_sentence,
    worth_sentences,
)

N = [1, 2, 4, 8, 16]


def test_the_fit_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    y = 0.85 - 0.3 * np.array(N) ** -0.6 + rng.normal(0, 0.01, (20, 5))
    curves = fit_power_law(N, y)
    ours = ((power_law(N, curves) - y) ** 2).sum(1)
    for row, error in zip(y, ours, strict=True):
        best, _ = curve_fit(
            lambda n, a, b, c: a - b * n**-c, N, row, p0=(0.8, 0.3, 0.6), bounds=([0, 0, 0.05], [9, 9, 4])
        )
        other = ((best[0] - best[1] * np.array(N, float) ** -best[2] - row) ** 2).sum()
        assert error < other + 1e-6


def test_the_inverse_finds_n_and_stays_within_what_was_measured() -> None:
    curve = tuple(np.array([part]) for part in (0.9, 0.4, EXPONENTS[120]))
    values = power_law([1, 3, 10], curve)
    assert patients_of(values, curve, 1, 16)[0] == pytest.approx([1, 3, 10])
    assert patients_of(np.array([[0.1, 0.89999, 0.95]]), curve, 1, 16).tolist() == [[1, 16, 16]]
    flat = tuple(np.array([part]) for part in (0.7, 0.0, 1.0))
    assert patients_of(np.array([[0.6, 0.7, 0.8]]), flat, 1, 16).tolist() == [[1, 1, 16]]


def test_falling_scores_give_a_flat_curve_and_no_worth() -> None:
    falling = np.linspace(0.8, 0.6, 5)
    scores = {arm: np.broadcast_to(falling[None, :, None], (3, 5, 6)) for arm in ("real", "both")}
    found = learning_curves(N, scores, "real")
    assert found["curves"]["real"]["fit"][:2] == pytest.approx([0.7, 0])
    assert found["worth"] == []
    assert found["rise"] == {"value": pytest.approx(-0.2), "interval": pytest.approx([-0.2, -0.2])}
    assert worth_sentences(found)[0].startswith("no number of patients: from 1 to 16 of them real gains -0.200 (95 %: ")


def test_a_rise_within_the_scatter_is_no_measure() -> None:
    """The fit rises, and synthetic images lie above it; but one draw in three falls by as much as the others rise."""
    rise = np.array([0.02, 0.02, -0.04])[:, None, None] * np.linspace(0, 1, 5)[None, :, None]
    real = 0.7 + rise + np.array([0, 0, 0.01])[:, None, None] + np.zeros((3, 1, 6))
    steady = real + np.linspace(0, 0.05, 5)[None, :, None]
    for first, worth in ((real, 0), (steady, 4)):
        assert len(learning_curves(N, {"real": first, "both": first + 0.01}, "real")["worth"]) == worth


def test_harm_gain_and_what_lies_beyond() -> None:
    """Draws differ, so intervals have a width; a gain beyond 16 patients is told as such, so is harm below one."""
    shift = np.array([-0.02, 0.0, 0.02])[:, None, None]
    real = 0.9 - 0.4 * np.array(N)[None, :, None] ** -0.7 + np.zeros((3, 1, 6))
    scores = {"real": real, "worse": real - 0.03 + shift, "much": np.full((3, 5, 6), 0.95)}
    found = {(item["arm"], item["n"]): item for item in learning_curves(N, scores, "real")["worth"]}
    assert found["worse", 4]["worth"] < 0
    low, high = found["worse", 4]["interval"]
    assert low < found["worse", 4]["worth"] < high
    assert found["worse", 1]["worth"] == 0  # fewer than one patient were not measured
    assert worth_sentence(found["worse", 1]).startswith(
        "worse: with 1 real patient, synthetic images are worth 0.0 or less"
    )
    much = worth_sentence(found["much", 8])
    assert much.endswith("images are worth 8.0 or more real patients (95 %: 8.0 or more to 8.0 or more)")


def test_synthetic_images_alone_replace_patients_and_add_to_none() -> None:
    """As good as twice the patients: beside n real ones worth n, in place of them 2 n."""
    curve = np.array([1, 2])[:, None] * np.array(N)[None, :]
    real, twice = ((0.9 - 0.4 * n**-0.7)[None, :, None] + np.zeros((3, 1, 6)) for n in curve)
    found = learning_curves(N, {"real": real, "synthetic": twice, "both": twice}, "real", ["synthetic"])
    worth = {(item["arm"], item["n"]): item for item in found["worth"]}
    assert worth["both", 4]["worth"] == pytest.approx(4, abs=0.05)
    assert worth["synthetic", 4]["worth"] == pytest.approx(8, abs=0.05)
    said = worth_sentence(worth["synthetic", 4])
    assert said == (
        "synthetic: made from 4 real patients, synthetic images alone are worth 8.0 real patients (95 %: 8.0 to 8.0)"
    )
    assert "16.0 or more" in worth_sentence(worth["synthetic", 8])
