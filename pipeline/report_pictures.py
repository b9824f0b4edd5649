"""Pictures of a study's report: brain masks, tissue maps and predictions of every scan, synthetic slices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.io.geometry import Axis, plane, plane_spacing
from dataloaders.io.manifest import Manifest
from dataloaders.io.nifti import Volume
from dataloaders.io.pictures import hex_color, resized, tile_grid, to_grey, webp
from dataloaders.io.png import read_png
from evaluation.report.kit import Key
from pipeline.context import Context
from pipeline.tissue import TISSUES

PALETTE = np.array([(0, 0, 0), (209, 73, 91), (242, 242, 238), (48, 99, 142)], np.uint8)  # background, TISSUES
OUTLINE = (255, 196, 0)
KEYS = [*(Key(hex_color(rgb), name) for rgb, name in zip(PALETTE[1:], TISSUES, strict=True))]
KEYS.append(Key(hex_color(OUTLINE), "brain mask"))
SHOWN = (0.3, 0.5, 0.7)  # heights within the brain
SAMPLES = 3  # of a combination
Tile = tuple[str, bytes]  # caption, WebP


def predictions(context: Context) -> dict[str, list[Tile]]:
    """Of every test scan: the slices that networks saw, the reference, and what each network made of them."""
    networks = context.done(context.of("predict"))
    found = {}
    for case in sorted(case.id for case in context.cases.values() if case.split == "test"):
        shown = {
            f"network trained on {name.split('/')[1]}": context.volume(name, output)
            for name in networks
            for output in context.records[name].outputs
            if output.startswith("slices/") and output.endswith(f"/{case}")
        }
        if not shown:
            continue
        brain = next(iter(shown.values())).data > 0
        if context.done([f"reference/{case}"]):
            shown = {"reference": context.volume(f"reference/{case}", "reference"), **shown}
        at = heights(brain)
        scan = ("scan", scan_strip(context.volume(f"harmonise/{case}", "image"), brain, at))
        found[case] = [scan, *((caption, tissue_strip(volume, at)) for caption, volume in shown.items())]
    return found


def case_pictures(context: Context) -> dict[str, list[Tile]]:
    """Of every scan: its brain masks and tissue maps."""
    found = {case: _tiles(context, case) for case in sorted(context.cases) if context.done([f"harmonise/{case}"])}
    return {case: tiles for case, tiles in found.items() if tiles}


def _tiles(context: Context, case: str) -> list[Tile]:
    image = context.volume(f"harmonise/{case}", "image")
    tiles = []
    at: list[int] | None = None
    for name, record in context.of("strip", case).items():
        if "mask" in record.outputs:
            mask = context.volume(name, "mask").data > 0
            at = at or heights(mask)
            given = " (given)" if record.tool.get("name") == "given" else ""
            caption = f"{name.split('/')[1]}{given}, {record.facts['litres']:.2f} l"
            tiles.append((caption, scan_strip(image, mask, at)))
    for name, record in context.of("tissue", case).items():
        if "tissue" in record.outputs:
            found = context.volume(name, "tissue")
            at = at or heights(found.data > 0)
            caption = name.split("/")[1] + ("" if record.state == "done" else f": {record.reason}")
            tiles.append((caption, tissue_strip(found, at)))
    return tiles


def samples(context: Context) -> list[Tile]:
    """The first synthetic slices of every combination."""
    units: dict[str, list[str]] = {}
    for name in context.done([*context.of("paint"), *context.of("synthesise")]):
        units.setdefault(name.split("/")[1], []).append(name)
    tiles = []
    for combination, names in units.items():
        for name in names[:SAMPLES]:
            case = Manifest.load(context.home(name)).cases[0]
            image, label = (read_png(context.home(name) / p) for p in (case.slices[0].images[0], case.slices[0].label))
            pair = [to_grey(image, 0, max(float(image.max()), 1e-6)), PALETTE[label]]
            tiles.append((f"{combination}, from {case.id}", webp(tile_grid([pair]), exact=True)))
    return tiles


def heights(brain: NDArray[np.bool_]) -> list[int]:
    """Slices at fixed shares of the brain's height; of an empty mask the middle."""
    filled = np.flatnonzero(brain.any((0, 1)))
    if not len(filled):
        return [brain.shape[2] // 2]
    return [int(filled[round(share * (len(filled) - 1))]) for share in SHOWN]


def scan_strip(image: Volume, mask: NDArray[np.bool_], at: list[int]) -> bytes:
    """Axial slices and a sagittal one of a head, with the outline of its brain mask."""
    inside = image.data[mask] if mask.any() else image.data
    high = max(float(np.percentile(inside, 99.5)) * 1.15, 1e-6)
    tiles = []
    for axis, index in _views(mask, at):
        tile = _in_mm(to_grey(plane(image.data, axis, index), 0, high), image.affine, axis, smooth=True).copy()
        brain = _in_mm(plane(mask, axis, index).astype(np.uint8), image.affine, axis) > 0
        tile[brain & ~ndimage.binary_erosion(brain)] = OUTLINE
        tiles.append(tile)
    return webp(tile_grid([tiles]), exact=True)


def tissue_strip(tissue: Volume, at: list[int]) -> bytes:
    """The same slices of a tissue map."""
    views = _views(tissue.data > 0, at)
    tiles = [_in_mm(PALETTE[plane(tissue.data, axis, index)], tissue.affine, axis) for axis, index in views]
    return webp(tile_grid([tiles]), exact=True)


def _views(mask: NDArray[np.bool_], at: list[int]) -> list[tuple[Axis, int]]:
    filled = np.flatnonzero(mask.any((1, 2)))
    middle = int(filled[len(filled) // 2]) if len(filled) else mask.shape[0] // 2
    return [*(("axial", z) for z in at), ("sagittal", middle)]


def _in_mm(pixels: NDArray[Any], affine: NDArray, axis: Axis, smooth: bool = False) -> NDArray[Any]:
    """With a pixel a millimetre both ways: thick slices look as they are."""
    _, rows, columns = plane_spacing(affine, axis)
    return resized(pixels, pixels.shape[0] * rows, pixels.shape[1] * columns, smooth)
