"""The fixed physical window between source units (HU, scanner units), 16-bit PNG and the model's [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

LEVELS = 65535  # highest value of a 16-bit PNG
AIR_BELOW = -500.0  # HU; the air around and in a patient lies below, everything else above
DARK = 0.05  # of a scan's range: noise and ringing in air
SMALL = 0.01  # of the largest part's size: specks, markers, tubes
SCALE_SAMPLES = 200_000  # evenly spaced voxels that a robust scale is found from


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


def in_hu(ct: NDArray) -> bool:
    """Whether the values of a CT can be Hounsfield units: a scan has air, and air lies at -1000."""
    return float(ct.min()) < AIR_BELOW


def levels_to_model(levels: NDArray) -> NDArray[np.float32]:
    """16-bit levels 0..65535 -> [-1, 1], the range every model works in."""
    values = np.multiply(levels, 2.0 / LEVELS, dtype=np.float64)
    values -= 1.0  # in place: a third of the memory
    return values.astype(np.float32)


def model_to_levels(values: NDArray) -> NDArray[np.uint16]:
    """[-1, 1] -> 16-bit levels, clipped and rounded to nearest (inverse of `levels_to_model`)."""
    unit = (np.asarray(values, np.float64) + 1.0) / 2.0
    return np.rint(np.clip(unit, 0.0, 1.0) * LEVELS).astype(np.uint16)


def robust_unit(image: NDArray) -> NDArray[np.float32]:
    """One channel of a volume or patch -> [0, 1]: how a segmenter sees every image, in training and in use.

    0 is the 0.5th percentile, 1 the 99.5th of what is brighter than the darkest hundredth of the range, so that neither
    a single bright voxel nor the amount of air around the body moves the scale. A constant image becomes 0.
    """
    image = np.asarray(image, np.float32)
    sample = image.ravel()[:: max(1, image.size // SCALE_SAMPLES)]
    low, top = (float(value) for value in np.percentile(sample, [0.5, 99.9]))
    inside = sample[sample > low + 0.01 * (top - low)]
    high = float(np.percentile(inside, 99.5)) if inside.size else low
    if high <= low:
        return np.zeros_like(image)
    return np.clip((image - low) / (high - low), 0.0, 1.0)


def shown(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """What a scan (C, X, Y, Z) in [0, 1] shows: bright in the mean of 3³ voxels, and not small beside the largest part.

    So neither single voxels nor noise in air count.
    """
    bright = ndimage.uniform_filter(image.max(axis=0), 3, mode="nearest") > DARK
    parts, count = ndimage.label(bright)
    if count < 2:
        return bright
    sizes = np.bincount(parts.ravel())[1:]
    keep = np.concatenate([[False], sizes >= SMALL * sizes.max()])
    return keep[parts]
