"""Loss functions: pure, float32, no options object. Legend: B batch, N labels, H W pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloaders.io.ranks import summed

DICE_SMOOTH = 1e-5
FAKE = 0  # class 0 of the N+1 is "generated"; label y is class y + 1


def class_weights(label: Tensor, num_labels: int, max_weight: float = 0.0) -> Tensor:
    """w_c = B·H·W / (K · n_c): every class present in the batch gets the same total weight (OASIS, eq. 2).

    label: (B, H, W) int64. n_c: pixels of class c; K: classes present. Absent classes get 0. Without a limit the mean
    weight over pixels is 1. max_weight: upper limit, 0 for none. Returns (N,) float32.
    Where ranks share the batch, counts are those of the whole.
    """
    count = summed(torch.bincount(label.flatten(), minlength=num_labels)).float()
    present = count > 0
    weight = torch.where(present, count.sum() / (present.sum() * count.clamp(min=1)), torch.zeros_like(count))
    return weight.clamp(max=max_weight) if max_weight > 0 else weight


def real_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over pixels of w_y · CE(logits, y + 1): pixels recognised as real and of their class (OASIS, eq. 1-3).

    logits: (B, N+1, H, W). label: (B, H, W) int64 in 0..N-1. weight: (N,) or None for all ones. Returns ().
    The mean is over all pixels, not over the sum of weights, so a pixel of weight 0 still counts below the line.
    """
    pixelwise = F.cross_entropy(logits.float(), label + 1, reduction="none")
    return pixelwise.mean() if weight is None else (pixelwise * weight[label]).mean()


def fake_cross_entropy(logits: Tensor) -> Tensor:
    """Mean over pixels of CE(logits, fake), unweighted (OASIS, eq. 1). logits: (B, N+1, H, W). Returns ()."""
    return -F.log_softmax(logits.float(), dim=1)[:, FAKE].mean()


def soft_dice_loss(logits: Tensor, label: Tensor, together: bool) -> Tensor:
    """1 - mean over classes 1..N-1 of (2·sum(p·y) + e) / (sum(p) + sum(y) + e), e = 1e-5 (MONAI's DiceLoss).

    together: sums are over the whole batch, that of all ranks where they share it; else over each sample, and the loss is
    also the mean over samples. logits: (B, N, *S). label: (B, *S) int64 in 0..N-1. Returns ().
    """
    p = logits.float().softmax(1)
    y = torch.zeros_like(p).scatter_(1, label[:, None], 1.0)
    sums = torch.stack([(p * y).flatten(2).sum(2), p.flatten(2).sum(2), y.flatten(2).sum(2)])[..., 1:]  # (3, B, N-1)
    overlap, predicted, true = summed(sums.sum(1)) if together else sums
    return 1 - ((2 * overlap + DICE_SMOOTH) / (predicted + true + DICE_SMOOTH)).mean()


def labelmix_mask(label: Tensor, num_labels: int, rng: torch.Generator | None) -> Tensor:
    """Binary mask that is constant on each class: one fair coin per class, the same for the whole batch (OASIS, sec. 3.2).

    The coins are drawn into a table and looked up; writing them into the label map class by class would re-toss
    class 0 together with class 1. label: (B, H, W) int64. Returns (B, 1, H, W) float32 in {0, 1}.
    """
    coins = torch.randint(0, 2, (num_labels,), generator=rng).to(label.device)
    return coins[label].unsqueeze(1).float()


def labelmix_consistency(mixed_logits: Tensor, real_logits: Tensor, fake_logits: Tensor, mask: Tensor) -> Tensor:
    """MSE(D(M·x + (1-M)·G), M·D(x) + (1-M)·D(G)) on raw logits (OASIS, eq. 4).

    logits: (B, N+1, H, W). mask: (B, 1, H, W). Returns ().
    """
    target = mask * real_logits.float() + (1 - mask) * fake_logits.float()
    return F.mse_loss(mixed_logits.float(), target)


@torch.no_grad()
def real_fake_accuracy(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Share of pixels that are told apart as real (any class) or fake, mean of both kinds: (B, N+1, H, W) twice -> ()."""
    real_right = (real_logits.argmax(1) != FAKE).float().mean()
    return (real_right + (fake_logits.argmax(1) == FAKE).float().mean()) / 2


def l1(fake: Tensor, real: Tensor) -> Tensor:
    """Mean of |fake - real|, two images (B, C, H, W). Returns ()."""
    return F.l1_loss(fake.float(), real.float())


def edge(fake: Tensor, real: Tensor) -> Tensor:
    """Mean over pixels and both directions of |∇fake - ∇real|, ∇ by Sobel with kernels of unit sum. (B, C, H, W) -> ().

    Signed gradients: an edge of the right strength and the wrong direction is wrong.
    """
    return (image_gradient(fake) - image_gradient(real)).abs().mean()


def image_gradient(image: Tensor) -> Tensor:
    """Sobel derivatives in intensity per pixel: (B, C, H, W) -> (B, 2, C, H, W), rows then columns; edges replicated."""
    B, C, H, W = image.shape
    kernel = torch.tensor([[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]], device=image.device) / 8
    flat = F.pad(image.float().reshape(B * C, 1, H, W), (1, 1, 1, 1), mode="replicate")
    with torch.autocast(image.device.type, enabled=False):
        slopes = F.conv2d(flat, torch.stack([kernel, kernel.T])[:, None])
    return slopes.view(B, C, 2, H, W).transpose(1, 2)
