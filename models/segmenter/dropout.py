"""Dropout whose noise belongs to the image: the same for any batch size and any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.base import seeded_generator
from models.batch_norm import replace_modules


class ImageDropout(nn.Module):
    """nn.Dropout that draws image i's noise from `streams[i]`; `give_streams` sets them before each forward pass."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.streams: Sequence[torch.Generator] = ()

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> the same shape; elements are 0 with probability p, the others grow by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return x
        own = zip(x.detach(), self.streams, strict=True)
        keep = [torch.empty_like(one).bernoulli_(1 - self.p, generator=rng) for one, rng in own]
        return x * torch.stack(keep).div_(1 - self.p)


def with_image_dropout(net: nn.Module) -> nn.Module:
    """The network with each nn.Dropout replaced."""
    return replace_modules(net, lambda child: ImageDropout(child.p) if type(child) is nn.Dropout else None)


def give_streams(net: nn.Module, keys: Sequence[object], device: torch.device) -> None:
    """One stream an image for the coming forward pass, made from its key and shared by all layers."""
    seeds = [int(torch.randint(2**62, (), generator=seeded_generator("dropout", key))) for key in keys]
    streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    for module in net.modules():
        if isinstance(module, ImageDropout):
            module.streams = streams
