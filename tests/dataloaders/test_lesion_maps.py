"""Label maps with lesion masks: which mask belongs to which map, and what becomes of its voxels."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dataloaders.labelmaps.image_generator import ImageGenerator
from dataloaders.labelmaps.lesion_maps import masks_of_maps
from tests.launch import call
from tests.scripts.test_generate import assert_replayed
from tests.toy import phantom, save_nifti

SHAPE = (12, 14, 10)
LPS = np.diag([-1.0, -1.0, 2.0, 1.0])


def mask() -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[5:8, 6:9, 4:6] = 1
    return array


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(2):
        save_nifti(tmp_path / "maps" / f"m{i}.nii.gz", phantom(i, SHAPE)[0].astype(np.uint8), LPS)
    save_nifti(tmp_path / "masks" / "m1_label-lesion_mask.nii.gz", mask(), LPS)
    return tmp_path


def test_a_mask_becomes_one_more_label(folder: Path) -> None:
    still = {"preset": "fitted", "prior_stds": [0, 0], "blur": 0}
    generator = ImageGenerator(folder / "maps", lesions=folder / "masks", seed=0, **still)
    assert generator.scheme.names[-1] == "lesion"
    assert generator.scheme.outputs == (0, 1, 2, 3, 4, 5)
    seen = set()
    for number in range(6):
        sample = generator.sample(number)
        seen.add(sample.source.name)
        expected = phantom(int(sample.source.name[1]), SHAPE)[0]
        if sample.source.name == "m1":
            expected = np.where(mask() > 0, 5, expected)
            assert len(np.unique(sample.image[mask() > 0])) == 1
        assert np.array_equal(sample.labels, expected)
    assert seen == {"m0", "m1"}


@pytest.mark.slow
def test_the_command_and_its_replay(folder: Path, tmp_path: Path) -> None:
    out, masks = tmp_path / "out", folder / "masks"
    flags = ("--labels", folder / "maps", "--lesions", masks, "--out", out, "--n", 4, "--subjects_prob", 0, 1)
    call("scripts/generate.py", *flags)
    generator = ImageGenerator(folder / "maps", lesions=masks, preset="synthseg")
    records = assert_replayed(generator, folder / "maps", out)
    assert [record["map"]["file"] for record in records] == ["m1.nii.gz"] * 4  # the other has no chance
    assert all(5 in np.asarray(nib.load(out / record["labels"][0]).dataobj) for record in records)
    settings = json.loads((out / "settings.json").read_text())["settings"]
    assert list(settings["lesions"]) == ["m1.nii.gz"]
    assert settings["subjects_prob"] == [0, 1]
    save_nifti(masks / "m1_label-lesion_mask.nii.gz", mask()[::-1].copy(), LPS)
    assert "lesions" in call("scripts/generate.py", *flags, code=2).stderr
    call("scripts/generate.py", *flags, "--overwrite", "--slices", "axial", "--channels", 2)
    assert "lesion" in (out / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("maps", "masks", "expected"),
    [
        (["a", "a_b"], ["a_lesion", "a_b_lesion"], {"a": "a_lesion", "a_b": "a_b_lesion"}),
        (["m1", "m10"], ["m10"], {"m10": "m10"}),
        (["sub-01_T2w_dseg"], ["sub-01_lesion"], {"sub-01_T2w_dseg": "sub-01_lesion"}),
        (["sub-01_dseg", "sub-01_ses-a_dseg"], ["sub-01_ses-a_lesion"], {"sub-01_ses-a_dseg": "sub-01_ses-a_lesion"}),
    ],
)
def test_pairs(maps: list[str], masks: list[str], expected: dict[str, str]) -> None:
    found = masks_of_maps(*([Path(f"{name}.nii.gz") for name in names] for names in (maps, masks)))
    assert {key.name[:-7]: value.name[:-7] for key, value in found.items()} == expected


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (["a"], ["b_lesion"], "none of the 1 masks"),
        (["a"], ["a_lesion", "a"], "only one is allowed"),
        (["sub-01_run-1_dseg", "sub-01_run-2_dseg"], ["sub-01_lesion"], "may belong to"),
    ],
)
def test_pairs_that_are_not_clear(maps: list[str], masks: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masks_of_maps(*([Path(f"{name}.nii.gz") for name in names] for names in (maps, masks)))


def test_masks_on_another_grid_are_refused(folder: Path) -> None:
    maps, path = folder / "maps/m1.nii.gz", folder / "masks/m1_label-lesion_mask.nii.gz"
    for data, affine, message in (
        (mask()[1:], LPS, r"RAS axes: shape \(11, 14, 10\), its label map .*m1\.nii\.gz has \(12, 14, 10\)"),
        (3 * mask(), LPS, "holds 0 and 1, found 0 to 3"),
        (mask(), 2 * LPS, "the affine differs from that of its label map"),
    ):
        save_nifti(path, data, affine)
        with pytest.raises(ValueError, match=message):
            ImageGenerator(maps, lesions=path).sample(0)
