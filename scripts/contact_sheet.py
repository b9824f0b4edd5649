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

from dataloaders.io.files import atomic_path
from dataloaders.io.geometry import PLANES, plane
from dataloaders.io.nifti import stem
from dataloaders.io.pictures import label_colors, resized, to_grey
from dataloaders.io.schema import AtLeast1, Must, check, options_of
from dataloaders.labelmaps.image_generator import ImageGenerator
from dataloaders.labelmaps.schemes import output_labels
from engine.command import exit_code
from models.gmm.options import GmmPreset

SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))


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
    from matplotlib.figure import Figure

    samples = [_picture(generator, number, options.borders) for number in range(options.n)]
    rows, width = -(-options.n // options.columns), 3.2
    height = width * max(image.shape[0] / image.shape[1] for image in samples) + 0.2
    figure = Figure(figsize=(width * options.columns, height * rows), facecolor="black")
    grid = figure.subplots(rows, options.columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for number, (axes, image) in enumerate(zip(grid.flat, samples, strict=False)):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(_caption(generator, number), color="white", fontsize=6, pad=2)
    figure.subplots_adjust(0.002, 0.002, 0.998, 1 - 0.2 / (height * rows), 0.01, 0.2 / height)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(options.out) as temporary:
        figure.savefig(temporary, dpi=110, facecolor="black")


def _picture(generator: ImageGenerator, number: int, borders: bool) -> NDArray[np.uint8]:
    """The first channel, planes side by side, in pixels as wide as high, (H, W, 3)."""
    image, labels = generator.tensors(number)
    mm = generator.params(number)[1].out_spacing
    grey = to_grey(_beside(square_planes(image[0].cpu().numpy(), mm)), 0, 1)
    if not borders:
        return grey
    classes = output_labels(generator.scheme)
    ids = np.searchsorted([label.source[0] for label in classes], labels.cpu().numpy()).astype(np.float32)
    return outlined(grey, _beside(square_planes(ids, mm)).astype(np.intp), label_colors(classes))


def outlined(image: NDArray[np.uint8], ids: NDArray[np.intp], colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image (H, W, 3) with the outermost pixels of every label of `ids` (H, W) but 0 in the label's colour (N, 3)."""
    around = np.pad(ids, 1)
    inside = [np.roll(around, shift, (0, 1))[1:-1, 1:-1] == ids for shift in SIDES]
    return np.where((np.all(inside, axis=0) | (ids == 0))[..., None], image, colors[ids])


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


def _beside(pictures: list[NDArray]) -> NDArray:
    height = max(picture.shape[0] for picture in pictures)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, 2))) for p in pictures]
    return np.concatenate(padded, 1)


def _caption(generator: ImageGenerator, number: int) -> str:
    _, params = generator.params(number)
    mm = [c * s / n for c, s, n in zip(params.crop_shape, params.spacing, params.low_shape[0], strict=True)]
    facts = ["×".join(f"{x:.1f}" for x in mm) + " mm", *(type(a).__name__ for a in params.artefacts)]
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
