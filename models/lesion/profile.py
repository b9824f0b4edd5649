"""How bright lesions are, by depth below their border: for lesion masks that come without a scan of their own.

Legend: B batch, S spatial axes. Intensities as in conditions.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.lesion.conditions import WHITE, dilated

DEPTHS = 4  # pixels from the border, the last one and everything deeper


@dataclass(frozen=True)
class LevelProfile:
    """mean: (DEPTHS,) intensity in [-1, 1] at 1, 2, 3, 4 or more pixels from the border. between: standard deviation of
    slices' means. within: standard deviation of pixels about their slice's profile.
    """

    mean: tuple[float, ...]
    between: float
    within: float

    def tensor(self) -> Tensor:
        """(3, DEPTHS), for a buffer."""
        rest = [[value] + [0.0] * (DEPTHS - 1) for value in (self.between, self.within)]
        return torch.tensor([list(self.mean), *rest])

    @classmethod
    def of(cls, tensor: Tensor) -> LevelProfile:
        """Inverse of `tensor`."""
        rows = tensor.tolist()
        return cls(tuple(rows[0]), rows[1][0], rows[2][0])


def depths(lesion: Tensor) -> Tensor:
    """Pixels to the border of the lesion, diagonal steps included: 0 outside, 1 at the border, at most DEPTHS. (B, *S)."""
    depth = lesion.to(torch.long)
    for step in range(1, DEPTHS):
        depth = depth + (dilated(~lesion, step) == 0).long()
    return depth * lesion.long()


def measure_profile(stacks: Iterable[tuple[Tensor, Tensor]]) -> LevelProfile:
    """Profile of (level, lesion) pairs, each (B, *S). Without any lesion: a tenth above white matter."""
    found: list[tuple[Tensor, Tensor]] = []  # (values, depths) of each sample with lesions
    for levels, lesions in stacks:
        for level, lesion in zip(levels.cpu(), lesions.cpu(), strict=True):
            if lesion.any():
                found.append((level[lesion].double(), depths(lesion[None])[0][lesion]))
    if not found:
        return LevelProfile((WHITE + 0.08,) * DEPTHS, 0.02, 0.02)
    values, where = (torch.cat(parts) for parts in zip(*found, strict=True))
    mean, last = [], float(values.mean())
    for depth in range(1, DEPTHS + 1):
        here = values[where == depth]
        last = float(here.mean()) if len(here) >= 10 else last  # small lesions have no depth
        mean.append(last)
    centre = torch.tensor(mean, dtype=torch.double)
    offsets = torch.stack([(v - centre[d - 1]).mean() for v, d in found if len(v) >= 5] or [torch.zeros(())])
    rest = torch.cat([(v - centre[d - 1]) - (v - centre[d - 1]).mean() for v, d in found])
    between = float(offsets.std()) if len(offsets) > 1 else 0.0
    return LevelProfile(tuple(mean), between, float(rest.std()) if len(rest) > 1 else 0.0)
