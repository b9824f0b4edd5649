"""Losses between a generator and its critics: pure, float32, no options object.

Legend: B batch, K feature channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def hinge_discriminator(real_logits: Tensor | Sequence[Tensor], fake_logits: Tensor | Sequence[Tensor]) -> Tensor:
    """mean max(0, 1 - D(x)) + mean max(0, 1 + D(G)); over several scales their mean (Lim & Ye 2017; SPADE, app. A).

    logits: any shape, or a list of such, one per scale; above 1 is surely real. Each mean is over all elements.
    Returns (). ValueError where real and fake differ in the number of scales.
    """
    pairs = zip(_scales(real_logits), _scales(fake_logits), strict=True)
    return torch.stack([F.relu(1 - real).mean() + F.relu(1 + fake).mean() for real, fake in pairs]).mean()


def hinge_generator(fake_logits: Tensor | Sequence[Tensor]) -> Tensor:
    """-mean D(G); over several scales their mean (Lim & Ye 2017, SPADE, app. A). Shapes as above. Returns ()."""
    return torch.stack([-fake.mean() for fake in _scales(fake_logits)]).mean()


def logistic_discriminator(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """mean softplus(D(G)) + mean softplus(-D(x)): cross-entropy of real against fake (Goodfellow et al. 2014, sec. 3).

    scores: any shape, usually (B,), before the sigmoid. Returns (); 2·log 2 for a critic that always says 0.
    """
    return F.softplus(fake_scores.float()).mean() + F.softplus(-real_scores.float()).mean()


def logistic_generator(fake_scores: Tensor) -> Tensor:
    """mean softplus(-D(G)), the non-saturating form (Goodfellow et al. 2014, sec. 3). scores: usually (B,). Returns ()."""
    return F.softplus(-fake_scores.float()).mean()


def r1_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """mean_b ½·‖∇_x D(x_b)‖² on real images (Mescheder et al., ICML 2018, eq. 9), to be multiplied by gamma.

    scores: (B,), computed from images. images: (B, C, H, W) with requires_grad set before the critic saw them;
    RuntimeError otherwise. The norm is over C, H, W: a sum, so its size grows with the image. Where the penalty is
    taken only every k-th step, the caller multiplies by k as well (StyleGAN2, app. B). Returns (), differentiable in
    the critic's weights. The critic should run outside autocast: the second derivative is poor in half precision.
    """
    (gradient,) = torch.autograd.grad(scores.float().sum(), images, create_graph=True)  # (B, C, H, W)
    return 0.5 * gradient.float().square().flatten(1).sum(dim=1).mean()


def feature_matching(real_features: Sequence[Sequence[Tensor]], fake_features: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean over scales of the sum over maps of mean |D_i(x) - D_i(G)|, all maps but the last, the logits.

    features: per scale the maps (B, K, H, W) of `MultiscalePatchDiscriminator`; real ones are targets, without
    gradient. Returns (). As in pix2pixHD (Wang et al., CVPR 2018, sec. 3.2) and SPADE, whose weight is 10.
    ValueError where real and fake differ in the number of scales or maps.
    """
    distances = [
        F.l1_loss(fake.float(), real.detach().float())
        for real_maps, fake_maps in zip(real_features, fake_features, strict=True)
        for real, fake in zip(real_maps[:-1], fake_maps[:-1], strict=True)
    ]
    return torch.stack(distances).sum() / len(real_features)


def _scales(logits: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Logits by scale, float32; a single tensor is a single scale."""
    return [logits.float()] if isinstance(logits, Tensor) else [scale.float() for scale in logits]
