"""Volumes of the pipeline: NIfTI and FreeSurfer's .mgz, read with distrust, on the grid of the scan."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from dataloaders.geometry import AFFINE_TOLERANCE, resample, to_ras
from dataloaders.nifti import Volume, VolumeError, read_volume, whole_numbers


def read_any(path: Path) -> Volume:
    """A .nii, .nii.gz, .mgz or .mgh file whole; VolumeError naming the file for everything that cannot be used."""
    if not path.name.endswith((".mgz", ".mgh")):
        return read_volume(path)
    if not path.is_file():
        raise VolumeError(f"{path}: no such file")
    try:
        image = nib.MGHImage.from_filename(path)
        data = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, ImageFileError, zlib.error) as error:
        raise VolumeError(f"{path}: unreadable ({error})") from None
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise VolumeError(f"{path}: shape {data.shape} is not a volume")
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise VolumeError(f"{path}: {int((~np.isfinite(data)).sum())} voxels are NaN or infinite")
    return Volume(data, np.asarray(image.affine, np.float64))


def read_labels(path: Path, grid: Volume) -> NDArray[np.int32]:
    """Label ids on the grid of another volume: moved by nearest neighbour only, so that no new id appears."""
    volume = read_any(path)
    ids = whole_numbers(path, volume.data)
    return np.asarray(on_grid(ids, volume.affine, grid, labels=True), np.int32)


def on_grid(data: NDArray, affine: NDArray, grid: Volume, labels: bool) -> NDArray:
    """`data` brought to the grid of another volume through scanner coordinates."""
    moved, own = to_ras(data, affine)
    return resample(moved, own, grid.data.shape, grid.affine, labels=labels)


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes have equal shapes and affines."""
    return a.data.shape == b.data.shape and bool(np.abs(a.affine - b.affine).max() <= AFFINE_TOLERANCE)
