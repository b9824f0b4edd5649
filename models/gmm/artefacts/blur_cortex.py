"""Patches of blurred cortex, as where a reconstruction from moving slices lost the thin fetal cortical plate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.gmm.artefacts.fields import (
    Artefact,
    blur,
    draw_seed,
    gamma_draws,
    gaussian_mixture,
    generator_for,
    random_voxels,
)
from models.gmm.artefacts.masks import Masks
from models.gmm.draws import integer

BLOBS = (50, 199)
BLOB_SHAPE = 3  # Gamma(3, 1) voxels
NARROWEST = 1.0  # voxel: a blob that is thinner along one axis would show as a line
BLUR_SHAPE = 2  # Gamma(2, 1) voxels
PRIOR_WIDTH = 0.3  # of the cortex's extent: standard deviation of the frontal prior


@dataclass(frozen=True)
class BlurCortex(Artefact):
    """Inside Gaussian blobs centred on cortex voxels the image gives way to a blurred copy.

    blobs: their number. blur_sigma: of the copy, voxels per axis. frontal: centres favour the two frontal corners; this
    reads the axes as RAS (left to right, back to front), so it is off by default. seed: of the centres and of the blobs'
    widths, Gamma(3, 1) voxels per axis.
    """

    blobs: int
    blur_sigma: tuple[float, ...]
    frontal: bool
    seed: int

    @classmethod
    def sample(cls, generator: torch.Generator, shape: tuple[int, ...], spacing: tuple[float, ...]) -> BlurCortex:
        """Draw one. generator: on the CPU. Widths are in voxels, published for 0.5 mm; `spacing` is not used."""
        count = integer(generator, *BLOBS)
        blur_sigma = tuple(gamma_draws(generator, BLUR_SHAPE, (len(shape),)).tolist())
        return cls(count, blur_sigma, False, draw_seed(generator))

    @torch.no_grad()
    def __call__(self, image: Tensor, masks: Masks) -> Tensor:
        """Image (C, *S) in [0, 1] -> (C, *S); the image itself where there is no cortex."""
        if not masks.cortex.any():
            return image
        weight = self.weight_map(masks.cortex)
        return torch.lerp(image, blur(image, self.blur_sigma), weight)

    def weight_map(self, cortex: Tensor) -> Tensor:
        """Share of the blurred copy, (*S) in [0, 1]: the sum of the blobs, at most 1. cortex (*S) bool, not empty."""
        generator = generator_for(self.seed)
        prior = frontal_prior(cortex) if self.frontal else None
        centers = random_voxels(cortex, self.blobs, generator, prior)
        sigma = gamma_draws(generator, BLOB_SHAPE, (self.blobs, cortex.ndim)).clamp(min=NARROWEST)
        return gaussian_mixture(centers, sigma.to(cortex.device), cortex.shape).clamp_(max=1)


def frontal_prior(cortex: Tensor) -> Tensor:
    """Weights (M,) float64 on the CPU of the M cortex voxels: a Gaussian round either frontal corner; axes in RAS.

    The corners are those of the bounding box in the plane of the first two axes, at mid-height of a third.
    """
    voxels = cortex.nonzero().double().cpu()
    low, high = voxels.amin(0), voxels.amax(0)
    position = (voxels - low) / (high - low).clamp(min=1)  # 0..1 along each axis
    corners = torch.full((2, cortex.ndim), 0.5, dtype=torch.float64)
    corners[:, 0] = torch.tensor([0.0, 1.0])
    corners[:, 1] = 1.0
    squared = ((position - corners[:, None]) ** 2).sum(-1)  # (2, M)
    return torch.exp(-0.5 * squared / PRIOR_WIDTH**2).sum(0)
