"""Bad files end in one clear line that names them."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from dataloaders.io.console import collected
from dataloaders.io.nifti import VolumeError, read_volume, whole_numbers, write_volume
from dataloaders.labelmaps.labels import labels_with
from tests.toy import save_nifti

DATA = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def stored(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """Makes a compressed scan whose bytes have been changed."""

    def make(path: Path) -> Path:
        save_nifti(path, np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16))
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def patched(at: int, value: bytes, more: bytes = b"") -> Callable[[Path], Path]:
    """Makes a scan with other bytes at a place of its header, and `more` behind its end."""

    def make(path: Path) -> Path:
        content = save_nifti(path.with_suffix(""), DATA).read_bytes()
        path.write_bytes(gzip.compress(content[:at] + value + content[at + len(value) :] + more))
        return path

    return make


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


def raw(content: bytes, name: str = "scan.mgz") -> Callable[[Path], Path]:
    """Makes a file of that content and name."""

    def make(path: Path) -> Path:
        path.with_name(name).write_bytes(content)
        return path.with_name(name)

    return make


def mgh(path: Path, data: NDArray | None = None, affine: NDArray | None = None) -> Path:
    data = DATA.astype(np.int32) if data is None else data
    nib.MGHImage(data, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def truncated_mgz(path: Path) -> Path:
    whole = mgh(path.with_name("scan.mgz"), np.random.default_rng(0).integers(0, 9, (20, 20, 20)).astype(np.int32))
    return raw(whole.read_bytes()[:-100])(path)


OFFSET, SLOPE = 108, 112  # of vox_offset, and of scl_slope before scl_inter, in the header
FAULTS = {
    "truncated or damaged gzip": stored(lambda content: content[:-500]),
    "damaged gzip": stored(lambda c: c[: len(c) // 2] + bytes([c[len(c) // 2] ^ 0xFF]) + c[len(c) // 2 + 1 :]),
    "not compressed with gzip": not_gzip,
    "asks for 18 GB": huge_header,
    "is not a volume|damaged": patched(42, struct.pack("<h", -3)),
    "more data than its header": patched(0, b"", bytes(20 << 20)),
    "every voxel is NaN": lambda path: save_nifti(path, np.full((3, 4, 5), np.nan)),
    "vox_offset inf": patched(OFFSET, struct.pack("<ff", np.inf, 1)),
    "vox_offset nan": patched(OFFSET, struct.pack("<ff", np.nan, 1)),
    r"vox_offset 3e\+38": patched(OFFSET, struct.pack("<ff", 3e38, 1), bytes(1 << 24)),
    "damaged header .*intercept": patched(SLOPE, struct.pack("<ff", 1, np.inf)),
    "not a NIfTI file": raw(gzip.compress(b"not an image" * 100), "scan.nii.gz"),
    "has 4 dimensions": lambda path: save_nifti(path, np.zeros((3, 3, 3, 2), np.int16)),
    "not a volume": lambda path: save_nifti(path, np.zeros((3, 3), np.int16)),
    "singular": patched(312, bytes(16)),  # srow_z
    "no such file": lambda path: path,
    "named .mgz but not compressed": raw(b""),
    "not an MGH file": raw(gzip.compress(b"", mtime=0)),
    "damaged header .*non-zero": raw(gzip.compress(b"\0\0\0\1" + bytes(300), mtime=0)),
    r"scan\.mgz: truncated or damaged": truncated_mgz,
    r"scan\.mgz: .*has 4 dimensions": lambda path: mgh(path.with_name("scan.mgz"), np.zeros((3, 3, 3, 2), np.float32)),
}


@pytest.mark.parametrize("message", FAULTS)
def test_bad_files(message: str, tmp_path: Path) -> None:
    path = FAULTS[message](tmp_path / "scan.nii.gz")
    with pytest.raises(VolumeError, match=message) as error:
        read_volume(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_mgz_is_read_as_nifti_is(tmp_path: Path) -> None:
    affine = np.array([[-1.0, 0, 0, 4], [0, 0, 2, -3], [0, -1, 0, 5], [0, 0, 0, 1]])
    for name in ("a.mgz", "a.mgh"):
        volume = read_volume(mgh(tmp_path / name, affine=affine))
        assert np.array_equal(volume.data, DATA)
        assert np.allclose(volume.affine, affine)
        assert volume.codes is None


def test_damaged_header_extensions_cost_nothing(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", DATA)
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    header["vox_offset"] = 384
    extension = (7).to_bytes(4, "little") + (4).to_bytes(4, "little") + bytes(24)  # a size of 7 is impossible
    path.write_bytes(header.binaryblock + b"\1\0\0\0" + extension + bytes(content[352:]))
    assert np.array_equal(read_volume(path).data, DATA)
    assert labels_with(path) is None


def test_missing_voxels_count_as_background_and_are_told(tmp_path: Path) -> None:
    data = DATA.astype(np.float32)
    data[0] = np.nan
    with collected() as told:
        volume = read_volume(save_nifti(tmp_path / "mr.nii.gz", data))
        hu = read_volume(save_nifti(tmp_path / "ct.nii.gz", data - 1000))
    assert (volume.data[0] == 0).all()
    assert np.array_equal(volume.data[1:], DATA[1:])
    assert volume.missing.sum() == 20
    assert (hu.data[0] == hu.data.min()).all()
    assert hu.data.min() == -980
    assert told[0].endswith("mr.nii.gz: 20 voxels (33.3%) are NaN or infinite and count as 0")
    assert told[1].endswith("count as -980")


def test_a_header_without_orientation_is_told_and_kept(tmp_path: Path) -> None:
    image = nib.Nifti1Image(DATA, None)
    image.header.set_zooms((1, 2, 3))
    image.header["qform_code"] = image.header["sform_code"] = 0
    image.to_filename(tmp_path / "a.nii.gz")
    with collected() as told:
        volume = read_volume(tmp_path / "a.nii.gz")
    assert ["axes are taken as LAS" in line for line in told] == [True]
    assert volume.codes == (0, 0)
    write_volume(tmp_path / "b.nii.gz", volume.data, volume.affine, codes=volume.codes)
    written = nib.load(tmp_path / "b.nii.gz")
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (0, 0)
    assert np.allclose(written.affine, volume.affine)
    # a grid that such a header cannot say gets a code after all
    write_volume(tmp_path / "c.nii.gz", volume.data, np.eye(4), codes=volume.codes)
    assert np.allclose(nib.load(tmp_path / "c.nii.gz").affine, np.eye(4))


@pytest.mark.parametrize("codes", [(1, 0), (0, 4), (1, 1), (2, 3)])
def test_codes_are_written_as_they_were(codes: tuple[int, int], tmp_path: Path) -> None:
    affine = np.array([[0, -1.0, 0, 4], [2, 0, 0, -3], [0, 0, 3, 5], [0, 0, 0, 1]])
    image = nib.Nifti1Image(DATA, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    image.to_filename(tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    write_volume(tmp_path / "b.nii.gz", volume.data, volume.affine, codes=volume.codes)
    written = nib.load(tmp_path / "b.nii.gz")
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == codes
    assert np.allclose(written.affine, affine, atol=1e-5)


def test_good_files(tmp_path: Path) -> None:
    affine = np.diag([2.0, 3, 4, 1])
    swapped = nib.Nifti1Image(DATA, affine, nib.Nifti1Header(endianness=">"))
    for name, image in {
        "a.nii": nib.Nifti1Image(DATA, affine),
        "b.nii.gz": nib.Nifti1Image(DATA, affine),
        "c.nii.gz": nib.Nifti1Image(DATA[..., None], affine),  # a single volume of a series
        "d.nii.gz": nib.Nifti2Image(DATA, affine),
        "e.nii.gz": swapped,
    }.items():
        image.to_filename(tmp_path / name)
        volume = read_volume(tmp_path / name)
        assert np.array_equal(volume.data, DATA)
        assert np.array_equal(volume.affine, affine)


def test_labels_must_be_whole_and_not_negative() -> None:
    for dtype in (np.uint8, np.uint16, np.int16, np.int64, np.float32):
        read = whole_numbers("l", np.array([0, 77], dtype))
        assert (read.dtype, read.tolist()) == (np.int32, [0, 77])
    with collected() as told:
        assert whole_numbers("l", np.array([0, 0.9999999998, 2.0001, 7.9993])).tolist() == [0, 1, 2, 8]
    assert told == ["l: 3 labels are off whole numbers by 0.0007 at most; rounded"]
    for wrong, message in (
        ([0.0, 1.002], r"found 1\.002"),
        ([0.0, 0.5], r"whole numbers, found 0.5 \(1 voxels\)"),
        ([0, -1], "found -1"),
    ):
        with pytest.raises(VolumeError, match=message):
            whole_numbers("l.nii", np.array(wrong))


def test_written_headers_carry_no_text_of_the_source(tmp_path: Path) -> None:
    write_volume(tmp_path / "out.nii.gz", DATA, np.diag([1.0, 1, 2, 1]))
    header = nib.load(tmp_path / "out.nii.gz").header
    assert bytes(header["descrip"]).strip(b"\0") == b""
    assert header.get_zooms() == (1, 1, 2)
    assert not list(tmp_path.glob(".tmp*"))
