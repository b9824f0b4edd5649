"""A patient's lesions filled and painted again, scored against the real ones and shown.

``python benchmarks/lesion_figures.py --bids DIR --name RUN --patient sub-07 --out DIR``. The run must not have seen the
patient. With ``--donor sub-19`` that patient's lesions are carried over instead, where there is nothing to score against.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lesion_study import StudyOptions, head_of
from config import RunOptions
from dataloaders.io.files import atomic_path, write_json
from dataloaders.io.geometry import plane
from dataloaders.io.nifti import Volume
from dataloaders.io.pictures import titled
from dataloaders.lesions.adding import add_lesions, without_own_lesions
from dataloaders.lesions.placing import Placed, Variation, place
from dataloaders.lesions.scans import Head
from dataloaders.registration import register
from engine.add_lesions import LesionRun, profile_level
from engine.command import exit_code
from engine.trained import TrainedRun
from evaluation.metrics.lesion_regions import (
    RANGE_PERCENTILE,
    border_distance,
    contrast,
    radial_profile,
    regions,
    score_regions,
)

TILE, GAP = 192, 4
ROWS = 3


@dataclass(frozen=True, kw_only=True)
class FigureOptions(RunOptions):
    """Fill a patient's lesions, paint them again, score and show the result."""

    bids: Path
    """BIDS folder with the patients' scans and lesion masks in derivatives."""
    patient: str
    """Patient whose scan is painted on, e.g. sub-07."""
    out: Path
    """Folder of figure.png and figure.json; tissue maps are kept there too."""
    donor: str = ""
    """Patient whose lesions are carried over; by default the patient's own are painted again."""
    mask_only: bool = False
    """Use the mask alone, with the brightness that lesions had in training."""
    radius: int = 24
    """Half the side of each tile in voxels."""
    gpu_ids: str = "auto"
    """GPU to use: a number, -1 for the CPU, auto for GPU 0 where there is one."""


def painted(o: FigureOptions, run: LesionRun, head: Head, donor: Head | None) -> tuple[Placed, list[NDArray]]:
    """The lesions and the images with them."""
    mask, level = head.lesion, head.level
    if donor is not None:
        anatomy = head.channels.index("T1w") if "T1w" in head.channels else 0
        fixed = Volume(np.where(head.brain, head.images[anatomy], 0), head.grid)
        moving = Volume(np.where(donor.brain, donor.images[anatomy], 0), donor.grid)
        transform = register(fixed, moving)
        mask = transform.carry(donor.lesion.astype(np.float32), donor.grid) > 0.5
        level = transform.carry(donor.level + 1, donor.grid) - 1
    if o.mask_only:
        level = profile_level(mask, run.profile, 0)
    placed = Placed(mask, level)
    if donor is not None:
        placed = place(mask, level, head.room, head.brain, head.spacing, Variation())
    return placed, add_lesions(run.method, run.how, head, placed, 0, run.device)


def scores(head: Head, before: Sequence[NDArray], after: Sequence[NDArray]) -> dict[str, Any]:
    """Region scores of painted and merely filled images by channel, with profiles and contrasts of all three."""
    masks, distance = regions(head.lesion, head.brain), border_distance(head.lesion)
    result = {}
    for c, channel in enumerate(head.channels):
        real = head.images[c]
        data_range = float(np.percentile(real[head.brain], RANGE_PERCENTILE))
        rows: dict[str, Any] = {}
        for name, image in (("painted", after[c]), ("no_model", before[c]), ("real", real)):
            rows[name] = {
                "contrast": contrast(image, head.lesion, head.tissue.white, distance),
                "profile": radial_profile(image, head.lesion, head.tissue.white, distance),
            }
            if name != "real":
                found = score_regions(real, image, masks, data_range)
                rows[name] |= {
                    region: {k: round(v, 4) for k, v in vars(s).items() if np.isfinite(v)}
                    for region, s in found.items()
                }
        result[channel] = rows
    return result


def spots(mask: NDArray[np.bool_], count: int, apart: int) -> list[tuple[int, int, int]]:
    """Centres of the largest lesions that lie `apart` from each other."""
    labelled, number = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(labelled.ravel())[1:]
    chosen: list[tuple[int, int, int]] = []
    for i in np.argsort(sizes)[::-1]:
        places = np.argwhere(labelled == i + 1)
        z = int(np.bincount(places[:, 2]).argmax())  # the slice that shows most of it
        x, y = places[places[:, 2] == z][:, :2].mean(0).round().astype(int)
        if all(max(abs(x - a), abs(y - b), abs(z - c)) > apart for a, b, c in chosen):
            chosen.append((int(x), int(y), z))
        if len(chosen) == count or number == len(chosen):
            break
    return chosen


@dataclass(frozen=True)
class Column:
    """Images (I, J, K) per channel under one title, shown around `places`, a place a row; white is `high` per channel."""

    title: str
    images: Sequence[NDArray]
    places: Sequence[tuple[int, int, int]]
    high: Sequence[float]


def columns(
    o: FigureOptions, head: Head, donor: Head | None, placed: Placed, before: list, after: list
) -> list[Column]:
    """Filled, mask, painted, and the real lesions: the patient's in the same places, or a donor's largest ones."""
    places = spots(placed.mask, ROWS, o.radius)
    high = [brightest(image, head.brain) for image in head.images]
    mask = [placed.mask.astype(np.float32)] * len(head.channels)
    shown = [
        Column("lesions filled", before, places, high),
        Column("mask", mask, places, [1.0] * len(high)),
        Column("painted", after, places, high),
    ]
    if donor is None:
        return [*shown, Column("real", head.images, places, high)]
    own, bright = spots(donor.lesion, ROWS, o.radius), [brightest(image, donor.brain) for image in donor.images]
    return [*shown, Column(f"real lesions of {o.donor}", donor.images, own, bright)]


def picture(shown: Sequence[Column], radius: int) -> Image.Image:
    """Rows: lesions, each channel; axial tiles."""
    rows = []
    for row in range(min(len(column.places) for column in shown)):
        for c in range(len(shown[0].images)):
            tiles = [
                _tile(
                    plane(column.images[c], "axial", column.places[row][2]),
                    *column.places[row][:2],
                    radius,
                    column.high[c],
                )
                for column in shown
            ]
            rows.append(np.concatenate([np.pad(tile, ((0, GAP), (0, GAP))) for tile in tiles], 1))
    canvas = np.repeat(np.concatenate(rows)[..., None], 3, axis=-1)
    return Image.fromarray(titled(canvas, [column.title for column in shown]))


def brightest(image: NDArray, brain: NDArray[np.bool_]) -> float:
    """Intensity that is shown as white."""
    return float(np.percentile(image[brain], 99.8))


def _tile(shown: NDArray, x: int, y: int, radius: int, high: float) -> NDArray[np.uint8]:
    """A square of a displayed axial plane (rows front to back, columns right to left) around voxel (x, y)."""
    row, column = shown.shape[0] - 1 - y, shown.shape[1] - 1 - x
    padded = np.pad(shown, radius)
    part = padded[row : row + 2 * radius, column : column + 2 * radius]
    grey = (np.clip(part / high, 0, 1) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize((TILE, TILE), Image.Resampling.NEAREST))


def figure(o: FigureOptions) -> str:
    """Everything; returns the lines to print."""
    o.out.mkdir(parents=True, exist_ok=True)
    run = LesionRun.of(TrainedRun.load(o.checkpoints_dir, o.name, o.ckpt_iter), o.gpu_ids)
    channels = [channel.name for channel in run.run.spec.channels]
    study = StudyOptions(bids=o.bids, name=o.name, train=o.patient, test=o.patient, out=o.out)
    head = head_of(study, o.patient, channels)
    donor = head_of(study, o.donor, channels) if o.donor else None
    placed, after = painted(o, run, head, donor)
    before = without_own_lesions(head, 0)
    image = picture(columns(o, head, donor, placed, before, after), o.radius)
    with atomic_path(o.out / "figure.png") as temporary:
        image.save(temporary, optimize=True)
    if donor is not None:
        return f"{o.out}/figure.png: {int(placed.mask.sum())} voxels of lesions, {placed.left_out} lesions did not fit"
    result = scores(head, before, after)
    write_json(o.out / "figure.json", result)
    lines = []
    for channel, rows in result.items():
        for name in ("painted", "no_model"):
            regions_ = ", ".join(
                f"{region} {rows[name][region].get('psnr', float('inf')):.2f} dB SSIM {rows[name][region]['ssim']:.3f}"
                for region in ("lesion", "rim", "outside")
            )
            lines.append(
                f"{channel} {name}: {regions_}; contrast {rows[name]['contrast']:.3f} (real {rows['real']['contrast']:.3f})"
            )
    return "\n".join(lines)


def main() -> int:
    """Command line."""
    print(figure(tyro.cli(FigureOptions, description=FigureOptions.__doc__)))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
