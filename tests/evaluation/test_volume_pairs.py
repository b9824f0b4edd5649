"""Folders of NIfTI volumes: the same numbers whatever the orientation, and one line for what does not fit."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from dataloaders.io.nifti import read_ids, write_volume
from dataloaders.io.png import write_png
from evaluation import volume_pairs
from evaluation.evaluate import evaluate_generated, evaluate_pairs
from evaluation.folders import Folders
from evaluation.metrics.protocols import synthrad2023
from evaluation.metrics.similarity import similarity
from evaluation.request import Request
from evaluation.scoring import side_by_side
from evaluation.volume_pairs import VolumePairs
from tests.launch import call

pytestmark = pytest.mark.usefixtures("no_weights")

AFFINE = np.diag([0.8, 1.2, 3.0, 1.0])
METRICS = "mae,mae_body,rmse_body,psnr,ssim,wasserstein,ssim_3d,slice_jump_ratio,edge_sharpness_ratio,spectrum_distance"


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


@pytest.mark.slow
@pytest.mark.parametrize("code", ["LPS", "LAS", "SPL", "AIR"])
def test_the_orientation_of_the_file_changes_nothing(tmp_path: Path, code: str) -> None:
    one = score(folders(write(tmp_path / "a")), tmp_path / "1")
    other = score(folders(write(tmp_path / "b", code=code)), tmp_path / "2")
    assert one["n"] == other["n"] == {"slices": 26, "cases": 2, "patients": 2}
    for key, entry in one["metrics"].items():
        assert other["metrics"][key]["value"] == pytest.approx(entry["value"], rel=1e-6), key


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    root = write(tmp_path / "a", ("p", "q"))
    write_volume(root / "generated" / "p.nii.gz", volumes(0)["real"][:-1], AFFINE)
    with pytest.raises(
        ValueError, match=r"generated.*p\.nii\.gz: .*shape \(23, 28, 13\), p\.nii\.gz has \(24, 28, 13\)"
    ):
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


def test_synthrad_is_only_for_hounsfield_units(tmp_path: Path) -> None:
    root = write(tmp_path / "a", ("p",))
    command = ["--real", root / "real", "--generated", root / "generated", "--labels", root / "labels"]
    command += ["--protocol", "synthrad2023", "--metrics", "synthrad2023_mae", "--out", tmp_path / "o"]
    call("scripts/evaluate.py", *command, code=2)
    call("scripts/evaluate.py", *command, "--unit", "HU")
    arrays = volumes(0)
    expected = np.abs(arrays["generated"] - arrays["real"])[arrays["labels"] > 0].mean()
    found = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert found["metrics"]["synthrad2023_mae/image"]["value"] == pytest.approx(expected, rel=1e-5)
    assert "synthrad2023_mae" in found["settings"]


@pytest.mark.slow
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


# -- which slices count, and for what -----------------------------------------------------------------------------


def test_cases_side_by_side_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread has its own volumes of other folders, also where their slices come in turns."""
    root = write(tmp_path / "a", ("sub-1", "sub-2", "sub-3"))
    options = {"draws": (write(tmp_path / "b", ("sub-3", "sub-1", "sub-2")) / "generated",), "lesion": "2"}
    options["segmented"] = tmp_path / "b" / "labels"
    in_turns, read = threading.Barrier(3, timeout=60), VolumePairs.companion

    def companion(self: VolumePairs, *given: object, **named: object) -> np.ndarray:
        if torch.get_num_threads() == 1 and threading.current_thread() is not threading.main_thread():
            in_turns.wait()
        return read(self, *given, **named)  # type: ignore[arg-type]

    opened: list[Path] = []
    monkeypatch.setattr(VolumePairs, "companion", companion)
    monkeypatch.setattr(volume_pairs, "read_ids", lambda path: opened.append(path) or read_ids(path))
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        score(folders(root, window=(-1000, 500)), tmp_path / str(threads), "auto", **options)
        assert torch.get_num_threads() == threads
        assert len(opened) == 3 * 2  # labels, segmentations
        opened.clear()
    torch.set_num_threads(before)
    for name in ("metrics.json", "metrics.csv", "summary.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_an_error_of_one_case_ends_all_of_them() -> None:
    started, before = [], torch.get_num_threads()

    def work(number: int) -> int:
        started.append(number)
        if number == 1:
            raise ValueError("case 1")
        return number

    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="case 1"):
            list(side_by_side(work, range(1000), 1000))
        assert list(side_by_side(lambda n: n * n, range(9), 9)) == [n * n for n in range(9)]
    finally:
        torch.set_num_threads(before)
    assert len(started) < 1000


def arrays_of(root: Path, name: str = "p") -> dict[str, np.ndarray]:
    return {
        kind: np.asarray(nib.load(root / kind / f"{name}.nii.gz").dataobj) for kind in ("real", "generated", "labels")
    }


def cropped_body(root: Path) -> dict[str, np.ndarray]:
    """A body that ends well within the volume, as of a scan with table and air around."""
    write(root, ("p",))
    label = arrays_of(root)["labels"]
    label[..., :3], label[..., 10:] = 0, 0
    write_volume(root / "labels" / "p.nii.gz", label, AFFINE)
    return arrays_of(root)


@pytest.mark.slow
def test_synthrad_is_of_the_whole_volume(tmp_path: Path) -> None:
    """The challenge leaves out the outermost 3 voxels of the volume, not of the body."""
    arrays = cropped_body(tmp_path)
    pairs = folders(tmp_path, unit="HU", window=(-1000, 500))
    found = score(pairs, tmp_path / "out", "auto", protocol=("synthrad2023",))["metrics"]
    moved = {key: np.moveaxis(array, 2, 0)[:, ::-1, ::-1].transpose(0, 2, 1) for key, array in arrays.items()}
    expected = synthrad2023(moved["real"], moved["generated"], moved["labels"] > 0)
    for key, value in expected.items():
        assert found[f"synthrad2023_{key}/image"]["value"] == pytest.approx(value, rel=1e-6), key
    part = slice(3, 10)
    wrong = synthrad2023(moved["real"][part], moved["generated"][part], moved["labels"][part] > 0)
    assert abs(wrong["ssim"] - expected["ssim"]) > 1e-3  # what leaving slices out first would give


def test_ssim_3d_is_of_the_whole_volume(tmp_path: Path) -> None:
    arrays = cropped_body(tmp_path)  # 7 slices with labels would be too few
    found = score(folders(tmp_path, window=(-1000, 500)), tmp_path / "out", "ssim_3d")["metrics"]["ssim_3d/image"]
    expected = similarity(arrays["real"], arrays["generated"], -1000, 1500)[0]
    assert found["value"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_faults_outside_of_a_lesion_mask_are_seen(tmp_path: Path) -> None:
    root = write(tmp_path, ("p",))
    lesion = np.zeros((24, 28, 13), np.int16)
    lesion[10:13, 10:13, 5] = 1
    write_volume(root / "labels" / "p.nii.gz", lesion, AFFINE)
    arrays = arrays_of(root)
    broken = arrays["real"].copy()
    broken[..., 9] += 400
    write_volume(root / "generated" / "p.nii.gz", broken, AFFINE)
    result = score(folders(root, window=(-1000, 500)), tmp_path / "out", "auto", lesion="1")
    assert result["n"]["slices"] == 13
    assert result["metrics"]["mae/image"]["value"] == pytest.approx(400 / 13, rel=1e-4)
    assert result["metrics"]["mae_body/image"]["value"] == 0  # inside labels, and in the one slice that has any
    assert result["metrics"]["lesion_change_outside/image"]["value"] == pytest.approx(400 / 13, rel=1e-4)


def test_slices_of_air_count_for_segmentations(tmp_path: Path) -> None:
    """What a segmenter sees where the condition has nothing is an error, also in slices that are not scored."""
    root = write(tmp_path, ("p",))
    arrays = arrays_of(root)
    arrays["labels"][..., :4], arrays["real"][..., :4] = 0, -1000
    seen = arrays["labels"].copy()
    seen[5:9, 5:9, 1] = 2
    for kind, data in {"labels": arrays["labels"], "real": arrays["real"], "seen": seen}.items():
        write_volume(root / kind / "p.nii.gz", data, AFFINE)
    result = score(folders(root), tmp_path / "out", "faithfulness_dice,mae", segmented=root / "seen")
    assert result["n"]["slices"] == 9
    dice = {row["label"]: row["dice"] for row in result["per_overlap"]}
    size = int((arrays["labels"] == 2).sum())
    assert dice == pytest.approx({1: 1, 2: 2 * size / (2 * size + 16)})


def test_hd95_is_in_millimetres_of_the_axis(tmp_path: Path) -> None:
    """Voxels of 0.8 x 1.2 x 3 mm: a segmentation that is one voxel off along an axis is that far away."""
    for axis, distance in ((0, 0.8), (1, 1.2), (2, 3.0)):
        root = tmp_path / str(axis)
        write(root, ("p",))
        label = np.zeros((24, 28, 13), np.int16)
        label[8:12, 8:12, 5:9] = 1
        write_volume(root / "labels" / "p.nii.gz", label, AFFINE)
        write_volume(root / "seen" / "p.nii.gz", np.roll(label, 1, axis=axis), AFFINE)
        for sliced in ("axial", "sagittal"):
            pairs = folders(root, axis=sliced)
            found = score(pairs, tmp_path / "out", "faithfulness_hd95", segmented=root / "seen")["metrics"]
            assert found["faithfulness_hd95"]["value"] == pytest.approx(distance)
            assert found["faithfulness_hd95"]["unit"] == "mm"


def test_labels_are_chosen_for_each_kind_of_image(tmp_path: Path) -> None:
    """What only the segmentation of the real images has is no fault of the generated ones, and the other way round."""
    root = write(tmp_path, ("p",))
    seen = arrays_of(root)["labels"].copy()
    seen[0, 0, :] = 7
    write_volume(root / "seen" / "p.nii.gz", seen, AFFINE)
    options = {"segmented": root / "labels", "segmented_real": root / "seen"}
    metrics = score(folders(root), tmp_path / "1", "faithfulness_dice,faithfulness_hd95", **options)["metrics"]
    assert metrics["faithfulness_dice"]["value"] == 1
    assert metrics["faithfulness_dice"]["ceiling"] == pytest.approx(2 / 3)
    assert [metrics["faithfulness_hd95"][key] for key in ("missed", "ceiling_missed")] == [0, 1]
    options = {"segmented": root / "seen", "segmented_real": root / "labels"}
    result = score(folders(root), tmp_path / "2", "faithfulness_dice,faithfulness_hd95", **options)
    assert result["metrics"]["faithfulness_dice"]["value"] == pytest.approx(2 / 3)
    assert result["metrics"]["faithfulness_dice"]["ceiling"] == 1
    assert {row["name"] for row in result["per_overlap"]} == {"label_1", "label_2", "label_7"}


# -- values, not levels -------------------------------------------------------------------------------------------


def test_label_statistics_are_of_the_stored_values(tmp_path: Path) -> None:
    """A window that cuts through the tissue clips neither mean nor standard deviation, and says how much it clips."""
    root = write(tmp_path, ("p",))
    arrays = arrays_of(root)
    result = score(folders(root, window=(-600, -300)), tmp_path / "out", "label_mean_error,label_std_error,wasserstein")
    for row in result["per_label"]:
        inside = arrays["labels"] == row["label"]
        for kind in ("real", "generated"):
            values = arrays[kind][inside]
            assert [row[f"{kind}_{what}"] for what in ("mean", "std")] == pytest.approx(
                [values.mean(), values.std()], rel=1e-4
            )
    for kind in ("real", "generated"):
        beyond = (arrays[kind] < -600) | (arrays[kind] > -300)
        assert result["counts"][f"clipped_{kind}"] == int(beyond.sum())


@pytest.mark.slow
@pytest.mark.parametrize("ids", [(3, 9), (7, 20_000_000)])
def test_ids_of_any_size(tmp_path: Path, ids: tuple[int, int]) -> None:
    plain = write(tmp_path / "a", ("p",))
    root = write(tmp_path / "b", ("p",))
    labels = arrays_of(root)["labels"]
    sparse = np.choose(labels, [0, *ids]).astype(np.int32)
    write_volume(root / "labels" / "p.nii.gz", sparse, AFFINE)
    options = {"segmented": root / "labels", "lesion": str(ids[1])}
    found = score(folders(root), tmp_path / "1", "auto", **options)
    expected = score(folders(plain), tmp_path / "2", "auto", segmented=plain / "labels", lesion="2")
    assert {row["name"] for row in found["per_label"]} == {"background", *(f"label_{i}" for i in ids)}
    assert {row["label"] for row in found["per_overlap"]} == set(ids)
    for key, entry in expected["metrics"].items():
        assert found["metrics"][key]["value"] == entry["value"], key


# -- what is said -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_volumes_of_a_reference_need_a_window(tmp_path: Path) -> None:
    root = write(tmp_path, ("p", "q"))
    with pytest.raises(ValueError, match="need a common --window"):
        score(folders(root), tmp_path / "out", "auto", save_reference=tmp_path / "ref.npz")
    score(folders(root, window=(-1000, 500)), tmp_path / "out", "auto", save_reference=tmp_path / "ref.npz")
    alone = Folders(root / "generated", root / "generated", root / "labels")
    with pytest.raises(ValueError, match="need a common --window"):
        evaluate_generated(alone.pairs(), tmp_path / "ref.npz", tmp_path / "o", Request())
    for change, message in (
        ({"window": (-1000, 400)}, "with the window -1000 500, not -1000 400"),
        ({"unit": "HU"}, "with the unit units, not HU"),
        ({"axis": "coronal"}, "axial slices, not coronal"),
        ({"labels": None}, "with label maps: give --labels"),
    ):
        wrong = replace(alone, **{"window": (-1000, 500)} | change)
        with pytest.raises(ValueError, match=message):
            evaluate_generated(wrong.pairs(), tmp_path / "ref.npz", tmp_path / "o", Request())
    right = replace(alone, window=(-1000, 500))
    assert evaluate_generated(right.pairs(), tmp_path / "ref.npz", tmp_path / "o", Request())["n"]["slices"] == 26
