"""Brightness that alternates from slice to slice in 2-D scans whose slices were taken in turns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

THICK = 1.8  # a scan is 2-D where its slices are this many times as far apart as its pixels
ENOUGH = 500  # foreground pixels that two neighbours must share to be compared
FOREGROUND = 0.3  # of the scan's 98th percentile


def even_slices(data: NDArray[np.float32], spacing: NDArray) -> NDArray[np.float32]:
    """A 2-D scan without what alternates between its slices; 3-D scans as they are.

    data: (I, J, K), intensities from 0 up. spacing: mm. The logarithm of each slice's brightness relative to its neighbours
    is the sum of median differences in the foreground; of that only (-1, 2, -1)/4 is taken off, which is all of what
    alternates and nothing of what rises or falls along the head.
    """
    axis = int(np.argmax(spacing))
    if spacing[axis] < THICK * np.median(spacing) or data.shape[axis] < 3:
        return data
    slices = np.moveaxis(data, axis, 0)
    gain = np.concatenate([[0.0], np.cumsum(_steps(slices))])
    # The next slice beyond each end, as what alternates and what rises would have it.
    before, after = gain[1] - (gain[2] - gain[0]), gain[-2] + (gain[-1] - gain[-3])
    padded = np.concatenate([[before], gain, [after]])
    ripple = (2 * gain - padded[:-2] - padded[2:]) / 4
    even = slices * np.exp(-ripple)[:, None, None]
    return np.ascontiguousarray(np.moveaxis(even, 0, axis)).astype(np.float32)


def _steps(slices: NDArray) -> NDArray[np.float64]:
    """Median difference of the logarithms of each slice and the next; 0 where they share too little."""
    inside = slices > FOREGROUND * np.percentile(slices, 98)
    steps = np.zeros(len(slices) - 1)
    for k in range(len(steps)):
        both = inside[k] & inside[k + 1]
        if both.sum() >= ENOUGH:
            steps[k] = np.median(np.log(slices[k + 1][both] / slices[k][both]))
    return steps
