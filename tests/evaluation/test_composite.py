"""What the best weights are chosen by: it sees structure, and no unit decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

import tests.toy_results
from evaluation import evaluate_results, headline
from evaluation.composite import PARTS, composite
from tests.toy_results import MEANS, WINDOWS, Fake, write_results


def textured(label: NDArray, channel: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """The label's mean with shapes of some pixels' size in it, and a little noise."""
    shapes = gaussian_filter(rng.normal(0, 1, label.shape), 2.5)
    texture = 0.05 * shapes / shapes.std() + rng.normal(0, 0.01, label.shape)
    return np.array(MEANS[channel])[label] + WINDOWS[channel].width * texture * (label > 0)


def with_intensities_of(real: NDArray, structure: NDArray, label: NDArray) -> NDArray:
    """Each label's real intensities, ordered in space as `structure` is: no label-wise distribution sees a difference."""
    result = real.copy()
    for i in np.unique(label):
        there = np.flatnonzero(label == i)
        result.flat[there[np.argsort(structure.flat[there], kind="stable")]] = np.sort(real.flat[there])
    return result


def right(real: NDArray, label: NDArray, rng: np.random.Generator) -> NDArray:
    """Fine noise of its own and a scale that is a little off."""
    return real + np.ptp(real) * (0.012 + rng.normal(0, 0.006, real.shape)) * (label > 0)


def gridded(real: NDArray, label: NDArray, rng: np.random.Generator) -> NDArray:
    rows, columns = np.indices(real.shape)
    return with_intensities_of(real, (rows + columns) % 2 + 0.01 * rng.normal(0, 1, real.shape), label)


def blurred(real: NDArray, label: NDArray, rng: np.random.Generator) -> NDArray:
    return with_intensities_of(real, gaussian_filter(real, 3), label)


def structureless(real: NDArray, label: NDArray, rng: np.random.Generator) -> NDArray:
    return with_intensities_of(real, rng.normal(0, 1, real.shape), label)


def judged(folder: Path, fake: Fake) -> dict[str, float]:
    write_results(folder, fake, size=(96, 80))
    return headline(evaluate_results(folder, ",".join(PARTS)))


@pytest.mark.parametrize("wrong", [gridded, blurred, structureless])
def test_wrong_structure_loses_to_right_structure_whatever_its_intensities(
    wrong: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its label-wise Wasserstein distance is better, which chose the best weights up to version 0.2."""
    monkeypatch.setattr(tests.toy_results, "real_image", textured)
    good, bad = judged(tmp_path / "good", right), judged(tmp_path / "bad", wrong)
    assert bad["wasserstein"] < 0.1 * good["wasserstein"]
    # Ten times is what the toy gives away for nothing; real nets differ by a fraction of that.
    bad |= {name: 0.3 * value for name, value in good.items() if name.startswith("wasserstein")}
    assert composite(good) < 0.8 * composite(bad)


VALUES = {"mae_body/T1w": 30.0, "ssim/T1w": 0.9, "wasserstein/T1w": 10.0, "spectrum_distance/T1w": 0.1}


def test_it_is_the_geometric_mean_over_parts_and_channels() -> None:
    assert composite(VALUES) == pytest.approx((30 * 0.1 * 10 * 0.1) ** 0.25)
    second = {name.replace("T1w", "CT"): value for name, value in VALUES.items()}
    assert composite(VALUES | second) == pytest.approx(composite(VALUES))
    # A channel that is four times as bad counts as half of all: twice as bad.
    worse = {name: 0.6 if name.startswith("ssim") else 4 * value for name, value in second.items()}
    assert composite(VALUES | worse) == pytest.approx(2 * composite(VALUES))


def test_no_unit_decides_and_others_do_not_count() -> None:
    better = VALUES | {"mae_body/T1w": 20.0, "ssim/T1w": 0.88}
    ratio = composite(better) / composite(VALUES)
    in_other_units = [
        {name: value / 1000 if name.startswith(("mae", "wass")) else value for name, value in values.items()}
        for values in (VALUES, better)
    ]
    assert composite(in_other_units[1]) / composite(in_other_units[0]) == pytest.approx(ratio)
    assert composite(VALUES | {"wasserstein": 0.01, "fid": 90.0, "ssim_3d/T1w": 0.5}) == composite(VALUES)


def test_a_part_that_is_missing_is_left_out_and_none_at_all_is_an_error() -> None:
    assert composite({"mae_body/a": 4.0, "wasserstein/a": 9.0}) == pytest.approx(6)
    with pytest.raises(ValueError, match="could be computed"):
        composite({"fid": 3.0})
