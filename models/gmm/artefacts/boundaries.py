"""Where the field of view ends: background removed at the brain's outline, some way outside it, or along a ragged line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.base import integer, uniform
from models.gmm.artefacts.fields import (
    Artefact,
    Masks,
    bounding_box,
    coin,
    draw_seed,
    gaussian_mixture,
    generator_for,
    noise_on_grid,
    random_voxels,
)
from models.masks import filled

NOTHING = 0.5  # probability that the background stays
HALO = 0.5
HALO_RADIUS = (5, 14)  # voxels
FUZZY = 0.5
FUZZY_ROUNDS = (2, 4)
# The predecessors' thickness and field are not published; these are our choice.
THICKNESS = (2.0, 5.0)  # voxels that one round adds at most
BUMPS = (20, 80)  # Gaussians of the thickness field
BUMP_SIGMA = (4.0, 16.0)  # voxels
GRAIN = 3  # voxels: grid of the noise that makes the edge ragged


@dataclass(frozen=True)
class SimulatedBoundaries(Artefact):
    """Background set to 0 outside the brain, after a halo and ragged growth of the mask.

    masked: False leaves the image alone. halo: radius in voxels of the ball that the mask is dilated by, 0 for none. rounds:
    of random growth, 0 for none. thickness: voxels that a round adds at most. bumps: Gaussians of the field that says where
    it adds how much. seed: of fields and noise.
    """

    masked: bool
    halo: int
    rounds: int
    thickness: float
    bumps: int
    seed: int

    @classmethod
    def sample(
        cls, generator: torch.Generator, shape: tuple[int, ...], spacing: tuple[float, ...]
    ) -> SimulatedBoundaries:
        """Draw one. generator: on the CPU. Radii are in voxels, published for 0.5 mm."""
        masked, with_halo, with_fuzzy = not coin(generator, NOTHING), coin(generator, HALO), coin(generator, FUZZY)
        radius, count = integer(generator, *HALO_RADIUS), integer(generator, *FUZZY_ROUNDS)
        return cls(
            masked=masked,
            halo=radius if with_halo else 0,
            rounds=count if with_fuzzy else 0,
            thickness=uniform(generator, *THICKNESS),
            bumps=integer(generator, *BUMPS),
            seed=draw_seed(generator),
        )

    @torch.no_grad()
    def __call__(self, image: Tensor, masks: Masks) -> Tensor:
        """Image (C, *S) in [0, 1] -> (C, *S); the image itself if not masked or where there is no brain."""
        if not self.masked or not masks.brain.any():
            return image
        return image * self.field_of_view(masks.brain)

    def field_of_view(self, brain: Tensor) -> Tensor:
        """What is kept: (*S) bool, contains the brain. brain (*S) bool, not empty."""
        box = bounding_box(brain, self.halo + self.rounds * math.ceil(self.thickness))
        kept = torch.zeros_like(brain)
        kept[box] = self._grow(brain[box])
        return kept

    def _grow(self, mask: Tensor) -> Tensor:
        """Holes filled, which would show in the image exactly where labels end; then the halo, then rounds.

        In a round a voxel joins if it is no further from the mask than thickness · field · noise there.
        """
        mask = filled(mask, range(mask.ndim))
        if self.halo:
            mask = squared_distance(mask, self.halo) <= self.halo**2
        generator, noise_generator = generator_for(self.seed), generator_for(self.seed + 1, mask.device)
        reach = math.ceil(self.thickness)
        for _ in range(self.rounds):
            distance = squared_distance(mask, reach)
            centers = random_voxels(distance == 1, self.bumps, generator) if (distance == 1).any() else None
            if centers is None:  # the mask fills the volume
                return mask
            low, high = BUMP_SIGMA
            sigma = low + (high - low) * torch.rand(self.bumps, mask.ndim, generator=generator)
            field = gaussian_mixture(centers, sigma.to(mask.device), mask.shape)
            field /= field.max()  # not clipped: where many overlap, it still varies
            limit = self.thickness * field * noise_on_grid(mask.shape, GRAIN, noise_generator, mask.device)
            mask = mask | (distance <= limit.square_())
        return mask


def squared_distance(mask: Tensor, radius: int) -> Tensor:
    """Squared Euclidean distance to a mask, in voxels: exact up to the radius, radius² + 1 beyond. (*S) bool -> (*S) int16.

    The lower envelope of parabolas along one axis after the other (Felzenszwalb and Huttenlocher, 2012); since only the
    nearest `radius` voxels matter, it is a running minimum over 2·radius shifts.
    """
    assert radius <= 127, "int16 holds twice the square of the radius"
    far = radius**2 + 1
    distance = torch.where(mask, 0, far).to(torch.int16)
    for axis, size in enumerate(mask.shape):
        before = distance.clone()
        for shift in range(1, min(radius, size - 1) + 1):
            for target, source in ((shift, 0), (0, shift)):
                near = distance.narrow(axis, target, size - shift)
                torch.minimum(near, before.narrow(axis, source, size - shift) + shift**2, out=near)
    return distance
