"""Programs that behave like the external tools: strict about their arguments, with outputs, failures and hangs.

Each reads FAKE_<NAME> (good by default): good, fail (message, exit 1), hang, nothing (exit 0 without output), partial (a cut
file, exit 0). Each call is appended to FAKE_CALLS.
"""

# ruff: noqa: SIM112 (nnU-Net's variables have small letters)

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

NAME = Path(sys.argv[0]).name
FAKES: dict[str, tuple[str, Callable[[Namespace], None]]] = {}


def variable(name: str) -> str:
    return f"FAKE_{name.replace('-', '_').replace('.sh', '').upper()}"


MODE = os.environ.get(variable(NAME), "good")


def fake(name: str, usage: str) -> Callable:
    """Called with `usage`, as `input [-n N] --all`: what is in brackets may be missing, capitals stand for a value."""

    def keep(work: Callable[[Namespace], None]) -> None:
        FAKES[name] = usage, work

    return keep


def main() -> None:
    """The program that this process was started as."""
    with open(os.environ["FAKE_CALLS"], "a") as calls:
        calls.write(json.dumps([NAME, *sys.argv[1:]]) + "\n")
    if "--version" in sys.argv:
        return print(NAME, "1.2.3")
    usage, work = FAKES[NAME]
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for maybe, name, value in re.findall(r"(\[?)([-.\w]+)( [A-Z])?", usage):
        flag = {"required": not maybe, "action": "store" if value else "store_true"}
        parser.add_argument(name, **flag if name[0] == "-" else {})
    return work(parser.parse_args())


def install(folder: Path, *names: str) -> Path:
    """Write the named programs (all that are no part of medsis by default) into a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    start = (
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\nfrom tests.pipeline.fakes import main\n"
    )
    for name in names or [name for name in FAKES if not name.endswith(".py")]:
        (folder / name).write_text(f"#!{sys.executable}\n{start}main()\n")
        (folder / name).chmod(0o755)
    return folder


def begin() -> None:
    if MODE == "fail":
        print("working", flush=True)
        sys.exit("Error: no space left in the scanner")
    if MODE == "hang":
        Path(os.environ["FAKE_CALLS"] + ".pid").write_text(str(os.getpid()))
        time.sleep(600)
        Path(os.environ["FAKE_CALLS"] + ".awake").touch()
    if MODE == "nothing":
        sys.exit(0)


def load(path: str) -> tuple[NDArray, NDArray]:
    begin()
    image = nib.load(path)
    return np.asarray(image.dataobj, np.float32), image.affine


def save(data: NDArray, affine: NDArray, path: str | Path, kind: type = nib.Nifti1Image) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind(data, affine).to_filename(path)
    if MODE == "partial":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])


def inside(head: NDArray) -> NDArray:
    """The brain: the part of the foreground that holds the middle; the skull is another."""
    parts = ndimage.label(head > 30)[0]
    return parts == parts[tuple(n // 2 for n in parts.shape)]


def classes(head: NDArray, *ids: int) -> NDArray[np.int32]:
    """The brain's ids of nothing, CSF, GM and WM: thirds of the phantom's intensities."""
    brain = head * inside(head)
    return np.array(ids, np.int32)[np.where(brain > 30, np.digitize(brain, [85, 135]) + 1, 0)]


# -- strippers and harmonisers ------------------------------------------------------------------------------------


@fake("brainextractor", "input_img output_img -f F -n N")
def _(o: Namespace) -> None:
    head, affine = load(o.input_img)
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(0))
    if not np.allclose(zooms, zooms[0], rtol=1e-3):
        sys.exit("ValueError: array is too big")
    if np.count_nonzero(head[1:-1, 1:-1, 1:-1]) < np.count_nonzero(head):
        sys.exit("segmentation fault: read beyond the image")
    save(inside(head).astype(np.float64), affine, o.output_img)


@fake("deepbet-cli", "-i I -o O -m M -t T [--no_gpu]")
def _(o: Namespace) -> None:
    head, affine = load(o.i)
    save(head * inside(head), affine, o.o)
    save(inside(head).astype(np.uint8), affine, o.m)


@fake("mri_synthstrip", "-i I [-o O] -m M [-b B] [-g] [--model M]")
def _(o: Namespace) -> None:
    if not os.environ.get("FREESURFER_HOME"):
        sys.exit("FREESURFER_HOME env variable must be set!")
    head, affine = load(o.i)
    save(inside(head).astype(np.uint8), affine, o.m)


@fake("hd-bet", "-i I -o O -device D [--disable_tta] --save_bet_mask")
def _(o: Namespace) -> None:
    assert o.o.endswith(".nii.gz")
    assert o.device in ("cpu", "cuda", "mps")
    head, affine = load(o.i)
    save(head * inside(head), affine, o.o)
    save(inside(head).astype(np.uint8), affine, o.o[:-7] + "_bet.nii.gz")


@fake("mri_synthsr", "--i I --o O [--threads T] [--cpu] [--lowfield]")
def _(o: Namespace) -> None:
    head, affine = load(o.i)
    save(head * 0.5, affine, o.o)


# -- segmenters ---------------------------------------------------------------------------------------------------


@fake("mri_synthseg", "--i I --o O [--threads T] [--cpu] [--robust]")
def _(o: Namespace) -> None:
    head, affine = load(o.i)
    ids = classes(head, 0, 24, 3, 2)
    ids[tuple(n // 2 for n in ids.shape)] = 502  # an id that no table has
    affine[:3, 3] -= affine[:3, :3] @ [4, 4, 4]
    save(np.pad(ids, 4), affine, o.o)


@fake("run_samseg", "-i I -o O [--threads T] [--lesion]")
def _(o: Namespace) -> None:
    head, affine = load(o.i)
    ids = np.where(head >= 230, 165, classes(head, 0, 24, 42, 41)).astype(np.int32)
    save(ids, affine, Path(o.o) / "seg.mgz", nib.MGHImage)


@fake(
    "run_fastsurfer.sh",
    "--t1 T --sid S --sd S --seg_only [--no_cereb] [--no_hypothal] [--no_biasfield]"
    "[--device D] [--py P] [--threads T] [--fs_license F]",
)
def _(o: Namespace) -> None:
    head, affine = load(o.t1)
    if not (head >= 230).any():
        sys.exit("this is a stripped brain, a whole head is needed")
    image = nib.Nifti1Image(classes(head, 0, 4, 1002, 41), affine)
    lia = nib.orientations.axcodes2ornt("LIA")  # conformed to FreeSurfer's orientation
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), lia))
    path = Path(o.sd) / o.sid / "mri" / "aseg.auto_noCCseg.mgz"
    save(np.asarray(turned.dataobj), turned.affine, path, nib.MGHImage)


@fake("fast", "[-t T] [-n N] -o O input")
def _(o: Namespace) -> None:
    assert (o.t, o.n, os.environ["FSLOUTPUTTYPE"]) == ("1", "3", "NIFTI_GZ")
    brain, affine = load(o.input)
    labels = classes(brain, 0, 1, 2, 3)
    if MODE == "collapse":
        labels = np.minimum(labels, 1)
    save(labels.astype(np.uint8), affine, o.o + "_seg.nii.gz")
    for i in range(3):
        save((labels == i + 1).astype(np.float32), affine, f"{o.o}_pve_{i}.nii.gz")


@fake("segment.py", "--input I --output O --checkpoint C --device D --threads T --no-qc")
def _(o: Namespace) -> None:
    image, affine = load(o.input)
    save(classes(image, 0, 3, 1, 2), affine, o.output)


# -- nnU-Net ------------------------------------------------------------------------------------------------------


def dataset(kind: str, number: str) -> Path:
    (found,) = Path(os.environ[f"nnUNet_{kind}"]).glob(f"Dataset{int(number):03d}_*")
    return found


@fake("nnUNetv2_plan_and_preprocess", "-d D -c C [-np N] [-npfp N] [--verify_dataset_integrity]")
def _(o: Namespace) -> None:
    begin()
    if int(os.environ["nnUNet_n_proc_DA"]) < 1:
        sys.exit("RuntimeError: set_num_threads expects a positive integer")
    raw = dataset("raw", o.d)
    data = json.loads((raw / "dataset.json").read_text())
    images = sorted((raw / "imagesTr").glob("*_0000.png"))
    assert len(images) == data["numTraining"] == len(list((raw / "labelsTr").glob("*.png"))) > 0
    out = Path(os.environ["nnUNet_preprocessed"]) / raw.name
    out.mkdir(parents=True, exist_ok=True)  # it goes on where it stopped
    (out / "dataset.json").write_text(json.dumps(data))
    plan = {"batch_size": 30, "patch_size": [256, 256], "architecture": {"arch_kwargs": {"n_stages": 7}}}
    (out / "nnUNetPlans.json").write_text(json.dumps({"plans_name": "nnUNetPlans", "configurations": {"2d": plan}}))


@fake("nnUNetv2_train", "dataset configuration fold [-device D] [-tr T] [-p P] [--c]")
def _(o: Namespace) -> None:
    data = dataset("preprocessed", o.dataset)
    splits = json.loads((data / "splits_final.json").read_text())[int(o.fold)]
    assert splits["train"]
    assert splits["val"]
    assert (data / f"{o.p}.json").is_file()
    assert int(os.environ["MEDSIS_EPOCHS"]) > 0
    assert (Path(os.environ["nnUNet_extTrainer"]) / "trainer.py").is_file()
    model = Path(os.environ["nnUNet_results"]) / data.name / f"{o.tr}__{o.p}__2d"
    fold = model / f"fold_{o.fold}"
    latest = fold / "checkpoint_latest.pth"
    assert latest.is_file() or not o.c
    fold.mkdir(parents=True, exist_ok=True)
    latest.write_text("half")
    begin()
    print("2026-01-01 00:00:00: train_loss", "nan" if MODE == "diverge" else -0.8)
    latest.unlink()
    for word in ("final", "best"):
        (fold / f"checkpoint_{word}.pth").write_text("weights")
    for word in ("plans", "dataset"):
        (model / f"{word}.json").write_text("{}")


@fake("nnUNetv2_predict", "-i I -o O -d D -c C -f F -tr T -p P -device D -chk C -npp N -nps N [--disable_tta]")
def _(o: Namespace) -> None:
    assert (dataset("results", o.d) / f"{o.tr}__{o.p}__2d" / f"fold_{o.f}" / o.chk).is_file()
    begin()
    out = Path(o.o)
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(Path(o.i).glob("*_0000.png"))
    assert files
    for file in files[MODE == "partial" :]:
        image = np.asarray(Image.open(file), np.float64)
        unit = image / max(image.max(), 1)
        label = np.where(unit > 0.1, np.array([3, 1, 2])[np.digitize(unit, [0.5, 0.8])], 0)
        Image.fromarray(label.astype(np.uint8)).save(out / file.name.replace("_0000.png", ".png"))


# -- our own train.py and test.py: a GAN that knows the right picture ---------------------------------------------


@fake("train.py", "--name N --dataroot D --checkpoints_dir C --seed S --preset P --spade.neighbours K --num_epochs N")
def _(o: Namespace) -> None:
    data, out = Path(o.dataroot), Path(o.checkpoints_dir) / o.name
    for pattern in ("manifest.json", "train/images/*.png", "val/labels/*.png"):
        assert list(data.glob(pattern)), pattern
    out.mkdir(parents=True, exist_ok=True)  # it goes on where it stopped
    (out / "weights-best.safetensors").write_text("w")


@fake(
    "test.py", "--name N --dataroot D --results_dir R --checkpoints_dir C --phase P --metrics M --seed S --no-volumes"
)
def _(o: Namespace) -> None:
    assert (Path(o.checkpoints_dir) / o.name / "weights-best.safetensors").is_file()
    source, out = Path(o.dataroot), Path(o.results_dir) / o.name / "best"
    data = json.loads((source / "manifest.json").read_text())
    for case in data["cases"]:
        assert case["split"] == o.phase
        for item in case["slices"]:
            for kind, path in (("label", item["label"]), ("generated", item["images"][0])):
                item[kind] = f"{kind}/{Path(path).name}"
                (out / kind).mkdir(parents=True, exist_ok=True)
                shutil.copy(source / path, out / item[kind])
            item |= {"generated": [item["generated"]], "images": []}
    (out / "manifest.json").write_text(json.dumps(data))
