"""What artefacts share: the regions that they refer to, draws, Gaussian mixtures, Perlin noise, weight maps.

Legend: C channels, S spatial shape, D its length (2 or 3), K Gaussians, N voxels along one axis, L lattice points.
Everything separable is a product of small matrices, one per axis: exact (no truncated kernel), of one cost for any width.
Small draws come from a CPU generator, so that they do not depend on the device; noise per voxel is drawn on the device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.base import integer, uniform
from models.gmm.resampling import along

PERLIN_PERIODS = (1, 2)  # lattice cells per axis, inclusive range
OCTAVES = (1, 2, 4)
PERSISTENCE = 0.5
LACUNARITY = 2
PERLIN_SCALE = 0.5  # standard deviation: some places get the whole artefact, also after the offset
PERLIN_OFFSET = 0.1  # a little more than half of the volume gets some weight
WEIGHT_GAUSSIANS = (5, 14)
WEIGHT_SIGMA = (25.0, 5.0)  # mean and standard deviation, in voxels
BOX_WIDTH = 4.0  # Gaussians end here, in standard deviations: exactly 0 beyond, 3e-4 of the peak just inside


def generator_for(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator; the global one is never touched.

    Convention: `seed` for the small draws on the CPU, `seed + 1` for noise on the image's device, lest on the CPU both
    be one stream and the noise follow the weights.
    """
    return torch.Generator(device=device).manual_seed(seed)


def draw_seed(generator: torch.Generator) -> int:
    """A seed below 2^31, so that it survives any JSON reader."""
    return int(torch.randint(2**31 - 1, (), generator=generator))


def coin(generator: torch.Generator, probability: float) -> bool:
    """True with this probability."""
    return uniform(generator, 0.0, 1.0) < probability


def gamma_draws(generator: torch.Generator, shape: int, size: Sequence[int]) -> Tensor:
    """Gamma(shape, 1) for integer shape, as a sum of exponentials: torch's own Gamma takes no generator. Float32 (*size)."""
    return torch.empty(shape, *size).exponential_(generator=generator).sum(0)


@dataclass(frozen=True)
class Masks:
    """Regions of one label map, all (*S) bool and on the image's device; each may be empty.

    cortex: where blurred patches are centred. white_matter: where smooth weights are centred. brain: what artefacts act in,
    and what stays when the background is removed.
    """

    cortex: Tensor
    white_matter: Tensor
    brain: Tensor

    def cropped(self, box: tuple[slice, ...]) -> Masks:
        """The masks within a box, one slice per axis."""
        return Masks(self.cortex[box], self.white_matter[box], self.brain[box])


@dataclass(frozen=True)
class Artefact(ABC):
    """The random decisions of one artefact, all of them plain JSON."""

    @classmethod
    @abstractmethod
    def sample(cls, generator: torch.Generator, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Artefact:
        """Draw one. generator: on the CPU. shape, spacing: of the image, voxels and mm."""

    @abstractmethod
    def __call__(self, image: Tensor, masks: Masks) -> Tensor:
        """Image (C, *S) in [0, 1] -> (C, *S); the image itself where the region that it acts in is empty."""


def gaussian_mixture(centers: Tensor, sigma: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum of K axis-aligned Gaussians of peak 1. centers, sigma (K, D) in voxels -> (*S) float32.

    Each ends at BOX_WIDTH standard deviations along each axis. The sum is one matrix product of rank K, which takes 15 ms
    for 200 Gaussians at 160³: less than visiting 200 patches.
    """
    factors = []
    for axis, size in enumerate(shape):
        x = torch.arange(size, dtype=torch.float32, device=centers.device)
        distance = (x - centers[:, axis, None]) / sigma[:, axis, None]  # (K, N)
        factors.append(
            torch.where(distance.abs() <= BOX_WIDTH, torch.exp(-0.5 * distance**2), torch.zeros_like(distance))
        )
    rest = factors[1]
    for factor in factors[2:]:
        rest = rest[..., None] * factor[:, None]  # (K, N1, N2)
    return (factors[0].T @ rest.flatten(1)).reshape(*shape)


def random_voxels(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Voxels of a mask with replacement. mask (*S) bool, not empty -> indices (count, D) float32 on its device.

    generator: on the CPU.
    """
    voxels = mask.nonzero()
    chosen = (torch.rand(count, generator=generator, dtype=torch.float64) * len(voxels)).long()
    return voxels[chosen.clamp(max=len(voxels) - 1).to(mask.device)].float()


def perlin(
    shape: Sequence[int], periods: int, octaves: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Fractal gradient noise scaled to max |x| = 1: (*S) float32.

    Octave o has `periods` · LACUNARITY^o cells per axis and amplitude PERSISTENCE^o (Perlin, SIGGRAPH 2002: fade
    6t⁵ - 15t⁴ + 10t³). Inside one octave the value is a sum over the axes a of products of per-axis matrices, in which
    axis a carries the offset to the lattice point, the others only the fade. So it costs one matrix product, not 8 lookups
    per voxel.
    """
    left, right = [], []
    for octave in range(octaves):
        cells = periods * LACUNARITY**octave
        gradients = torch.randn(len(shape), *(cells + 1,) * len(shape), generator=generator)
        gradients = (gradients / gradients.norm(dim=0, keepdim=True)).to(device) * PERSISTENCE**octave  # (D, L, ..., L)
        fades, offsets = zip(*(_perlin_matrices(size, cells, device) for size in shape), strict=True)
        for axis, component in enumerate(gradients):
            for other in range(len(shape) - 1, 0, -1):
                component = along(component, offsets[other] if other == axis else fades[other], other)
            left.append(offsets[0] if axis == 0 else fades[0])  # (N0, L)
            right.append(component.flatten(1))  # (L, N1·N2)
    noise = (torch.cat(left, 1) @ torch.cat(right)).reshape(*shape)
    return (noise - noise.mean()) / noise.std().clamp(min=1e-6)


def _perlin_matrices(size: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Fade to both lattice neighbours, and fade times the offset from them, each (N, L)."""
    x = (torch.arange(size, device=device) + 0.5) * (cells / size)
    lattice = torch.arange(cells + 1, device=device)
    offset = x[:, None] - lattice  # (N, L), in cells
    t = (1 - offset.abs()).clamp(min=0)
    fade = t**3 * (t * (6 * t - 15) + 10)
    return fade, fade * offset


@dataclass(frozen=True)
class SmoothWeight(Artefact):
    """A weight in [0, 1] that varies slowly over the volume: the fields that artefacts with such a weight share.

    weight: "perlin" or "gaussians". periods, octaves: of the Perlin noise. gaussians: their number; centred in white matter
    (in the brain where there is none), with standard deviations WEIGHT_SIGMA.
    """

    weight: str
    periods: int
    octaves: int
    gaussians: int

    def weight_map(self, masks: Masks, generator: torch.Generator) -> Tensor:
        """(*S) float32 in [0, 1]. generator: on the CPU."""
        shape, device = masks.brain.shape, masks.brain.device
        if self.weight == "perlin":
            noise = perlin(shape, self.periods, self.octaves, generator, device)
            return (noise * PERLIN_SCALE + PERLIN_OFFSET).clamp_(0, 1)
        centers = random_voxels(
            masks.white_matter if masks.white_matter.any() else masks.brain, self.gaussians, generator
        )
        mean, spread = WEIGHT_SIGMA
        sigma = (mean + spread * torch.randn(self.gaussians, len(shape), generator=generator)).clamp(min=1.0)
        return gaussian_mixture(centers, sigma.to(device), shape).clamp_(max=1)


def sample_weight(generator: torch.Generator) -> dict[str, Any]:
    """The fields of a `SmoothWeight`, either kind with probability one half."""
    return {
        "weight": "perlin" if coin(generator, 0.5) else "gaussians",
        "periods": integer(generator, *PERLIN_PERIODS),
        "octaves": OCTAVES[integer(generator, 0, len(OCTAVES) - 1)],
        "gaussians": integer(generator, *WEIGHT_GAUSSIANS),
    }


def bounding_box(mask: Tensor, margin: int) -> tuple[slice, ...]:
    """Slices round the true voxels of a mask (*S), not empty, and this many voxels further, within the volume."""
    true = mask.nonzero()
    ends = zip(true.amin(0).tolist(), true.amax(0).tolist(), mask.shape, strict=True)
    return tuple(slice(max(low - margin, 0), min(high + margin + 1, size)) for low, high, size in ends)


def noise_on_grid(shape: Sequence[int], coarser: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """U(0, 1) noise on a grid coarser by this factor, linearly interpolated: (*S) float32 with clumps, not single voxels."""
    coarse = torch.rand(1, 1, *(math.ceil(n / coarser) for n in shape), generator=generator, device=device)
    return upsample(coarse[0], shape)[0]


def upsample(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Linear interpolation with half-pixel offsets (no shift): (C, *s) -> (C, *S)."""
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    return F.interpolate(image[None], size=tuple(shape), mode=mode, align_corners=False)[0]
