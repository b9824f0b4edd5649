"""Patches of blurred cortex, as where a reconstruction from moving slices lost the thin fetal cortical plate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.base import integer
from models.gmm.artefacts.fields import (
    Artefact,
    Masks,
    draw_seed,
    gamma_draws,
    gaussian_mixture,
    generator_for,
    random_voxels,
)
from models.gmm.resampling import blurred

BLOBS = (50, 199)
BLOB_SHAPE = 3  # Gamma(3, 1) voxels
NARROWEST = 1.0  # voxel: a blob that is thinner along one axis would show as a line
BLUR_SHAPE = 2  # Gamma(2, 1) voxels


@dataclass(frozen=True)
class BlurCortex(Artefact):
    """Inside Gaussian blobs centred on cortex voxels the image gives way to a blurred copy.

    blobs: their number. blur_sigma: of the copy, voxels per axis. seed: of the centres and of the blobs' widths, Gamma(3, 1)
    voxels per axis.
    """

    blobs: int
    blur_sigma: tuple[float, ...]
    seed: int

    @classmethod
    def sample(cls, generator: torch.Generator, shape: tuple[int, ...], spacing: tuple[float, ...]) -> BlurCortex:
        """Draw one. generator: on the CPU. Widths are in voxels, published for 0.5 mm; `spacing` is not used."""
        count = integer(generator, *BLOBS)
        blur_sigma = tuple(gamma_draws(generator, BLUR_SHAPE, (len(shape),)).tolist())
        return cls(count, blur_sigma, draw_seed(generator))

    @torch.no_grad()
    def __call__(self, image: Tensor, masks: Masks) -> Tensor:
        """Image (C, *S) in [0, 1] -> (C, *S); the image itself where there is no cortex."""
        if not masks.cortex.any():
            return image
        weight = self.weight_map(masks.cortex)
        return torch.lerp(image, blurred(image, self.blur_sigma), weight)

    def weight_map(self, cortex: Tensor) -> Tensor:
        """Share of the blurred copy, (*S) in [0, 1]: the sum of the blobs, at most 1. cortex (*S) bool, not empty."""
        generator = generator_for(self.seed)
        centers = random_voxels(cortex, self.blobs, generator)
        sigma = gamma_draws(generator, BLOB_SHAPE, (self.blobs, cortex.ndim)).clamp(min=NARROWEST)
        return gaussian_mixture(centers, sigma.to(cortex.device), cortex.shape).clamp_(max=1)
