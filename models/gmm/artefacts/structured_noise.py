"""Noise with structure over several scales inside the brain, as super-resolution reconstruction leaves it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.base import integer, uniform
from models.gmm.artefacts.fields import (
    Masks,
    SmoothWeight,
    bounding_box,
    draw_seed,
    generator_for,
    sample_weight,
    upsample,
)

STAGES = (1, 4)
STRENGTH = (0.2, 0.4)


@dataclass(frozen=True)
class StructuredNoise(SmoothWeight):
    """I + strength · noise · weight inside the brain, not below 0; the weight is smooth (`SmoothWeight`).

    stages: octaves of the noise, from grids 2^stages coarser than the image up to 2 coarser. strength: largest absolute
    value of the noise, on the [0, 1] scale of the image (the predecessors call it std; they divide by max |noise| as well).
    """

    stages: int
    strength: float
    seed: int

    @classmethod
    def sample(cls, generator: torch.Generator, shape: tuple[int, ...], spacing: tuple[float, ...]) -> StructuredNoise:
        """Draw one. generator: on the CPU. Scales are relative to the volume or in voxels; `spacing` is not used."""
        return cls(
            **sample_weight(generator),
            stages=integer(generator, *STAGES),
            strength=uniform(generator, *STRENGTH),
            seed=draw_seed(generator),
        )

    @torch.no_grad()
    def __call__(self, image: Tensor, masks: Masks) -> Tensor:
        """Image (C, *S) in [0, 1] -> (C, *S), noise drawn for each channel; the image itself where there is no brain."""
        if not masks.brain.any():
            return image
        box = bounding_box(masks.brain, 0)
        inside, clean = masks.cropped(box), image[(slice(None), *box)]
        weight = self.weight_map(inside, generator_for(self.seed))
        noise = noise_pyramid(clean.shape, self.stages, generator_for(self.seed + 1, image.device))
        noisy = (clean + self.strength * noise * weight).clamp_(min=0)
        output = image.clone()
        output[(slice(None), *box)] = torch.where(inside.brain, noisy, clean)
        return output


def noise_pyramid(shape: torch.Size, stages: int, generator: torch.Generator) -> Tensor:
    """White noise on grids coarser by 2^stages, ..., 4, 2, interpolated linearly and added; max |x| = 1. (C, *S) float32."""
    noise = torch.zeros(shape[0], *(1,) * (len(shape) - 1), device=generator.device)
    for stage in range(stages, 0, -1):
        grid = [math.ceil(n / 2**stage) for n in shape[1:]]
        noise = upsample(noise, grid) + torch.randn(shape[0], *grid, generator=generator, device=generator.device)
    noise = upsample(noise, shape[1:])
    return noise / noise.abs().max().clamp(min=1e-6)
