from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataloaders.segmenter.scans import Scan, find_scans, read_scan
from tests.dataloaders.test_find import touch
from tests.toy import phantom, save_nifti


def test_bids_names(tmp_path: Path) -> None:
    touch(tmp_path, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in ("T1w", "FLAIR", "T1w_dseg")))
    touch(tmp_path / "sub-02/ses-1", "anat/sub-02_ses-1_desc-preproc_T2w.nii", "func/sub-02_ses-1_bold.nii.gz")
    touch(tmp_path, "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz")
    scans, bids = find_scans([tmp_path], (), ("T1w",))
    assert bids
    assert [scan.name("dseg.nii.gz") for scan in scans] == [
        "sub-01/anat/sub-01_desc-FLAIR_dseg.nii.gz",
        "sub-01/anat/sub-01_desc-T1w_dseg.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_desc-preprocT2w_dseg.nii.gz",
    ]
    assert [scan.files[0].name for scan in find_scans([tmp_path], ("T1w",), ("x",))[0]] == ["sub-01_T1w.nii.gz"]
    with pytest.raises(ValueError, match="no scans ending in PDw"):
        find_scans([tmp_path], ("PDw",), ("x",))


def test_a_network_of_two_channels_takes_files_in_pairs(tmp_path: Path) -> None:
    touch(tmp_path, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in ("T1w", "FLAIR", "T2w")))
    (scan,), _ = find_scans([tmp_path], (), ("FLAIR", "T1w"))
    assert [file.name for file in scan.files] == ["sub-01_FLAIR.nii.gz", "sub-01_T1w.nii.gz"]
    assert scan.name("dseg") == "sub-01/anat/sub-01_desc-FLAIRT1w_dseg"
    with pytest.raises(ValueError, match="the network wants T1w, PDw; PDw missing"):
        find_scans([tmp_path], (), ("T1w", "PDw"))
    touch(tmp_path, "sub-02/anat/sub-02_T1w.nii.gz")
    whole, half = find_scans([tmp_path], (), ("FLAIR", "T1w"))[0]
    assert not whole.fault
    assert half.fault.endswith("sub-02: the network wants FLAIR, T1w; FLAIR missing")


def test_own_outputs_are_no_input_and_links_to_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "real", *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in ("T1w", "desc-T1w_resampled")))
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids/sub-01").symlink_to(tmp_path / "real/sub-01")
    (tmp_path / "real/sub-01/loop").symlink_to(tmp_path / "bids")
    (scan,), bids = find_scans([tmp_path / "bids"], (), ("c",))
    assert bids
    assert scan.name("dseg") == "sub-01/anat/sub-01_desc-T1w_dseg"
    touch(tmp_path / "plain", *(f"a{name}.nii.gz" for name in ("", "_dseg", "_probseg", "_resampled", "_mask")))
    for inputs in ([tmp_path / "plain"], [tmp_path / "plain" / "*.nii.gz"], sorted((tmp_path / "plain").iterdir())):
        assert [scan.place for scan in find_scans(inputs, (), ("c",))[0]] == ["a"]
    (alone,), _ = find_scans([tmp_path / "plain" / "a_resampled.nii.gz"], (), ("c",))
    assert alone.place == "a_resampled"  # whoever names nothing else means it


def test_folders_lists_and_names_that_collide(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.nii.gz", "b/x.nii", "b/y.mgz", "b/.hidden.nii")
    scans, bids = find_scans([tmp_path], (), ("c",))
    assert not bids
    assert [scan.place for scan in scans] == ["a/x", "b/x", "b/y"]
    alike = find_scans([tmp_path / "a/x.nii.gz", tmp_path / "b/x.nii"], (), ("c",))[0]
    assert [scan.place for scan in alike] == ["a/x", "b/x"]  # folders make the names
    touch(tmp_path, "a/x.nii")
    with pytest.raises(ValueError, match=r"a/x.nii and .*a/x.nii.gz would both become x_dseg"):
        find_scans([tmp_path / "a/x.nii", tmp_path / "a/x.nii.gz"], (), ("c",))
    listed = tmp_path / "list.txt"
    listed.write_text(f"# scans\n{tmp_path / 'b/y.mgz'}\n")
    assert find_scans([listed], (), ("c",))[0] == [Scan((tmp_path / "b/y.mgz",), "y")]


def test_reading_turns_to_ras_and_scales_and_forgives_nan(tmp_path: Path) -> None:
    _, image = phantom(0)
    plain = read_scan(Scan((save_nifti(tmp_path / "a.nii.gz", image),), "a"))
    spoiled = image.copy()
    spoiled[0, 0, 0] = np.nan
    turned = np.diag([-1.0, -1.0, 1.0, 1.0])
    path = save_nifti(tmp_path / "b.nii.gz", spoiled[::-1, ::-1], turned)
    other = read_scan(Scan((path,), "b"))
    assert np.array_equal(plain.image, other.image)
    assert (plain.image.min(), plain.image.max()) == (0, 1)
    assert np.diag(other.affine)[:3].tolist() == [1, 1, 1]
    assert other.source_affine.tolist() == turned.tolist()


def test_scale_forgets_units_single_voxels_and_air(tmp_path: Path) -> None:
    _, image = phantom(0)
    bright = image.copy()
    bright[20, 24, 12] = 1e5
    padded = np.pad(image, 10)
    plain, scaled, spot, air = (
        read_scan(Scan((save_nifti(tmp_path / f"{i}.nii.gz", array),), "x")).image[0]
        for i, array in enumerate((image, image * 37 + 500, bright, padded))
    )
    assert np.allclose(plain, scaled, atol=1e-4)
    spot[20, 24, 12] = plain[20, 24, 12]
    assert np.abs(spot - plain).max() < 0.02
    assert np.abs(air[10:-10, 10:-10, 10:-10] - plain).max() < 0.02
