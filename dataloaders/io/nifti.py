"""NIfTI and MGH files in, NIfTI out. Reading distrusts the file: limits before memory, every byte checked, one clear line
per fault; a fault of a file is always a VolumeError.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import DTypeLike, NDArray

from dataloaders.io.console import warn_once
from dataloaders.io.files import atomic_path
from dataloaders.io.intensity import AIR_BELOW

MAX_VOXELS = 2**30  # 1024³; more is a damaged header or a bomb
NIFTI_SUFFIXES = (".nii.gz", ".nii")  # of files that are written
SUFFIXES = (*NIFTI_SUFFIXES, ".mgz", ".mgh")  # of files that are read
WHOLE_TOLERANCE = 1e-3  # labels may be off whole numbers by so much: rounding of scale factors and of interpolation
_CHUNK = 1 << 20
_MGH_OFFSET = 284  # where the data of an MGH file begin
_HEADER_BYTES = 544  # NIfTI-2 needs 540, NIfTI-1 348, MGH 284
_MAX_OFFSET = 1 << 26  # bytes before the data: the header and its extensions


class VolumeError(ValueError):
    """A volume file that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Volume:
    """A 3-D image. data (I, J, K) as stored (scaled to float64 where the header says so); affine (4, 4) voxel -> mm RAS+.

    codes: NIfTI's qform and sform codes of `affine`, for writing it back; (0, 0) where the header says nothing of
    orientation, None where nothing is known of codes. missing (I, J, K): voxels that were NaN or infinite, None without any.
    """

    data: NDArray
    affine: NDArray[np.float64]
    codes: tuple[int, int] | None = None
    missing: NDArray[np.bool_] | None = None


def stem(path: Path) -> str:
    """File name without the ending of a volume."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def read_volume(path: Path | str, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read a NIfTI (.nii, .nii.gz) or FreeSurfer (.mgz, .mgh) file whole.

    The header is judged before the data are touched, and decompression stops at the size that it announces; header
    extensions are not looked at. Voxels that are NaN or infinite count as 0, in HU as the lowest value, with a warning, as
    for a header without orientation. Raises VolumeError for: missing file, neither format, not gzip or truncated
    gzip, impossible header fields and sizes, more than three dimensions (a fourth of length 1 is dropped), no finite
    voxel, singular affine.
    """
    path = Path(path)
    raw, slope, inter = read_unscaled(path, max_voxels)
    if raw.codes == (0, 0):
        axes = "".join(nib.orientations.aff2axcodes(raw.affine))
        warn_once(
            f"{path}: the header says nothing of orientation (qform and sform codes are 0); the axes are taken as {axes}, "
            "as its format has it. If that is wrong, images are mirrored or turned: set a code first",
            kind="orientation",
        )
    data = apply_read_scaling(raw.data, np.float64(slope), np.float64(inter))
    return _without_missing(path, replace(raw, data=data))


def read_unscaled(path: Path, max_voxels: int = MAX_VOXELS) -> tuple[Volume, float, float]:
    """The volume with the numbers that the file holds, NaN as they are, and slope and intercept of their meaning.

    Raises VolumeError as `read_volume` does.
    """
    if not path.is_file():
        raise VolumeError(f"{path}: no such file")
    if not path.name.endswith(SUFFIXES):
        raise VolumeError(f"{path}: volumes end in {', '.join(SUFFIXES)}")
    zipped = path.name.endswith((".gz", ".mgz"))
    with open(path, "rb") as file:
        if zipped and file.read(2) != b"\x1f\x8b":
            raise VolumeError(f"{path}: named .{path.name.rpartition('.')[2]} but not compressed with gzip")
        file.seek(0)
        try:
            return _read(path, gzip.GzipFile(fileobj=file) if zipped else file, max_voxels)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise VolumeError(f"{path}: truncated or damaged gzip file ({error})") from None


def _read(path: Path, file: Any, max_voxels: int) -> tuple[Volume, float, float]:
    """The file to its end, which verifies gzip's checksum, but never much more than its header announces."""
    content = bytearray(file.read(_HEADER_BYTES))
    try:
        header = _header(path, bytes(content))
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype = header.get_data_dtype()
        slope, inter = header.get_slope_inter()
        offset = _offset(header)
        affine = np.asarray(header.get_best_affine(), np.float64)
        codes = _codes(header, content, affine)
    except VolumeError:
        raise
    except Exception as error:  # nibabel raises whatever the bytes lead it to
        raise VolumeError(f"{path}: damaged header ({str(error) or type(error).__name__})") from None
    count = _voxels(path, shape, dtype, max_voxels)
    expected = offset + count * dtype.itemsize
    while chunk := file.read(_CHUNK):
        content += chunk
        if len(content) > expected + _CHUNK:
            raise VolumeError(f"{path}: holds more data than its header announces ({expected} bytes)")
    if len(content) < expected:
        raise VolumeError(f"{path}: truncated, {len(content)} of {expected} bytes")
    if dtype.kind not in "iufb":
        raise VolumeError(f"{path}: voxels of type {dtype} are not numbers of one channel")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError(f"{path}: the affine is singular or not finite, so voxels have no place in space")
    data = np.frombuffer(content, dtype, count, offset).reshape(shape[:3], order="F")
    return Volume(data, affine, codes), 1.0 if slope is None else float(slope), float(inter or 0.0)


def _header(path: Path, start: bytes) -> Any:
    """nibabel's, of the file's first bytes."""
    if path.name.endswith((".mgz", ".mgh")):
        if len(start) < _MGH_OFFSET or int.from_bytes(start[:4], "big") != 1:
            raise VolumeError(f"{path}: not an MGH file")
        return MGHHeader.from_fileobj(BytesIO(start))
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        sizes = [kind.sizeof_hdr.to_bytes(4, order) for order in ("little", "big")]
        if len(start) >= kind.sizeof_hdr and start[:4] in sizes:
            return kind(start[: kind.sizeof_hdr], check=True)
    raise VolumeError(f"{path}: not a NIfTI file")


def _offset(header: Any) -> int:
    """Of the data within the file, in bytes; ValueError for one that cannot be."""
    if "vox_offset" not in header:
        return _MGH_OFFSET
    given = header["vox_offset"].item()
    if not 0 <= given <= _MAX_OFFSET:
        raise ValueError(f"vox_offset {given:g}, where the data begin, must be in 0..{_MAX_OFFSET} bytes")
    return max(int(given), header.single_vox_offset)


def _codes(header: Any, start: bytearray, affine: NDArray) -> tuple[int, int] | None:
    """qform and sform codes that stand for `affine`: a qform that says something else is not kept. MGH has none."""
    if "sform_code" not in header:
        return None if int.from_bytes(start[28:30], "big") else (0, 0)  # goodRASFlag
    qform, sform = int(header["qform_code"]), int(header["sform_code"])
    if sform > 0 < qform and not np.allclose(header.get_qform(), affine, atol=1e-3):
        qform = 0
    return max(qform, 0), max(sform, 0)


def _voxels(path: Path, shape: tuple[int, ...], dtype: np.dtype, max_voxels: int) -> int:
    if len(shape) < 3 or any(n < 1 for n in shape):
        raise VolumeError(f"{path}: shape {shape} is not a volume; three dimensions are needed")
    if any(n > 1 for n in shape[3:]):
        raise VolumeError(f"{path}: shape {shape} has {len(shape)} dimensions; split it into 3-D volumes first")
    voxels = int(np.prod([float(n) for n in shape]))
    if voxels > max_voxels:
        size = voxels * dtype.itemsize / 1e9
        raise VolumeError(f"{path}: the header asks for {size:.0f} GB ({shape}); the limit is {max_voxels} voxels")
    return voxels


def _without_missing(path: Path, volume: Volume) -> Volume:
    """Finite numbers in every voxel; VolumeError where there are none."""
    if volume.data.dtype.kind != "f" or (finite := np.isfinite(volume.data)).all():
        return volume
    if not finite.any():
        raise VolumeError(f"{path}: every voxel is NaN or infinite")
    low = volume.data[finite].min()
    fill = low if low < AIR_BELOW else 0  # in HU what was never measured is air
    missing = ~finite
    share = missing.mean()
    warn_once(f"{path}: {missing.sum()} voxels ({share:.1%}) are NaN or infinite and count as {fill:g}", kind="NaN")
    return Volume(np.where(finite, volume.data, fill).astype(volume.data.dtype), volume.affine, volume.codes, missing)


def whole_numbers(path: Path | str, data: NDArray) -> NDArray[np.int32]:
    """Label ids as int32. Values within WHOLE_TOLERANCE of whole numbers are rounded, with a warning.

    VolumeError where values are negative or not whole (interpolated or a probability map).
    """
    if data.dtype.kind == "f":
        whole = np.rint(data)
        if (off := data != whole).any():
            wrong = ~(np.abs(data - whole) <= WHOLE_TOLERANCE)
            if wrong.any():
                example = data[wrong].flat[0]
                raise VolumeError(
                    f"{path}: labels must be whole numbers, found {example:g} ({int(wrong.sum())} voxels)"
                )
            farthest = float(np.abs(data - whole).max())
            warn_once(
                f"{path}: {int(off.sum())} labels are off whole numbers by {farthest:.1g} at most; rounded", "whole"
            )
            data = whole
    low, high = data.min(), data.max()
    if low < 0 or high >= 2**31:
        raise VolumeError(f"{path}: labels must be 0 or positive ids, found {low if low < 0 else high:g}")
    return data.astype(np.int32)


def read_ids(path: Path | str) -> Volume:
    """A label map or mask with its ids as int32; VolumeError for what `read_volume` and `whole_numbers` refuse."""
    volume = read_volume(path)
    return replace(volume, data=whole_numbers(path, volume.data))


def write_volume(
    path: Path | str,
    data: NDArray,
    affine: NDArray,
    dtype: DTypeLike | None = None,
    codes: tuple[int, int] | None = None,
    scale: tuple[float, float] | None = None,
) -> None:
    """Write a NIfTI-1 file atomically, with a fresh header: affine and voxel size, nothing of the source's free-text fields,
    which may carry names. data (I, J, K); dtype of the file defaults to that of the data. codes: qform and sform of the
    volume whose geometry this is, kept unless its place could not be read back then. scale: slope and intercept.
    """
    dtype = np.dtype(dtype or data.dtype)
    image = nib.Nifti1Image(np.asarray(data, dtype), affine, dtype=dtype)
    if codes is not None:
        image.header.set_qform(image.affine, codes[0])
        image.header.set_sform(image.affine, codes[1])
        if not np.allclose(
            image.header.get_best_affine(), image.affine, atol=1e-3
        ):  # as with codes of 0 on another grid
            image.header.set_sform(image.affine, 2)
    image.header.set_xyzt_units("mm")
    if scale is not None:
        image.header.set_slope_inter(*scale)
    with atomic_path(path) as temporary:
        image.to_filename(temporary)
