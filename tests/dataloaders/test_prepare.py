from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import rotate

from dataloaders.io.geometry import stitch
from dataloaders.io.manifest import Manifest
from dataloaders.io.nifti import read_volume
from dataloaders.io.png import read_png, write_png
from dataloaders.labelmaps.labels import read_dataset_json
from dataloaders.plain_folder import load_manifest
from dataloaders.prepare import prepare as module
from dataloaders.prepare.check import check_folder
from dataloaders.prepare.notes import CaseNotes, note_lines
from dataloaders.prepare.options import PrepareOptions
from dataloaders.prepare.prepare import DataFaults, prepare
from dataloaders.prepare.splits import split_patients
from tests.dataloaders.test_cleaning import toy_ct
from tests.launch import call, prepared, run
from tests.toy import LAS, phantom, save_nifti


def three_cts(root: Path) -> Path:
    for i in range(3):
        label, image = phantom(i)
        save_nifti(root / f"case{i}_ct.nii.gz", (image * 5 - 1000).astype(np.int16), LAS)
        save_nifti(root / f"case{i}_seg.nii.gz", (label * 7).astype(np.uint8), LAS)
    return root


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_cts(tmp_path_factory.mktemp("three"))


@pytest.fixture
def source(three: Path, tmp_path: Path) -> Path:
    """Three cases of a CT with labels 0, 7, 14, 21, 28."""
    return Path(shutil.copytree(three, tmp_path / "source"))


def options(source: Path, out: Path, **changes: object) -> PrepareOptions:
    base = {"format": "pairs", "channel": "CT", "clean": "none", "size": (64,), "workers": 1, "out": out}
    base |= {part: str(source / f"*_{ending}.nii.gz") for part, ending in (("images", "ct"), ("labels", "seg"))}
    return PrepareOptions(**(base | changes))


def pairs(source: Path, out: Path, **changes: object) -> Manifest:
    return prepare(options(source, out, **changes))


@pytest.fixture(scope="module")
def whole(three: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three cases prepared, to be read only."""
    out = tmp_path_factory.mktemp("whole") / "out"
    pairs(three, out)
    return out


def made(kind: str, source: Path, out: Path, **more: object) -> Manifest:
    return prepared(kind, out, source=source, **more)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_hounsfield_units_and_geometry_come_back(source: Path, tmp_path: Path) -> None:
    manifest = pairs(source, tmp_path / "out", min_foreground=0.0)
    for case in manifest.cases:
        original = read_volume(source / case.sources["CT"]["file"])
        levels = {s.index: read_png(tmp_path / "out" / s.images[0]) for s in case.slices}
        planes = {i: case.windows[0].decode(pixels) for i, pixels in levels.items()}
        volume, affine = stitch(case.geometry, "axial", planes, fill=-1024.0)
        assert np.array_equal(affine, original.affine)
        held = np.isin(np.arange(volume.shape[2]), list(levels))
        half_step = (3071 + 1024) / 65535 / 2
        error = np.abs(volume - np.clip(original.data, -1024, 3071))[:, :, held]
        assert error.max() <= half_step + 1e-4  # float32 holds HU to 1e-4
        labels = {s.index: read_png(tmp_path / "out" / s.label) for s in case.slices}
        ids, _ = stitch(case.geometry, "axial", labels, fill=0, labels=True)
        truth = read_volume(source / case.sources["label"]["file"]).data
        back = np.array([label.source[0] for label in manifest.spec.labels])[ids]
        assert np.array_equal(back[:, :, held], truth[:, :, held])


def test_an_interrupted_run_goes_on(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs(source, tmp_path / "whole")
    said = capsys.readouterr().out
    assert "kept " in said
    done: list[str] = []
    real = module.process_case

    def dies_on_second(case, *rest):
        if done:
            raise KeyboardInterrupt
        done.append(case.id)
        return real(case, *rest)

    with mock.patch.object(module, "process_case", dies_on_second), pytest.raises(KeyboardInterrupt):
        pairs(source, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    with mock.patch.object(module, "process_case", lambda case, *rest: done.append(case.id) or real(case, *rest)):
        pairs(source, tmp_path / "out")
    assert capsys.readouterr().out == said  # also of what was done before
    assert sorted(done) == ["case0", "case1", "case2"]  # each once
    assert tree(tmp_path / "whole") == tree(tmp_path / "out")


SHAPE, LABELS = (40, 48, 24), phantom(0)[0]
FAULTS = [  # of a case: which file, its voxels and affine, what is said
    ("seg", np.ones((3, 3, 3), np.uint8), LAS, "shape"),
    ("seg", LABELS.astype(np.uint8), LAS + np.eye(4) / 100, "affine differs from that of the image by up to 0.47"),
    ("seg", LABELS.astype(np.float32) * 0.3, LAS, "whole numbers"),
    ("seg", -LABELS.astype(np.int16), LAS, "positive ids"),
    ("ct", np.full(SHAPE, 3, np.int16), LAS, "constant image"),
    ("seg", np.zeros(SHAPE, np.uint8), LAS, "label map is empty"),
]


def test_all_faults_are_listed_with_their_files_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    for i, (part, data, affine, _) in enumerate(FAULTS, 3):
        for kind in ("ct", "seg"):
            shutil.copy(source / f"case0_{kind}.nii.gz", source / f"case{i}_{kind}.nii.gz")
        save_nifti(source / f"case{i}_{part}.nii.gz", data, affine)
    (source / "case1_ct.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(DataFaults) as error:
        pairs(source, tmp_path / "out")
    assert len(error.value.faults) == len(FAULTS) + 1
    for i, (part, _, _, message) in enumerate(FAULTS, 3):
        assert re.search(rf"case{i}_{part}\.nii\.gz: .*{message}", str(error.value))
    assert not (tmp_path / "out").exists()


def test_unknown_labels_are_listed_with_their_voxels(source: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"soft": [7, 14], "white": 21}))
    voxels = sum(int((phantom(i)[0] == 4).sum()) for i in range(3))
    with pytest.raises(DataFaults, match=rf"28 \({voxels} voxels\)"):
        pairs(source, tmp_path / "out", label_map=table)
    manifest = pairs(source, tmp_path / "out", label_map=table, unknown_labels="background")
    table.write_text(json.dumps({"soft": [7], "white": 21}))
    with pytest.raises(ValueError, match="other options or sources"):  # the table's content counts, not its name
        pairs(source, tmp_path / "out", label_map=table, unknown_labels="background")
    found = [(label.name, label.source) for label in manifest.spec.labels]
    assert found == [("background", (0,)), ("soft", (7, 14)), ("white", (21,))]


def words(source: Path, out: Path) -> list[object]:
    """`options` as they are typed."""
    where = ["--images", source / "*_ct.nii.gz", "--labels", source / "*_seg.nii.gz", "--out", out]
    return ["scripts/prepare_data.py", *where, *"--format pairs --channel CT --clean none --size 64".split()]


@pytest.mark.slow
def test_the_command_with_more_workers_makes_the_same(source: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "test:" in run(*words(source, out), "--workers", 2).stdout
    assert tree(out) == tree(whole)
    call("scripts/prepare_data.py", "--check", out)
    assert call("scripts/prepare_data.py", "--out", out, "--check").stdout == f"{out}: fine\n"
    assert call("scripts/prepare_data.py", "--check", code=2).stderr.startswith("error: --check: name a folder")
    victim = next((out / "train" / "images").iterdir())
    victim.write_bytes(victim.read_bytes()[:40])
    assert str(victim) in call("scripts/prepare_data.py", "--check", out, code=1).stderr
    bad = call("scripts/prepare_data.py", "--format", "pairs", "--out", tmp_path / "x", code=2)
    assert bad.stderr.startswith("error: --format pairs needs --images")


def test_check_finds_every_kind_of_damage(whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    items = [item for case in Manifest.load(out).cases for item in case.slices]
    (out / items[0].images[0]).unlink()
    write_png(out / items[1].images[0], np.zeros((8, 8), np.uint16))
    write_png(out / items[2].images[0], np.zeros((64, 64), np.uint16))
    write_png(out / items[3].label, np.full((64, 64), 9, np.uint8))
    write_png(out / items[4].label, np.zeros((64, 64), np.uint8))
    write_png(out / "train" / "images" / "stranger.png", np.zeros((8, 8), np.uint16))
    faults = "\n".join(check_folder(out))
    wanted = "unreadable", "is (8, 8)", "constant image", "label 9", "do not match the histogram", "not in the manifest"
    assert [text for text in wanted if text not in faults] == []


def nnunet(root: Path, channels: int = 3, ignore: bool = False) -> Path:
    for i in range(3):
        label, image = phantom(i)
        arrays = image, (image * 4 - 1000).astype(np.int16), label.astype(np.uint8)
        for c, array in enumerate(arrays[:channels]):
            save_nifti(root / "imagesTr" / f"p{i}_{c:04d}.nii.gz", array)
        save_nifti(root / "labelsTr" / f"p{i}.nii.gz", np.where(ignore & (label == 3), 2, label > 3).astype(np.uint8))
    labels = {"background": 0, "tumour": 1} | ({"ignore": 2} if ignore else {})
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "PET", "1": "CT"}, "labels": labels}))
    return root


def test_nnunet_and_autopet(tmp_path: Path) -> None:
    manifest = made("nnunet", nnunet(tmp_path / "raw", 2), tmp_path / "a", clean="none", min_foreground=0)
    assert [(c.name, c.unit) for c in manifest.spec.channels] == [("PET", "a.u."), ("CT", "HU")]
    assert manifest.spec.labels[1].name == "tumour"
    manifest = made("nnunet", nnunet(tmp_path / "raw"), tmp_path / "b", image_channels=(1,), label_channel=2)
    assert [c.name for c in manifest.spec.channels] == ["CT"]
    names = ["background", "label_1", "label_2", "label_3", "label_4"]  # dataset.json is about labelsTr
    assert [label.name for label in manifest.spec.labels] == names


def test_an_id_that_dataset_json_lacks_is_refused(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "raw", 1)
    path = root / "labelsTr" / "p0.nii.gz"
    save_nifti(path, (np.asarray(nib.load(path).dataobj) * 5).astype(np.uint8))
    with pytest.raises(DataFaults, match=r"dataset.json does not list 1 ids: 5 \(\d+ voxels\)"):
        made("nnunet", root, tmp_path / "a")
    kept = made("nnunet", root, tmp_path / "b", unknown_labels="background", min_foreground=0)
    assert [label.name for label in kept.spec.labels] == ["background", "tumour"]


def test_synthrad(tmp_path: Path) -> None:
    for i, part in enumerate(("brain", "pelvis", "pelvis")):
        label, image = phantom(i)
        folder = tmp_path / "data" / "Task1" / part / f"1P{i}"
        save_nifti(folder / "ct.nii.gz", (image * 5 - 1000).astype(np.int16))
        save_nifti(folder / "mr.nii.gz", image)
        save_nifti(folder / "mask.nii.gz", (label > 0).astype(np.uint8))
        save_nifti(tmp_path / "labels" / f"1P{i}.nii.gz", label.astype(np.uint8))
    data, labels = tmp_path / "data", str(tmp_path / "labels")
    both = made("synthrad2023", data, tmp_path / "a", image="both", labels=labels)
    assert [c.name for c in both.spec.channels] == ["MR", "CT"]
    by_hu = made("synthrad2023", data, tmp_path / "b", image="ct", tissue="hu")
    assert [label.name for label in by_hu.spec.labels] == ["background", "gas_and_lung", "fat", "soft_tissue", "bone"]


def bids(root: Path) -> Path:
    for i, subject in enumerate(("01", "02")):
        label, image = phantom(i, (48, 48, 32))
        for modality, factor in (("T1w", 1.0), ("FLAIR", 0.5)):
            name = f"sub-{subject}/anat/sub-{subject}_{modality}.nii.gz"
            save_nifti(root / name, image * np.float32(factor))
        derivatives = root / "derivatives" / "lesions" / f"sub-{subject}" / "anat"
        save_nifti(derivatives / f"sub-{subject}_label-lesion_mask.nii.gz", (label == 4).astype(np.uint8))
        save_nifti(derivatives / f"sub-{subject}_dseg.nii.gz", np.where(label == 4, 3, label).astype(np.float32))
    save_nifti(root / "derivatives" / "sub-09_label-lesion_mask.nii.gz", (label == 4).astype(np.uint8))
    return root


def test_bids_with_lesions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = bids(tmp_path / "bids")
    manifest = made("bids", root, tmp_path / "out", test_patients=("sub-02",))
    assert "sub-09: only a lesion file" in capsys.readouterr().out
    assert [c.name for c in manifest.spec.channels] == ["FLAIR", "T1w"]
    assert manifest.spec.labels[-1].name == "lesion"
    assert {case.patient: case.split for case in manifest.cases} == {"sub-01": "train", "sub-02": "test"}
    assert sum(item.histogram.get(4, 0) for case in manifest.cases for item in case.slices) > 0


def test_a_bids_table_names_and_colours_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself at the data set's root, or as --label_map; an id that it lacks is a fault before anything is written."""
    anat, derived = tmp_path / "bids/sub-1/anat", tmp_path / "bids/derivatives/manual/sub-1/anat"
    ids = np.zeros((32, 32, 8), np.uint8)
    ids[4:28, 4:28], ids[8:12, 8:12], ids[20:24, 8:12] = 7, 31, 32
    save_nifti(anat / "sub-1_T1w.nii.gz", np.where(ids > 0, 100.0 + ids, 0).astype(np.float32))
    save_nifti(derived / "sub-1_dseg.nii.gz", ids)
    table = tmp_path / "bids/dseg.tsv"
    table.write_text("index\tname\tcolor\n0\tBackground\tn/a\n7\tBrain\t#ff8800\n31\tRight Cave\t#0000FF\n")
    o = PrepareOptions(format="bids", source=tmp_path / "bids", out=tmp_path / "out", split=(1, 0, 0), workers=1)
    with pytest.raises(DataFaults, match=r"beside the label maps: dseg.tsv does not list 1 ids: 32 \(128 voxels\)"):
        prepare(o)
    table.write_text(table.read_text() + "32\tLeft Cave\tn/a\n99\tNowhere\tn/a\n")
    labels = prepare(o).spec.labels
    assert "label names: those beside the label maps or in their headers (dseg.tsv)" in capsys.readouterr().out
    assert [(label.name, label.source, label.color) for label in labels] == [
        ("background", (0,), ""), ("Brain", (7,), "#ff8800"), ("Right Cave", (31,), "#0000ff"), ("Left Cave", (32,), "")
    ]  # fmt: skip
    (tmp_path / "tissues.tsv").write_text("index\tname\n7\tbrain\n31\tcave\n32\tcave\n")
    fused = prepare(replace(o, out=tmp_path / "fused", label_map=tmp_path / "tissues.tsv"))
    assert [(label.name, label.source) for label in fused.spec.labels[1:]] == [("brain", (7,)), ("cave", (31, 32))]


def test_bids_modalities_with_their_own_grids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = bids(tmp_path / "bids")
    _, image = phantom(0, (48, 48, 32))
    coarse = np.diag([1.0, 1.0, 2.0, 1.0])
    coarse[2, 3] = 0.5
    own = image.reshape(48, 48, 16, 2).mean(-1)  # two slices make one
    save_nifti(root / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz", own, coarse)
    manifest = made("bids", root, tmp_path / "out", modalities=("T1w", "FLAIR"), window=("0,255",))
    assert "FLAIR has its own grid" in capsys.readouterr().out
    case = next(case for case in manifest.cases if case.id == "sub-01")
    item = case.slices[len(case.slices) // 2]
    t1, flair = (case.windows[0].decode(read_png(tmp_path / "out" / path)) for path in item.images)
    assert np.corrcoef(t1.ravel(), flair.ravel())[0, 1] > 0.97


def test_background_is_split_into_air_and_body(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ct = toy_ct()
    organ = np.zeros(ct["image"].shape, np.uint8)
    organ[30:36, 40:50, 2:10] = 5
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    save_nifti(tmp_path / "i" / "a.nii.gz", ct["image"], affine)
    save_nifti(tmp_path / "l" / "a.nii.gz", organ, affine)
    where = {"images": str(tmp_path / "i"), "labels": str(tmp_path / "l"), "clean": "auto", "size": (96,)}
    pairs(tmp_path, tmp_path / "whole", split=(1, 0, 0), min_foreground=0.0, **where)
    assert "% of what is no air has no label" in capsys.readouterr().out
    manifest = pairs(tmp_path, tmp_path / "out", split_background=True, split=(1, 0, 0), **where)
    assert "has no label" not in capsys.readouterr().out
    assert [label.name for label in manifest.spec.labels] == ["background", "label_5", "body_unlabelled"]
    item = manifest.cases[0].slices[6]
    image = manifest.cases[0].windows[0].decode(read_png(tmp_path / "out" / item.images[0]))
    label = read_png(tmp_path / "out" / item.label)
    assert (image[label == 0] <= -1000).all()  # the table is gone
    assert ((image < -800) & (label == 2)).sum() > 100  # the lungs are not


# -- one half alone -----------------------------------------------------------------------------------------------------


def spoil(root: Path, pattern: str) -> None:
    """Files that nobody may open."""
    found = list(root.rglob(pattern))
    assert found
    for path in found:
        path.write_bytes(b"not to be opened")


def test_label_maps_alone_are_what_they_are_beside_images(source: Path, tmp_path: Path) -> None:
    both = pairs(source, tmp_path / "both", split_by="slices")
    spoil(source, "*_ct.nii.gz")
    alone = {"case_regex": r"(.+)_seg", "channel": "image", "clean": "auto", "split_by": "slices"}
    for name, changes in {"a": {"images": None}, "b": {"only": "labels"}}.items():
        out = tmp_path / name
        manifest = pairs(source, out, **alone | changes)
        assert manifest == Manifest.load(out)
        assert check_folder(out) == []
        assert manifest.spec == replace(both.spec, channels=())
        for case, other in zip(manifest.cases, both.cases, strict=True):
            bare = tuple(replace(item, images=()) for item in other.slices)
            digest = {"label": other.sources["label"]}
            assert case == replace(other, windows=(), slices=bare, sources=digest)
        labels = {path: data for path, data in tree(tmp_path / "both").items() if "/labels/" in path}
        assert {path: data for path, data in tree(out).items() if path != "manifest.json"} == labels
    assert tree(tmp_path / "a").keys() == tree(tmp_path / "b").keys()


def test_images_alone_keep_the_slices_of_the_body(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    grid = np.meshgrid(np.arange(60), np.arange(48), np.arange(20), indexing="ij")
    radius = ((grid[0] - 40) / 16) ** 2 + ((grid[1] - 20) / 12) ** 2 + ((grid[2] - 10) / 7) ** 2
    image = 120 * (2 - 2 * radius).clip(0, 1) + rng.uniform(0, 4, radius.shape)
    body = image > 20
    for i in range(2):
        save_nifti(tmp_path / "scans" / f"mr{i}.nii.gz", image.astype(np.float32), LAS)
    out = tmp_path / "out"
    body_alone = {"labels": None, "channel": "T1w", "clean": "auto", "split": (1, 0, 0)}
    o = options(tmp_path, out, images=str(tmp_path / "scans"), **body_alone)
    manifest = prepare(o)
    assert manifest == Manifest.load(out)
    assert (manifest.spec.labels, [c.name for c in manifest.spec.channels]) == ((), ["T1w"])
    assert check_folder(out) == []
    assert not (out / "train/labels").exists()
    prepare(replace(o, size=(), dry_run=True, out=tmp_path / "other"))
    assert "slices of 64×64 pixels: they hold every scan (48×60)" in capsys.readouterr().out
    case = manifest.cases[0]
    inside = [i for i in range(20) if body[:, :, i].sum() >= 0.01 * 64 * 64]
    assert [item.index for item in case.slices] == inside != list(range(20))
    assert {(item.label, str(item.histogram)) for item in case.slices} == {("", "{}")}
    planes = {item.index: case.windows[0].decode(read_png(out / item.images[0])) for item in case.slices}
    volume, affine = stitch(case.geometry, "axial", planes, 0)
    assert affine == pytest.approx(LAS)
    step = case.windows[0].width / 65535
    shown = body[:, :, 10]
    expected = image[:, :, 10].clip(case.windows[0].low, case.windows[0].high)
    assert volume[:, :, 10][shown] == pytest.approx(expected[shown], abs=step)
    middle = np.argwhere(planes[10] > 50).mean(axis=0)  # of the slice is that of the body
    assert middle == pytest.approx([31.5, 31.5], abs=1)


CLASSES = ["background", "label_1", "label_2", "label_3", "lesion"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "only", "spoilt", "names"),
    [
        (bids, "labels", "*_[TF]*.nii.gz", CLASSES),
        (bids, "images", "derivatives/*/*/*/*.nii.gz", ["FLAIR", "T1w"]),
        (nnunet, "labels", "imagesTr/*", ["background", "tumour"]),
        (nnunet, "images", "labelsTr/*", ["PET", "CT", "channel_2"]),
    ],
)
def test_halves_of_other_formats(kind: Callable, only: str, spoilt: str, names: list[str], tmp_path: Path) -> None:
    """What is left out is never opened: here it cannot be."""
    root = kind(tmp_path / "in")
    spoil(root, spoilt)
    manifest = made(kind.__name__, root, tmp_path / "out", only=only, split=(1, 0, 0), min_foreground=0.0)
    assert check_folder(tmp_path / "out") == []
    assert [item.name for item in (*manifest.spec.labels, *manifest.spec.channels)] == names
    if kind is bids:
        assert [case.id for case in manifest.cases] == ["sub-01", "sub-02"]


def test_derivatives_alone_are_label_maps_alone(tmp_path: Path) -> None:
    root = bids(tmp_path / "bids")
    for name in ("sub-01", "sub-02"):
        shutil.rmtree(root / name)
    with pytest.raises(DataFaults, match="prepare \\*_dseg alone with --only labels"):
        prepare(PrepareOptions(format="bids", source=root, dry_run=True))


def test_a_single_patient_needs_to_be_told(source: Path, tmp_path: Path) -> None:
    for path in source.glob("case[12]_*"):
        path.unlink()
    with pytest.raises(ValueError, match="--split_by slices"):
        pairs(source, tmp_path / "out")
    manifest = pairs(source, tmp_path / "out", split_by="slices", split=(0.6, 0.2, 0.2), guard=1)
    indices = {case.split: {item.index for item in case.slices} for case in manifest.cases}
    assert set(indices) == {"train", "val", "test"}
    for held_out in ("val", "test"):
        assert min(abs(a - b) for a in indices["train"] for b in indices[held_out]) > 1


@pytest.mark.parametrize("by", ["patient", "slices"])
def test_a_split_that_is_asked_for_is_never_empty(source: Path, tmp_path: Path, by: str) -> None:
    """By slices every training slice may lie too near to a held-out one; by patients there may be too few."""
    split = (0.4, 0.1, 0.5)
    if by == "patient":
        for path in source.glob("case2_*"):
            path.unlink()
    what = "train" if by == "slices" else "val"
    with pytest.raises(ValueError, match=rf"--split 0.4 0.1 0.5 leaves nothing for {what}") as error:
        pairs(source, tmp_path / "out", split_by=by, split=split, min_foreground=0.0)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/**/*.png"))


def test_a_split_file_is_obeyed_to_the_letter(source: Path, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ["case0", "case2"], "test": ["case1"]}))
    manifest = pairs(source, tmp_path / "out", split_file=file)
    assert {case.id: case.split for case in manifest.cases} == {"case0": "train", "case1": "test", "case2": "train"}
    file.write_text(json.dumps({"train": ["case0", "nobody"], "test": ["case1"]}))
    with pytest.raises(ValueError, match="unknown: nobody; not listed: case2"):
        pairs(source, tmp_path / "b", split_file=file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": [1, 2]}, r"train\[0\]: found 1, must be a valid string"),
        ({"train": None}, "train: found None, must be a valid array"),
        ({"train": "ab"}, "train: found 'ab', must be a valid array"),
        ({"train": ["a"], "trial": []}, "trial: found 'trial', must be 'train', 'val' or 'test'"),
        ([], r"found \[\], must be an object"),
    ],
)
def test_a_split_file_that_is_none_is_told_before_scans_are_read(content: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"^--split_file .*split.json: {message}") as caught:
        pairs(tmp_path, tmp_path / "out", split_file=file)  # where there are no scans
    assert "\n" not in str(caught.value)


# -- shards -----------------------------------------------------------------------------------------------------------


def test_shards_together_prepare_what_one_command_does(tmp_path: Path) -> None:
    """Byte for byte, in any order; each file is read by one shard only; the last one writes the manifest."""
    o = boxes(tmp_path / "source", (40, 65, 33))  # no --size, on which all must agree
    prepare(replace(o, out=tmp_path / "whole"))
    read: list[str] = []
    inspect = module.inspect_case
    with mock.patch.object(module, "inspect_case", lambda c, *r: read.append(c.id) or inspect(c, *r)):
        done = [prepare(replace(o, out=tmp_path / "shards", shard=f"{i}/2")) for i in (1, 0)]
    assert done[0] is None
    assert done[1] is not None
    assert sorted(read) == ["case0", "case1", "case2"]
    assert tree(tmp_path / "shards") == tree(tmp_path / "whole")
    assert prepare(replace(o, out=tmp_path / "shards", shard="0/2")) == done[1]  # again: nothing to do
    assert tree(tmp_path / "shards") == tree(tmp_path / "whole")


def test_a_shard_notices_files_and_options_that_changed(source: Path, tmp_path: Path) -> None:
    bad = source / "case1_seg.nii.gz"
    label, _ = phantom(1)
    save_nifti(bad, (label * 7).astype(np.uint8), np.diag([-1.0, 1.0, 2.5, 1.0]))
    for shard in ("0/2", "1/2"):
        with pytest.raises(DataFaults, match="affine differs"):
            pairs(source, tmp_path / "out", shard=shard)
    assert pairs(source, tmp_path / "out", shard="0/2", affine="warn") is None
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(DataFaults, match="affine differs"):
        pairs(source, tmp_path / "out", shard="0/2")
    save_nifti(bad, (label * 7).astype(np.uint8), LAS)
    assert pairs(source, tmp_path / "out", shard="0/2") is None
    assert pairs(source, tmp_path / "out", shard="1/2") is not None


def test_a_shard_notices_a_table_that_changed(tmp_path: Path) -> None:
    source = bids(tmp_path / "bids")
    o = PrepareOptions(format="bids", source=source, out=tmp_path / "out", shard="0/2", split=(1, 0, 0), workers=1)
    table = source / "dseg.tsv"
    table.write_text("index\tname\n1\tfluid\n2\tgrey\n")
    with pytest.raises(DataFaults, match=r"dseg.tsv does not list 1 ids: 3"):
        prepare(o)
    table.write_text(table.read_text() + "3\twhite\n")
    assert prepare(o) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hu: (hu + 1024).astype(np.uint16), "--hu_offset -1024 takes it away"),
        (lambda hu: ((hu + 1024) / 16).clip(0, 255).astype(np.uint8), "another --channel than CT"),
        (lambda hu: ((hu + 1024) / 4095).astype(np.float32), "another --channel than CT"),
    ],
)
def test_a_ct_that_is_not_in_hu_is_refused(tmp_path: Path, change: Callable, words: str) -> None:
    label, image = phantom(0)
    save_nifti(tmp_path / "source/a_ct.nii.gz", change(image * 5 - 1000))
    save_nifti(tmp_path / "source/a_seg.nii.gz", label.astype(np.uint8))
    with pytest.raises(DataFaults, match=r"a_ct\.nii\.gz: a CT with nothing below -500") as error:
        pairs(tmp_path / "source", tmp_path / "out")
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_offset_brings_a_ct_back_to_hu_and_leaves_those_that_are(tmp_path: Path) -> None:
    label, image = phantom(0)
    hu = np.rint(image * 5 - 1000)
    save_nifti(tmp_path / "source/a_ct.nii.gz", (hu + 1024).astype(np.uint16))
    save_nifti(tmp_path / "source/b_ct.nii.gz", hu.astype(np.int16))
    for name in "ab":
        save_nifti(tmp_path / f"source/{name}_seg.nii.gz", label.astype(np.uint8))
    manifest = pairs(tmp_path / "source", tmp_path / "out", hu_offset=-1024.0, min_foreground=0.0)
    for one, two in zip(*(case.slices for case in manifest.cases), strict=True):
        assert np.array_equal(*(read_png(tmp_path / "out" / item.images[0]) for item in (one, two)))
    assert manifest.cases[0].windows == manifest.cases[1].windows
    kept = pairs(tmp_path / "source", tmp_path / "as_it_is", hu_offset=0.0, min_foreground=0.0)
    assert kept.spec.channels[0].unit == "HU"


def test_fractional_hounsfield_units_are_ct_without_being_named_so(tmp_path: Path) -> None:
    label, image = phantom(0)
    for name, values in (("ct", image.astype(np.float64) * 5 - 1000.25), ("mr", image.astype(np.float64))):
        save_nifti(tmp_path / name / "a.nii.gz", values)
        save_nifti(tmp_path / "labels/a.nii.gz", label.astype(np.uint8))
        where = {"images": str(tmp_path / name), "labels": str(tmp_path / "labels"), "channel": "image"}
        manifest = pairs(tmp_path, tmp_path / f"{name}_out", **where, split=(1, 0, 0))
        assert manifest.spec.channels[0].unit == ("HU" if name == "ct" else "a.u.")
        assert (manifest.cases[0].windows[0].low == -1024) == (name == "ct")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"dataset\.json: the file: found \[\], must be an object"),
        ('{"labels": {"a": "one"}}', r"dataset\.json: labels\.a: found 'one', must be an id"),
        ('{"channel_names": ["CT"]}', r"dataset\.json: channel_names: found \['CT'\], must be an object"),
        ('{"labels": ', r"dataset\.json: not a JSON file"),
    ],
)
def test_a_dataset_json_that_nnunet_would_not_write_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_dataset_json(tmp_path / "dataset.json")
    assert "\n" not in str(caught.value)


def test_both_versions_of_dataset_json_and_nested_regions(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}}))
    assert read_dataset_json(path) == ({0: "CT"}, {0: "background", 1: "liver"})
    regions = {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3, "pair": [7, 8]}
    path.write_text(json.dumps({"channel_names": {"0": "T1w"}, "labels": regions}))
    names = read_dataset_json(path)[1]
    assert names == {0: "background", 1: "whole tumour", 2: "core", 3: "enhancing", 7: "pair_7", 8: "pair_8"}
    assert read_dataset_json(tmp_path / "none.json") == ({}, {})


def test_the_ignore_label_of_nnunet_is_no_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = nnunet(tmp_path / "raw", ignore=True)
    manifest = made("nnunet", root, tmp_path / "a", min_foreground=0.0)
    assert [(label.name, label.source) for label in manifest.spec.labels] == [("background", (0, 2)), ("tumour", (1,))]
    assert {i for case in manifest.cases for item in case.slices for i in item.histogram} == {0, 1}
    assert "voxels of labels named 'ignore' or 'background' count as background" in capsys.readouterr().out


# -- the default size -----------------------------------------------------------------------------------------------


def boxes(root: Path, rows: tuple[int, ...], columns: int = 20) -> PrepareOptions:
    """To prepare cases of 90×100×6 voxels with a label that is so many rows (front to back) high; no --size is given."""
    for i, n in enumerate(rows):
        label = np.zeros((90, 100, 6), np.uint8)
        label[30 : 30 + columns, 5 : 5 + n] = 1
        image = np.random.default_rng(i).normal(100, 10, label.shape).astype(np.float32)
        save_nifti(root / f"case{i}_ct.nii.gz", image, LAS)
        save_nifti(root / f"case{i}_seg.nii.gz", label, LAS)
    return options(root, root.parent / "out", size=(), channel="T1w", split=(1, 0, 0))


def test_the_default_size_holds_the_labels_of_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    o = boxes(tmp_path / "source", (40, 65, 33))
    manifest = prepare(o)
    assert manifest.spec.size == (96, 32)
    assert "slices of 96×32 pixels: they hold what is labelled in every case (65×20)" in capsys.readouterr().out
    for case, n in zip(manifest.cases, (40, 65, 33), strict=True):
        assert {s.histogram[1] for s in case.slices} == {n * 20}
    assert manifest.provenance["options"]["size"] == [96, 32]
    assert prepare(o) == manifest  # nothing to do again


@pytest.mark.parametrize(
    ("changes", "size"),
    [({"size": (128,)}, (128, 128)), ({"split_background": True}, (128, 96)), ({"spacing": (0.5, 2.0, 2.0)}, (64, 64))],
)
def test_the_size_that_is_given_or_needed(tmp_path: Path, changes: dict, size: tuple[int, int]) -> None:
    """The whole plane where classes are still to be made; resampled labels in new pixels."""
    manifest = prepare(replace(boxes(tmp_path / "s", (65,)), **changes))
    assert manifest.spec.size == size


def test_without_a_least_foreground_nothing_is_said_of_it(tmp_path: Path) -> None:
    o, case = options(tmp_path, tmp_path / "out"), CaseNotes("a", (64, 64, 10), 8, 0, 0, (), ())
    assert "; 2 have less than 1 % of their pixels labelled" in note_lines([case], (), (), o)[0]
    assert note_lines([case], (), (), replace(o, min_foreground=0.0))[0] == "kept 8 of 10 slices"


def test_voxel_sizes_that_differ_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    o = boxes(tmp_path / "source", (40, 40, 40))
    assert prepare(o).spec.spacing == (1, 1)
    assert "voxel sizes" not in capsys.readouterr().out
    for path in (tmp_path / "source").glob("case0_*"):
        save_nifti(path, np.asarray(nib.load(path).dataobj), np.diag([-0.5, 0.5, 5, 1]))
    spec = prepare(replace(o, out=tmp_path / "b")).spec
    assert (spec.spacing, spec.slice_spacing) == ((1, 1), 2)
    assert "differ, from 2 0.5 0.5 to 5 1 1 mm (" in (said := capsys.readouterr().out)
    assert "the manifest says their median, 2 1 1; --spacing makes all equal" in said


def test_one_file_in_two_splits_is_said(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(source / "case0_ct.nii.gz", source / "case2_ct.nii.gz")
    split = {"val_patients": ("case1",), "test_patients": ("case2",)}
    pairs(source, tmp_path / "out", **split)
    line = "case0_ct.nii.gz of case0 and case2_ct.nii.gz of case2 are the same file in other splits"
    assert f"warning: {line}" in capsys.readouterr().out
    load_manifest(tmp_path / "out")
    assert f"warning: {tmp_path / 'out'}: {line}" in capsys.readouterr().err
    assert check_folder(tmp_path / "out") == [line]


def test_interpolated_label_maps_and_exchanged_files_are_refused(source: Path, tmp_path: Path) -> None:
    label, image = phantom(1)
    turned = rotate((label > 0) * 255.0, 20, reshape=False, order=1)
    save_nifti(source / "case1_seg.nii.gz", np.rint(turned).astype(np.uint8), LAS)
    with pytest.raises(
        DataFaults, match=r"case1_seg\.nii\.gz: \d+ label ids, \d+ of them mostly single pixels between"
    ):
        pairs(source, tmp_path / "out")
    save_nifti(source / "case1_seg.nii.gz", image.clip(0).astype(np.int16), LAS)
    save_nifti(source / "case1_ct.nii.gz", label.astype(np.int16) - 1000, LAS)
    with pytest.raises(DataFaults, match=r"case1_seg\.nii\.gz: .*images of 5 values: labels and images seem"):
        pairs(source, tmp_path / "out")


def reoriented(path: Path, codes: str) -> None:
    """Store a file again with its axes in another order: the same space."""
    image = nib.load(path)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    moved = nib.Nifti1Image(np.asarray(image.dataobj).copy(), image.affine, image.header).as_reoriented(turn)
    moved.to_filename(path)


@pytest.mark.slow
@pytest.mark.parametrize("affine", ["refuse", "warn"])
def test_labels_in_another_order_of_axes_lie_where_they_are(
    source: Path, whole: Path, tmp_path: Path, affine: str
) -> None:
    for i, codes in enumerate(("RAS", "PIR", "SLP")):
        reoriented(source / f"case{i}_seg.nii.gz", codes)
    pairs(source, tmp_path / "out", affine=affine)
    one, two = ({k: v for k, v in tree(out).items() if k.endswith(".png")} for out in (whole, tmp_path / "out"))
    assert one == two


def test_warn_is_no_remedy_where_axes_differ(source: Path, tmp_path: Path) -> None:
    shifted = LAS.copy()
    shifted[0, 3] = 5
    path = save_nifti(source / "case0_seg.nii.gz", (phantom(0)[0] * 7).astype(np.uint8), shifted)
    with pytest.raises(DataFaults, match=r"by up to 5 voxels .*--affine warn takes the image's"):
        pairs(source, tmp_path / "out")
    reoriented(path, "RAS")
    for affine in ("refuse", "warn"):
        with pytest.raises(DataFaults, match=r"by up to 5 voxels, in the image's order of axes; resample") as error:
            pairs(source, tmp_path / "out", affine=affine)
        assert "--affine" not in str(error.value)


@pytest.mark.slow
def test_what_files_lack_is_told_and_handled(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No orientation, labels off whole numbers, NaN outside the head and within a label; NaN in CT is air."""
    pairs(source, tmp_path / "whole", min_foreground=0.0)
    label, image = phantom(0)
    hu = (image * 5 - 1000).astype(np.int16).astype(np.float32)
    hu[label == 0] = np.nan
    hu[20, 24, 12] = np.nan
    save_nifti(source / "case0_ct.nii.gz", hu, LAS)
    save_nifti(source / "case0_seg.nii.gz", label * 7 + np.where(label > 0, -1e-4, 0), LAS)
    for ending in ("ct", "seg"):
        path = source / f"case1_{ending}.nii.gz"
        bare = nib.Nifti1Image(np.asarray(nib.load(path).dataobj).copy(), None)
        bare.header.set_zooms((1, 1, 2))
        bare.to_filename(path)
    capsys.readouterr()
    manifest = pairs(source, tmp_path / "out", min_foreground=0.0, workers=2)
    told = capsys.readouterr().out
    assert "labels are off whole numbers by 0.0001 at most; rounded" in told
    assert "case0_ct.nii.gz: 1 of the NaN or infinite voxels are labelled" in told
    assert f"case0_ct.nii.gz: {np.isnan(hu).sum()} voxels" in told
    assert "case1_ct.nii.gz: the header says nothing of orientation" in told
    assert "axes are taken as LAS" in told
    one, two = (tree(tmp_path / name) for name in ("whole", "out"))
    labels = [name for name in one if "/labels/case0" in name]
    assert labels
    assert all(one[name] == two[name] for name in labels)
    first = manifest.cases[0]
    pixels = np.stack([read_png(tmp_path / "out" / item.images[0])[8:-8, 12:-12] for item in first.slices])
    assert first.windows[0].decode(pixels).min() == pytest.approx(float(np.nanmin(hu)), abs=0.1)
    assert manifest.cases[1].geometry.source_codes == (0, 0)


NO_PAIRS = {"images": None, "labels": None, "channel": "image"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "--channel, --clean: needs images, but label maps alone are to be prepared"),
        ({"only": "images", "tissue": "hu"}, "--tissue: needs label maps, but images alone are to be prepared"),
        ({"labels": None, "window": ("wm",)}, "--window wm: needs label maps"),
        ({"images": None, "labels": None}, "--format pairs needs --images and --labels, or one of them"),
        ({"only": "labels", "format": "mni152", **NO_PAIRS}, "--only labels: not with --format mni152"),
        ({"labels": "SOURCE/none/*"}, "--labels SOURCE/none/\\*: no .nii"),
        ({"labels": None, "tissue": "hu", "channel": "MR", "images": "SOURCE/case0_seg.nii.gz"}, "needs a CT channel"),
        ({"channel": "label"}, "'label' is reserved"),
        ({"label_channel": 2}, "--label_channel: not read with --format pairs, only with nnunet"),
        ({"exclude": ("sub-1",)}, "--exclude: not read with --format pairs, only with bids"),
        ({"case_regex": "(case"}, r"--case_regex '\(case': not a regular expression"),
        ({"case_regex": "case"}, "--case_regex 'case': put the case into a group"),
        ({"patient_regex": "(x)"}, r"--patient_regex '\(x\)' does not match 'case0'"),
        ({"shard": "2/2"}, r"--shard 2/2: must be i/n"),
        ({"min_foreground": 0.99}, "lower --min_foreground"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    source: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    changes = {k: v.replace("SOURCE", str(source)) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(ValueError, match=message.replace("SOURCE", str(source))):
        pairs(source, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_ours_and_a_place_that_is_not_there_are_told_before_scans_are_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataloaders.prepare.prepare.inspect_case", lambda *_: pytest.fail("read a scan"))
    (tmp_path / "file").touch()
    refused = {tmp_path / "file": "is a file; choose", source: "is not empty and was not written by this"}
    for out, message in refused.items():
        with pytest.raises(ValueError, match=f"--out {out} {message}"):
            pairs(source, out)
    with pytest.raises(DataFaults) as fault:
        pairs(source, tmp_path / "out", images=str(tmp_path / "nowhere"))
    assert len(str(fault.value).splitlines()) == 2, fault.value  # and no line for every label map


def name_labels(path: Path, *names: str) -> None:
    """Names of the ids 7, 14, ... in the header, as TotalSegmentator writes them."""
    rows = "".join(f'<Label Key="{7 * i}" Red="0"><![CDATA[{name}]]></Label>' for i, name in enumerate(names, 1))
    image = nib.load(path)
    image.header.extensions[:] = [nib.nifti1.Nifti1Extension("comment", f"<ClassTable>{rows}</ClassTable>".encode())]
    nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header).to_filename(path)


def test_names_in_the_headers_are_taken(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without them or a table, left and right were not known apart."""
    names = ["kidney_left", "kidney_right", "liver", "spleen"]
    for path in source.glob("*_seg.nii.gz"):
        name_labels(path, *names)
    manifest = pairs(source, tmp_path / "out")
    assert [label.name for label in manifest.spec.labels[1:]] == names
    assert "label names: those beside the label maps or in their headers" in capsys.readouterr().out
    name_labels(source / "case2_seg.nii.gz", *names[::-1])
    assert pairs(source, tmp_path / "contradicts").spec.labels[1].name == "label_7"
    assert "warning: id 7 is 'kidney_left' in one label map's header" in capsys.readouterr().out


@pytest.mark.parametrize(("first", "named"), [(89, True), (1, False)])
def test_totalsegmentators_ids_are_known_without_names(
    first: int, named: bool, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More than 20 ids of a CT up to 112 are nobody else's; 1 to 25 may be anything, vertebrae for one."""
    for case in range(3):
        label, _ = phantom(case)
        x, y, _ = np.indices(label.shape)
        label = np.where(label > 0, first + x // 8 + 5 * (y // 10), 0)  # 25 blocks
        save_nifti(source / f"case{case}_seg.nii.gz", label.astype(np.uint8), LAS)
    names = [label.name for label in pairs(source, tmp_path / "out").spec.labels[1:]]
    assert names[-1].startswith("rib_right_") is named
    assert ("label names: totalsegmentator's" in capsys.readouterr().out) is named
    assert {name.startswith("label_") for name in names} == {not named}


def test_patients_are_split_by_the_seed_whatever_their_order() -> None:
    patients = [f"p{i}" for i in range(20)]
    one = split_patients(patients, (0.8, 0.1, 0.1), 1)
    assert one == split_patients(patients[::-1], (0.8, 0.1, 0.1), 1) != split_patients(patients, (0.8, 0.1, 0.1), 2)
    assert sorted(one.values()).count("train") == 16
