"""Folders of NIfTI volumes: the same numbers whatever the orientation, and one line for what does not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dataloaders.nifti import write_volume
from dataloaders.png import write_png
from evaluation.folders import Folders
from evaluation.request import Request
from evaluation.results import evaluate_pairs

AFFINE = np.diag([0.8, 1.2, 3.0, 1.0])
METRICS = "mae,mae_body,rmse_body,psnr,ssim,wasserstein,ssim_3d,slice_jump_ratio,edge_sharpness_ratio,spectrum_distance"


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("MEDSIS_WEIGHTS", raising=False)


def volumes(seed: int, shape: tuple[int, int, int] = (24, 28, 13)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y, z = (np.linspace(-1, 1, n) for n in shape)
    radius = np.sqrt(x[:, None, None] ** 2 + y[None, :, None] ** 2 + 0.3 * z[None, None, :] ** 2)
    label = (radius < 0.9).astype(np.int16) + (radius < 0.5)
    real = (label * 400.0 - 900 + rng.normal(0, 20, shape)).astype(np.float32)
    return {"real": real, "generated": real + rng.normal(0, 30, shape).astype(np.float32), "labels": label}


def write(folder: Path, names: tuple[str, ...] = ("sub-1_T1w", "sub-2_T1w"), code: str = "RAS") -> Path:
    """Equal anatomy in another orientation of the file."""
    for seed, name in enumerate(names):
        for kind, data in volumes(seed).items():
            image = nib.Nifti1Image(data, AFFINE)
            turn = nib.orientations.ornt_transform(
                nib.orientations.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(code))
            )
            turned = image.as_reoriented(turn)
            write_volume(folder / kind / f"{name}.nii.gz", np.asarray(turned.dataobj), turned.affine)
    return folder


def folders(root: Path, labels: bool = True, **options: object) -> Folders:
    return Folders(root / "real", root / "generated", root / "labels" if labels else None, **options)  # type: ignore[arg-type]


def score(pairs: Folders, out: Path, metrics: str = METRICS, **options: object) -> dict:
    return evaluate_pairs(pairs.pairs(), out, Request(metrics, **options))  # type: ignore[arg-type]


def test_against_the_arrays(tmp_path: Path) -> None:
    """Errors are of the floating-point values, not of the 16-bit levels, also beyond the window."""
    root = write(tmp_path / "a", ("p_0000",))
    result = score(folders(root, window=(-500.0, 0.0), unit="HU"), tmp_path / "out")
    arrays = volumes(0)
    error = np.abs(arrays["generated"] - arrays["real"])
    assert result["metrics"]["mae/image"]["value"] == pytest.approx(error.mean(), rel=1e-5)
    slices = [error[..., k][arrays["labels"][..., k] > 0].mean() for k in range(13)]
    assert result["metrics"]["mae_body/image"]["value"] == pytest.approx(np.mean(slices), rel=1e-5)
    assert result["metrics"]["mae/image"]["unit"] == "HU"
    assert result["metrics"]["ssim_3d/image"]["value"] is not None


@pytest.mark.parametrize("code", ["LPS", "LAS", "SPL", "AIR"])
def test_the_orientation_of_the_file_changes_nothing(tmp_path: Path, code: str) -> None:
    one = score(folders(write(tmp_path / "a")), tmp_path / "1")
    other = score(folders(write(tmp_path / "b", code=code)), tmp_path / "2")
    assert one["n"] == other["n"] == {"slices": 26, "cases": 2, "patients": 2}
    for key, entry in one["metrics"].items():
        assert other["metrics"][key]["value"] == pytest.approx(entry["value"], rel=1e-6), key


def test_axis_and_spacing_count(tmp_path: Path) -> None:
    root = write(tmp_path / "a", ("p",))
    axial = score(folders(root), tmp_path / "1")
    sagittal = score(folders(root, axis="sagittal"), tmp_path / "2")
    assert axial["n"]["slices"] == 13
    assert sagittal["n"]["slices"] == 24  # also those without a label: the real image is not constant there
    for name in ("ssim", "spectrum_distance", "edge_sharpness_ratio"):
        assert axial["metrics"][f"{name}/image"]["value"] != sagittal["metrics"][f"{name}/image"]["value"]


def test_patients_by_bids_name_or_expression(tmp_path: Path) -> None:
    root = write(tmp_path / "a", ("sub-1_ses-1", "sub-1_ses-2"))
    assert score(folders(root), tmp_path / "out", "mae")["n"] == {"slices": 26, "cases": 2, "patients": 1}


def test_without_labels_slices_of_air_are_left_out(tmp_path: Path) -> None:
    root = write(tmp_path / "a", ("p",))
    data = volumes(0)["real"]
    data[..., :4] = -1000
    write_volume(root / "real" / "p.nii.gz", data, AFFINE)
    result = score(folders(root, labels=False), tmp_path / "out", "mae,mae_body")
    assert result["n"]["slices"] == 9
    assert result["metrics"]["mae_body/image"]["value"] is None


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    root = write(tmp_path / "a", ("p", "q"))
    write_volume(root / "generated" / "p.nii.gz", volumes(0)["real"][:-1], AFFINE)
    with pytest.raises(ValueError, match=r"generated.*p\.nii\.gz: \(23, 28, 13\), p\.nii\.gz has \(24, 28, 13\)"):
        score(folders(root), tmp_path / "out", "mae")
    (root / "generated" / "p.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"1 files without a partner:\n  .*generated has no p\.nii\.gz"):
        folders(root).pairs()
    write_png(root / "real" / "x.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"holds NIfTI and PNG files, .* NIfTI files"):
        folders(root).pairs()
    assert not (tmp_path / "out").exists()


def test_a_shifted_affine_is_refused(tmp_path: Path) -> None:
    """Same shape, another place in space: voxels at the same index are not the same anatomy."""
    root = write(tmp_path / "a", ("p",))
    moved = AFFINE.copy()
    moved[0, 3] = 4
    write_volume(root / "labels" / "p.nii.gz", volumes(0)["labels"], moved)
    with pytest.raises(ValueError, match="affine differs"):
        score(folders(root), tmp_path / "out", "mae")


def test_synthrad_is_only_for_hounsfield_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scripts.evaluate as script

    root = write(tmp_path / "a", ("p",))
    base = ["evaluate.py", "--real", root / "real", "--generated", root / "generated", "--labels", root / "labels"]
    command = [
        *map(str, base),
        "--protocol",
        "synthrad2023",
        "--metrics",
        "synthrad2023_mae",
        "--out",
        str(tmp_path / "o"),
    ]
    monkeypatch.setattr(sys, "argv", command)
    assert script.main() == 2
    monkeypatch.setattr(sys, "argv", [*command, "--unit", "HU"])
    assert script.main() == 0
    arrays = volumes(0)
    expected = np.abs(arrays["generated"] - arrays["real"])[arrays["labels"] > 0].mean()
    found = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert found["metrics"]["synthrad2023_mae/image"]["value"] == pytest.approx(expected, rel=1e-5)
    assert "synthrad2023_mae" in found["settings"]


def test_draws_and_segmentations_as_volumes(tmp_path: Path) -> None:
    root = write(tmp_path / "a", ("p", "q"), code="LPS")
    for seed, name in enumerate("pq"):
        arrays = volumes(seed)
        write_volume(tmp_path / "draw" / f"{name}.nii.gz", arrays["generated"] + 10.0 * (arrays["labels"] > 0), AFFINE)
    options = {
        "draws": (tmp_path / "draw",),
        "segmented": root / "labels",
        "segmented_real": root / "labels",
        "lesion": "2",
    }
    broken = write(tmp_path / "b", ("p", "q"))
    for path in (broken / "labels").iterdir():
        write_volume(path, np.asarray(nib.load(path).dataobj), np.eye(4))
    pairs = folders(root, window=(-1000, 500))
    with pytest.raises(ValueError, match="affine differs"):
        score(pairs, tmp_path / "out", "auto", **options | {"segmented": broken / "labels"})
    result = score(pairs, tmp_path / "out", "auto", **options)["metrics"]
    assert result["diversity_label_spread/image"]["value"] == pytest.approx(10 / np.sqrt(2), rel=1e-3)
    assert result["faithfulness_dice"]["value"] == result["faithfulness_dice"]["ceiling"] == 1
    assert result["lesion_f1"]["value"] == 1
