"""Building blocks of the generator and the discriminator. Legend: B batch, C channels, H W pixels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from models.gan.condition import Condition
from models.gan.haar import HaarConv
from models.gan.norms import NormOptions

LEAK = 0.2


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.2."""
    return F.leaky_relu(x, LEAK)


def normalised_conv(fin: int, fout: int, kernel: int, bias: bool = True, conv_type: Any = nn.Conv2d) -> nn.Conv2d:
    """A convolution that keeps the size, with spectral norm (Miyato et al., ICLR 2018; one power step per forward pass)."""
    conv: nn.Conv2d = conv_type(fin, fout, kernel, padding=kernel // 2, bias=bias)
    spectral_norm(conv)
    return conv


class ResidualBlock(nn.Module):
    """Residual block of conditioned norms (Park et al., CVPR 2019, fig. 4); the shortcut is learned where the width changes.

    haar: the 3×3 convolutions see Haar coefficients, see `HaarConv`.
    grain: noise for every pixel is added between the convolutions, by channel as strongly as learned, from zero on
    (StyleGAN; Karras et al., CVPR 2019, sec. 3.2). The conditioned norm behind it scales it by label.
    """

    def __init__(self, fin: int, fout: int, norms: NormOptions, haar: bool = False, grain: bool = False) -> None:
        super().__init__()
        middle = min(fin, fout)
        first, second = (partial(HaarConv, shift=s) if haar else nn.Conv2d for s in (0, 1))
        self.norm_0 = norms.make(fin)
        self.conv_0 = normalised_conv(fin, middle, 3, conv_type=first)
        self.grain = nn.Parameter(torch.zeros(middle, 1, 1)) if grain else None
        self.norm_1 = norms.make(middle)
        self.conv_1 = normalised_conv(middle, fout, 3, conv_type=second)
        self.norm_s = self.conv_s = None
        if fin != fout:
            # In this order: states of optimisers know parameters by their number.
            self.conv_s = normalised_conv(fin, fout, 1, bias=False)
            self.norm_s = norms.make(fin, False)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        """x (B, fin, H, W) -> (B, fout, H, W)."""
        shortcut, normalised = x, None
        if self.norm_s is not None and self.conv_s is not None:
            normalised = self.norm_0.norm(x)  # both norms see the same x
            shortcut = self.conv_s(self.norm_s(x, condition, normalised))
        delta = self.conv_0(leaky_relu(self.norm_0(x, condition, normalised)))
        if self.grain is not None:
            delta = delta + self.grain * condition.pixel_grain((delta.shape[2], delta.shape[3]))
        return shortcut + self.conv_1(leaky_relu(self.norm_1(delta, condition)))


class DownBlock(nn.Module):
    """Residual block of the U-Net's encoder: two 3×3 convolutions, then average pooling by 2.

    tuned: the pooling is folded into the convolutions before it (4/9 of their arithmetic); equal up to rounding.
    """

    def __init__(self, fin: int, fout: int, first: bool = False, tuned: bool = True) -> None:
        super().__init__()
        self.first, self.tuned = first, tuned  # first: the image itself is not passed through an activation
        self.conv_0 = normalised_conv(fin, fout, 3)
        self.conv_1 = normalised_conv(fout, fout, 3)
        self.conv_s = normalised_conv(fin, fout, 1) if fin != fout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, fin, H, W) -> (B, fout, H/2, W/2)."""
        y = leaky_relu(self.conv_0(x if self.first else leaky_relu(x)))
        if not self.tuned:
            return F.avg_pool2d(self.conv_s(x) + self.conv_1(y), 2)
        return self.conv_s(F.avg_pool2d(x, 2)) + pooled_conv(y, self.conv_1)


class UpBlock(nn.Module):
    """Residual block of the U-Net's decoder: nearest upsampling by 2, then two 3×3 convolutions.

    tuned: the upsampling is folded into the convolutions after it (4/9 of their arithmetic); equal up to rounding.
    """

    def __init__(self, fin: int, fout: int, tuned: bool = True) -> None:
        super().__init__()
        self.tuned = tuned
        self.conv_0 = normalised_conv(fin, fout, 3)
        self.conv_1 = normalised_conv(fout, fout, 3)
        self.conv_s = normalised_conv(fin, fout, 1) if fin != fout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, fin, H, W) -> (B, fout, 2H, 2W)."""
        y = leaky_relu(x)
        if self.tuned:
            y = upsampled_conv(y, self.conv_0)
            shortcut = F.interpolate(self.conv_s(x), scale_factor=2)  # a 1×1 convolution and upsampling commute
        else:
            y = self.conv_0(F.interpolate(y, scale_factor=2))
            shortcut = self.conv_s(F.interpolate(x, scale_factor=2))
        return shortcut + self.conv_1(leaky_relu(y))


def pooled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """avg_pool2d(conv(x), 2) as one 4×4 convolution of stride 2: 16 taps instead of 36.

    x (B, C, H, W), conv C -> D of 3×3 with padding 1 -> (B, D, H/2, W/2). The 4×4 kernel is the mean of the 3×3 one at
    four places.
    """
    weight = conv.weight  # read once: behind spectral norm every read is a power step
    wide = sum(F.pad(weight, (column, 1 - column, row, 1 - row)) for row in (0, 1) for column in (0, 1))
    assert isinstance(wide, Tensor)
    return F.conv2d(x, wide / 4, conv.bias, stride=2, padding=1)


def upsampled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(nearest upsampling of x by 2) at low resolution: 16 products instead of 36.

    x (B, C, H, W), conv C -> D of 3×3 with padding 1 -> (B, D, 2H, 2W). Of each 3×3 window of the upsampled image only
    2×2 pixels differ, so each of the four output phases is a 2×2 convolution with sums of kernel rows and columns.
    """
    weight = conv.weight
    D, C = weight.shape[:2]
    top, middle, bottom = weight.unbind(2)
    rows = torch.stack([top, middle + bottom, top + middle, bottom]).view(2, 2, D, C, 3)  # (phase, tap, D, C, 3)
    left, middle, right = rows.unbind(4)
    phases = torch.stack([left, middle + right, left + middle, right]).view(2, 2, 2, 2, D, C)  # (column, tap, row, tap)
    kernel = phases.permute(2, 0, 4, 5, 3, 1).reshape(4 * D, C, 2, 2)  # row phase, column phase, D | C, row, column tap
    y = F.conv2d(x, kernel, padding=1).permute(0, 2, 3, 1)  # (B, H + 1, W + 1, 4·D); phase 1 lies one pixel further on
    B, H, W = y.shape[0], y.shape[1] - 1, y.shape[2] - 1
    y = y.unflatten(3, (2, 2, D))
    lines = [torch.stack([y[:, i : H + i, j : W + j, i, j] for j in (0, 1)], dim=3) for i in (0, 1)]  # (B, H, W, 2, D)
    y = torch.stack(lines, dim=2).view(B, 2 * H, 2 * W, D)
    return (y if conv.bias is None else y + conv.bias.to(y.dtype)).permute(0, 3, 1, 2)


INIT_GAIN = 0.02


def init_weights(net: nn.Module, spectral_gain: float = INIT_GAIN) -> None:
    """Xavier-normal convolutions with gain 0.02 and zero biases, as published for OASIS and SPADE; in place.

    spectral_gain: gain of the convolutions behind spectral norm. Their scale cancels in the forward pass, but it sets
    how far one step of Adam turns them. The norm's vectors are found anew for the new weights: those of the old ones
    would underestimate their scale and let the first steps of layers without a norm explode.
    """
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                normalised = parametrize.is_parametrized(module, "weight")
                if normalised:
                    parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
                nn.init.xavier_normal_(module.weight, gain=spectral_gain if normalised else INIT_GAIN)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if normalised:
                    spectral_norm(module)
