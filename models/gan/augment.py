"""Augmentation of pairs on their device: label, neighbours and image deformed together, images in other tones.

Deformations are those of the generator of random contrasts (`models.gmm.spatial`): a random affine map after a smooth
displacement that cannot fold. Labels are looked up, images interpolated by cubic convolution (Keys, 1981): linear
interpolation is a blur of its own, which the discriminator would learn as the texture of real images.

Legend: B batch, C channels, H W pixels, R ranks.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloaders.io.ranks import world_size
from models.base import Batch
from models.collectives import own_part
from models.gmm.resampling import upsample
from models.gmm.spatial import affine_matrix, integrate_velocity, source_coordinates

ROTATION = 12.0  # degrees to either side
SCALING = 0.1  # of each axis, to either side
SHEARING = 0.1
SHIFT = 0.05  # of each side
ELASTIC_NODES = 6  # along each side
ELASTIC = 0.03  # of the shorter side: standard deviation at the nodes, of which the cubic spline leaves half
GAMMA = 0.3  # exponents from exp(-GAMMA) to exp(GAMMA)
CONTRAST = 0.15  # factors from exp(-CONTRAST) to exp(CONTRAST)
BIAS_NODES = 3  # along each side
BIAS = 0.2  # standard deviation of the log-factor at the nodes


def augmented(batch: Batch, geometry: float, intensity: float, row: int = 1) -> Batch:
    """The batch with a share `geometry` of its pairs deformed and a share `intensity` of its images in other tones.

    Drawn from the batch's stream for the whole batch of all ranks, so that an image's fate does not depend on their number;
    `row` images, neighbouring slices, have one fate.
    """
    if geometry:
        batch = deformed(batch, geometry, row)
    if intensity and batch.image is not None:
        batch = replace(batch, image=retoned(batch.image, intensity, batch.rng, row))
    return batch


def deformed(batch: Batch, share: float, row: int = 1) -> Batch:
    """A share of the pairs moved: labels and neighbours to the nearest, images cubically; outside is background and air."""
    size, device = tuple(batch.label.shape[1:]), batch.label.device
    chosen, where = _coordinates(len(batch), size, share, batch.rng, row)
    chosen = chosen.to(device, non_blocking=True).view(-1, 1, 1, 1)
    where = upsample(where.to(device, non_blocking=True), size, first=2)  # (B, 2, H, W), -1..1 over the corners
    grid = where.flip(1).movedim(1, -1)

    def moved(planes: Tensor, mode: str) -> Tensor:
        return torch.where(chosen, F.grid_sample(planes, grid, mode, align_corners=True), planes)

    def labels(planes: Tensor) -> Tensor:
        return moved(planes.float(), "nearest").long()

    def brightness(image: Tensor) -> Tensor:
        return torch.where(chosen, (moved(image + 1, "bicubic") - 1).clamp(-1, 1), image)

    return replace(
        batch,
        label=labels(batch.label[:, None])[:, 0],
        neighbours=None if batch.neighbours is None else labels(batch.neighbours),
        image=None if batch.image is None else brightness(batch.image),
    )


def _coordinates(
    count: int, size: tuple[int, ...], share: float, rng: torch.Generator | None, row: int
) -> tuple[Tensor, Tensor]:
    """Which of this rank's images are moved, (B,) bool, and where their pixels read, (B, 2, *m) in -1..1 at coarse nodes.

    On the CPU, where the few nodes cost less than as many small kernels on a GPU.
    """
    whole, side = count * world_size() // row, torch.tensor(size)
    chosen = _own(torch.rand(whole, generator=rng), row) < share
    draws = _own(torch.rand(whole, 7, generator=rng, dtype=torch.float64) * 2 - 1, row)
    waves = _own(torch.randn(whole, 2, ELASTIC_NODES, ELASTIC_NODES, generator=rng), row) * ELASTIC * min(size)
    maps = []
    for draw, velocity in zip(draws, waves, strict=True):
        rotation, scaling, shearing = draw[:1] * ROTATION, 1 + draw[1:3] * SCALING, draw[3:5] * SHEARING
        affine = affine_matrix(
            rotation.tolist(), scaling.tolist(), shearing.tolist(), (draw[5:] * SHIFT * side).tolist()
        )
        maps.append(source_coordinates(affine, integrate_velocity(velocity, size, order=3), size))
    return chosen, torch.stack(maps) * (2 / (side - 1)).view(2, 1, 1) - 1


def _own(drawn: Tensor, row: int) -> Tensor:
    """This rank's part of what was drawn for each row of all ranks, once for every image of a row."""
    return own_part(drawn.repeat_interleave(row, 0))


def retoned(images: Tensor, share: float, rng: torch.Generator | None, row: int = 1) -> Tensor:
    """A share of the images (B, C, H, W) in [-1, 1] with gamma, contrast and a smooth bias field of their own; -1 stays."""
    (count, channels), device = images.shape[:2], images.device
    whole = count * world_size() // row
    chosen = _own(torch.rand(whole, generator=rng), row) < share
    tones = _own(torch.rand(whole, channels, 2, generator=rng) * 2 - 1, row) * torch.tensor([GAMMA, CONTRAST])
    waves = _own(torch.randn(whole, channels, BIAS_NODES, BIAS_NODES, generator=rng), row) * BIAS
    chosen, tones, waves = (drawn.to(device, non_blocking=True) for drawn in (chosen, tones, waves))
    gamma, contrast = tones[..., None, None].unbind(2)
    factor = (contrast + upsample(waves, tuple(images.shape[2:]), order=3, first=2)).exp()
    changed = ((images + 1) / 2) ** gamma.exp() * factor
    return torch.where(chosen.view(-1, 1, 1, 1), (changed * 2 - 1).clamp(-1, 1), images)
