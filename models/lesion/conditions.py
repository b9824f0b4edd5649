"""Lesions as maps: what the network is told of them, how bright they are, how much errors in them count. Losses in float32.

Legend: B batch, M modalities, C width, K maps, S the two or three spatial axes. Intensities are those of the model,
[-1, 1]; in data that were prepared with --fill they are anchored at white matter (`WHITE`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_cdt
from torch import Tensor

from models.collectives import mean_over_all
from models.gmm.resampling import blurred

WHITE = -0.2  # white matter in [-1, 1], where the window goes from 0 to 2.5 times white matter
ZERO = -1.0  # physical 0
DEPTHS = 4  # pixels from a lesion's border, the last one and everything deeper
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


def blend_weights(lesion: Tensor, reach: int, feather: float) -> Tensor:
    """How much of the generated image shows, (B, *S) in [0, 1]: 1 in lesions, smoothly to exactly 0 beyond `reach` pixels.

    Nothing outside the dilated lesion is ever blended, so the scan stays there as it is.
    """
    zone = dilated(lesion, reach)
    if feather <= 0 or reach == 0:
        return zone
    # Shrunk first, so that the blur's tail ends about where the zone does, then cut off there.
    soft = blurred(dilated(lesion, max(reach - 1, 0)), [feather] * (lesion.ndim - 1))
    inside = lesion.to(soft.dtype)
    return torch.maximum(soft, inside) * zone


# -- losses -------------------------------------------------------------------------------------------------------


def error_weights(lesion: Tensor, extra: float) -> Tensor:
    """1, and 1 + `extra` in lesions and one pixel around them: lesion (B, *S) -> (B, 1, *S)."""
    return (1 + extra * dilated(lesion, 1))[:, None]


def weighted_mae(image: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """sum(w · |image - real|) / sum(w) per modality, added over modalities: (B, M, *S), weights (B, 1, *S) -> ().

    With equal weights the sum of the modalities' mean absolute errors, the published one. Where ranks share the batch,
    sum(w) is that of the whole.
    """
    error = (image.float() - real.float()).abs() * weights
    return mean_over_all(error.sum(), weights.sum())


def latent_variance(latents: Tensor) -> Tensor:
    """Mean over all elements of the biased variance over modalities: (M, B, C, *S) -> ().

    For two modalities ((z_1 - z_2) / 2)². Where ranks share the batch, elements are those of the whole.
    """
    variance = latents.float().var(dim=0, unbiased=False)
    return mean_over_all(variance.sum(), variance.numel())


# -- brightness by depth below the border, for masks that come without a scan of their own -------------------------


def profile_of(mean: Sequence[float], between: float, within: float) -> Tensor:
    """(3, DEPTHS) of how bright lesions are in [-1, 1]: by depth, and two deviations, each at the first place of its row.

    mean: at 1, 2, 3, 4 or more pixels from the border. between: standard deviation of slices' means. within: standard
    deviation of pixels about their slice's profile.
    """
    profile = torch.zeros(3, DEPTHS)
    profile[0], profile[1:, 0] = torch.tensor(mean), torch.tensor([between, within])
    return profile


def measure_profile(stacks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Profile (`profile_of`) of (level, lesion) pairs, each (B, *S). Without any lesion: a tenth above white matter."""
    found: list[tuple[Tensor, Tensor]] = []  # (values, pixels to the border) of each sample with lesions
    for levels, lesions in stacks:
        for level, lesion in zip(levels.cpu(), lesions.cpu(), strict=True):
            if lesion.any():
                steps = torch.from_numpy(distance_transform_cdt(lesion.numpy(), "chessboard"))[lesion]
                found.append((level[lesion].double(), steps.clamp(1, DEPTHS).long()))
    if not found:
        return profile_of([WHITE + 0.08] * DEPTHS, 0.02, 0.02)
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
    return profile_of(mean, between, float(rest.std()) if len(rest) > 1 else 0.0)
