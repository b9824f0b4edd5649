"""The mask loss: does the generated body end where the label map says? Differentiable throughout.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from skimage.filters import threshold_triangle
from torch import Tensor

from models.masks import filled

DARKEST = -1.0  # air and background in model units
STEEPNESS = 4.0  # air lies so many widths of the sigmoid below the threshold: 0.018 body
CANDIDATES = 128  # thresholds tried over the intensity range
LEAST_AGREEMENT = 0.85  # Dice below which a threshold does not tell body from background
TOLERANCE = 0.01  # Dice that a threshold may lose against the best one


def softness(threshold: Tensor | float) -> Tensor | float:
    """Width of the sigmoid at this threshold, in intensity: air is clearly outside, whatever the threshold."""
    return (threshold - DARKEST) / STEEPNESS


def body_logits(image: Tensor, threshold: Tensor | float) -> tuple[Tensor, Tensor]:
    """How clearly each pixel is body, (x - threshold) / softness with x the brightest channel, and which are dark holes.

    image (B, C, H, W) -> (B, H, W) float32 and bool. Holes (ventricles, lungs) are enclosed by body, so belong to it.
    """
    logits = (image.float().amax(1) - threshold) / softness(threshold)
    with torch.no_grad():
        hard = logits > 0
        holes = filled(hard) & ~hard
    return logits, holes


def mask_loss(image: Tensor, label: Tensor, threshold: Tensor | float, form: str = "bce") -> Tensor:
    """How far the generated body is from the label's: image (B, C, H, W), label (B, H, W) -> ().

    With logits l of the pixels and y = filled(label > 0):
    dice: mean over images of 1 - 2·Σmy / (Σm + Σy), m = sigmoid(l) (Milletari et al., 3DV 2016, without squares); images
    without body are left out, since there is nothing to overlap with.
    bce: softness · mean over pixels of -y·log m - (1 - y)·log(1 - m). The factor gives every wrong pixel the slope 1 in
    intensity, however wrong it is; Dice has no slope left where pixels are clearly
    wrong: 1e-7 of it for the mid-grey image with which a generator starts.
    Dark holes inside the generated body count as body and get no gradient; everything else does.
    """
    logits, holes = body_logits(image, threshold)
    target = filled(label > 0).float()
    if form == "bce":
        pixelwise = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return softness(threshold) * torch.where(holes & (target > 0), torch.zeros_like(pixelwise), pixelwise).mean()
    soft = torch.where(holes, torch.ones_like(logits), torch.sigmoid(logits))
    overlap, size = (soft * target).sum((1, 2)), target.sum((1, 2))
    dice = 2 * overlap / (soft.sum((1, 2)) + size).clamp(min=1e-6)
    return torch.where(size > 0, 1 - dice, torch.zeros_like(dice)).mean()


def paired_threshold(images: Tensor, labels: Tensor) -> float:
    """Middle of the thresholds at which the filled bodies of real images agree with their labels' (Dice within 0.01).

    images (B, C, H, W) in [-1, 1], labels (B, H, W).
    """
    brightest = images.float().amax(1)
    target = filled(labels > 0)
    candidates = torch.linspace(DARKEST, brightest.max().item(), CANDIDATES + 2)[1:-1].tolist()

    scores = [_dice(filled(brightest > candidate), target) for candidate in candidates]
    good = [t for t, score in zip(candidates, scores, strict=True) if score >= max(scores) - TOLERANCE]
    return (min(good) + max(good)) / 2


def agreement(images: Tensor, labels: Tensor, threshold: float) -> float:
    """Dice of the filled bodies of real images at this threshold with their labels'; shapes as in `paired_threshold`."""
    return _dice(filled(images.float().amax(1) > threshold), filled(labels > 0))


def _dice(body: Tensor, target: Tensor) -> float:
    return (2.0 * (body & target).sum() / (body.sum() + target.sum()).clamp(min=1)).item()


def unpaired_threshold(images: Tensor) -> float:
    """Threshold between background and body, from the images alone.

    The triangle method (Zack et al., 1977) finds where the background's peak ends; the threshold lies a quarter of the way
    from there to the lower quartile of what is brighter. Right beside the peak the sigmoid would be a step without
    gradient; midway, grey ghosts beside the body would pass for air. images (B, C, H, W) in [-1, 1].
    """
    brightest = images.float().amax(1).cpu().numpy().astype(np.float32)
    peak_end = float(threshold_triangle(brightest))
    above = brightest[brightest > peak_end]
    return peak_end + 0.25 * (float(np.quantile(above, 0.25)) - peak_end) if above.size else peak_end
