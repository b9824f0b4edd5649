"""Pictures of the report: masks and tissue maps on slices, colours of tissues."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from dataloaders.io.geometry import plane, plane_spacing
from dataloaders.io.nifti import Volume
from pipeline.tissue import TISSUES

COLORS = {"GM": "#d1495b", "WM": "#f2f2ee", "CSF": "#30638e"}
OUTLINE = (255, 196, 0)
SHOWN = (0.3, 0.5, 0.7)  # heights within the brain
PIXELS_PER_MM = 1.0


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


PALETTE = np.array([(0, 0, 0), *(_rgb(COLORS[name]) for name in TISSUES)], np.uint8)


def heights(brain: NDArray[np.bool_]) -> list[int]:
    """Slices at fixed shares of the brain's height; of an empty mask the middle."""
    filled = np.flatnonzero(brain.any((0, 1)))
    if not len(filled):
        return [brain.shape[2] // 2]
    return [int(filled[round(share * (len(filled) - 1))]) for share in SHOWN]


def scan_strip(image: Volume, mask: NDArray[np.bool_], at: list[int]) -> bytes:
    """Axial slices and a sagittal one of a head, with the outline of its brain mask: a PNG."""
    inside = image.data[mask] if mask.any() else image.data
    high = max(float(np.percentile(inside, 99.5)) * 1.15, 1e-6)
    views = [("axial", z) for z in at] + [("sagittal", _middle(mask))]
    tiles = []
    for axis, index in views:
        grey = np.clip(plane(image.data, axis, index) / high, 0, 1) * 255  # type: ignore[arg-type]
        rgb = np.repeat(grey[..., None], 3, -1).astype(np.uint8)
        inside = plane(mask, axis, index)  # type: ignore[arg-type]
        _, rows, columns = plane_spacing(image.affine, axis)  # type: ignore[arg-type]
        tiles.append(_sized(rgb, rows, columns, smooth=True))
        shown = _sized((inside * 255).astype(np.uint8), rows, columns, smooth=False) > 127
        tiles[-1][shown & ~ndimage.binary_erosion(shown)] = OUTLINE
    return _png(tiles)


def tissue_strip(tissue: NDArray[np.uint8], affine: NDArray, at: list[int]) -> bytes:
    """The same slices of a tissue map, in the colours of `COLORS`: a PNG."""
    tiles = []
    for axis, index in [("axial", z) for z in at] + [("sagittal", _middle(tissue > 0))]:
        _, rows, columns = plane_spacing(affine, axis)  # type: ignore[arg-type]
        tiles.append(_sized(PALETTE[plane(tissue, axis, index)], rows, columns, smooth=False))  # type: ignore[arg-type]
    return _png(tiles)


def pair_tile(image: NDArray, label: NDArray[np.uint8]) -> bytes:
    """A slice and its labels side by side: a PNG."""
    grey = np.clip(image / max(float(image.max()), 1e-6), 0, 1) * 255
    return _png([np.repeat(grey[..., None], 3, -1).astype(np.uint8), PALETTE[label]])


def _middle(mask: NDArray[np.bool_]) -> int:
    filled = np.flatnonzero(mask.any((1, 2)))
    return int(filled[len(filled) // 2]) if len(filled) else mask.shape[0] // 2


def _sized(pixels: NDArray[np.uint8], rows: float, columns: float, smooth: bool) -> NDArray[np.uint8]:
    """Enlarged so that a millimetre has `PIXELS_PER_MM` pixels both ways: thick slices look as they are."""
    size = (
        max(1, round(pixels.shape[1] * columns * PIXELS_PER_MM)),
        max(1, round(pixels.shape[0] * rows * PIXELS_PER_MM)),
    )
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.array(Image.fromarray(pixels).resize(size, how))


def _png(tiles: list[NDArray[np.uint8]]) -> bytes:
    height = max(tile.shape[0] for tile in tiles)
    padded = [
        np.pad(t, [((height - t.shape[0]) // 2, height - t.shape[0] - (height - t.shape[0]) // 2), (1, 1), (0, 0)])
        for t in tiles
    ]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(padded, 1)).quantize(128).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
