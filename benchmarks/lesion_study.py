"""What synthetic lesions are worth: a small segmenter trained on real, real + synthetic and synthetic scans of one patient.

``python benchmarks/lesion_study.py --bids DIR --name RUN --train sub-19 --test sub-07 --out DIR``. As in Salem et al. 2019,
sec. III-C, one patient is all there is to train on; the run must have been trained on that patient alone. Synthetic scans:
the patient's own head without its lesions, with lesions from its own and from other patients' masks, changed and moved.
The test patient gives nothing but the test.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import RunOptions
from dataloaders.io.files import markdown_table, read_json, write_json
from dataloaders.io.geometry import resample, to_ras
from dataloaders.io.locks import lock_place
from dataloaders.io.nifti import stem, write_volume
from dataloaders.lesions.adding import add_lesions
from dataloaders.lesions.placing import Variation, place
from dataloaders.lesions.scans import Head, find_patient, load_head, read_channels, read_mask
from engine.add_lesions import AddLesionsOptions, LesionRun, profile_level
from engine.command import exit_code
from engine.trained import TrainedRun
from evaluation.metrics.lesions import match_lesions
from evaluation.statistics import student_half_width
from models.base import seeded_generator

ARMS = ("real", "real + synthetic", "synthetic")
FEATURES = (16, 16, 32, 64, 128, 16)


@dataclass(frozen=True, kw_only=True)
class StudyOptions(RunOptions):
    """Train a small 2-D U-Net on one patient's real and synthetic scans, test it on another patient."""

    bids: Path
    """BIDS folder with the patients' scans and lesion masks in derivatives, all in one space."""
    train: str
    """Patient to train on, e.g. sub-19."""
    test: str
    """Patient to test on; used for nothing else."""
    out: Path
    """Folder of study.json; an interrupted study goes on there."""
    heads: int = 8
    """Synthetic scans."""
    seeds: int = 3
    """Trainings per arm."""
    steps: int = 400
    """Steps of each training."""
    batch_size: int = 8
    """Patches per step."""
    patch: int = 64
    """Side of the patches."""
    gpu_ids: str = "auto"
    """GPU to use: a number, -1 for the CPU, auto for GPU 0 where there is one."""


@dataclass(frozen=True)
class Example:
    """One scan: image (C, D, H, W) in the model's range, lesion and brain (D, H, W)."""

    image: Tensor
    lesion: Tensor
    brain: Tensor


def head_of(o: StudyOptions, subject: str, channels: Sequence[str]) -> Head:
    """A patient with its lesions; tissue is made once and kept in the study's folder."""
    paths, mask_path = find_patient(o.bids / subject, channels, None)
    scans = read_channels(paths, channels, f"--bids {o.bids}")
    mask = read_mask(mask_path, scans[0])
    file = o.out / f"{subject}_dseg.nii.gz"
    head = load_head(scans, channels, mask, file if file.is_file() else None, None)
    if not file.is_file():
        ids = resample(head.ids, head.grid, scans[0].raw.shape, scans[0].affine, labels=True)
        write_volume(file, ids, scans[0].affine)
    return head


def example(head: Head, images: Sequence[NDArray], lesion: NDArray) -> Example:
    """A head with the given images and lesions, slices first."""
    stack = np.stack([head.model(c, image) for c, image in enumerate(images)])
    stack = np.where(head.brain, stack, -1).clip(-1, 1.5)
    return Example(
        torch.from_numpy(stack.astype(np.float32)).permute(0, 3, 2, 1).contiguous(),
        torch.from_numpy(lesion).permute(2, 1, 0).contiguous(),
        torch.from_numpy(head.brain).permute(2, 1, 0).contiguous(),
    )


def synthetic(o: StudyOptions, head: Head, run: LesionRun, number: int) -> Example:
    """Scan `number`: every other one has the patient's own lesions, the others those of another patient's mask, varied."""
    usual = AddLesionsOptions(name="", input=(), output=Path(), vary=True, seed=number).variation()
    others = sorted(
        p for p in o.bids.glob("derivatives/**/*lesion*.nii.gz") if stem(p).partition("_")[0] not in (o.train, o.test)
    )
    scan = read_channels(find_patient(o.bids / o.train, head.channels, None)[0], head.channels, "--train")[0]
    if number % 2 == 0 or not others:
        mask, level = head.lesion, head.level
        rng = np.random.default_rng((number, 3))
        load = float(np.exp(rng.uniform(math.log(3), math.log(30))))  # few and many
        usual = Variation(load_ml=load, scale=usual.scale, mirror=0.5, elastic=1, shift=4, seed=number)
    else:
        path = others[(number // 2) % len(others)]
        mask = to_ras(read_mask(path, scan), scan.affine)[0]
        level = profile_level(mask, run.profile, number)
    placed = place(mask, level, head.room, head.brain, head.spacing, usual)
    images = add_lesions(run.method, run.how, head, placed, number, run.device)
    return example(head, images, placed.mask)


def train_segmenter(o: StudyOptions, examples: Sequence[Example], key: object, device: torch.device) -> BasicUNet:
    """A 2-D U-Net by Dice + cross-entropy on random patches, a third of them around lesions, mirrored at random.

    Contrast and brightness of each channel vary, because the scans of two patients differ in them.
    """
    rng = seeded_generator("lesion study", o.train, *([key] if isinstance(key, str) else key))  # type: ignore[misc]
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
        net = BasicUNet(2, examples[0].image.shape[0], 2, FEATURES, dropout=0.0).to(device)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, o.steps)
    places = [(e.lesion.nonzero(), e.brain.nonzero()) for e in examples]
    for _ in range(o.steps):
        parts = [_patch(examples, places, o.patch, rng) for _ in range(o.batch_size)]
        images, labels = (torch.stack(part).to(device) for part in zip(*parts, strict=True))
        loss = loss_of(net(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def _patch(
    examples: Sequence[Example], places: Sequence[tuple[Tensor, Tensor]], size: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=rng))

    i = draw(len(examples))
    points = places[i][min(draw(3), 1)]
    z, y, x = points[draw(len(points))].tolist()
    e = examples[i]
    rows, columns = e.lesion.shape[1:]
    top, left = (min(max(p - size // 4 - draw(size // 2), 0), max(n - size, 0)) for p, n in ((y, rows), (x, columns)))
    part = (slice(top, top + size), slice(left, left + size))
    image, lesion = e.image[:, z][(slice(None), *part)], e.lesion[z][part][None].float()
    scale, power = (0.85 + 0.3 * torch.rand((image.shape[0], 1, 1), generator=rng) for _ in range(2))
    image = scale * 0.8 * ((image + 1) / 0.8).clamp_min(0) ** power - 1  # white matter stays at 0.8 but for the scale
    return (image.flip(-1), lesion.flip(-1)) if draw(2) else (image, lesion)


@torch.no_grad()
def test_segmenter(net: BasicUNet, target: Example, device: torch.device) -> dict[str, float]:
    """Voxel Dice, sensitivity and precision, and those by lesion (26-connected, one shared voxel is a match)."""
    found = torch.zeros_like(target.lesion)
    height, width = target.lesion.shape[1:]
    pad = (0, -width % 16, 0, -height % 16)
    for z in range(len(found)):
        if target.brain[z].any():
            image = torch.nn.functional.pad(target.image[:, z][None].to(device), pad, value=-1.0)
            found[z] = net(image)[0, :, :height, :width].argmax(0).cpu().bool()
    found &= target.brain
    truth, pred = target.lesion.numpy(), found.numpy()
    both = int((truth & pred).sum())
    lesions = match_lesions(truth, pred)
    scores = {
        "dice": 2 * both / max(int(truth.sum()) + int(pred.sum()), 1),
        "sensitivity": both / max(int(truth.sum()), 1),
        "precision": both / int(pred.sum()) if pred.any() else 0.0,
        "lesion_sensitivity": lesions.recall,
        "lesion_precision": lesions.precision if lesions.pred else 0.0,
        "lesion_f1": lesions.f1,
    }
    return {name: float(value) for name, value in scores.items()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of Student's 95 % interval over trainings; NaN for a single one, which has none."""
    return float(np.mean(values)), student_half_width(np.asarray(values)) if len(values) > 1 else math.nan


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: an arm a row, mean ± half the interval where there are two trainings or more."""
    metrics = list(next(iter(runs.values()))[0])
    lines = []
    for arm, results in runs.items():
        cells = [interval([result[metric] for result in results]) for metric in metrics]
        lines.append([arm, *(f"{mean:.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}") for mean, half in cells)])
    return markdown_table(["trained on", *metrics], lines)


def study(o: StudyOptions) -> str:
    """All trainings; every finished one is written at once and not repeated."""
    o.out.mkdir(parents=True, exist_ok=True)
    run = LesionRun.of(TrainedRun.load(o.checkpoints_dir, o.name, o.ckpt_iter), o.gpu_ids)
    channels = [channel.name for channel in run.run.spec.channels]
    mine, other = head_of(o, o.train, channels), head_of(o, o.test, channels)
    real, target = example(mine, mine.images, mine.lesion), example(other, other.images, other.lesion)
    made = [synthetic(o, mine, run, number) for number in range(o.heads)]
    print(f"{len(made)} synthetic scans, {', '.join(f'{int(e.lesion.sum()) / 1000:.3g}' for e in made)} ml", flush=True)
    # In "real + synthetic" the real scan counts as much as all synthetic ones.
    sets = {"real": [real], "real + synthetic": [real] * len(made) + made, "synthetic": made}
    path = o.out / "study.json"
    settings = {
        key: str(value)
        for key, value in vars(o).items()
        if key not in ("out", "bids", "seeds", "gpu_ids", "checkpoints_dir")
    }
    done: dict[str, Any] = read_json(path) if path.is_file() else {"settings": settings, "runs": {}}
    if done["settings"] != settings:
        raise ValueError(f"--out {o.out}: holds a study with other settings; choose another folder")
    for seed in range(o.seeds):
        for arm in ARMS:
            results = done["runs"].setdefault(arm, [])
            if len(results) > seed:
                continue
            net = train_segmenter(o, sets[arm], (arm, seed), run.device)
            results.append(test_segmenter(net, target, run.device))
            write_json(path, done)
            print(arm, seed, json.dumps({k: round(v, 3) for k, v in results[-1].items()}), flush=True)
    return table(done["runs"])


def main() -> int:
    """Command line."""
    options = tyro.cli(StudyOptions, description=StudyOptions.__doc__)
    with lock_place(options.out):
        print(study(options))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
