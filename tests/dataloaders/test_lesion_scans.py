"""Files as they are stored: bit for bit, and the faults of input."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dataloaders.lesions.scans import load_head, read_channels, read_mask, read_stored
from tests.dataloaders.test_prepare import reoriented
from tests.toy import save_nifti
from tests.toy_lesions import LAS, patient


def scaled(path: Path, slope: float = 0.5, inter: float = -3.0) -> np.ndarray:
    """An int16 file with a scale of its own; returns the raw values."""
    raw = np.random.default_rng(0).integers(-500, 3000, (6, 7, 8)).astype(np.int16)
    image = nib.Nifti1Image(raw, LAS)
    image.header.set_slope_inter(slope, inter)
    image.to_filename(path)
    return raw


def test_raw_values_and_scale_survive(tmp_path: Path) -> None:
    raw = scaled(tmp_path / "a.nii.gz")
    scan = read_stored(tmp_path / "a.nii.gz")
    assert scan.raw.dtype == np.int16
    assert np.array_equal(scan.raw, raw)
    assert scan.values[0, 0, 0] == pytest.approx(raw[0, 0, 0] * 0.5 - 3)
    zone = np.zeros(raw.shape, bool)
    zone[2, 3, 4] = zone[0, 0, 1] = True
    changed = scan.changed(zone, np.array([100.2, 1e9]))
    assert np.array_equal(changed[~zone], raw[~zone])
    assert changed[zone].tolist() == [206, np.iinfo(np.int16).max]  # rounded; kept in the type's range
    scan.write(tmp_path / "b.nii.gz", changed)
    again = read_stored(tmp_path / "b.nii.gz")
    assert (again.slope, again.inter, again.raw.dtype) == (0.5, -3.0, np.int16)
    assert np.array_equal(again.raw, changed)
    assert np.array_equal(again.affine, scan.affine)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, "mgz"])
def test_types_stay_and_files_of_freesurfer_become_nifti(tmp_path: Path, dtype: type) -> None:
    data = np.arange(24).reshape(2, 3, 4).astype(np.float32 if dtype == "mgz" else dtype)
    if dtype == "mgz":
        nib.MGHImage(data, LAS).to_filename(tmp_path / "a.mgz")
    else:
        save_nifti(tmp_path / "a.nii", data, LAS)
    scan = read_stored(tmp_path / ("a.mgz" if dtype == "mgz" else "a.nii"))
    assert scan.name == ("a.nii.gz" if dtype == "mgz" else "a.nii")
    scan.write(tmp_path / "b.nii", scan.raw)
    back = nib.load(tmp_path / "b.nii")
    assert back.get_data_dtype() == data.dtype
    assert np.array_equal(np.asarray(back.dataobj), data)
    assert np.allclose(back.affine, LAS)


def files(tmp_path: Path) -> tuple[Path, Path]:
    p = patient(0)
    return (
        save_nifti(tmp_path / "sub-1_T1w.nii.gz", p.t1, LAS),
        save_nifti(tmp_path / "sub-1_FLAIR.nii.gz", p.flair, LAS),
    )


def test_a_head_in_units_of_white_matter(tmp_path: Path) -> None:
    p = patient(0)
    scans = read_channels(files(tmp_path), ["T1w", "FLAIR"], "--input")
    tissue = save_nifti(tmp_path / "dseg.nii.gz", p.tissue, LAS)
    head = load_head(scans, ["T1w", "FLAIR"], p.lesion, tissue, None)
    assert np.linalg.det(head.grid[:3, :3]) > 0  # RAS, the files are LAS
    for c in (0, 1):
        assert np.median(head.model(c)[head.tissue.white]) == pytest.approx(-0.2, abs=0.02)
        assert np.allclose(head.physical(c, head.model(c)), head.images[c], atol=1e-3)
    assert not (head.tissue.white & head.lesion).any()
    coarse = load_head(scans, ["T1w", "FLAIR"], p.lesion, tissue, None, spacing=(2.0, 2.0, 2.0))
    assert coarse.spacing == pytest.approx((2, 2, 2))
    assert load_head(scans, ["T1w", "FLAIR"], None, tissue, None, (1.05, 1, 1)).spacing == pytest.approx((1, 1, 1))


def test_masks_in_another_order_of_axes_are_moved(tmp_path: Path) -> None:
    t1, _ = files(tmp_path)
    p = patient(0)
    (scan,) = read_channels([t1], ["T1w"], "--input")
    mask = save_nifti(tmp_path / "mask.nii.gz", p.lesion.astype(np.uint8), LAS)
    reoriented(mask, "SRA")
    assert np.array_equal(read_mask(mask, scan), p.lesion > 0)
