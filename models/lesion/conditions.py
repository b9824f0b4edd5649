"""What the network is told about lesions: where they are, and how bright.

Legend: B batch, K maps, S the two or three spatial axes. Intensities are those of the model, [-1, 1]; in data that were
prepared with --fill they are anchored at white matter (`WHITE`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WHITE = -0.2  # white matter in [-1, 1], where the window goes from 0 to 2.5 times white matter
ZERO = -1.0  # physical 0
SOFT_SCALE = 3.0  # brings the usual excess of lesions on FLAIR, 0.1 to 0.5, to about 1


def band_masks(z: Tensor, alphas: Sequence[float]) -> Tensor:
    """Intensity-level masks W1..Wn of z-scores (B, *S) -> (B, n, *S) of 0 and 1.

    Mask k is alphas[k-1] < z <= alphas[k], the last one everything above; their sum is [z > alphas[0]]. z: intensity above
    the grey matter's mean in its standard deviations (Salem et al. 2019, sec. II-A).
    """
    limits = torch.as_tensor(alphas, dtype=z.dtype, device=z.device)
    level = torch.bucketize(z.contiguous(), limits)  # right=False: limits[i-1] < z <= limits[i]
    return F.one_hot(level, len(alphas) + 1).movedim(-1, 1)[:, 1:].to(z.dtype)


def soft_maps(level: Tensor, lesion: Tensor) -> Tensor:
    """Lesion mask and intensity above white matter inside it: level, lesion (B, *S) -> (B, 2, *S)."""
    mask = lesion.to(level.dtype)
    return torch.stack([mask, SOFT_SCALE * (level - WHITE) * mask], 1)


def z_scores(level: Tensor, grey: Tensor) -> Tensor:
    """Intensities (B, *S) in standard deviations of the grey matter above its mean; grey (B, 2): mean and deviation."""
    shape = (-1, *(1,) * (level.ndim - 1))
    return (level - grey[:, 0].reshape(shape)) / grey[:, 1].clamp_min(1e-6).reshape(shape)


def dilated(mask: Tensor, steps: int) -> Tensor:
    """Mask (B, *S) grown by so many steps to all neighbours, diagonal ones included; float."""
    x = mask.to(torch.float32)[:, None]
    if steps:
        pool = F.max_pool2d if mask.ndim == 3 else F.max_pool3d
        x = pool(x, 2 * steps + 1, stride=1, padding=steps)
    return x[:, 0]


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, *S), borders repeated; sigma 0 changes nothing."""
    if sigma <= 0:
        return x
    radius = max(1, round(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device) / sigma) ** 2)
    taps = taps / taps.sum()
    for axis in range(1, x.ndim):
        moved = x.movedim(axis, -1)
        rows = moved.reshape(-1, 1, moved.shape[-1])
        rows = F.conv1d(F.pad(rows, (radius, radius), mode="replicate"), taps[None, None])
        x = rows.reshape(moved.shape).movedim(-1, axis)
    return x


def blend_weights(lesion: Tensor, reach: int, feather: float) -> Tensor:
    """How much of the generated image shows, (B, *S) in [0, 1]: 1 in lesions, smoothly to exactly 0 beyond `reach` pixels.

    Nothing outside the dilated lesion is ever blended, so the scan stays there as it is.
    """
    zone = dilated(lesion, reach)
    if feather <= 0 or reach == 0:
        return zone
    # Shrunk first, so that the blur's tail ends about where the zone does, then cut off there.
    soft = blurred(dilated(lesion, max(reach - 1, 0)), feather)
    inside = lesion.to(soft.dtype)
    return torch.maximum(soft, inside) * zone
