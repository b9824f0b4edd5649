"""Building blocks of the generator and the discriminator. Legend: B batch, C channels, H W pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

LEAK = 0.2


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.2."""
    return F.leaky_relu(x, LEAK)


def param_free_norm(kind: str, channels: int) -> nn.Module:
    """Normalisation without scale and shift: ``batch`` or ``instance``."""
    if kind == "batch":
        return nn.BatchNorm2d(channels, affine=False)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=False)
    raise ValueError(f"unknown normalisation {kind!r}: batch or instance")


class Spade(nn.Module):
    """Spatially-adaptive normalisation (Park et al., CVPR 2019, sec. 3.1): norm(x) · (1 + gamma(c)) + beta(c).

    c is the condition (labels and noise) at the size of x; gamma and beta come from a two-layer convolution of c.
    """

    def __init__(self, channels: int, condition_channels: int, hidden: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.norm = param_free_norm(norm, channels)
        self.shared = nn.Conv2d(condition_channels, hidden, kernel, padding=kernel // 2)
        self.gamma = nn.Conv2d(hidden, channels, kernel, padding=kernel // 2)
        self.beta = nn.Conv2d(hidden, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, H, W), condition (B, N + Z, H, W) -> (B, C, H, W)."""
        hidden = F.relu(self.shared(condition))
        return self.norm(x) * (1 + self.gamma(hidden)) + self.beta(hidden)


class SpadeBlock(nn.Module):
    """Residual block of SPADE layers (Park et al., fig. 4); the shortcut is learned where the width changes."""

    def __init__(self, fin: int, fout: int, condition_channels: int, hidden: int, kernel: int, norm: str) -> None:
        super().__init__()
        middle = min(fin, fout)
        arguments = (condition_channels, hidden, kernel, norm)
        self.norm_0 = Spade(fin, *arguments)
        self.conv_0 = spectral_norm(nn.Conv2d(fin, middle, 3, padding=1))
        self.norm_1 = Spade(middle, *arguments)
        self.conv_1 = spectral_norm(nn.Conv2d(middle, fout, 3, padding=1))
        self.norm_s: Spade | None = None
        if fin != fout:
            self.norm_s = Spade(fin, *arguments)
            self.conv_s = spectral_norm(nn.Conv2d(fin, fout, 1, bias=False))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, fin, H, W), condition (B, N + Z, H, W) -> (B, fout, H, W)."""
        shortcut = x if self.norm_s is None else self.conv_s(self.norm_s(x, condition))
        x = self.conv_0(leaky_relu(self.norm_0(x, condition)))
        x = self.conv_1(leaky_relu(self.norm_1(x, condition)))
        return shortcut + x


class DownBlock(nn.Module):
    """Residual block of the U-Net's encoder: two 3×3 convolutions, then average pooling by 2."""

    def __init__(self, fin: int, fout: int, first: bool = False) -> None:
        super().__init__()
        self.first = first  # the image itself is not passed through an activation
        self.conv_0 = spectral_norm(nn.Conv2d(fin, fout, 3, padding=1))
        self.conv_1 = spectral_norm(nn.Conv2d(fout, fout, 3, padding=1))
        self.conv_s = spectral_norm(nn.Conv2d(fin, fout, 1)) if fin != fout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, fin, H, W) -> (B, fout, H/2, W/2)."""
        y = self.conv_0(x if self.first else leaky_relu(x))
        y = self.conv_1(leaky_relu(y))
        return F.avg_pool2d(self.conv_s(x) + y, 2)


class UpBlock(nn.Module):
    """Residual block of the U-Net's decoder: nearest upsampling by 2, then two 3×3 convolutions."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        self.conv_0 = spectral_norm(nn.Conv2d(fin, fout, 3, padding=1))
        self.conv_1 = spectral_norm(nn.Conv2d(fout, fout, 3, padding=1))
        self.conv_s = spectral_norm(nn.Conv2d(fin, fout, 1)) if fin != fout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, fin, H, W) -> (B, fout, 2H, 2W)."""
        y = self.conv_0(F.interpolate(leaky_relu(x), scale_factor=2))
        y = self.conv_1(leaky_relu(y))
        # A 1x1 convolution and nearest upsampling commute: convolving first does a quarter of the work.
        return F.interpolate(self.conv_s(x), scale_factor=2) + y


INIT_GAIN = 0.02


def init_weights(net: nn.Module, spectral_gain: float = INIT_GAIN) -> None:
    """Xavier-normal convolutions with gain 0.02 and zero biases, as published for OASIS and SPADE; in place.

    spectral_gain: gain of the convolutions behind spectral norm. Their scale cancels in the forward pass, but it sets
    how far one step of Adam turns them.
    """
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                gain = spectral_gain if hasattr(module, "parametrizations") else INIT_GAIN
                nn.init.xavier_normal_(trainable_weight(module), gain=gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def trainable_weight(conv: nn.Conv2d) -> Tensor:
    """The tensor that an optimiser moves; behind spectral norm `conv.weight` is computed from it."""
    parametrizations = getattr(conv, "parametrizations", None)
    return conv.weight if parametrizations is None else parametrizations.weight.original
