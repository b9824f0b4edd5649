"""The segmenter: images to label probabilities, by MONAI's U-Nets, soft Dice and cross-entropy.

Legend: B batch, C image channels, k neighbouring slices on each side, N classes, S spatial axes (two or three).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config
from dataloaders.io.spec import DataSpec
from models.base import Batch, Method, Player, adam
from models.collectives import summed
from models.layers import give_streams, with_image_dropout, with_synced_norms
from models.segmenter.options import SegmenterConfig

PLATEAU_FACTOR = 0.1
DICE_SMOOTH = 1e-5


def build_network(o: SegmenterConfig, inputs: int, classes: int) -> nn.Module:
    """(B, inputs, *S) -> logits (B, classes, *S), S multiples of 2^(levels - 1).

    unet as FetalSynthSeg has it: strides of 2, one convolution a level, no residual units. basic: two convolutions a
    level, trilinear or bilinear upsampling, as SynthSeg. dynunet: nnU-Net's plain U-Net without deep supervision.
    """
    from monai.networks import nets  # seconds to import, which the other methods need not wait for

    act = (o.activation, {"inplace": True})
    norm: tuple = ("instance", {"affine": True}) if o.norm == "instance" else ("batch", {})
    halvings = len(o.features) - 1
    common: dict[str, Any] = {"spatial_dims": o.dims, "in_channels": inputs, "out_channels": classes}
    if o.network == "dynunet":
        strides, kernels = [2] * halvings, [3] * len(o.features)
        common |= {"kernel_size": kernels, "strides": [1, *strides], "upsample_kernel_size": strides}
        return nets.DynUNet(**common, filters=list(o.features), norm_name=norm, dropout=o.dropout or None)
    common |= {"act": act, "norm": norm, "dropout": o.dropout}
    if o.network == "unet":
        return nets.UNet(**common, channels=o.features, strides=(2,) * halvings)
    return nets.BasicUNet(**common, features=(*o.features, o.features[0]), upsample="nontrainable")


def soft_dice(logits: Tensor, label: Tensor, together: bool) -> tuple[Tensor, Tensor]:
    """(2·sum(p·y) + e) / (sum(p) + sum(y) + e) of classes 1..N-1, e = 1e-5 (MONAI's DiceLoss), and whether y has them.

    together: sums are over the whole batch, that of all ranks where they share it; else over each sample.
    logits: (B, N, *S). label: (B, *S) int64 in 0..N-1. Returns two of (N-1), or (B, N-1).
    """
    p = logits.float().softmax(1)
    y = torch.zeros_like(p).scatter_(1, label[:, None], 1.0)
    sums = torch.stack([(p * y).flatten(2).sum(2), p.flatten(2).sum(2), y.flatten(2).sum(2)])[..., 1:]  # (3, B, N-1)
    overlap, predicted, true = summed(sums.sum(1)) if together else sums
    return (2 * overlap + DICE_SMOOTH) / (predicted + true + DICE_SMOOTH), true > 0


class Segmenter(Method):
    """One network and one player. `spec` holds the classes, the input channels and the voxel size.

    Images are (B, C, *S), in 2.5-D (B, C·(2k + 1), H, W) with the slices of one channel together, in [0, 1] by
    `dataloaders.io.intensity.robust_unit`; labels (B, *S) int64.
    """

    steps: Tensor

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.spec = config.segmenter, spec
        net = build_network(self.config, spec.num_channels * self.config.stack, spec.num_labels)
        self.net = with_image_dropout(with_synced_norms(net))
        self.optimizer = adam(self.net, self.config.lr, config)
        self.total = max(1, config.num_epochs * self.config.epoch_samples // config.batch_size)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def players(self) -> dict[str, Player]:
        """The network."""
        return {"segmenter": Player(self.net, self.optimizer, self._losses)}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        self.net.train()
        if self.config.dropout:
            assert batch.rng is not None
            step = int(torch.randint(2**62, (), generator=batch.rng))
            give_streams(self.net, [(step, index) for index in batch.indices], batch.label.device)
        return self.losses_of(self.net(batch.real), batch.label)

    def losses_of(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Weighted losses of logits (B, N, *S) against labels (B, *S); Dice and cross-entropy are MONAI's DiceCELoss.

        Where a small class has next to no probability, as after the first steps, which bring most pixels to the large ones,
        soft Dice hardly has a slope in its logits; the logarithm's does not depend on how little it is (Wong et al.,
        MICCAI 2018).
        """
        o, parts = self.config, {}
        dice, present = soft_dice(logits, label, o.batch_dice)
        if o.lambda_dice:
            parts["dice"] = o.lambda_dice * (1 - dice).mean()
        if o.lambda_log_dice:
            parts["log_dice"] = o.lambda_log_dice * -(dice.log() * present).mean()
        if o.lambda_ce:
            parts["cross_entropy"] = o.lambda_ce * F.cross_entropy(logits.float(), label)
        return parts

    @torch.no_grad()
    def logits(self, image: Tensor) -> Tensor:
        """(B, C', *S) -> (B, N, *S) float32, for prediction."""
        self.net.eval()
        return self.net(image).float()

    def after_step(self, step: int) -> None:
        """The learning rate of the next step."""
        self.steps.add_(1)
        if self.config.schedule == "cosine":
            share = min(1.0, int(self.steps) / self.total)
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * 0.5 * (1 + math.cos(math.pi * share))

    def after_evaluation(self, stale: int) -> None:
        """plateau: a tenth of the learning rate after lr_patience evaluations without a better one."""
        if self.config.schedule == "plateau" and stale and stale % self.config.lr_patience == 0:
            for group in self.optimizer.param_groups:
                group["lr"] *= PLATEAU_FACTOR

    def release(self) -> dict[str, Tensor]:
        """The network."""
        return self.net.state_dict()

    def load_release(self, tensors: dict[str, Tensor]) -> None:
        """Load the network."""
        self.net.load_state_dict(tensors)
