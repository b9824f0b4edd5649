"""What prepare_data.py says of the scans: what was left out, padded, cut and clipped, and whose names labels have."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dataloaders.prepare.options import PrepareOptions
from dataloaders.prepare.prepare import prepare
from tests.toy import phantom, save_nifti


def options(source: Path, out: Path, **changes: object) -> PrepareOptions:
    where = {"images": str(source / "*_ct.nii.gz"), "labels": str(source / "*_seg.nii.gz"), "out": out}
    base = {"format": "pairs", "channel": "CT", "clean": "none", "size": (64,), "workers": 1}
    return PrepareOptions(**(where | base | changes))  # type: ignore[arg-type]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for i in range(3):
        label, image = phantom(i)
        save_nifti(tmp_path / "source" / f"case{i}_ct.nii.gz", (image * 5 - 1000).astype(np.int16))
        save_nifti(tmp_path / "source" / f"case{i}_seg.nii.gz", (label * 7).astype(np.uint8))
    return tmp_path / "source"


def test_what_was_done_to_the_scans_is_said(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slices left out, padding, cropped labels, values found and clipped."""
    prepare(options(source, tmp_path / "out", size=(64,), min_foreground=0.05, window=("-1024,500",)))
    said = capsys.readouterr().out
    kept = len(list((tmp_path / "out").glob("*/labels/*.png")))
    assert f"kept {kept} of 72 slices; {72 - kept} have less than 5 % of their pixels labelled" in said
    assert "planes of 48x40 pixels, padded to 64x64 around the labels (--size): 53 % of a slice is padding" in said
    images = [nib.load(path).get_fdata() for path in sorted(source.glob("*_ct.nii.gz"))]
    low, high = min(i.min() for i in images), max(i.max() for i in images)
    assert f"CT: values from {low:.6g} to {high:.6g} HU" in said
    assert "0 % of the voxels lie below the window" in said or "<0.01 % of the voxels lie below" in said
    assert "lie outside" not in said
    prepare(options(source, tmp_path / "small", size=(32,)))
    said = capsys.readouterr().out
    assert "planes of 48x40 pixels, cropped to 32x32 around the labels (--size)" in said
    assert re.search(r"case0: [\d.]+ % of the voxels labelled lie outside the 32x32 pixels", said)


def label_header(*names: str) -> nib.nifti1.Nifti1Extension:
    rows = "".join(f'<Label Key="{7 * i}" Red="0"><![CDATA[{name}]]></Label>' for i, name in enumerate(names, 1))
    return nib.nifti1.Nifti1Extension("comment", f"<LabelTable>{rows}</LabelTable>".encode())


def test_names_in_the_headers_are_taken(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As TotalSegmentator writes them: without a table, left and right were not known apart."""
    for path in sorted(source.glob("*_seg.nii.gz")):
        image = nib.load(path)
        image.header.extensions.append(label_header("kidney_left", "kidney_right", "liver", "spleen"))
        nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header).to_filename(path)
    manifest = prepare(options(source, tmp_path / "out"))
    assert manifest is not None
    assert [label.name for label in manifest.spec.labels[1:]] == ["kidney_left", "kidney_right", "liver", "spleen"]
    assert "label names: those beside the label maps or in their headers" in capsys.readouterr().out
    image = nib.load(path)
    image.header.extensions[:] = [label_header("spleen", "kidney_right", "liver", "kidney_left")]
    nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header).to_filename(path)
    other = prepare(options(source, tmp_path / "contradicts"))
    assert other is not None
    assert other.spec.labels[1].name == "label_7"
    assert "warning: id 7 is 'kidney_left' in one label map's header" in capsys.readouterr().out


@pytest.mark.parametrize(("first", "named"), [(89, True), (1, False)])
def test_totalsegmentators_ids_are_known_without_names(
    first: int, named: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More than 20 ids of a CT up to 112 are nobody else's; 1 to 25 may be anything, vertebrae for one."""
    for case in range(3):
        label, image = phantom(case)
        x, y, _ = np.indices(label.shape)
        label = np.where(label > 0, first + x // 8 + 5 * (y // 10), 0)  # 25 blocks
        save_nifti(tmp_path / "scans" / f"case{case}_ct.nii.gz", (image * 5 - 1000).astype(np.int16))
        save_nifti(tmp_path / "scans" / f"case{case}_seg.nii.gz", label.astype(np.uint8))
    manifest = prepare(options(tmp_path / "scans", tmp_path / "out"))
    assert manifest is not None
    assert manifest.spec.labels[-1].name.startswith("rib_right_") is named
    assert ("label names: totalsegmentator's" in capsys.readouterr().out) is named
    assert (sum(label.name.startswith("label_") for label in manifest.spec.labels) == 0) is named
