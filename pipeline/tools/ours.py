"""Tools with code of ours: BET on a grid that it can work with, and the segmenters that come with medsis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.io.files import package_version
from dataloaders.io.geometry import regrid, resample, spacing
from dataloaders.io.nifti import Volume, read_volume, write_volume
from dataloaders.prepare.atlas import atlas_tissue
from dataloaders.prepare.tissue import TissueError, ellipsoid, hmrf_tissue, largest_component
from pipeline.programs import ToolFailed
from pipeline.tools.base import Tool, ToolCall

GRID_MM = 2.0
PAD_MM = 30.0  # the surface may leave the head, and brainextractor reads beyond the image without looking
OPENING_MM, GROWTH_MM, CLOSING_MM = 3.0, 4.0, 8.0
BRIGHTNESS = (0.45, 1.45)  # of white matter on T1w: below is skull and air, above is fat
# By name: CSF 1, grey 2, white matter 3 of a scan whose voxels that are not 0 are brain. TissueError where there are none.
CLASSIFIERS: dict[str, Callable[[Volume], NDArray[np.uint8]]] = {
    "hmrf": lambda brain: hmrf_tissue(brain.data, brain.data > 0),
    "atlas": lambda brain: atlas_tissue(brain.data, brain.affine, brain.data > 0),
}


class Bet(Tool):
    """BET (Smith 2002) as brainextractor does it in Python, its mask trimmed.

    brainextractor reads voxels as if they were cubes and reaches beyond the image: with clinical grids it stops or
    crashes. So it gets the head at 2 mm with air around, and the mask comes back to the scan's grid.
    """

    def run(self, call: ToolCall) -> tuple[Path, dict[str, str]]:
        """Head to 2 mm, BET, mask back, trimmed."""
        head = read_volume(call.image)
        iso = padded_grid(head, GRID_MM, PAD_MM)
        write_volume(call.folder / "head_2mm.nii.gz", np.maximum(iso.data, 0).astype(np.float32), iso.affine)
        output, about = super().run(call)
        small = read_volume(output)
        share = resample(small.data.astype(np.float32), small.affine, head.data.shape, head.affine)
        mask = share > 0.5
        if call.settings["trim"] and mask.any():
            mask = trim(head.data, mask, spacing(head.affine))
        path = call.folder / "mask.nii.gz"
        write_volume(path, mask.astype(np.uint8), head.affine)
        return path, about


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


class BuiltIn(Tool):
    """A segmenter of `CLASSIFIERS`, which needs no program."""

    def find(self) -> str | None:
        """The package."""
        return self.package if package_version(self.package) else None

    def run(self, call: ToolCall) -> tuple[Path, dict[str, str]]:
        """In this process, on one thread."""
        brain = read_volume(call.image)
        try:
            labels = CLASSIFIERS[self.name](brain)
        except TissueError as error:
            raise ToolFailed(str(error)) from None
        write_volume(call.folder / self.output, labels, brain.affine)
        return call.folder / self.output, self.about(self.located(call.settings))
