"""Volumes of the pipeline: NIfTI and FreeSurfer's .mgz, read with distrust, on the grid of the scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.geometry import resample, to_ras
from dataloaders.io.nifti import Volume, read_volume, whole_numbers


def read_labels(path: Path, grid: Volume) -> NDArray[np.int32]:
    """Label ids on the grid of another volume: moved by nearest neighbour only, so that no new id appears."""
    volume = read_volume(path)
    ids = whole_numbers(path, volume.data)
    return np.asarray(on_grid(ids, volume.affine, grid, labels=True), np.int32)


def on_grid(data: NDArray, affine: NDArray, grid: Volume, labels: bool) -> NDArray:
    """`data` brought to the grid of another volume through scanner coordinates."""
    moved, own = to_ras(data, affine)
    return resample(moved, own, grid.data.shape, grid.affine, labels=labels)
