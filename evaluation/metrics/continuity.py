"""Continuity from slice to slice: does a volume stacked from generated slices change along z as the real one does?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Jumps:
    """Sums over the pixels of pairs of adjacent slices, all >= 0, in the images' unit; they add up over pairs.

    real, fake: of |next - slice|. difference: of |(next - slice) of fake - (next - slice) of real|.
    pixels: how many pixels were summed. pairs: how many pairs of slices had any.
    """

    real: float = 0.0
    fake: float = 0.0
    difference: float = 0.0
    pixels: int = 0
    pairs: int = 0

    def __add__(self, other: Jumps) -> Jumps:
        return Jumps(
            self.real + other.real,
            self.fake + other.fake,
            self.difference + other.difference,
            self.pixels + other.pixels,
            self.pairs + other.pairs,
        )

    @property
    def ratio(self) -> float:
        """Mean jump of the generated over that of the real slices, 0..inf: 1 as continuous, above flickers.

        NaN without a pair, and where the real slices are all the same.
        """
        return self.fake / self.real if self.real > 0 else math.nan

    @property
    def mae(self) -> float:
        """Mean absolute error of the change from slice to slice, in the images' unit, >= 0; NaN without a pair."""
        return self.difference / self.pixels if self.pixels else math.nan


def slice_jumps(
    real: tuple[NDArray, NDArray], fake: tuple[NDArray, NDArray], body: tuple[NDArray[np.bool_], NDArray[np.bool_]]
) -> Jumps:
    """`Jumps` of one pair of adjacent slices (H, W) in physical units, over the pixels that are body in both.

    The order of the two slices does not matter.
    """
    both = body[0] & body[1]
    step_real, step_fake = (np.asarray(b[both], np.float64) - np.asarray(a[both], np.float64) for a, b in (real, fake))
    return Jumps(
        real=float(np.abs(step_real).sum()),
        fake=float(np.abs(step_fake).sum()),
        difference=float(np.abs(step_fake - step_real).sum()),
        pixels=int(both.sum()),
        pairs=int(both.any()),
    )


class CaseContinuity:
    """`Jumps` of one case and channel, slice by slice; memory does not grow with their number."""

    def __init__(self) -> None:
        self.jumps = Jumps()
        self.previous: tuple[int, NDArray, NDArray, NDArray[np.bool_]] | None = None

    def add(self, index: int, real: NDArray, fake: NDArray, body: NDArray[np.bool_]) -> None:
        """The next slice in order of its index: images (H, W) in physical units and the mask of the body.

        It is compared with the one before only where their indices differ by exactly 1.
        """
        if self.previous is not None:
            before, real_before, fake_before, body_before = self.previous
            # Slices of another size are not of the same grid: pixels at the same place are not neighbours.
            if abs(index - before) == 1 and body_before.shape == body.shape:
                self.jumps += slice_jumps((real_before, real), (fake_before, fake), (body_before, body))
        self.previous = (index, real, fake, body)
