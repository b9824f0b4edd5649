"""Layers of networks that others have built, exchanged for our own: batch norm over all ranks, dropout by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dataloaders.io.ranks import world_size
from models.base import seeded_generator
from models.collectives import summed


def replace_modules(net: nn.Module, instead: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """The network, each module below it replaced by what `instead` makes of it; None keeps it. Names stay."""
    for parent in net.modules():
        for name, child in parent.named_children():
            if (new := instead(child)) is not None:
                setattr(parent, name, new)
    return net


class _Synced(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose training statistics are those of all ranks together, on CPU and GPU.

    In one process it is torch's. torch's own SyncBatchNorm refuses CPU tensors, so could not be tested here.
    Every rank must hold the same number of pixels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> the same shape."""
        return self._synced(x) if self.training and world_size() > 1 else super().forward(x)

    def _synced(self, x: Tensor) -> Tensor:
        wide = x.float()
        ranks, axes, shape = world_size(), (0, *range(2, x.ndim)), (-1, *(1,) * (x.ndim - 2))
        mean = summed(wide.mean(axes)) / ranks
        centred = wide - mean.view(shape)
        var = summed(centred.square().mean(axes)) / ranks
        if self.track_running_stats:
            count = x.numel() // x.shape[1] * ranks
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), momentum)
        normal = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)


class SyncedBatchNorm2d(_Synced, nn.BatchNorm2d):
    """Of images (B, C, H, W)."""


class SyncedBatchNorm3d(_Synced, nn.BatchNorm3d):
    """Of volumes (B, C, D, H, W)."""


def with_synced_norms(net: nn.Module) -> nn.Module:
    """The network with its batch norms replaced by synced ones; values stay."""
    return replace_modules(net, _synced_norm)


def _synced_norm(child: nn.Module) -> nn.Module | None:
    if isinstance(child, _Synced) or not isinstance(child, (nn.BatchNorm2d, nn.BatchNorm3d)):
        return None
    kind = SyncedBatchNorm2d if isinstance(child, nn.BatchNorm2d) else SyncedBatchNorm3d
    synced = kind(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
    synced.load_state_dict(child.state_dict())
    return synced


class ImageDropout(nn.Module):
    """nn.Dropout whose noise is the same for any batch size and any number of ranks: it draws image i's noise from
    `streams[i]`, which `give_streams` sets before each forward pass.
    """

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
