"""One picture of many random samples: look at what a network would be trained on before training it.

python scripts/contact_sheet.py --labels maps/ --out sheet.png --preset synthseg
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries

from dataloaders.io.geometry import PLANES, plane
from dataloaders.io.nifti import stem
from dataloaders.io.pictures import label_colors, resized, save_picture, tile_grid, titled, to_grey
from dataloaders.io.schema import AtLeast1, Must, check, options_of
from dataloaders.labelmaps.image_generator import ImageGenerator
from dataloaders.labelmaps.schemes import output_labels
from engine.command import exit_code
from models.gmm.options import GmmPreset

GAP = 6  # pixels around a sample
WIDTH = 320  # pixels that a sample has at least, for its caption


@dataclass(frozen=True)
class Options:
    """Contact sheet of synthetic images."""

    labels: Path
    """Label map, folder of them, or .txt list."""
    out: Annotated[Path, Must("a file ending in .png", lambda path: path.suffix == ".png")]
    """PNG file to write."""
    preset: GmmPreset = "synthseg"
    """Kind of synthesis."""
    n: AtLeast1 = 24
    """Number of samples."""
    columns: AtLeast1 = 6
    """Samples per row."""
    size: tuple[int, ...] = ()
    """Crop to this many voxels; by default whole maps."""
    seed: int = 0
    """Seed of the samples."""
    borders: bool = False
    """Also draw the outlines of the labels in the colours of their table, to see that they lie on the image's."""


def draw(generator: ImageGenerator, options: Options) -> None:
    """Make the samples one by one and draw them."""
    tiles = [_sample(generator, number, options.borders) for number in range(options.n)]
    tiles += [np.zeros_like(tiles[0])] * (-options.n % options.columns)
    rows = [tiles[i : i + options.columns] for i in range(0, len(tiles), options.columns)]
    save_picture(options.out, tile_grid(rows))


def _sample(generator: ImageGenerator, number: int, borders: bool) -> NDArray[np.uint8]:
    """The first channel, planes side by side, in pixels as wide as high, below its caption, (H, W, 3)."""
    image, labels = generator.tensors(number)
    mm = generator.params(number)[1].out_spacing
    planes = [to_grey(shown, 0, 1) for shown in square_planes(image[0].cpu().numpy(), mm)]
    if borders:
        classes = output_labels(generator.scheme)
        ids = np.searchsorted([label.source[0] for label in classes], labels.cpu().numpy()).astype(np.float32)
        own = [shown.astype(np.intp) for shown in square_planes(ids, mm)]
        planes = [outlined(*pair, label_colors(classes)) for pair in zip(planes, own, strict=True)]
    grid = tile_grid([planes])
    zoom = -(-WIDTH // grid.shape[1])
    pixels = np.pad(grid.repeat(zoom, 0).repeat(zoom, 1), ((0, GAP), (GAP, GAP), (0, 0)))
    return titled(pixels, [_caption(generator, number)])


def outlined(image: NDArray[np.uint8], ids: NDArray[np.intp], colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image (H, W, 3) with the outermost pixels of every label of `ids` (H, W) but 0 in the label's colour (N, 3)."""
    border = find_boundaries(np.pad(ids, 1), mode="inner")[1:-1, 1:-1]
    return np.where(border[..., None], colors[ids], image)


def square_planes(volume: NDArray[np.float32], mm: Sequence[float]) -> list[NDArray]:
    """Middle planes of a RAS volume as displayed, axial, coronal, sagittal; a slice as it is. mm: (ndim).

    Pixels are repeated so that each is as wide and high as the smallest side of a voxel.
    """
    shown = [
        (plane(volume, axis, volume.shape[across] // 2), mm[rows], mm[columns])
        for axis, (across, rows, columns) in (PLANES.items() if volume.ndim == 3 else ())
    ] or [(volume.T[::-1], mm[1], mm[0])]
    small = min(mm)
    return [resized(p, p.shape[0] * high / small, p.shape[1] * wide / small, smooth=False) for p, high, wide in shown]


def _caption(generator: ImageGenerator, number: int) -> str:
    _, params = generator.params(number)
    mm = [c * s / n for c, s, n in zip(params.crop_shape, params.spacing, params.low_shape[0], strict=True)]
    facts = [" x ".join(f"{x:.1f}" for x in mm) + " mm", *(type(a).__name__ for a in params.artefacts)]
    return f"{number}: " + ", ".join(facts)


def main() -> int:
    """Command line."""
    options = options_of(Options, description=__doc__)
    check(options)
    generator = ImageGenerator(
        options.labels, preset=options.preset, seed=options.seed, output_shape=options.size or None
    )
    draw(generator, options)
    print(f"{options.out}: {options.n} samples of {stem(options.labels)}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
