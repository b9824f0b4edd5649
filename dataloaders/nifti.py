"""NIfTI files in and out. Reading distrusts the file: limits before memory, every byte checked, one clear line per fault."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike, NDArray

from engine.files import atomic_path

MAX_VOXELS = 2**30  # 1024³; more is a damaged header or a bomb
SUFFIXES = (".nii.gz", ".nii")
_CHUNK = 1 << 20
_HEADER_BYTES = 544  # NIfTI-2 needs 540, NIfTI-1 348


class VolumeError(ValueError):
    """A volume file that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Volume:
    """A 3-D image. data (I, J, K) as stored (scaled to float64 where the header says so); affine (4, 4) voxel -> mm RAS+."""

    data: NDArray
    affine: NDArray[np.float64]


def stem(path: Path) -> str:
    """File name without .nii or .nii.gz."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def read_volume(path: Path | str, max_voxels: int = MAX_VOXELS, nan_as_zero: bool = False) -> Volume:
    """Read a .nii or .nii.gz file whole.

    The header is judged before the data are touched, and decompression stops at the size that it announces. Raises
    VolumeError for: missing file, not NIfTI, not gzip or truncated gzip, impossible sizes, more than three dimensions
    (a fourth of length 1 is dropped), non-finite voxels unless `nan_as_zero`, singular affine.
    """
    path = Path(path)
    if not path.is_file():
        raise VolumeError(f"{path}: no such file")
    header_class, header = _read_header(path)
    expected = _expected_bytes(path, header, max_voxels)
    content = _read_bytes(path, expected)
    image = header_class.from_bytes(content)
    try:
        data = np.asanyarray(image.dataobj)
    except (ValueError, OSError) as error:
        raise VolumeError(f"{path}: data do not fit the header ({error})") from None
    data = data.reshape(data.shape[:3])
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError(f"{path}: the affine is singular or not finite, so voxels have no place in space")
    if data.dtype.kind == "f" and nan_as_zero:
        data = np.nan_to_num(data, posinf=0, neginf=0)
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise VolumeError(f"{path}: {int((~np.isfinite(data)).sum())} voxels are NaN or infinite")
    if data.dtype.kind not in "iufb":
        raise VolumeError(f"{path}: voxels of type {data.dtype} are not numbers of one channel")
    return Volume(data, affine)


def _open(path: Path) -> gzip.GzipFile | object:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb")


def _read_header(path: Path) -> tuple[type[nib.Nifti1Image], nib.Nifti1Header]:
    if path.name.endswith(".gz"):
        with open(path, "rb") as file:
            if file.read(2) != b"\x1f\x8b":
                raise VolumeError(f"{path}: named .gz but not compressed with gzip")
    try:
        with _open(path) as file:  # type: ignore[attr-defined]
            start = file.read(_HEADER_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
        raise VolumeError(f"{path}: damaged gzip file ({error})") from None
    for image_class in (nib.Nifti1Image, nib.Nifti2Image):
        size = image_class.header_class.sizeof_hdr
        if len(start) >= size and int.from_bytes(start[:4], "little") in (
            size,
            int.from_bytes(size.to_bytes(4, "big"), "little"),
        ):
            try:
                return image_class, image_class.header_class(start[:size], check=True)
            except (HeaderDataError, ImageFileError) as error:
                raise VolumeError(f"{path}: damaged NIfTI header ({error})") from None
    raise VolumeError(f"{path}: not a NIfTI file")


def _expected_bytes(path: Path, header: nib.Nifti1Header, max_voxels: int) -> int:
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) < 3 or any(n < 1 for n in shape):
        raise VolumeError(f"{path}: shape {shape} is not a volume; three dimensions are needed")
    if any(n > 1 for n in shape[3:]):
        raise VolumeError(f"{path}: shape {shape} has {len(shape)} dimensions; split it into 3-D volumes first")
    voxels = int(np.prod([float(n) for n in shape]))
    if voxels > max_voxels:
        size = voxels * header.get_data_dtype().itemsize / 1e9
        raise VolumeError(f"{path}: the header asks for {size:.0f} GB ({shape}); the limit is {max_voxels} voxels")
    return int(header["vox_offset"]) + voxels * header.get_data_dtype().itemsize


def _read_bytes(path: Path, expected: int) -> bytes:
    """The whole decompressed file; reading to the end verifies gzip's checksum."""
    content = bytearray()
    try:
        with _open(path) as file:  # type: ignore[attr-defined]
            while chunk := file.read(_CHUNK):
                content += chunk
                if len(content) > expected + _CHUNK:
                    raise VolumeError(f"{path}: holds more data than its header announces ({expected} bytes)")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise VolumeError(f"{path}: truncated or damaged gzip file ({error})") from None
    if len(content) < expected:
        raise VolumeError(f"{path}: truncated, {len(content)} of {expected} bytes")
    return bytes(content)


def whole_numbers(path: Path | str, data: NDArray) -> NDArray[np.int32]:
    """Label ids as int32; VolumeError where values are negative or not whole (interpolated or a probability map)."""
    if data.dtype.kind == "f":
        wrong = data != np.rint(data)
        if wrong.any():
            example = data[wrong].flat[0]
            raise VolumeError(f"{path}: labels must be whole numbers, found {example:g} ({int(wrong.sum())} voxels)")
    low, high = data.min(), data.max()
    if low < 0 or high >= 2**31:
        raise VolumeError(f"{path}: labels must be 0 or positive ids, found {low if low < 0 else high:g}")
    return data.astype(np.int32)


def write_volume(path: Path | str, data: NDArray, affine: NDArray, dtype: DTypeLike | None = None) -> None:
    """Write a compressed NIfTI-1 file atomically, with a fresh header: affine and voxel size, nothing of the source's
    free-text fields, which may carry names. data (I, J, K); dtype of the file defaults to that of the data.
    """
    image = nib.Nifti1Image(np.asarray(data, dtype or data.dtype), affine)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        image.to_filename(temporary)


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
