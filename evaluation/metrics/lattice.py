"""Grids: is there more energy at the frequencies of 2, 4 and 8 pixels than beside them, where upsampling leaves its mark?

Generators that enlarge in steps of two leave patterns that repeat every 2, 4 or 8 pixels (checkerboards; Odena et al.,
Distill 2016): lines at multiples of 1/2, 1/4 and 1/8 cycles per pixel, whatever the anatomy.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.metric import TEXTURE, CaseSlices, Metric
from evaluation.metrics.spectrum import hann_power

PERIODS = (2, 4, 8)  # pixels
SMALLEST_SIDE = 64  # pixels; below, the bins beside a line reach the next one
FLOOR = 1e-12  # of an image's largest power: less is rounding


def lattice(case: CaseSlices) -> dict[str, float]:
    """Energy on the lattice over that beside it, of the generated over that of the real images, 0 … inf; 1 is no grid.

    lattice_2, lattice_4, lattice_8: geometric mean over the lines of a period that no shorter one has, of powers that are
    summed over the case's slices; lattice_ratio: geometric mean of the three. NaN without a slice of at least 64 pixels a
    side, and for constant images. The same in any unit and contrast.
    """
    period = lines()[1]
    powers = np.zeros((2, 2, len(period)))  # real and generated, on the line and beside it
    for item in case.scored:
        if min(item.real.shape) >= SMALLEST_SIDE:
            powers += np.stack([line_powers(image) for image in item.physical])
    with np.errstate(divide="ignore", invalid="ignore"):
        real, fake = np.log(powers[:, 0] / powers[:, 1])
    excess = [float(np.exp((fake - real)[period == p].mean())) for p in PERIODS]
    named = {f"lattice_{p}": value for p, value in zip(PERIODS, excess, strict=True)}
    return named | {"lattice_ratio": math.prod(excess) ** (1 / len(PERIODS))}


def line_powers(image: NDArray) -> NDArray[np.float64]:
    """Mean power of a slice (H, W) on each of the 63 lines, within a bin of it, and beside it, 3 or 4 bins away: (2, 63).

    Under a window of Hann over the largest part whose sides are multiples of 8, so that the lines are bins of the transform.
    """
    H, W = (n // 8 * 8 for n in image.shape)
    power = hann_power(image[:H, :W]).ravel()
    power += FLOOR * power.max()
    return np.stack([power[bins].mean(1) for bins in _bins((H, W))])


@functools.cache
def lines() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Multiples of 1/8 cycle per pixel along rows and columns (63, 2), and the shortest period (63,) that has each."""
    found = np.argwhere(np.ones((8, 8)))[1:]
    return found, 8 // np.gcd(np.gcd(found[:, 0], found[:, 1]), 8)


@functools.lru_cache(maxsize=16)
def _bins(shape: tuple[int, int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices into the raveled half of the transform of the bins on each line (63, 9), and of those beside it (63, 56)."""
    steps = np.argwhere(np.ones((9, 9))) - 4
    far = np.abs(steps).max(1)
    near_and_beside = []
    for chosen in (steps[far <= 1], steps[far >= 3]):
        rows, columns = np.moveaxis(lines()[0][:, None] * np.array(shape) // 8 + chosen, -1, 0)
        columns = columns % shape[1]
        other = columns > shape[1] // 2  # the conjugate has the same power
        rows, columns = np.where(other, -rows, rows) % shape[0], np.where(other, shape[1] - columns, columns)
        near_and_beside.append(rows * (shape[1] // 2 + 1) + columns)
    return near_and_beside[0], near_and_beside[1]


METRICS = (
    Metric(
        *("lattice_ratio", "Grid relative to real", TEXTURE, "case", None, ""),
        reason="slices need sides of at least 64 pixels, and images that are not constant",
        setting="power at multiples of 1/2, 1/4, 1/8 cycle per pixel over that 3 to 4 bins beside, generated over real, "
        "geometric means, by case",
        of=lattice,
    ),
)
