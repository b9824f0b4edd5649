"""Energy on the 2-, 4- and 8-pixel lattices: grids of growing strength, and what is no grid."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from evaluation.metrics.lattice import PERIODS, lattice
from tests.toy_cases import case_of

SHAPE = (8, 96, 128)


def anatomy(seed: int = 0) -> NDArray:
    """Slices (D, H, W) with a round body, borders, and texture whose power falls with frequency as tissue's does."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(SHAPE[1:])
    body = ((y - 48) / 40) ** 2 + ((x - 64) / 52) ** 2 < 1
    coarse, fine = (
        np.stack([gaussian_filter(rng.normal(size=SHAPE[1:]), s) * s for s in [width] * 8]) for width in (4, 1)
    )
    return body * (500 + 200 * np.sign(coarse) + 40 * fine + rng.normal(0, 10, SHAPE))


def grid(period: int) -> NDArray:
    """A pattern in [0, 1] that repeats every `period` pixels along both axes: one corner of each square is bright."""
    y, x = np.indices(SHAPE[1:])
    return ((y % period < period / 2) & (x % period < period / 2)).astype(float)


def ratio(fake: NDArray, real: NDArray) -> dict[str, float]:
    return lattice(case_of(real, fake))


@pytest.mark.parametrize("period", PERIODS)
def test_grows_with_the_grid_at_its_own_period(period: int) -> None:
    real, made = anatomy(), gaussian_filter(anatomy(1), (0, 0.7, 0.7))
    found = [ratio(made * (1 + strength * grid(period)), real) for strength in (0, 0.02, 0.05, 0.1, 0.2)]
    own, whole = ([one[key] for one in found] for key in (f"lattice_{period}", "lattice_ratio"))
    assert own == sorted(own)
    assert whole == sorted(whole)
    assert own[-1] > 3 * own[0]
    for other in {*PERIODS} - {period}:  # a grid of 4 pixels has no energy of its own at 2 or 8
        assert found[-1][f"lattice_{other}"] == pytest.approx(found[0][f"lattice_{other}"], rel=0.25)


@pytest.mark.parametrize(
    ("change"),
    [
        lambda image: 0.6 * image,
        lambda image: gaussian_filter(image, (0, 0.8, 0.8)),
        lambda image: image + np.random.default_rng(3).normal(0, 30, image.shape) * (image > 0),
        lambda image: image + 100 * (image > 600),
        lambda image: np.roll(image, (3, 5), (1, 2)),
        lambda image: anatomy(7),
    ],
    ids=["contrast", "blur", "noise", "other tissue contrast", "moved", "other anatomy"],
)
def test_what_is_no_grid_is_about_one(change) -> None:
    real = anatomy()
    for value in ratio(change(real), real).values():
        assert 0.75 < value < 1.35


def test_one_for_the_same_images_and_independent_of_the_unit() -> None:
    real, fake = anatomy(), anatomy(1) * (1 + 0.1 * grid(2))
    assert ratio(real, real)["lattice_ratio"] == pytest.approx(1)
    assert ratio(fake / 7, real / 7)["lattice_ratio"] == pytest.approx(ratio(fake, real)["lattice_ratio"])
