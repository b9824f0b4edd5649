"""Bad files end in one clear line that names them."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dataloaders.nifti import VolumeError, read_volume, whole_numbers, write_volume
from tests.toy import save_nifti

DATA = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def truncated(path: Path) -> Path:
    save_nifti(path, np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:-500])
    return path


def flipped_byte(path: Path) -> Path:
    save_nifti(path, np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    return path


def not_gzip(path: Path) -> Path:
    save_nifti(path.with_suffix(""), DATA).rename(path)
    return path


def huge_header(path: Path) -> Path:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header["dim"][:4] = [3, 1700, 1700, 1600]
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    path.write_bytes(gzip.compress(header.binaryblock + b"\0\0\0\0"))
    return path


def negative_size(path: Path) -> Path:
    save_nifti(path.with_suffix(""), DATA)
    content = bytearray(path.with_suffix("").read_bytes())
    content[42:44] = (-3).to_bytes(2, "little", signed=True)
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def bomb(path: Path) -> Path:
    save_nifti(path.with_suffix(""), DATA)
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes() + bytes(20 << 20)))
    return path


def with_nan(path: Path) -> Path:
    data = DATA.astype(np.float32)
    data[1, 1, 1] = np.nan
    return save_nifti(path, data)


def text_file(path: Path) -> Path:
    path.write_bytes(gzip.compress(b"not an image" * 100))
    return path


def singular_affine(path: Path) -> Path:
    save_nifti(path.with_suffix(""), DATA)
    content = bytearray(path.with_suffix("").read_bytes())
    content[312:328] = bytes(16)  # srow_z
    path.write_bytes(gzip.compress(bytes(content)))
    return path


FAULTS = {
    "truncated or damaged gzip": truncated,
    "damaged gzip": flipped_byte,
    "not compressed with gzip": not_gzip,
    "asks for 18 GB": huge_header,
    "is not a volume|damaged": negative_size,
    "more data than its header": bomb,
    "1 voxels are NaN or infinite": with_nan,
    "not a NIfTI file": text_file,
    "has 4 dimensions": lambda path: save_nifti(path, np.zeros((3, 3, 3, 2), np.int16)),
    "not a volume": lambda path: save_nifti(path, np.zeros((3, 3), np.int16)),
    "singular": singular_affine,
    "no such file": lambda path: path,
}


@pytest.mark.parametrize("message", FAULTS)
def test_bad_files(message: str, tmp_path: Path) -> None:
    path = FAULTS[message](tmp_path / "scan.nii.gz")
    with pytest.raises(VolumeError, match=message) as error:
        read_volume(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_good_files(tmp_path: Path) -> None:
    affine = np.diag([2.0, 3, 4, 1])
    for name in ("a.nii", "a.nii.gz"):
        volume = read_volume(save_nifti(tmp_path / name, DATA, affine))
        assert np.array_equal(volume.data, DATA)
        assert np.array_equal(volume.affine, affine)
    single = read_volume(save_nifti(tmp_path / "b.nii.gz", DATA[..., None]))
    assert single.data.shape == (3, 4, 5)
    nib.Nifti2Image(DATA, affine).to_filename(tmp_path / "c.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "c.nii.gz").data, DATA)
    nib.Nifti1Image(DATA, affine, nib.Nifti1Header(endianness=">")).to_filename(tmp_path / "d.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "d.nii.gz").data, DATA)


def test_labels_must_be_whole_and_not_negative() -> None:
    assert whole_numbers("l", np.array([0.0, 7.0])).dtype == np.int32
    with pytest.raises(VolumeError, match=r"whole numbers, found 0.5 \(1 voxels\)"):
        whole_numbers("l.nii", np.array([0.0, 0.5]))
    with pytest.raises(VolumeError, match="found -1"):
        whole_numbers("l.nii", np.array([0, -1]))


def test_written_headers_carry_no_text_of_the_source(tmp_path: Path) -> None:
    write_volume(tmp_path / "out.nii.gz", DATA, np.diag([1.0, 1, 2, 1]))
    header = nib.load(tmp_path / "out.nii.gz").header
    assert bytes(header["descrip"]).strip(b"\0") == b""
    assert header.get_zooms() == (1, 1, 2)
    assert not list(tmp_path.glob(".tmp*"))
