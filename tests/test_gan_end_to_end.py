"""Every way to train a GAN, through the commands that users type: train, resume, test."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from config import parse_train
from dataloaders.io.manifest import Manifest
from dataloaders.io.png import read_png, write_png
from dataloaders.io.runlog import read_log
from dataloaders.unpaired import typical_windows
from engine.methods.base import workflow_of
from engine.methods.gan import OasisWorkflow
from tests.launch import PERIODS, call, prepared_scans, training, weights
from tests.toy import LAS, phantom, prepared_folder, save_nifti

pytestmark = pytest.mark.slow

VARIANTS = {
    "wavelet": "--oasis.generator haar --oasis.critic wavelet --oasis.r1_every 2 --oasis.crop 32 32",
    "25d": "--oasis.neighbours 1 --oasis.slice_position --oasis.norm clade --oasis.crop 32 64",
    "spade": "--model spade --spade.lambda_l1 1 --spade.lambda_edge 1 --spade.lambda_lite 1 --spade.lambda_vgg 0"
    " --spade.channels_G 8 --spade.channels_D 4 --spade.spade_hidden 4 --spade.crop 64 32",
    "unpaired": "--oasis.unpaired --oasis.lambda_mask 1",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_scans(tmp_path_factory.mktemp("t1")) / "data"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_scans(tmp_path_factory.mktemp("t2"), range(5, 8), "T2w") / "data"


def train(data: Path, runs: Path, name: str, *extra: object, epochs: int = 2) -> list[object]:
    return training(data, runs, name, "--oasis.channels_W", 4, *PERIODS, "--num_epochs", epochs, *extra)


@pytest.mark.parametrize("name", VARIANTS)
def test_train_resume_test(name: str, data: Path, tmp_path: Path) -> None:
    """A run in two parts ends with the same weights, bit for bit, and its images are written with volumes and metrics."""
    flags = VARIANTS[name].split()
    call(*train(data, tmp_path, "whole", *flags))
    call(*train(data, tmp_path, "parts", *flags, epochs=1))
    assert "resumed at" in call(*train(data, tmp_path, "parts", *flags)).stdout
    assert weights(tmp_path, "whole") == weights(tmp_path, "parts")
    records = [r for r in read_log(tmp_path / "whole" / "metrics.jsonl") if r["kind"] == "train"]
    assert all(r["gradient_norm"] and 0 <= r["loader_wait"] <= 1 for r in records)
    expected = "critic/accuracy" if name == "unpaired" else "discriminator/accuracy"
    assert all(0 <= r["measures"][expected] <= 1 for r in records)
    where = ["--dataroot", data, "--checkpoints_dir", tmp_path, "--results_dir", tmp_path / "results"]
    assert "slice_difference_mae/T1w" in call("test.py", "--name", "whole", *where).stdout
    assert list((tmp_path / "results" / "whole" / "best" / "volumes").glob("*_T1w.nii.gz"))


def test_unpaired_training_never_uses_the_pairing(data: Path, other: Path, tmp_path: Path) -> None:
    """Shuffled label files of B, and noise for the images of A, give the same weights, bit for bit."""
    flags = [*VARIANTS["unpaired"].split(), "--oasis.images_from"]
    call(*train(data, tmp_path, "plain", *flags, other))
    a, b = (shutil.copytree(folder, tmp_path / folder.parent.name) for folder in (data, other))
    rng = np.random.default_rng(0)
    files = [b / item.label for case in Manifest.load(b).split("train") for item in case.slices]
    contents = [file.read_bytes() for file in files]
    for file, i in zip(files, rng.permutation(len(files)), strict=True):
        file.write_bytes(contents[i])
    for case in Manifest.load(a).split("train"):
        for item in case.slices:
            for path in item.images:
                write_png(a / path, rng.integers(0, 65535, read_png(a / path).shape).astype(np.uint16))
    call(*train(a, tmp_path, "shuffled", *flags, b))
    assert weights(tmp_path, "plain") == weights(tmp_path, "shuffled")


def test_drawn_patients_lend_unpaired_training_no_images_of_others(tmp_path: Path) -> None:
    folder = prepared_folder(tmp_path, patients=5, slices=2)
    flags = ["--oasis.unpaired", "--oasis.images_from", folder, "--only_patients", "sub-00"]
    workflow = workflow_of(parse_train([*map(str, train(folder, tmp_path, "one", *flags)[1:])]))
    workflow.read()
    assert isinstance(workflow, OasisWorkflow)
    assert {case.patient for case in workflow.images.split("train")} == {"sub-00"}


def test_other_images_are_another_run_but_their_folder_may_move(data: Path, other: Path, tmp_path: Path) -> None:
    flags = ["--oasis.unpaired", "--oasis.images_from", shutil.copytree(other, tmp_path / "b")]
    call(*train(data, tmp_path, "run", *flags, epochs=1))
    assert "already finished" in call(*train(data, tmp_path, "run", *flags[:-1], other, epochs=1)).stdout
    manifest = Manifest.load(tmp_path / "b")
    Manifest(manifest.spec, manifest.cases, {**manifest.provenance, "changed": True}).save(tmp_path / "b")
    assert "--oasis.images_from" in call(*train(data, tmp_path, "run", *flags, epochs=1), code=2).stderr
    small = Manifest(replace(manifest.spec, size=(32, 32)), manifest.cases, {})
    small.save(tmp_path / "b")
    assert "prepare both with the same --size" in call(*train(data, tmp_path, "new", *flags), code=2).stderr


def slices_of(root: Path, split: str, part: str, number: int, seed: int = 0) -> Path:
    """A plain folder of PNG slices: one half of a data set, or with another call both."""
    for i in range(number):
        label, image = phantom(seed + i, (32, 32, 8))
        pixels = label[..., 4] if part == "labels" else image[..., 4].clip(0, 255)
        write_png(root / split / part / f"s{i}.png", pixels.astype(np.uint8))
    return root


def test_single_slices_stand_for_their_neighbours(tmp_path: Path) -> None:
    """The presets' generator is 2.5-D; data without stacks train too, and it is said."""
    for part in ("labels", "images"):
        folder = slices_of(tmp_path / "a", "train", part, 4)
    done = call(*train(folder, tmp_path, "s", "--oasis.neighbours", 1, epochs=1))
    assert "no training case has more than one slice" in done.stdout
    assert weights(tmp_path, "s")


def test_plain_folders_of_halves_train_unpaired_and_are_synthesised(tmp_path: Path) -> None:
    labels = slices_of(tmp_path / "a", "train", "labels", 5)
    images = slices_of(tmp_path / "b", "train", "images", 3, seed=7)
    flags = ["--oasis.unpaired", "--oasis.images_from", images]
    done = call(*train(labels, tmp_path, "u", *flags, epochs=1))
    assert f"images to imitate, unpaired: 3 training slices of {images}; slices: 32x32 pixels" in done.stdout
    assert "left out" not in done.stderr  # not of metrics: without pairs none is computed
    nothing = call("test.py", "--name", "u", "--dataroot", labels, "--checkpoints_dir", tmp_path, code=2).stderr
    assert "the split 'test' has no slices; there are some of train" in nothing
    rest = slices_of(tmp_path / "c", "test", "labels", 2, seed=20)
    write_png(rest / "test/labels/s0.png", np.digitize(read_png(rest / "test/labels/s0.png"), [1, 2]).astype(np.uint8))
    write_png(
        rest / "test/labels/s1.png", read_png(rest / "test/labels/s0.png")
    )  # no ids above 2: fewer than the run's
    where = ["--name", "u", "--dataroot", rest, "--checkpoints_dir", tmp_path, "--results_dir", tmp_path / "r"]
    tested = call("test.py", *where)
    assert "no real images, so there is nothing to evaluate against" in tested.stdout
    assert "left out" not in tested.stderr  # metrics that lack weights, where there are none to compute
    out = Manifest.load(tmp_path / "r/u/best")
    assert [len(item.generated) for case in out.cases for item in case.slices] == [1, 1]
    maps, scans = (
        "have no image, the first is train/labels/s0.png",
        "have no label map, the first is train/images/s0.png",
    )
    for folder, more, why in (
        (labels, [], f"{maps}; label maps alone are for test.py"),
        (images, [], f"{scans}; images alone are for"),
        (labels, ["--model", "gmm"], maps),
        (labels, [*flags[:2], labels], f"{labels}: 5 slices of the split 'train' have no image"),
        (images, ["--model", "segmenter"], scans),
    ):
        done = call(*train(folder, tmp_path, "refused", *more), code=2).stderr
        assert why in done
        assert done.count("\n") == 1 + done.count("warning: ")


def test_label_maps_without_images_are_painted_by_a_run_that_was_trained_on_pairs(tmp_path: Path) -> None:
    """As beside images; units by the typical window; classes by name, where some are missing."""
    data = prepared_scans(tmp_path) / "data"
    call(*train(data, tmp_path, "g", "--model", "gmm"))
    for part in ("labels", "fewer"):
        for path in sorted((tmp_path / "labels").glob("*.nii.gz")):
            label = np.asarray(nib.load(path).dataobj)
            save_nifti(tmp_path / "maps" / part / path.name, np.where(label == 2, 0, label).astype(np.uint8), LAS)
    (tmp_path / "table.json").write_text(json.dumps({f"label_{i}": i for i in range(1, 5)}))
    made = {}
    for name, source, more in (
        ("same", tmp_path / "labels", []),
        ("all", tmp_path / "maps/fewer", ["--label_map", tmp_path / "table.json"]),
        ("fewer", tmp_path / "maps/fewer", []),
    ):
        arguments = ["--format", "pairs", "--labels", source, "--size", 64, "--split", 0, 0, 1, "--workers", 1, *more]
        call("scripts/prepare_data.py", *arguments, "--out", tmp_path / name)
        where = ["--name", "g", "--dataroot", tmp_path / name, "--checkpoints_dir", tmp_path]
        done = call("test.py", *where, "--results_dir", tmp_path / "r" / name)
        assert "no real images" in done.stdout
        made[name] = Manifest.load(tmp_path / "r" / name / "g/best")
    where = ["--name", "g", "--checkpoints_dir", tmp_path]
    call("test.py", *where, "--dataroot", data, "--results_dir", tmp_path / "r/real", "--metrics", "none")
    made["real"] = Manifest.load(tmp_path / "r/real/g/best")

    def pixels(name: str) -> dict[tuple[str, int], bytes]:
        root = tmp_path / "r" / name / "g/best"
        items = {(case.id, item.index): item for case in made[name].cases for item in case.slices}
        return {key: read_png(root / item.generated[0]).tobytes() for key, item in items.items()}

    same = pixels("same")
    assert pixels("real").items() <= same.items()
    assert pixels("all") == pixels("fewer")
    assert [label.name for label in made["fewer"].spec.labels] == ["background", "label_1", "label_3", "label_4"]
    trained = Manifest.load(data)
    assert {case.windows for case in made["same"].cases} == {typical_windows(trained)}
    window, case = typical_windows(trained)[0], made["same"].cases[0]
    volume = np.asarray(nib.load(tmp_path / "r/same/g/best/volumes" / f"{case.id}_T1w.nii.gz").dataobj)
    item = case.slices[3]
    levels = read_png(tmp_path / "r/same/g/best" / item.generated[0])
    assert sorted(volume[..., item.index].ravel())[-50:] == pytest.approx(sorted(window.decode(levels).ravel())[-50:])
    save_nifti(tmp_path / "odd" / "m.nii.gz", np.full((40, 48, 24), 7, np.uint8), LAS)
    odd = ["--format", "pairs", "--labels", tmp_path / "odd", "--size", 64, "--split", 0, 0, 1]
    call("scripts/prepare_data.py", *odd, "--out", tmp_path / "o")
    wrong = call("test.py", *where, "--dataroot", tmp_path / "o", "--results_dir", tmp_path / "r/o", code=2).stderr
    assert "labels: label_7 are none of the run's; it knows background, label_1, label_2, label_3, label_4" in wrong


def test_what_cannot_work_is_one_line(data: Path, tmp_path: Path) -> None:
    call(*train(data, tmp_path, "quiet", "--oasis.z_dim", 0, epochs=1))
    where = ["--name", "quiet", "--dataroot", data, "--checkpoints_dir", tmp_path, "--results_dir", tmp_path / "r"]
    assert "without noise to draw anew" in call("test.py", *where, "--resample", "3", code=2).stderr
    many = call(*train(data, tmp_path, "n", "--model", "spade", "--preset", "small", "--spade.num_D", 6), code=2).stderr
    assert "error: --spade.num_D 6: too many for images of 64x64" in many
    missing = call(*train(data, tmp_path, "n", "--oasis.unpaired", "--oasis.images_from", "nowhere"), code=2)
    assert "error: --oasis.images_from nowhere" in missing.stderr
    folder, manifest = shutil.copytree(data, tmp_path / "bare"), Manifest.load(data)

    def without_images(*splits: str) -> None:
        cases = []
        for case in manifest.cases:
            bare = tuple(replace(item, images=()) for item in case.slices)
            cases.append(replace(case, slices=bare) if case.split in splits else case)
        Manifest(manifest.spec, tuple(cases), {}).save(folder)

    without_images("train", "val", "test")
    assert "slices of the split 'train' have no image" in call(*train(folder, tmp_path, "n"), code=2).stderr
    without_images("val")
    assert "finished" in call(*train(folder, tmp_path, "n", epochs=1)).stdout  # nothing to validate against
