"""Losses of the lesion generator, in float32. Legend: B batch, M modalities, C width, S spatial axes."""

from __future__ import annotations

from torch import Tensor

from dataloaders.io.ranks import mean_over_all
from models.lesion.conditions import dilated


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
