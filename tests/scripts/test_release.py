"""What is given away: privacy.py on toy runs, and released models that name nobody."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from markupsafe import escape
from safetensors import safe_open

from dataloaders.io.manifest import Manifest
from dataloaders.io.png import read_png
from tests.launch import call
from tests.test_faults import train
from tests.toy import phantom, prepared_folder, save_nifti

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("private")
    data = Manifest.load(prepared_folder(home / "data", patients=6, slices=4))
    splits = ("train", "train", "train", "val", "test", "test")
    cases = tuple(replace(case, split=split) for case, split in zip(data.cases, splits, strict=True))
    replace(data, cases=cases).save(home / "data")
    call(*train(home / "data", home / "runs", "exp", f"--weights {home} --num_epochs 1"))
    call(*train(home / "data", home / "runs", "gmm", "--model gmm"))
    return home


@pytest.mark.parametrize("name", ["exp", "gmm"])
def test_a_released_model_makes_the_same_images_and_names_nobody(name: str, home: Path, tmp_path: Path) -> None:
    said = ["--license", "CC-BY-4.0", "--data", "four phantoms"]
    call("scripts/export_model.py", "--name", name, "--checkpoints_dir", home / "runs", "--out", tmp_path, *said)
    folder = tmp_path / name
    assert {path.name for path in folder.iterdir()} == {"weights-best.safetensors", "README.md"}
    with safe_open(folder / "weights-best.safetensors", framework="pt") as file:
        header = file.metadata()["medsis"]
    card = (folder / "README.md").read_text()
    for text in (header, card):
        assert str(home) not in text
        assert "private" not in text
    for fact in ("CC-BY-4.0", "four phantoms", "grey_matter", "MR0", "32 x 32 pixels", "not for diagnosis"):
        assert fact in card
    if name == "exp":
        assert "| wasserstein | " in card
        assert "`--oasis.channels_G: was 64, now 4`" in card
    images = []
    for runs, out in ((home / "runs", tmp_path / "a"), (tmp_path, tmp_path / "b")):
        where = ["--dataroot", home / "data", "--checkpoints_dir", runs, "--results_dir", out, "--metrics", "none"]
        call("test.py", "--name", name, *where, "--gpu_ids", "-1")
        images.append([read_png(path).tolist() for path in sorted((out / name / "best" / "generated").iterdir())])
    assert images[0] == images[1]
    assert len(images[0]) == 8


def test_a_released_segmenter_names_nobody_and_says_what_it_is(home: Path, tmp_path: Path) -> None:
    label, image = phantom(1, (32, 32, 16))
    maps = save_nifti(home / "maps" / "m.nii.gz", label.astype(np.uint8)).parent
    scan = save_nifti(tmp_path / "scan.nii.gz", image)
    tiny = "--segmenter.features 4 4 8 --segmenter.patch 16 --segmenter.depth 8 --segmenter.epoch_samples 4"
    tiny += f" --segmenter.real_fraction 0.5 --segmenter.label_maps {maps} --batch_size 2 --num_epochs 1 --gpu_ids -1"
    where = ["--name", "seg", "--checkpoints_dir", home / "runs"]
    call("train.py", *where, "--dataroot", home / "data", "--model", "segmenter", *tiny.split())
    call("scripts/export_model.py", *where, "--out", tmp_path)
    folder = tmp_path / "seg"
    assert b"private" not in (folder / "weights-best.safetensors").read_bytes()
    card = (folder / "README.md").read_text()
    assert "private" not in card
    assert "| Makes | label maps from MR0" in card
    assert "Images are synthetic" not in card
    for number, checkpoint in enumerate((home / "runs" / "seg", folder)):
        words = ["--checkpoint", checkpoint, "--i", scan, "--o", tmp_path / f"{number}.nii.gz", "--cpu"]
        call("scripts/segment.py", *words)
    found = [np.asarray(nib.load(tmp_path / f"{number}.nii.gz").dataobj) for number in (0, 1)]
    assert np.array_equal(*found)


def test_nothing_else_is_overwritten(home: Path, tmp_path: Path) -> None:
    where = ["--name", "exp", "--checkpoints_dir", home / "runs", "--out", tmp_path]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("mine")
    for extra in ((), ("--overwrite",)):
        done = call("scripts/export_model.py", *where, "--as_name", "thesis", *extra, code=2)
        assert "is not empty" in done.stderr
    call("scripts/export_model.py", *where)
    assert "is not empty" in call("scripts/export_model.py", *where, code=2).stderr
    call("scripts/export_model.py", *where, "--overwrite")
    assert "no weights called '7'" in call("scripts/export_model.py", *where, "--ckpt_iter", 7, code=2).stderr
    assert "not allowed" in call("scripts/export_model.py", *where, "--as_name", "../x", code=2).stderr


def privacy(home: Path, name: str, *extra: object, code: int = 0) -> str:
    where = ["--name", name, "--checkpoints_dir", home / "runs", "--gpu_ids", "-1", *extra]
    done = call("scripts/privacy.py", *where, code=code)
    return done.stderr if code else done.stdout


@pytest.mark.parametrize(("name", "judged"), [("exp", True), ("gmm", False)])
def test_a_run_is_tested_and_its_card_says_so(name: str, judged: bool, home: Path, tmp_path: Path) -> None:
    said = privacy(home, name, "--dataroot", home / "data", "--slices", "2", "--ckpt_iter", "latest")
    folder = home / "runs" / name / "privacy"
    assert {path.name for path in folder.iterdir()} >= {"privacy.md", "privacy.csv", "nearest.csv", "closest.png"}
    found = json.loads((folder / "privacy.json").read_text())
    assert found["verdict"] in said
    assert ("discriminator was not tested" in said) != judged
    assert found["counts"] == {"slices": 12, "left_out": 0}
    aucs = [row for row in found["measures"] if row["measure"].startswith("AUC by")]
    assert len(aucs) == 4 + judged
    assert all(row["people"] == "3 / 3" for row in aucs)
    assert len((folder / "nearest.csv").read_text().splitlines()) == 13
    results, report = tmp_path / "results", tmp_path / "report"
    runs = ["--checkpoints_dir", home / "runs"]
    test = ["--name", name, "--dataroot", home / "data", *runs, "--results_dir", results, "--metrics", "mae_body"]
    call("test.py", *test, "--ckpt_iter", "latest", "--gpu_ids", "-1")
    call("scripts/compare.py", results / name, "--out", report, *runs)
    page = (report / "report.html").read_text()
    assert escape(found["verdict"]) in page
    assert page.count('class="pairs"') == 1
    assert "the closest pairs of" in page
    assert (report / "figures" / "memory.png").is_file()
    call("scripts/export_model.py", "--name", name, "--checkpoints_dir", home / "runs", "--out", tmp_path)
    assert found["verdict"] in (tmp_path / name / "README.md").read_text()


def test_what_cannot_be_tested_is_refused_in_one_line(home: Path, tmp_path: Path) -> None:
    other = prepared_folder(tmp_path / "other", patients=6, slices=4)
    cases = [
        ("gmm", ["--dataroot", other], "not the data that 'gmm' was trained on"),
        ("gmm", ["--dataroot", home / "data", "--canaries", "sub-0[0-3]"], "1 held-out people in val and test"),
        ("gmm", ["--dataroot", home / "data", "--canaries", "nobody"], "0 training people in train"),
        ("gmm", ["--dataroot", home / "data", "--canaries", "("], "--canaries (: no regular expression: missing )"),
        ("gmm", ["--dataroot", home / "nothing"], "neither manifest.json"),
        ("nobody", ["--dataroot", home / "data"], "no such run"),
    ]
    for name, flags, why in cases:
        error = privacy(home, name, *flags, code=2)
        assert why in error
        assert len(error.strip().splitlines()) == 1
