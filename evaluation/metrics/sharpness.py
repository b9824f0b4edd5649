"""Sharpness of the borders between labels: is the step from tissue to tissue as steep as in the real image?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Edges:
    """Sums of the gradient magnitude over border pixels, >= 0, in the images' unit per mm; they add up over slices.

    pixels: how many border pixels were summed.
    """

    real: float = 0.0
    fake: float = 0.0
    pixels: int = 0

    def __add__(self, other: Edges) -> Edges:
        return Edges(self.real + other.real, self.fake + other.fake, self.pixels + other.pixels)

    @property
    def ratio(self) -> float:
        """Mean gradient of the generated over that of the real images, 0..inf: 1 as sharp, below blurred, above harsh.

        NaN without a border, and where the real images are flat there.
        """
        return self.fake / self.real if self.real > 0 else math.nan

    @property
    def real_mean(self) -> float:
        """Mean gradient magnitude of the real images at borders; NaN without a border."""
        return self.real / self.pixels if self.pixels else math.nan

    @property
    def fake_mean(self) -> float:
        """Mean gradient magnitude of the generated images at borders; NaN without a border."""
        return self.fake / self.pixels if self.pixels else math.nan


def label_edges(label: NDArray, real: NDArray, fake: NDArray, spacing: tuple[float, float]) -> Edges:
    """`Edges` of one slice: label ids and images in physical units, all (H, W).

    spacing: mm between rows and between columns. Gradients are central differences, one-sided at the slice's edge.
    """
    if not np.shape(label) == np.shape(real) == np.shape(fake):
        raise ValueError(f"label {np.shape(label)} and images {np.shape(real)}, {np.shape(fake)} differ in shape")
    if not all(math.isfinite(size) and size > 0 for size in spacing):
        raise ValueError(f"pixel spacing has to be positive, in mm, got {spacing}")
    border = label_borders(label)
    of_real, of_fake = (_gradient(image, border, spacing) for image in (real, fake))
    return Edges(of_real, of_fake, int(border.sum()))


def label_borders(label: NDArray) -> NDArray[np.bool_]:
    """Pixels with a pixel of another label above, below, left or right of them: both sides of each border."""
    border = np.zeros(label.shape, bool)
    for near, far in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differs = label[near] != label[far]
        border[near] |= differs
        border[far] |= differs
    return border


def _gradient(image: NDArray, border: NDArray[np.bool_], spacing: tuple[float, float]) -> float:
    """Sum of the gradient magnitude at border pixels; an axis of a single pixel has no slope."""
    values = np.asarray(image, np.float64)
    along = [axis for axis in range(2) if values.shape[axis] > 1]
    slopes = [np.gradient(values, spacing[axis], axis=axis)[border] for axis in along]
    return float(np.sqrt(sum(slope * slope for slope in slopes)).sum())
