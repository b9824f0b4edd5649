"""Which axial slices of a brain are used, and the window that shows them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataloaders.io import geometry
from dataloaders.io.intensity import Window
from dataloaders.slice_files import Frame
from pipeline.study import SliceOptions

FLOOR = 0.02  # of a picture's range: brain is never 0, so dark CSF at the rim is not taken for what was stripped off


def stripped(image: NDArray, brain: NDArray[np.bool_], high: float) -> tuple[NDArray, Window]:
    """A scan with nothing around its brain, and the window that makes this 0, an intensity of 0 FLOOR, and `high` 1."""
    window = Window(-FLOOR / (1 - FLOOR) * high, high)
    return np.where(brain, np.maximum(image, 0.0), window.low), window


def chosen_slices(area: NDArray[np.int64], o: SliceOptions) -> list[int]:
    """Slices with at least `min_area` of the largest one's brain; of these `count`, evenly spread (-1: the central one)."""
    good = np.flatnonzero(area >= max(1.0, o.min_area * area.max()))
    if o.count == -1:
        return [int(good[len(good) // 2])]
    if o.count == 0 or o.count >= len(good):
        return good.tolist()
    return [int(good[i]) for i in np.linspace(0, len(good) - 1, o.count).round().astype(int)]


def brain_frame(brain: NDArray[np.bool_], size: int) -> tuple[Frame, float]:
    """The window of `size` pixels centred on the brain in axial slices, and the share of the brain that it cuts off."""
    shadow = geometry.plane(np.asarray(brain.any(axis=2, keepdims=True)), "axial", 0)
    spans = [np.flatnonzero(shadow.any(axis=axis)) for axis in (1, 0)]
    crop = tuple(round((span[0] + span[-1] + 1 - size) / 2) for span in spans)
    frame = Frame("axial", (crop[0], crop[1]), (size, size))
    inside = sum(int(frame.cut(brain, z).sum()) for z in range(brain.shape[2]))
    return frame, 1 - inside / max(1, int(brain.sum()))
