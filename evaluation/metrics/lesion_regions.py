"""Images with synthetic lesions against the real ones: inside the lesions, in a rim around them, and outside.

RegionScores of the whole brain prove nothing here: a scan whose lesions were merely painted over already reaches an SSIM of
0.925 to 0.995, because lesions are small. So every region is scored by itself, beside the scan with its lesions painted
over, which is what doing nothing gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import structural_similarity

from dataloaders.io.files import write_json, write_text
from dataloaders.io.manifest import Case, Manifest
from dataloaders.io.png import as_16_bit, read_slice
from dataloaders.io.spec import LESION
from dataloaders.lesions.filling import near
from evaluation.metrics.metric import stacked
from evaluation.pairs import Item, ManifestPairs
from evaluation.statistics import finite_rows
from evaluation.tables import rows_csv

JSON_NAME, CSV_NAME = "lesion_regions.json", "lesion_regions.csv"
RIM = 3  # voxels around the lesions
RANGE_PERCENTILE = 99.9  # of the real image in the body: intensities range from the window's low end to here
PROFILE = tuple(range(-4, 7))  # voxels from the lesions' border; negative is inside, 0 does not exist
WHITE_RING = (4, 8)  # voxels around the lesions where contrast is measured against
NAMES = ("lesion", "rim", "outside")


@dataclass(frozen=True)
class RegionScores:
    """MSE in squared units, PSNR in dB and SSIM (higher is better) of one region; NaN for an empty one."""

    mse: float
    psnr: float
    ssim: float


def regions(lesion: NDArray[np.bool_], body: NDArray[np.bool_], rim: int = RIM) -> dict[str, NDArray[np.bool_]]:
    """Masks of lesion, rim (up to `rim` steps around, inside the body) and outside (the rest of the body)."""
    around = near(lesion, rim)
    return {"lesion": lesion, "rim": around & ~lesion & body, "outside": body & ~around}


def score_regions(
    real: NDArray, fake: NDArray, masks: dict[str, NDArray[np.bool_]], data_range: float
) -> dict[str, RegionScores]:
    """RegionScores of each region of two volumes (or slices) of one shape; data_range: of the intensities.

    SSIM: mean over the region of scikit-image's map with its default window, 7 voxels wide along each axis, which is
    also what the baselines in docs/lesions.md were measured with. Sides below 7 voxels are mirrored up to it.
    """
    short = [max(0, 7 - n) for n in real.shape]
    pads = [(missing // 2, missing - missing // 2) for missing in short]
    inner = tuple(slice(low, low + n) for (low, _), n in zip(pads, real.shape, strict=True))
    both = [np.pad(np.asarray(image, np.float64), pads, mode="symmetric") for image in (real, fake)]
    _, full = structural_similarity(*both, data_range=data_range, full=True)
    error = (np.asarray(fake, np.float64) - np.asarray(real, np.float64)) ** 2
    result = {}
    for name, mask in masks.items():
        if not mask.any():
            result[name] = RegionScores(math.nan, math.nan, math.nan)
            continue
        mse = float(error[mask].mean())
        psnr = math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)
        result[name] = RegionScores(mse, psnr, float(full[inner][mask].mean()))
    return result


def border_distance(lesion: NDArray[np.bool_], spacing: Sequence[float] | None = None) -> NDArray[np.float64]:
    """Distance to the lesions' border, negative inside, in voxels or with `spacing` in mm; inf where there is no lesion."""
    if not lesion.any():
        return np.full(lesion.shape, np.inf)
    inside = ndimage.distance_transform_edt(lesion, sampling=spacing)
    outside = ndimage.distance_transform_edt(~lesion, sampling=spacing)
    return np.where(lesion, -inside, outside)


def radial_profile(
    image: NDArray,
    lesion: NDArray[np.bool_],
    white: NDArray[np.bool_],
    distance: NDArray[np.float64] | None = None,
    steps: Iterable[int] = PROFILE,
) -> dict[int, float]:
    """Mean intensity over white matter's median by distance from the lesions' border: lesion inside, white matter outside.

    1 is what white matter looks like. Distances without voxels are left out; nothing is left where white matter has no
    signal to measure by. distance: of `border_distance` in voxels, which takes the most time.
    """
    clean = image[white & ~lesion]
    unit = float(np.median(clean)) if clean.size else 0.0
    if unit <= 0:
        return {}
    distance = np.rint(border_distance(lesion) if distance is None else distance)
    counted = lesion | white
    profile = {}
    for step in steps:
        here = counted & (distance == step)
        if step and here.any():
            profile[step] = float(image[here].mean()) / unit
    return profile


def contrast(
    image: NDArray,
    lesion: NDArray[np.bool_],
    white: NDArray[np.bool_],
    distance: NDArray[np.float64] | None = None,
) -> float:
    """Mean of the lesions over the mean of the white matter 4 to 8 voxels around them, minus 1; NaN without either."""
    distance = border_distance(lesion) if distance is None else distance
    ring = white & (distance >= WHITE_RING[0]) & (distance <= WHITE_RING[1])
    if not lesion.any() or not ring.any():
        return math.nan
    base = float(image[ring].mean())
    return float(image[lesion].mean()) / base - 1 if base > 0 else math.nan


# -- results folders ----------------------------------------------------------------------------------------------


def evaluate_lesion_regions(folder: Path) -> dict[str, Any] | None:
    """Region scores of a results folder of test.py, written to lesion_regions.json and .csv in it.

    None where the data have no class ``lesion``, or no case with lesions has real images.
    """
    manifest = Manifest.load(folder)
    if all(label.name != LESION for label in manifest.spec.labels):
        return None
    pairs = ManifestPairs(folder, manifest)
    rows = [row for case in manifest.cases for row in _case_rows(pairs, case)]
    if not rows:
        return None
    result = {"rim": RIM, "range_percentile": RANGE_PERCENTILE, "rows": rows}
    write_json(folder / JSON_NAME, result | {"rows": finite_rows(rows)})
    columns = ["case", "channel", "images", *(f"{key}_{name}" for name in NAMES for key in ("mse", "psnr", "ssim"))]
    write_text(folder / CSV_NAME, rows_csv(rows, [*columns, "contrast"]))
    return result


def _case_rows(pairs: ManifestPairs, case: Case) -> list[dict[str, Any]]:
    items = [*pairs.items([case.id])]
    if not items or len(items) < len(case.slices) * len(pairs.channels):
        return []
    label = np.stack([item.seen.label for item in items if item.channel == 0])
    lesion = label == pairs.spec.label_id(LESION)
    if not lesion.any():
        return []
    whites = [one.id for one in pairs.spec.labels if "white" in one.name.lower()]
    white, masks = np.isin(label, whites), regions(lesion, label > 0)
    distance = border_distance(lesion)
    rows = []
    for c, channel in enumerate(pairs.channels):
        of_channel = [item for item in items if item.channel == c]
        real, generated, body = stacked([item.seen for item in of_channel])
        data_range = float(np.percentile(real[body], RANGE_PERCENTILE)) - case.windows[c].low
        if data_range <= 0:
            continue  # a black image has no scale to be scored on
        images = {"generated": generated}
        if all(item.slice.filled for item in of_channel):
            images["no_model"] = np.stack([_filled(pairs, item) for item in of_channel])
        for what, volume in {**images, "real": real}.items():
            row: dict[str, Any] = {"case": case.id, "channel": channel.name, "images": what}
            if what != "real":
                for name, scores in score_regions(real, volume, masks, data_range).items():
                    row |= {f"{key}_{name}": value for key, value in vars(scores).items()}
            if white.any():
                row["contrast"] = contrast(volume, lesion, white, distance)
                row["profile"] = {str(k): v for k, v in radial_profile(volume, lesion, white, distance).items()}
            rows.append(row)
    return rows


def _filled(pairs: ManifestPairs, item: Item) -> NDArray:
    """The real slice with its lesions painted over, as `Item.seen` has the others."""
    path = pairs.folder / item.slice.filled[item.channel]
    levels = as_16_bit(read_slice(path, pairs.spec, image_only=True))
    return item.window.decode(levels[item.view])


def format_regions(result: dict[str, Any]) -> str:
    """A table for the console: PSNR and SSIM by region, generated images beside scans whose lesions were painted over."""
    lines = [f"{'lesion regions':34s}" + "".join(f"{f'{name} PSNR':>14s}{'SSIM':>8s}" for name in NAMES)]
    for row in result["rows"]:
        if row["images"] == "real":
            continue
        name = f"{row['case']} {row['channel']} {row['images']}"
        numbers = (f"{row[f'psnr_{n}']:14.2f}{row[f'ssim_{n}']:8.3f}" for n in NAMES)
        lines.append(f"{name:34s}" + "".join(numbers))
    return "\n".join(lines)
