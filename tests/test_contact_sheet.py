"""The contact sheet shows voxels in their proportions, and labels in their colours."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.contact_sheet import main, outlined, square_planes


def test_planes_have_the_proportions_of_the_voxels() -> None:
    volume = np.arange(4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3)
    axial, coronal, sagittal = square_planes(volume, (1.0, 1.0, 3.0))
    assert [picture.shape for picture in (axial, coronal, sagittal)] == [(5, 4), (9, 4), (9, 5)]
    assert np.array_equal(coronal[::3], volume[::-1, 2, :].T[::-1])
    assert np.array_equal(coronal[2::3], coronal[::3])
    assert np.array_equal(sagittal[::3], volume[2].T[::-1, ::-1])  # the face to the left, as everywhere
    assert square_planes(volume[0], (2.0, 1.0))[0].shape == (3, 10)


def test_outlines_have_the_colours_of_the_labels() -> None:
    ids = np.zeros((6, 7), np.intp)
    ids[1:5, 1:6] = 1
    ids[2, 5] = 2
    image = np.full((6, 7, 3), 9, np.uint8)
    colors = np.array([[0, 0, 0], [200, 0, 0], [0, 0, 200]], np.uint8)
    drawn = outlined(image, ids, colors)
    assert drawn[2, 5].tolist() == [0, 0, 200]
    assert drawn[1, 1].tolist() == drawn[2, 4].tolist() == [200, 0, 0]  # beside background, beside the other label
    assert (drawn[3, 2:4] == 9).all()
    assert (drawn[ids == 0] == 9).all()
    ids[:] = 1
    assert (outlined(image, ids, colors)[0] == colors[1]).all()  # a label that reaches the picture's edge


def test_the_sheets_colours_are_those_of_the_table_beside_the_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = np.zeros((16, 16, 16), np.int16)
    label[4:12, 4:12, 4:12] = 1
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "sub-1_dseg.nii.gz")
    (tmp_path / "dseg.tsv").write_text("index\tname\tcolor\n0\tair\tn/a\n1\tliver\t#10fe20\n")
    words = ["--labels", tmp_path, "--out", tmp_path / "sheet.png", "--n", 1, "--columns", 1, "--borders"]
    monkeypatch.setattr("sys.argv", ["contact_sheet.py", *map(str, words)])
    assert main() == 0
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).reshape(-1, 3)
    assert (pixels == [0x10, 0xFE, 0x20]).all(1).sum() > 50
