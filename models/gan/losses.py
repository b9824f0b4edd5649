"""Losses of the adversarial methods: pure, float32, no options object.

Legend: B batch, N labels, K feature channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.collectives import summed

SPECTRUM_BLOCK = 4
FAKE = 0  # class 0 of the N+1 is "generated"; label y is class y + 1


def class_weights(label: Tensor, num_labels: int, max_weight: float = 0.0) -> Tensor:
    """w_c = B·H·W / (K · n_c): every class present in the batch gets the same total weight (OASIS, eq. 2).

    label: (B, H, W) int64. n_c: pixels of class c; K: classes present. Absent classes get 0. Without a limit the mean
    weight over pixels is 1. max_weight: upper limit, 0 for none. Returns (N,) float32.
    Where ranks share the batch, counts are those of the whole.
    """
    # Not bincount, for which a GPU has to tell the CPU how many classes there are.
    count = summed(torch.histc(label.float(), num_labels, -0.5, num_labels - 0.5))
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


def label_l1(fake: Tensor, real: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Mean over pixels of w_y · |fake − real|: with `class_weights` the mean over labels of the L1 distance within each.

    A plain mean hardly sees small structures, whose intensities then drift. fake, real: (B, C, H, W) in [-1, 1]. label:
    (B, H, W) int64. weight: (N,). Returns ().
    """
    return ((fake.float() - real.detach().float()).abs().mean(1) * weight[label]).mean()


def fake_cross_entropy(logits: Tensor) -> Tensor:
    """Mean over pixels of CE(logits, fake), unweighted (OASIS, eq. 1). logits: (B, N+1, H, W). Returns ()."""
    return -F.log_softmax(logits.float(), dim=1)[:, FAKE].mean()


def labelmix_mask(label: Tensor, num_labels: int, rng: torch.Generator | None) -> Tensor:
    """Binary mask that is constant on each class: one fair coin per class, the same for the whole batch (OASIS, sec. 3.2).

    The coins are drawn into a table and looked up; writing them into the label map class by class would re-toss
    class 0 together with class 1. label: (B, H, W) int64. Returns (B, 1, H, W) float32 in {0, 1}.
    """
    coins = torch.randint(0, 2, (num_labels,), generator=rng).to(label.device, non_blocking=True)
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


def spectrum(fake: Tensor, real: Tensor) -> Tensor:
    """Mean over images, channels and blocks of 4×4 frequencies of |log(P(fake) / P(real))|, P the power in the block.

    images (B, C, H, W) -> (). What L1 takes away, texture and sharpness, counts here by frequency and direction and not by
    place, so grain need not lie where the real image has its own. Rings of all directions would do for a distance, but as a
    loss they let a generator pay with a grid, whose power lies in a few frequencies. A Hann window hides the border. A
    hundredth of the real power is added to both, so that the slope stays finite where the generated image has none.
    """
    window = torch.outer(*(torch.hann_window(n, periodic=False, device=fake.device) for n in fake.shape[2:]))
    power = []
    for image in (fake.float(), real.float()):
        centred = (image - (image * window).sum((2, 3), keepdim=True) / window.sum()) * window
        coefficients = torch.fft.fftshift(torch.fft.rfft2(centred), dim=2)
        power.append(F.avg_pool2d(coefficients.real.square() + coefficients.imag.square(), SPECTRUM_BLOCK))
    generated, wanted = power[0], power[1].clamp(min=1e-12)
    return torch.log((generated + 0.01 * wanted) / (1.01 * wanted)).abs().mean()


def hinge_discriminator(real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
    """mean max(0, 1 - D(x)) + mean max(0, 1 + D(G)); over several scales their mean (Lim & Ye 2017; SPADE, app. A).

    logits: one tensor per scale, any shape; above 1 is surely real. Each mean is over all elements.
    Returns (). ValueError where real and fake differ in the number of scales.
    """
    pairs = zip(real_logits, fake_logits, strict=True)
    return torch.stack([F.relu(1 - x.float()).mean() + F.relu(1 + g.float()).mean() for x, g in pairs]).mean()


def hinge_generator(fake_logits: Sequence[Tensor]) -> Tensor:
    """-mean D(G); over several scales their mean (Lim & Ye 2017, SPADE, app. A). Shapes as above. Returns ()."""
    return torch.stack([-fake.float().mean() for fake in fake_logits]).mean()


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


def relative_matching(real_maps: Sequence[Tensor], fake_maps: Sequence[Tensor]) -> Tensor:
    """Mean over maps of mean |D_i(x) - D_i(G)| / mean |D_i(x)|: feature matching where no norm keeps the maps' size.

    Else the deepest, largest maps would lead, and ever more as the discriminator trains. maps: (B, K, H, W); real ones
    are targets, without gradient. Returns ().
    """
    distances = [
        F.l1_loss(fake.float(), real.detach().float()) / real.detach().float().abs().mean().clamp_min(1e-6)
        for real, fake in zip(real_maps, fake_maps, strict=True)
    ]
    return torch.stack(distances).mean()
