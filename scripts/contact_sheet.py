"""One picture of many random samples: look at what a network would be trained on before training it.

python scripts/contact_sheet.py --labels maps/ --out sheet.png --preset synthseg
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tyro
from numpy.typing import NDArray

from dataloaders.io.files import atomic_path
from dataloaders.io.nifti import stem
from dataloaders.labelmaps.image_generator import ImageGenerator
from engine.command import exit_code
from models.gmm.options import GmmPreset


@dataclass(frozen=True)
class Options:
    """Contact sheet of synthetic images."""

    labels: Path
    """Label map, folder of them, or .txt list."""
    out: Path
    """PNG file to write."""
    preset: GmmPreset = "synthseg"
    """Kind of synthesis."""
    n: int = 24
    """Number of samples."""
    columns: int = 6
    """Samples per row."""
    size: tuple[int, ...] = ()
    """Crop to this many voxels; by default whole maps."""
    seed: int = 0
    """Seed of the samples."""
    borders: bool = False
    """Also draw the outline of the labels, to see that it lies on the image's."""


def planes(volume: NDArray) -> list[NDArray]:
    """Middle planes of a RAS volume as on a radiology workstation: axial, coronal, sagittal; a slice as it is."""
    if volume.ndim == 2:
        return [volume.T[::-1]]
    x, y, z = (n // 2 for n in volume.shape)
    return [volume[::-1, :, z].T[::-1], volume[::-1, y, :].T[::-1], volume[x].T[::-1]]


def draw(generator: ImageGenerator, options: Options) -> None:
    """Make the samples one by one and draw them."""
    from matplotlib.figure import Figure

    samples = [_pictures(generator, number) for number in range(options.n)]
    rows, width = -(-options.n // options.columns), 3.2
    height = width * max(image.shape[0] / image.shape[1] for image, _ in samples) + 0.2
    figure = Figure(figsize=(width * options.columns, height * rows), facecolor="black")
    grid = figure.subplots(rows, options.columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for number, (axes, (image, labels)) in enumerate(zip(grid.flat, samples, strict=False)):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        if options.borders and labels.any():
            axes.contour(labels, [0.5], colors="red", linewidths=0.4)
        axes.set_title(_caption(generator, number), color="white", fontsize=6, pad=2)
    figure.subplots_adjust(0.002, 0.002, 0.998, 1 - 0.2 / (height * rows), 0.01, 0.2 / height)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(options.out) as temporary:
        figure.savefig(temporary, dpi=110, facecolor="black")


def _pictures(generator: ImageGenerator, number: int) -> tuple[NDArray, NDArray]:
    """Image of the first channel and outline of the labels, planes side by side, in pixels as wide as high."""
    image, labels = generator.tensors(number)
    mm = generator.params(number)[1].out_spacing
    foreground = (labels > 0).float().cpu().numpy()
    return _beside(square_planes(image[0].cpu().numpy(), mm)), _beside(square_planes(foreground, mm))


def square_planes(volume: NDArray, mm: Sequence[float]) -> list[NDArray]:
    """`planes`, with pixels repeated so that each is as wide and high as the smallest side of a voxel. mm: (ndim)."""
    pictures = planes(volume)
    sides = [(1, 0)] if volume.ndim == 2 else [(1, 0), (2, 0), (2, 1)]  # axes along rows, columns
    squared = []
    for picture, axes in zip(pictures, sides, strict=True):
        for along, axis in enumerate(axes):
            size = picture.shape[along]
            wanted = max(1, round(size * mm[axis] / min(mm)))
            picture = np.take(picture, ((np.arange(wanted) + 0.5) * size / wanted).astype(int), along)
        squared.append(picture)
    return squared


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
    options = tyro.cli(Options, description=__doc__)
    generator = ImageGenerator(
        options.labels, preset=options.preset, seed=options.seed, output_shape=options.size or None
    )
    draw(generator, options)
    print(f"{options.out}: {options.n} samples of {stem(options.labels)}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
