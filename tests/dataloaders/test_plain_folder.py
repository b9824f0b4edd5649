"""Plain folders of PNG slices: what is taken as it is, what is refused, and what the conversion makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from config import parse_test, parse_train
from dataloaders.io.intensity import Window
from dataloaders.io.manifest import FILE_NAME, Manifest
from dataloaders.io.png import read_png, write_png
from dataloaders.overview import overview
from dataloaders.plain_folder import load_manifest
from dataloaders.prepare.check import check_folder
from dataloaders.prepare.prepare import DataFaults
from dataloaders.slices import SliceDataset, fingerprint
from test import test as test_command
from tests.launch import prepared
from tests.toy import phantom
from train import train

test_command.__test__ = False

LABEL, IMAGE = (array.transpose(2, 0, 1) for array in phantom(0, (64, 96, 24)))


def plain(root: Path, labels: NDArray | None = None, images: NDArray | None = None, name: str = "x{}") -> Path:
    """Six slices to train on, two to test; labels and images (>= 8, H, W), the phantom's unless given."""
    labels = LABEL[8:16] if labels is None else labels
    images = IMAGE[8:16].clip(0, 255) if images is None else images
    for i in range(8):
        split = "train" if i < 6 else "test"
        for kind, arrays in (("labels", labels), ("images", images)):
            array = arrays[i]
            array = array if array.dtype == np.uint16 else array.astype(np.uint8)
            write_png(root / split / kind / f"{name.format(i)}.png", array)
    return root


def convert(root: Path, out: Path, **more: object) -> Manifest:
    manifest = prepared("png", out, source=root, **{"size": ()} | more)
    assert check_folder(out) == []
    return manifest


def without(root: Path, *folders: str) -> Path:
    for folder in folders:
        shutil.rmtree(root / folder)
    return root


def test_pairs_of_png_files_work_without_a_manifest(tmp_path: Path) -> None:
    """Equal names in two splits, as where each is numbered from 0, stay apart."""
    root = plain(tmp_path)
    for i in (6, 7):
        for kind in ("labels", "images"):
            (root / "test" / kind / f"x{i}.png").rename(root / "test" / kind / f"x{i - 6}.png")
    manifest = load_manifest(root)
    assert Manifest.load(root) == load_manifest(root) == manifest
    assert (manifest.spec.num_labels, manifest.spec.size) == (5, (64, 96))
    assert {case.id for case in manifest.cases} == {"test_x0", "test_x1", *(f"train_x{i}" for i in range(6))}
    sample = SliceDataset(root, manifest, "train")[0]
    assert sample.image[0] == pytest.approx(read_png(root / "train/images/x0.png") / 127.5 - 1, abs=1e-6)
    with pytest.raises(ValueError, match="must be unique"):
        Manifest(manifest.spec, manifest.cases + manifest.cases[:1])


def test_every_mismatch_is_listed(tmp_path: Path) -> None:
    root = plain(tmp_path / "in")
    (root / "train/labels/x0.png").unlink()
    write_png(root / "train/labels/x1.png", np.zeros((8, 8), np.uint8))
    (root / "train/images/x2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"(?s)3 faults.*x0.png: no label.*its label \(8, 8\).*x2.png: unreadable"):
        load_manifest(root)
    assert not (root / FILE_NAME).exists()
    with pytest.raises(ValueError, match=r"neither manifest\.json"):
        load_manifest(tmp_path / "nothing")


def test_label_maps_alone(tmp_path: Path) -> None:
    root = without(plain(tmp_path), "train/images", "test/images")
    manifest = load_manifest(root)
    assert manifest.spec.channels == ()
    assert (manifest.spec.num_labels, manifest.spec.size, len(manifest.cases)) == (5, (64, 96), 8)
    assert {(case.windows, case.slices[0].images) for case in manifest.cases} == {((), ())}
    assert load_manifest(root) == Manifest.load(root) == manifest
    assert check_folder(root) == []
    sample = SliceDataset(root, manifest, "train", cache_gb=1)[1]
    assert sample.image is None
    assert np.array_equal(sample.label, LABEL[9])
    with pytest.raises(ValueError, match=r"6 slices of the split 'train' have no image, the first is train/labels/x0"):
        SliceDataset(root, manifest, "train", read="images")


def test_a_split_may_have_no_images(tmp_path: Path) -> None:
    """Pairs to train on and label maps to synthesise: the images to come are in the units of the others."""
    root = without(plain(tmp_path), "test/images")
    manifest = load_manifest(root)
    assert [channel.name for channel in manifest.spec.channels] == ["image"]
    assert {(c.windows, c.slices[0].images) for c in manifest.split("test")} == {((Window(0, 255),), ())}
    assert SliceDataset(root, manifest, "test")[0].image is None
    (root / "train/labels/x1.png").unlink()  # within a split a missing half is a fault as ever
    (root / FILE_NAME).unlink()
    with pytest.raises(ValueError, match=r"x1\.png: no label of the same name"):
        load_manifest(root)


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "ids"), [(255, "0, 255"), (85, "0, 85, 170, 255"), (17, "0, 17, 34, 51, 68")])
def test_ids_spread_over_grey_values_are_refused_and_converted(tmp_path: Path, factor: int, ids: str) -> None:
    labels = np.minimum(LABEL[8:16], len(ids.split(",")) - 1) * factor
    root = plain(tmp_path / "in", labels)
    highest = factor * (len(ids.split(",")) - 1)
    with pytest.raises(ValueError, match=rf"only \d of the label ids 0\.\.{highest} occur \({ids}\)") as error:
        load_manifest(root)
    assert f"--format png --source {root} --out DIR makes them 0..{highest // factor}" in str(error.value)
    assert not (root / FILE_NAME).exists()
    manifest = convert(root, tmp_path / "out")
    said = "\n".join(overview(manifest))
    assert "split by the source folder" in said
    assert "train: 6 slices, 6 cases, 6 patients" in said
    assert f"label_{factor}" in said
    assert [label.source for label in manifest.spec.labels] == [(i,) for i in range(0, highest + 1, factor)]
    assert np.array_equal(read_png(tmp_path / "out/train/labels/x2.png"), labels[2] // factor)
    loaded = load_manifest(tmp_path / "out")
    assert (loaded.spec, loaded.cases) == (manifest.spec, manifest.cases)


@pytest.mark.slow
def test_patients_of_file_names_by_expression(tmp_path: Path) -> None:
    """train.py and test.py take it; what was inferred stays with the folder until another expression is given."""
    root = plain(tmp_path / "in")
    for path in [*root.glob("*/*/x*.png")]:
        number = int(path.stem[1:])
        path.rename(path.with_name(f"p{number // 2}-{number}.png"))

    def patients(regex: str | None = None) -> set[str]:
        return {case.patient for case in load_manifest(root, patient_regex=regex).cases}

    words = ["--name", "x", "--dataroot", str(root), "--model", "gmm", "--checkpoints_dir", str(tmp_path / "runs")]
    assert patients() == {f"{'train' if i < 6 else 'test'}_p{i // 2}-{i}" for i in range(8)}
    train(parse_train([*words, "--patient_regex", r"(p\d+)-"]))
    assert patients() == {f"p{i}" for i in range(4)}
    before = (root / FILE_NAME).read_bytes()
    assert patients(r"(p\d+)-") == {f"p{i}" for i in range(4)}
    assert (root / FILE_NAME).read_bytes() == before
    assert patients("(p)") == {"p"}
    with pytest.raises(ValueError, match="does not match 'p0-0'"):
        patients("(q)")
    test_words = [*words[:4], *words[6:], "--metrics", "none"]
    out = test_command(parse_test([*test_words, "--results_dir", str(tmp_path / "r"), "--patient_regex", r"(p\d+)-"]))
    assert {case.patient for case in Manifest.load(out).cases} == {"p3"}
    manifest = convert(root, tmp_path / "prepared", patient_regex=r"(p\d+)-")
    assert {case.patient for case in manifest.cases} == {f"p{i}" for i in range(4)}
    with pytest.raises(ValueError, match=r"says who the patients are; the option of prepare_data.py"):
        load_manifest(tmp_path / "prepared", patient_regex="(p)")


def test_few_gaps_between_ids_and_organs_of_a_few_pixels_are_fine(tmp_path: Path) -> None:
    labels = np.where(LABEL[8:16] == 4, 7, LABEL[8:16])
    assert load_manifest(plain(tmp_path / "gaps", labels)).spec.num_labels == 8
    labels = np.where(LABEL[8:16] > 0, 1, 0)
    for organ in range(2, 14):  # of 1, 2 and 3 pixels
        for pixel in range(organ % 3 + 1):
            labels[:, 2 + 4 * (organ // 7) + pixel // 2, 4 * (organ % 7) + 2 + pixel % 2] = organ
    assert load_manifest(plain(tmp_path / "organs", labels)).spec.num_labels == 14


def test_interpolated_masks_and_exchanged_folders_are_refused(tmp_path: Path) -> None:
    mask = (LABEL[8:16] > 0) * 255.0
    turned = np.stack([ndimage.rotate(m, 20, reshape=False, order=1) for m in mask]).clip(0, 255)
    assert len(np.unique(turned.astype(np.uint8))) > 86
    interpolated = r"mostly single pixels between others: .*interpolated \(resample them by nearest"
    with pytest.raises(ValueError, match=interpolated):
        load_manifest(plain(tmp_path / "turned", turned))
    with pytest.raises(DataFaults, match="interpolated"):
        convert(tmp_path / "turned", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="labels and images seem to be exchanged"):
        load_manifest(plain(tmp_path / "exchanged", IMAGE[8:16].clip(0, 255), LABEL[8:16]))


def test_colours_become_ids_also_where_palettes_differ(tmp_path: Path) -> None:
    colours = np.array([(0, 0, 0), (0, 0, 200), (0, 200, 0), (200, 0, 0), (200, 200, 0)], np.uint8)
    rgb, mixed = plain(tmp_path / "rgb"), plain(tmp_path / "palettes")
    for i in range(8):
        name = f"{'train' if i < 6 else 'test'}/labels/x{i}.png"
        Image.fromarray(colours[LABEL[8 + i]]).save(rgb / name)
        order = np.random.default_rng(i).permutation(5)  # each file has its own order of colours
        image = Image.fromarray(np.argsort(order)[LABEL[8 + i]].astype(np.uint8), "P")
        image.putpalette(colours[order].ravel().tolist())
        image.save(mixed / name)
    for root, words in ((rgb, "8 label maps .*found colours"), (mixed, "its palette is not that of")):
        with pytest.raises(ValueError, match=words) as error:
            load_manifest(root)
        assert "scripts/prepare_data.py --format png turns colours into ids" in str(error.value)
        manifest = convert(root, tmp_path / f"{root.name}_out")
        names = ["background", "colour_0000c8", "colour_00c800", "colour_c80000", "colour_c8c800"]
        assert [label.name for label in manifest.spec.labels] == names
        assert np.array_equal(read_png(tmp_path / f"{root.name}_out/test/labels/x7.png"), LABEL[15])
    table = tmp_path / "table.json"
    table.write_text('{"csf": "#0000c8", "brain": ["#00c800", "#c80000"]}')
    with pytest.raises(DataFaults, match=r"does not list 1 ids: colour_c8c800 \(\d+ pixels\)"):
        convert(rgb, tmp_path / "named", label_map=table)
    manifest = convert(rgb, tmp_path / "named", label_map=table, unknown_labels="background")
    found = [(label.name, label.source) for label in manifest.spec.labels[1:]]
    assert found == [("csf", (0x0000C8,)), ("brain", (0x00C800, 0xC80000))]
    assert np.array_equal(read_png(tmp_path / "named/test/labels/x7.png"), np.array([0, 1, 2, 2, 0])[LABEL[15]])


def test_twelve_bits_in_sixteen_are_refused_and_converted_to_the_whole_range(tmp_path: Path) -> None:
    images = (IMAGE[8:16].clip(0, 255) * 14).astype(np.uint16)
    root = plain(tmp_path / "in", images=images)
    with pytest.raises(ValueError, match=rf"16-bit images whose highest value is {images.max()}, of 65535"):
        load_manifest(root)
    manifest = convert(root, tmp_path / "out")
    window = manifest.cases[0].windows[0]
    assert (window.low, window.high) == (0, 4095)
    found = window.decode(read_png(tmp_path / "out/train/images/x3.png"))
    assert np.abs(found - images[3]).max() < 0.05
    narrow = convert(root, tmp_path / "narrow", window=("100,2000",))
    assert (narrow.cases[0].windows[0].low, narrow.cases[0].windows[0].high) == (100, 2000)


def test_equal_slices_and_patients_in_several_splits_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, images = LABEL[8:16].copy(), IMAGE[8:16].clip(0, 255)
    images[6:], labels[6:] = images[:2], labels[:2]
    load_manifest(plain(tmp_path / "twins", labels, images))
    said = capsys.readouterr().err
    assert "2 different slices of test are also in train, pixel by pixel (train/images/x0.png = test/images/x6" in said
    assert "patient" not in said.replace("new patients", "")
    load_manifest(plain(tmp_path / "patients", name="sub-02_{}"))
    assert "patient sub-02 is in the splits test, train" in capsys.readouterr().err


def test_a_manifest_of_an_earlier_version_stands(tmp_path: Path) -> None:
    """Its patients were the files, and runs that learned from it must go on."""
    root = plain(tmp_path, (LABEL[8:16] > 0) * 255, name="sub-02_{}")
    write_png(root / "train/images/sub-02_0.png", IMAGE[8].clip(0, 255).astype(np.uint8))
    fresh = load_manifest(plain(tmp_path / "other", LABEL[8:16] > 0, name="sub-02_{}"))
    text = fresh.text().replace('"sub-02"', '"train_sub-02_0"').replace('"1":', '"255":')
    (root / FILE_NAME).write_text(text)
    assert {case.patient for case in load_manifest(root).cases} == {"train_sub-02_0"}


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_trains_and_the_run_keeps_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, save = plain(tmp_path / "in"), Manifest.save
    expected = load_manifest(plain(tmp_path / "twin"))

    def on_a_read_only_disk(self: Manifest, folder: Path) -> None:
        if Path(folder) == root:
            raise OSError(30, "Read-only file system")
        save(self, folder)

    monkeypatch.setattr(Manifest, "save", on_a_read_only_disk)
    common = ["--name", "run", "--dataroot", str(root), "--checkpoints_dir", str(tmp_path / "runs"), "--gpu_ids", "-1"]
    for said in ("cannot be written (Read-only file system), so what was inferred stays with the run", ""):
        assert train(parse_train([*common, "--model", "gmm"])) == 0  # the second time it is finished
        assert said in capsys.readouterr().err
    assert Manifest.load(tmp_path / "runs/run") == expected
    assert fingerprint(root) == fingerprint(tmp_path / "twin")
    out = test_command(parse_test([*common, "--results_dir", str(tmp_path / "results"), "--metrics", "none"]))
    assert len(Manifest.load(out).split("test")) == 2
    assert not (root / FILE_NAME).exists()
