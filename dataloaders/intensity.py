"""The fixed physical window between source units (HU, scanner units), 16-bit PNG and the model's [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 65535  # highest value of a 16-bit PNG


@dataclass(frozen=True)
class Window:
    """Linear map between [low, high] in physical units and 0..65535 on disk; values outside are clipped.

    The quantisation step is (high - low) / 65535: 0.0625 HU for the CT window [-1024, 3071].
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.high > self.low):
            raise ValueError(f"intensity window needs finite low < high, got [{self.low}, {self.high}]")

    @property
    def width(self) -> float:
        """high - low."""
        return self.high - self.low

    def encode(self, values: NDArray) -> NDArray[np.uint16]:
        """Physical units -> 16-bit levels, rounded to nearest."""
        unit = (np.asarray(values, np.float64) - self.low) / self.width
        return np.rint(np.clip(unit, 0.0, 1.0) * LEVELS).astype(np.uint16)

    def decode(self, levels: NDArray) -> NDArray[np.float32]:
        """16-bit levels -> physical units."""
        return (self.low + np.asarray(levels, np.float64) * (self.width / LEVELS)).astype(np.float32)


def levels_to_model(levels: NDArray) -> NDArray[np.float32]:
    """16-bit levels 0..65535 -> [-1, 1], the range every model works in."""
    return (np.asarray(levels, np.float64) * (2.0 / LEVELS) - 1.0).astype(np.float32)


def model_to_levels(values: NDArray) -> NDArray[np.uint16]:
    """[-1, 1] -> 16-bit levels, clipped and rounded to nearest (inverse of `levels_to_model`)."""
    unit = (np.asarray(values, np.float64) + 1.0) / 2.0
    return np.rint(np.clip(unit, 0.0, 1.0) * LEVELS).astype(np.uint16)
