"""BET (Smith 2002) as brainextractor does it in Python, on a grid that it can work with, its mask trimmed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.io.geometry import regrid, resample, spacing
from dataloaders.io.nifti import Volume, read_volume, write_volume
from dataloaders.prepare.cleaning import ellipsoid, largest_component
from pipeline.tools.base import ExternalTool, Job, Outcome, package_version

GRID_MM = 2.0
PAD_MM = 30.0  # the surface may leave the head, and brainextractor reads beyond the image without looking
OPENING_MM, GROWTH_MM, CLOSING_MM = 3.0, 4.0, 8.0
BRIGHTNESS = (0.45, 1.45)  # of white matter on T1w: below is skull and air, above is fat


class Bet(ExternalTool):
    """brainextractor reads voxels as if they were cubes and reaches beyond the image: with clinical grids it stops or
    crashes. So it gets the head at 2 mm with air around, and the mask comes back to the scan's grid.
    """

    name = "bet"
    kind = "strip"
    programs = ("brainextractor",)
    licence = "MIT"
    citation = "Smith, Hum. Brain Mapp. 2002, doi 10.1002/hbm.10062; brainextractor by A. Van"
    get = "pip install numba trimesh && pip install --no-deps brainextractor==0.3.0 (its viewer is not needed)"
    settings: ClassVar[dict[str, Any]] = {"fraction": 0.65, "iterations": 1000, "trim": True}

    def check(self, settings: Mapping[str, Any], where: str) -> None:
        """Ranges of the two numbers."""
        if not 0 < settings["fraction"] < 1:
            raise ValueError(f"{where} fraction = {settings['fraction']}: must lie between 0 and 1")
        if settings["iterations"] < 1:
            raise ValueError(f"{where} iterations = {settings['iterations']}: must be at least 1")

    def version(self, found: Path | str) -> str:
        """Of the package."""
        return package_version("brainextractor") or "unknown"

    def command(self, found: Path, job: Job) -> list[str | Path]:
        """``brainextractor in out -f fraction -n iterations``."""
        o = job.settings
        words = ["-f", f"{o['fraction']:g}", "-n", str(o["iterations"])]
        return [found, job.folder / "head_2mm.nii.gz", self.output(job), *words]

    def output(self, job: Job) -> Path:
        """The mask at 2 mm."""
        return job.folder / "mask_2mm.nii.gz"

    def run(self, job: Job) -> Outcome:
        """Head to 2 mm, BET, mask back, trimmed."""
        self.located(job.settings)
        head = read_volume(job.image)
        iso = padded_grid(head, GRID_MM, PAD_MM)
        write_volume(job.folder / "head_2mm.nii.gz", np.maximum(iso.data, 0).astype(np.float32), iso.affine)
        outcome = super().run(job)
        small = read_volume(outcome.output)
        share = resample(small.data.astype(np.float32), small.affine, head.data.shape, head.affine)
        mask = share > 0.5
        if job.settings["trim"] and mask.any():
            mask = trim(head.data, mask, spacing(head.affine))
        path = job.folder / "mask.nii.gz"
        write_volume(path, mask.astype(np.uint8), head.affine)
        return Outcome(path, outcome.version, outcome.program, outcome.seconds)


def padded_grid(volume: Volume, mm: float, pad_mm: float) -> Volume:
    """The volume on cubes of `mm`, with `pad_mm` of zeros on every side."""
    shape, affine = regrid(volume.data.shape, volume.affine, (mm, mm, mm))
    pad = round(pad_mm / mm)
    affine = affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, float(pad))
    shape = tuple(n + 2 * pad for n in shape)
    return Volume(resample(volume.data, volume.affine, shape, affine), affine)


def trim(image: NDArray, mask: NDArray[np.bool_], mm: NDArray) -> NDArray[np.bool_]:
    """The mask without scalp and orbit that BET took along: what an opening by 3 mm separates from the brain.

    Voxels of brain brightness are opened, the largest part is grown by 4 mm, closed by 8 mm for sulci and ventricles,
    and never leaves the mask.
    """
    white = np.percentile(image[mask], 75)
    bright = mask & (image > BRIGHTNESS[0] * white) & (image < BRIGHTNESS[1] * white)
    if not bright.any():
        return mask
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    radii = [np.ceil(r / mm).astype(int) for r in (OPENING_MM, GROWTH_MM, CLOSING_MM)]
    # Where the field of view cuts the brain, the edge is no border of it.
    margin = [(int(r), int(r)) for r in radii[2]]
    core = largest_component(ndimage.binary_opening(np.pad(bright[box], margin, mode="edge"), ellipsoid(radii[0])))
    grown = ndimage.binary_dilation(core, ellipsoid(radii[1]))
    closed = ndimage.binary_closing(grown, ellipsoid(radii[2]))
    inner = tuple(slice(low, -high) for low, high in margin)
    out = np.zeros_like(mask)
    out[box] = ndimage.binary_fill_holes(closed[inner] & mask[box])
    return largest_component(out)
