"""Programs that behave like the external tools: strict about their arguments, with outputs, failures and hangs.

Each reads FAKE_<NAME> (good by default): good, fail (message, exit 1), hang, nothing (exit 0 without output), partial (a cut
file, exit 0). Each call is appended to FAKE_CALLS.
"""

from __future__ import annotations

import sys
from pathlib import Path

OPTIONS = """#!{python}
import argparse, json, os, re, shutil, sys, time
from pathlib import Path

def options(usage):
    "Of a line such as `input [-n N] --all`: what is in brackets may be missing, capitals stand for a value."
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for maybe, name, value in re.findall(r"(\\[?)([-\\w]+)( [A-Z])?", usage):
        flag = {"required": not maybe, "action": "store" if value else "store_true"}
        parser.add_argument(name, **flag if name[0] == "-" else {})
    return parser.parse_args()
"""
HEADER = '''
import nibabel as nib
import numpy as np
from scipy import ndimage

name = Path(sys.argv[0]).name
mode = os.environ.get("FAKE_" + name.replace("-", "_").replace(".sh", "").upper(), "good")
with open(os.environ["FAKE_CALLS"], "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if "--version" in sys.argv:
    print(name + " 1.2.3")
    sys.exit(0)

def begin():
    if mode == "fail":
        print("working", flush=True)
        print("Error: no space left in the scanner", file=sys.stderr)
        sys.exit(1)
    if mode == "hang":
        Path(os.environ["FAKE_CALLS"] + ".pid").write_text(str(os.getpid()))
        time.sleep(600)
    if mode == "nothing":
        sys.exit(0)

def save(data, affine, path, kind=nib.Nifti1Image):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind(data, affine).to_filename(path)
    if mode == "partial":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

def load(path):
    image = nib.load(path)
    return np.asarray(image.dataobj, np.float32), image.affine

def inside(head):
    """The brain: the part of the foreground that holds the middle; the skull is another."""
    parts = ndimage.label(head > 30)[0]
    return parts == parts[tuple(n // 2 for n in parts.shape)]

def classes(brain):
    """Thirds of the phantom's intensities: 1 CSF, 2 GM, 3 WM."""
    return np.where(brain > 30, np.digitize(brain, [85, 135]) + 1, 0).astype(np.int32)
'''

TOOLS = {
    "brainextractor": '''
o = options("input_img output_img -f F -n N")
begin()
head, affine = load(o.input_img)
zooms = np.sqrt((affine[:3, :3] ** 2).sum(0))
if not np.allclose(zooms, zooms[0], rtol=1e-3):
    sys.exit("ValueError: array is too big")
if any(head[edge].any() for edge in ((0,), (-1,), np.s_[:, 0], np.s_[:, -1], np.s_[..., 0], np.s_[..., -1])):
    sys.exit("segmentation fault: read beyond the image")
save(inside(head).astype(np.float64), affine, o.output_img)
''',
    "deepbet-cli": '''
o = options("-i I -o O -m M -t T [--no_gpu]")
begin()
head, affine = load(o.i)
mask = inside(head)
save(head * mask, affine, o.o)
save(mask.astype(np.uint8), affine, o.m)
''',
    "mri_synthstrip": '''
o = options("-i I [-o O] -m M [-b B] [-g] [--model M]")
if not os.environ.get("FREESURFER_HOME"):
    sys.exit("FREESURFER_HOME env variable must be set!")
begin()
head, affine = load(o.i)
save(inside(head).astype(np.uint8), affine, o.m)
''',
    "hd-bet": '''
o = options("-i I -o O -device D [--disable_tta] [--save_bet_mask]")
assert o.o.endswith(".nii.gz") and o.device in ("cpu", "cuda", "mps")
begin()
head, affine = load(o.i)
mask = inside(head)
save(head * mask, affine, o.o)
if o.save_bet_mask:
    save(mask.astype(np.uint8), affine, o.o[:-7] + "_bet.nii.gz")
''',
    "mri_synthsr": '''
o = options("--i I --o O [--threads T] [--cpu] [--lowfield]")
begin()
head, affine = load(o.i)
save(head * 0.5, affine, o.o)
''',
    "mri_synthseg": '''
o = options("--i I --o O [--threads T] [--cpu] [--robust]")
begin()
head, affine = load(o.i)
ids = np.array([0, 24, 3, 2], np.int32)[classes(head * inside(head))]
ids[ids.shape[0] // 2, ids.shape[1] // 2, ids.shape[2] // 2] = 502  # an id that no table has
shifted = affine.copy(); shifted[:3, 3] -= affine[:3, :3] @ np.array([4.0, 4.0, 4.0])
save(np.pad(ids, 4), shifted, o.o)
''',
    "run_samseg": '''
o = options("-i I -o O [--threads T] [--lesion]")
begin()
head, affine = load(o.i)
ids = np.array([0, 24, 42, 41], np.int32)[classes(head * inside(head))]
ids[head >= 230] = 165
save(ids, affine, Path(o.o) / "seg.mgz", nib.MGHImage)
''',
    "run_fastsurfer.sh": '''
o = options("--t1 T --sid S --sd S --seg_only [--no_cereb] [--no_hypothal] [--no_biasfield]"
            "[--device D] [--py P] [--threads T] [--fs_license F]")
head, affine = load(o.t1)
if not (head >= 230).any():
    sys.exit("this is a stripped brain, a whole head is needed")
begin()
ids = np.array([0, 4, 1002, 41], np.int32)[classes(head * inside(head))]
# conformed: another orientation, FreeSurfer's LIA
lia = np.ascontiguousarray(ids[::-1, :, ::-1].transpose(0, 2, 1))
flipped = np.eye(4)
flipped[:3, 0], flipped[:3, 1], flipped[:3, 2] = -affine[:3, 0], -affine[:3, 2], affine[:3, 1]
flipped[:3, 3] = affine[:3, 3] + affine[:3, 0] * (ids.shape[0] - 1) + affine[:3, 2] * (ids.shape[2] - 1)
save(lia, flipped, Path(o.sd) / o.sid / "mri" / "aseg.auto_noCCseg.mgz", nib.MGHImage)
''',
    "fast": '''
o = options("[-t T] [-n N] -o O input")
assert (o.t, o.n) == ("1", "3") and os.environ["FSLOUTPUTTYPE"] == "NIFTI_GZ"
begin()
brain, affine = load(o.input)
labels = classes(brain)
if mode == "collapse":
    labels[labels > 0] = 1
save(labels.astype(np.uint8), affine, o.o + "_seg.nii.gz")
for i in range(3):
    save((labels == i + 1).astype(np.float32), affine, f"{o.o}_pve_{i}.nii.gz")
''',
    "nnUNetv2_plan_and_preprocess": '''
o = options("-d D -c C [-np N] [-npfp N] [--verify_dataset_integrity]")
begin()
if int(os.environ["nnUNet_n_proc_DA"]) < 1:
    sys.exit("RuntimeError: set_num_threads expects a positive integer")
raw = next(Path(os.environ["nnUNet_raw"]).glob(f"Dataset{int(o.d):03d}_*"))
data = json.loads((raw / "dataset.json").read_text())
images = sorted((raw / "imagesTr").glob("*_0000.png"))
assert len(images) == data["numTraining"] == len(list((raw / "labelsTr").glob("*.png"))) > 0
out = Path(os.environ["nnUNet_preprocessed"]) / raw.name
out.mkdir(parents=True, exist_ok=True)  # it goes on where it stopped
(out / "dataset.json").write_text(json.dumps(data))
arch = {"n_stages": 7, "features_per_stage": [32] * 7}
plans = {"plans_name": "nnUNetPlans", "dataset_name": raw.name, "configurations": {
    "2d": {"data_identifier": "nnUNetPlans_2d", "batch_size": 30, "patch_size": [256, 256],
           "architecture": {"arch_kwargs": arch}}}}
(out / "nnUNetPlans.json").write_text(json.dumps(plans))
''',
    "nnUNetv2_train": '''
o = options("dataset configuration fold [-device D] [-tr T] [-p P] [--c]")
data = next(Path(os.environ["nnUNet_preprocessed"]).glob(f"Dataset{int(o.dataset):03d}_*"))
splits = json.loads((data / "splits_final.json").read_text())
assert splits[int(o.fold)]["train"] and splits[int(o.fold)]["val"]
assert (data / f"{o.p}.json").is_file() and int(os.environ["MEDSIS_EPOCHS"]) > 0
assert (Path(os.environ["nnUNet_extTrainer"]) / "trainer.py").is_file()
model = Path(os.environ["nnUNet_results"]) / data.name / f"{o.tr}__{o.p}__2d"
fold = model / f"fold_{o.fold}"
fold.mkdir(parents=True, exist_ok=True)
if o.c:
    assert (fold / "checkpoint_latest.pth").is_file()
(fold / "checkpoint_latest.pth").write_text("half")
begin()
print("2026-01-01 00:00:00: train_loss", "nan" if mode == "diverge" else -0.8)
for word in ("final", "best"):
    (fold / f"checkpoint_{word}.pth").write_text("weights")
(fold / "checkpoint_latest.pth").unlink()
for word in ("plans", "dataset"):
    (model / f"{word}.json").write_text("{}")
''',
    "nnUNetv2_predict": '''
from PIL import Image
o = options("-i I -o O -d D -c C -f F -tr T -p P -device D -chk C -npp N -nps N [--disable_tta]")
data = next(Path(os.environ["nnUNet_results"]).glob(f"Dataset{int(o.d):03d}_*"))
assert (data / f"{o.tr}__{o.p}__2d" / f"fold_{o.f}" / o.chk).is_file()
begin()
out = Path(o.o); out.mkdir(parents=True, exist_ok=True)
files = sorted(Path(o.i).glob("*_0000.png"))
assert files
for i, file in enumerate(files):
    if mode == "partial" and i == 0:
        continue
    image = np.asarray(Image.open(file), np.float64)
    unit = image / max(image.max(), 1)
    label = np.where(unit > 0.1, np.array([0, 3, 1, 2])[np.digitize(unit, [0.5, 0.8]) + 1], 0)
    Image.fromarray(label.astype(np.uint8)).save(out / file.name.replace("_0000.png", ".png"))
''',
}  # fmt: skip


def install(folder: Path, *names: str) -> Path:
    """Write the named programs (all by default) into a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or TOOLS:
        path = folder / name
        path.write_text(OPTIONS.replace("{python}", sys.executable) + HEADER + TOOLS[name])
        path.chmod(0o755)
    return folder


# Our own train.py and test.py: a GAN that knows the right picture.
FAKE_TRAIN = """
o = options("--name N --dataroot D --checkpoints_dir C --seed S --preset P --num_epochs N")
data = Path(o.dataroot)
assert (data / "manifest.json").is_file()
assert list((data / "train" / "images").glob("*.png")) and list((data / "val" / "labels").glob("*.png"))
out = Path(o.checkpoints_dir) / o.name
out.mkdir(parents=True, exist_ok=True)  # it goes on where it stopped
(out / "weights-best.safetensors").write_text("w")
"""
FAKE_TEST = """
o = options("--name N --dataroot D --results_dir R --checkpoints_dir C --phase P --metrics M --seed S --no-volumes")
assert (Path(o.checkpoints_dir) / o.name / "weights-best.safetensors").is_file()
source, out = Path(o.dataroot), Path(o.results_dir) / o.name / "best"
data = json.loads((source / "manifest.json").read_text())
for case in data["cases"]:
    assert case["split"] == o.phase
    for item in case["slices"]:
        for kind, path in (("label", item["label"]), ("generated", item["images"][0])):
            target = out / kind / Path(path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / path, target)
        item["label"] = "label/" + Path(item["label"]).name
        item["generated"] = ["generated/" + Path(item["images"][0]).name]
        item["images"] = []
(out / "manifest.json").write_text(json.dumps(data))
"""


def install_gan(folder: Path) -> Path:
    """Write the fake train.py and test.py into a folder and return it."""
    folder.mkdir()
    (folder / "train.py").write_text(OPTIONS + FAKE_TRAIN)
    (folder / "test.py").write_text(OPTIONS + FAKE_TEST)
    return folder
