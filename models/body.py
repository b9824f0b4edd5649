"""The mask loss: does the generated body end where the label map says? Differentiable throughout.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from skimage.filters import threshold_triangle
from torch import Tensor

SOFTNESS = 0.05  # width of the sigmoid in model units: a twentieth of half the intensity range
CANDIDATES = 64  # thresholds tried between the darkest and the brightest intensity


def filled(mask: Tensor) -> Tensor:
    """Pixels that have mask on both sides in their row and in their column, or are mask. (B, H, W) bool -> the same.

    Fills holes, whole body cavities included, without labelling regions, so it runs on the device in one go. It also
    fills bays that are enclosed from four sides; since image and label are filled alike, that cancels.
    """
    enclosed = torch.ones_like(mask)
    for axis in (1, 2):
        enclosed &= mask.cummax(axis).values & mask.flip(axis).cummax(axis).values.flip(axis)
    return mask | enclosed


def soft_body(image: Tensor, threshold: Tensor | float, softness: float = SOFTNESS) -> Tensor:
    """How much each pixel belongs to the body, in [0, 1]: (B, C, H, W) -> (B, H, W).

    sigmoid((max over channels of x - threshold) / softness); dark holes inside the body (ventricles, lungs) count as body
    and give no gradient, everything else does.
    """
    soft = torch.sigmoid((image.float().amax(1) - threshold) / softness)
    with torch.no_grad():
        hard = soft > 0.5
        holes = filled(hard) & ~hard
    return torch.where(holes, torch.ones_like(soft), soft)


def mask_loss(image: Tensor, label: Tensor, threshold: Tensor | float, form: str = "dice") -> Tensor:
    """1 - Dice or binary cross-entropy between the generated body and the label's: (B, C, H, W), (B, H, W) -> ().

    With m = `soft_body` and y = filled(label > 0), dice: mean over images of 1 - 2·Σmy / (Σm + Σy) (Milletari et al.,
    3DV 2016, without squares); bce: mean over pixels of -y·log m - (1 - y)·log(1 - m). Images without body are judged
    by bce only: Dice has nothing to overlap with there and is 0.
    """
    body = soft_body(image, threshold)
    target = filled(label > 0).float()
    if form == "bce":
        return F.binary_cross_entropy(body.clamp(1e-6, 1 - 1e-6), target)
    overlap, size = (body * target).sum((1, 2)), target.sum((1, 2))
    dice = 2 * overlap / (body.sum((1, 2)) + size).clamp(min=1e-6)
    return torch.where(size > 0, 1 - dice, torch.zeros_like(dice)).mean()


def paired_threshold(images: Tensor, labels: Tensor) -> float:
    """Threshold at which the filled bodies of real images agree best with their labels' (Dice over all pixels).

    images (B, C, H, W) in [-1, 1], labels (B, H, W).
    """
    brightest = images.float().amax(1)
    target = filled(labels > 0)
    low, high = brightest.min().item(), brightest.max().item()
    candidates = torch.linspace(low, high, CANDIDATES + 2)[1:-1].tolist()

    def dice(threshold: float) -> float:
        body = filled(brightest > threshold)
        return (2.0 * (body & target).sum() / (body.sum() + target.sum()).clamp(min=1)).item()

    return max(candidates, key=dice)


def unpaired_threshold(images: Tensor) -> float:
    """Threshold beside the peak of the background, from the images alone: the triangle method (Zack et al., 1977).

    images (B, C, H, W) in [-1, 1].
    """
    return float(threshold_triangle(images.float().amax(1).cpu().numpy().astype(np.float32)))


def outline_error(image: Tensor, label: Tensor, threshold: Tensor | float) -> Tensor:
    """Pixels where generated and label's body differ, as share of the label's: (B, C, H, W), (B, H, W) -> ()."""
    body, target = filled(image.float().amax(1) > threshold), filled(label > 0)
    return (body ^ target).sum() / target.sum().clamp(min=1)
