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


def volumes(seed: int) -> dict[str, np.ndarray]:
    rng, shape = np.random.default_rng(seed), (24, 28, 13)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + 0.3 * z**2)
    label = (radius < 0.9).astype(np.int16) + (radius < 0.5)
    real = (label * 400.0 - 900 + rng.normal(0, 20, shape)).astype(np.float32)
    return {"real": real, "generated": real + rng.normal(0, 30, shape).astype(np.float32), "labels": label}


def write(folder: Path, names: str = "pq", code: str = "RAS") -> Path:
    """Equal anatomy in another orientation of the file."""
    ornt = nib.orientations
    turn = ornt.ornt_transform(ornt.io_orientation(AFFINE), ornt.axcodes2ornt(code))
    for seed, name in enumerate(names):
        for kind, data in volumes(seed).items():
            turned = nib.Nifti1Image(data, AFFINE).as_reoriented(turn)
            write_volume(folder / kind / f"{name}.nii.gz", np.asarray(turned.dataobj), turned.affine)
    return folder


def person(root: Path, **other: np.ndarray) -> dict[str, np.ndarray]:
    """The volumes of one person, some of them others than usual, written under `root` by kind."""
    arrays = volumes(0) | other
    for kind, data in arrays.items():
        write_volume(root / kind / "p.nii.gz", data, AFFINE)
    return arrays


def folders(root: Path, labels: bool = True, **options: object) -> Folders:
    return Folders(root / "real", root / "generated", root / "labels" if labels else None, **options)


def score(pairs: Folders, out: Path, metrics: str = METRICS, **options: object) -> dict:
    return evaluate_pairs(pairs.pairs(), out, Request(metrics, **options))


def test_against_the_arrays(tmp_path: Path) -> None:
    """Errors are of the floating-point values, not of the 16-bit levels, also beyond the window."""
    arrays = person(tmp_path)
    result = score(folders(tmp_path, window=(-500.0, 0.0), unit="HU"), tmp_path / "out")["metrics"]
    error = np.abs(arrays["generated"] - arrays["real"])
    assert result["mae/image"]["value"] == pytest.approx(error.mean(), rel=1e-5)
    slices = [error[..., k][arrays["labels"][..., k] > 0].mean() for k in range(13)]
    assert result["mae_body/image"]["value"] == pytest.approx(np.mean(slices), rel=1e-5)
    assert result["mae/image"]["unit"] == "HU"


@pytest.mark.slow
def test_the_orientation_of_the_file_changes_nothing(tmp_path: Path) -> None:
    one = score(folders(write(tmp_path / "RAS")), tmp_path / "1")
    for code in ("LPS", "LAS", "SPL", "AIR"):
        other = score(folders(write(tmp_path / code, code=code)), tmp_path / "2")
        assert one["n"] == other["n"] == {"slices": 26, "cases": 2, "patients": 2}
        for key, entry in one["metrics"].items():
            assert other["metrics"][key]["value"] == pytest.approx(entry["value"], rel=1e-6), (code, key)


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] = 4  # the same shape, another place in space: voxels at the same index are not the same anatomy
    shape = r"generated.*p\.nii\.gz: .*shape \(23, 28, 13\), p\.nii\.gz has \(24, 28, 13\)"
    for kind, data, affine, message in (
        ("generated", volumes(0)["real"][:-1], AFFINE, shape),
        ("labels", volumes(0)["labels"], moved, "affine differs"),
    ):
        root = write(tmp_path)
        write_volume(root / kind / "p.nii.gz", data, affine)
        with pytest.raises(ValueError, match=message):
            score(folders(root), tmp_path / "out", "mae")
    (root / "generated" / "p.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"1 files without a partner:\n  .*generated has no p\.nii\.gz"):
        folders(root).pairs()
    write_png(root / "real" / "x.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"holds NIfTI and PNG files, .* NIfTI files"):
        folders(root).pairs()
    assert not (tmp_path / "out").exists()


def test_synthrad_is_only_for_hounsfield_units(tmp_path: Path) -> None:
    arrays = person(tmp_path)
    command = ["--real", tmp_path / "real", "--generated", tmp_path / "generated", "--labels", tmp_path / "labels"]
    command += ["--protocol", "synthrad2023", "--metrics", "synthrad2023_mae", "--out", tmp_path / "o"]
    call("scripts/evaluate.py", *command, code=2)
    call("scripts/evaluate.py", *command, "--unit", "HU")
    expected = np.abs(arrays["generated"] - arrays["real"])[arrays["labels"] > 0].mean()
    found = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert found["metrics"]["synthrad2023_mae/image"]["value"] == pytest.approx(expected, rel=1e-5)
    assert "synthrad2023_mae" in found["settings"]


@pytest.mark.slow
def test_draws_and_segmentations_as_volumes(tmp_path: Path) -> None:
    root = write(tmp_path / "a", code="LPS")
    for seed, name in enumerate("pq"):
        arrays = volumes(seed)
        write_volume(tmp_path / "draw" / f"{name}.nii.gz", arrays["generated"] + 10.0 * (arrays["labels"] > 0), AFFINE)
        write_volume(tmp_path / "broken" / f"{name}.nii.gz", arrays["labels"], np.eye(4))
    seen = {"segmented": root / "labels", "segmented_real": root / "labels", "lesion": "2"}
    draws, pairs = (tmp_path / "draw",), folders(root, window=(-1000, 500))
    with pytest.raises(ValueError, match="affine differs"):
        score(pairs, tmp_path / "out", "faithfulness_dice", segmented=tmp_path / "broken")
    result = score(pairs, tmp_path / "out", "auto", draws=draws, **seen)["metrics"]
    assert result["diversity_label_spread/image"]["value"] == pytest.approx(10 / np.sqrt(2), rel=1e-3)
    assert result["faithfulness_dice"]["value"] == result["faithfulness_dice"]["ceiling"] == 1
    assert result["lesion_f1"]["value"] == 1


# -- which slices count, and for what -----------------------------------------------------------------------------


def test_cases_side_by_side_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread has its own volumes of other folders, also where their slices come in turns."""
    root, others = write(tmp_path / "a", "123"), write(tmp_path / "b", "312")
    options = {"draws": (others / "generated",), "lesion": "2", "segmented": others / "labels"}
    in_turns, read = threading.Barrier(3, timeout=60), VolumePairs.companion

    def companion(self: VolumePairs, *given: object, **named: object) -> np.ndarray:
        if torch.get_num_threads() == 1 and threading.current_thread() is not threading.main_thread():
            in_turns.wait()
        return read(self, *given, **named)

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


@pytest.mark.slow
def test_synthrad_and_ssim_3d_are_of_the_whole_volume(tmp_path: Path) -> None:
    """Where the body ends well within it: the challenge leaves out the outermost 3 voxels of the volume, not of the body."""
    label = volumes(0)["labels"]
    label[..., :3], label[..., 10:] = 0, 0  # 7 slices with labels would be too few for SSIM in 3-D
    arrays = person(tmp_path, labels=label)
    pairs = folders(tmp_path, unit="HU", window=(-1000, 500))
    found = score(pairs, tmp_path / "out", "auto", protocol=("synthrad2023",))["metrics"]
    moved = {key: np.moveaxis(array, 2, 0)[:, ::-1, ::-1].transpose(0, 2, 1) for key, array in arrays.items()}
    expected = synthrad2023(moved["real"], moved["generated"], moved["labels"] > 0)
    for key, value in expected.items():
        assert found[f"synthrad2023_{key}/image"]["value"] == pytest.approx(value, rel=1e-6), key
    part = slice(3, 10)
    wrong = synthrad2023(moved["real"][part], moved["generated"][part], moved["labels"][part] > 0)
    assert abs(wrong["ssim"] - expected["ssim"]) > 1e-3  # what leaving slices out first would give
    ssim = similarity(arrays["real"], arrays["generated"], -1000, 1500)[0]
    assert found["ssim_3d/image"]["value"] == pytest.approx(ssim, rel=1e-6)


@pytest.mark.slow
def test_faults_outside_of_a_lesion_mask_are_seen(tmp_path: Path) -> None:
    lesion, broken = np.zeros((24, 28, 13), np.int16), volumes(0)["real"]
    lesion[10:13, 10:13, 5] = 1
    broken[..., 9] += 400
    person(tmp_path, labels=lesion, generated=broken)
    metrics = "mae,mae_body,lesion_change_outside"
    result = score(folders(tmp_path, window=(-1000, 500)), tmp_path / "out", metrics, lesion="1")
    assert result["n"]["slices"] == 13
    assert result["metrics"]["mae/image"]["value"] == pytest.approx(400 / 13, rel=1e-4)
    assert result["metrics"]["mae_body/image"]["value"] == 0  # inside labels, and in the one slice that has any
    assert result["metrics"]["lesion_change_outside/image"]["value"] == pytest.approx(400 / 13, rel=1e-4)


def test_slices_of_air_count_for_segmentations(tmp_path: Path) -> None:
    """What a segmenter sees where the condition has nothing is an error, also in slices that are not scored."""
    arrays = volumes(0)
    arrays["labels"][..., :4], arrays["real"][..., :4] = 0, -1000
    seen = arrays["labels"].copy()
    seen[5:9, 5:9, 1] = 2
    person(tmp_path, **arrays, seen=seen)
    result = score(folders(tmp_path), tmp_path / "out", "faithfulness_dice,mae", segmented=tmp_path / "seen")
    assert result["n"]["slices"] == 9
    dice = {row["label"]: row["dice"] for row in result["per_overlap"]}
    size = int((arrays["labels"] == 2).sum())
    assert dice == pytest.approx({1: 1, 2: 2 * size / (2 * size + 16)})


def test_hd95_is_in_millimetres_of_the_axis(tmp_path: Path) -> None:
    """Voxels of 0.8 x 1.2 x 3 mm: a segmentation that is one voxel off along an axis is that far away."""
    label = np.zeros((24, 28, 13), np.int16)
    label[8:12, 8:12, 5:9] = 1
    for axis, distance in ((0, 0.8), (1, 1.2), (2, 3.0)):
        person(tmp_path, labels=label, seen=np.roll(label, 1, axis=axis))
        for sliced in ("axial", "sagittal"):
            pairs = folders(tmp_path, axis=sliced)
            found = score(pairs, tmp_path / "out", "faithfulness_hd95", segmented=tmp_path / "seen")["metrics"]
            assert found["faithfulness_hd95"]["value"] == pytest.approx(distance)
            assert found["faithfulness_hd95"]["unit"] == "mm"


def test_labels_are_chosen_for_each_kind_of_image(tmp_path: Path) -> None:
    """What only the segmentation of the real images has is no fault of the generated ones, and the other way round."""
    seen = volumes(0)["labels"]
    seen[0, 0, :] = 7
    person(tmp_path, seen=seen)
    for first, second, dice, missed in (("labels", "seen", [1, 2 / 3], [0, 1]), ("seen", "labels", [2 / 3, 1], [1, 0])):
        options = {"segmented": tmp_path / first, "segmented_real": tmp_path / second}
        result = score(folders(tmp_path), tmp_path / "out", "faithfulness_dice,faithfulness_hd95", **options)
        overlap, distance = (result["metrics"][f"faithfulness_{key}"] for key in ("dice", "hd95"))
        assert [overlap[key] for key in ("value", "ceiling")] == pytest.approx(dice)
        assert [distance[key] for key in ("missed", "ceiling_missed")] == missed  # no distance is large enough
        assert {row["name"] for row in result["per_overlap"]} == {"label_1", "label_2", "label_7"}
        text = (tmp_path / "out" / "metrics.json").read_text()
        assert "NaN" not in text
        assert "Infinity" not in text


# -- values, not levels -------------------------------------------------------------------------------------------


def test_label_statistics_are_of_the_stored_values(tmp_path: Path) -> None:
    """A window that cuts through the tissue clips neither mean nor standard deviation, and says how much it clips."""
    arrays = person(tmp_path)
    metrics = "label_mean_error,label_std_error,wasserstein"
    result = score(folders(tmp_path, window=(-600, -300)), tmp_path / "out", metrics)
    for kind in ("real", "generated"):
        for row in result["per_label"]:
            values = arrays[kind][arrays["labels"] == row["label"]]
            found = [row[f"{kind}_mean"], row[f"{kind}_std"]]
            assert found == pytest.approx([values.mean(), values.std()], rel=1e-4)
        beyond = (arrays[kind] < -600) | (arrays[kind] > -300)
        assert result["counts"][f"clipped_{kind}"] == int(beyond.sum())


@pytest.mark.slow
def test_ids_of_any_size(tmp_path: Path) -> None:
    plain = person(tmp_path)["labels"]
    metrics = f"{METRICS},label_mean_error,faithfulness_dice,faithfulness_hd95,lesion_f1,radiomics_kid"
    seen = {"segmented": tmp_path / "labels"}
    expected = score(folders(tmp_path), tmp_path / "out", metrics, lesion="2", **seen)["metrics"]
    for ids in ((3, 9), (7, 20_000_000)):
        person(tmp_path, labels=np.choose(plain, [0, *ids]).astype(np.int32))
        found = score(folders(tmp_path), tmp_path / "out", metrics, lesion=str(ids[1]), **seen)
        assert {row["name"] for row in found["per_label"]} == {"background", *(f"label_{i}" for i in ids)}
        assert {row["label"] for row in found["per_overlap"]} == set(ids)
        for key, entry in expected.items():
            assert found["metrics"][key]["value"] == entry["value"], key


def test_a_table_beside_the_maps_names_labels(tmp_path: Path) -> None:
    """Ids that it calls alike stay apart, and one that it lacks has its number, by which it can be asked for."""
    plain = person(tmp_path)["labels"]
    table = tmp_path / "labels" / "dseg.tsv"
    table.write_text("index\tname\n0\tbackground\n1\tcortex\n2\tlesion\n")
    seen = {"segmented": tmp_path / "labels"}
    found = score(folders(tmp_path), tmp_path / "out", "label_mean_error,lesion_f1", lesion="lesion", **seen)
    assert {row["label"]: row["name"] for row in found["per_label"]} == {0: "background", 1: "cortex", 2: "lesion"}
    with pytest.raises(ValueError, match=r"tumour.*cortex.*lesion"):
        score(folders(tmp_path), tmp_path / "out", "lesion_f1", lesion="tumour", **seen)
    table.write_text("index\tname\n1\tgrey\n2\tgrey\n")
    person(tmp_path, labels=np.where(plain == 2, np.arange(24)[:, None, None] % 2 + 2, plain))
    named = score(folders(tmp_path), tmp_path / "other", "label_mean_error")["per_label"]
    assert {row["name"] for row in named} == {"background", "grey_1", "grey_2", "label_3"}
    for i, text in enumerate(("3", "label_3", "grey_2")):
        found = score(folders(tmp_path), tmp_path / f"lesion{i}", "lesion_f1", lesion=text, **seen)
        assert found["metrics"]["lesion_f1"]["value"] is not None
    table.write_text("index\tname\n1\tgrey\n77\tlesion\n")
    with pytest.raises(
        ValueError, match="--lesion lesion: no such label; there are 0 background, 1 grey, 2 label_2, 3"
    ):
        score(folders(tmp_path), tmp_path / "nowhere", "lesion_f1", lesion="lesion", **seen)


@pytest.mark.parametrize("damage", [b"", b"no gzip file", None])
def test_a_damaged_label_map_is_one_line(tmp_path: Path, damage: bytes | None) -> None:
    """Its header is looked into for names before it is read."""
    person(tmp_path)
    path = tmp_path / "labels" / "p.nii.gz"
    path.write_bytes(path.read_bytes()[:100] if damage is None else damage)
    with pytest.raises(ValueError, match=f"{path}: "):
        score(folders(tmp_path), tmp_path / "out", "label_mean_error")


# -- what is said -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_volumes_of_a_reference_need_a_window(tmp_path: Path) -> None:
    root, window, saved = write(tmp_path), (-1000, 500), tmp_path / "ref.npz"
    with pytest.raises(ValueError, match="need a common --window"):
        score(folders(root), tmp_path / "out", "radiomics_kid", save_reference=saved)
    score(folders(root, window=window), tmp_path / "out", "radiomics_kid", save_reference=saved)
    right = replace(folders(root, window=window), real=root / "generated")
    for change, message in (
        ({"window": None}, "need a common --window"),
        ({"window": (-1000, 400)}, "with the window -1000 500, not -1000 400"),
        ({"unit": "HU"}, "with the unit units, not HU"),
        ({"axis": "coronal"}, "axial slices, not coronal"),
        ({"labels": None}, "with label maps: give --labels"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_generated(replace(right, **change).pairs(), saved, tmp_path / "o", Request("radiomics_kid"))
    assert evaluate_generated(right.pairs(), saved, tmp_path / "o", Request("radiomics_kid"))["n"]["slices"] == 26
