"""The wavelet critic: one score for a whole image, read from Haar coefficients at every scale of an image pyramid.

After SWAGAN (Gal et al., SIGGRAPH 2021), with the layers of StyleGAN2 (Karras et al., CVPR 2020), without shortcuts.
Legend: B batch, C image channels, H W pixels, K feature channels.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataloaders.io.ranks import world_size
from models.collectives import gathered, own_part
from models.gan.blocks import leaky_relu
from models.gan.haar import haar, inverse_haar

COARSEST_SIDE = 4  # halve until the shorter side is no longer than this, or odd
BANDS = 4
MAX_CHANNELS = 512
GROUP = 4  # most samples that share one minibatch standard deviation


class WaveletDiscriminator(nn.Module):
    """Unconditional critic of whole images: (B, C, H, W) -> (B,), higher for more real.

    size: of the image, multiples of 32. Feature maps start at half of it with `channels`
    channels, then have min(4·channels, MAX_CHANNELS), and are halved until the shorter side is at most 4 or odd.
    26.2 M parameters at 256² with three channels. The last map is flattened, so sides with a large odd factor
    (544 = 17·32) make a large linear layer.

    Weights are N(0, 1) and scaled in the forward pass; no spectral norm: the R1 penalty is what holds it.
    """

    def __init__(self, in_channels: int, size: tuple[int, int], channels: int = 128) -> None:
        super().__init__()
        self.image_shape = (in_channels, *size)
        levels, coarsest = critic_levels(size)
        widths = [channels] + [min(4 * channels, MAX_CHANNELS)] * levels
        self.from_wavelet = nn.ModuleList(EqualConv(BANDS * in_channels, width, 1) for width in widths)
        self.down = nn.ModuleList(CriticBlock(fin, fout) for fin, fout in itertools.pairwise(widths))
        self.shrink = Blur(stride=2)
        self.last_conv = EqualConv(widths[-1] + 1, widths[-1], 3)  # + 1: the minibatch standard deviation
        self.hidden = EqualLinear(widths[-1] * math.prod(coarsest), widths[-1])
        self.score = EqualLinear(widths[-1], 1)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """image (B, C, H, W) in [-1, 1] -> scores (B,), unbounded.

        And the maps behind each halving, (B, K, H/4, W/4) first, then half as large each.
        Twice differentiable in image and weights. Samples meet only in the minibatch standard deviation, so real and
        generated images go through separately and in batches of the same size.
        """
        assert image.shape[1:] == self.image_shape, (tuple(image.shape), self.image_shape)
        coefficients = haar(image)
        x = activate(self.from_wavelet[0](coefficients))
        maps = []
        for down, from_wavelet in zip(self.down, self.from_wavelet[1:], strict=True):
            maps.append(down(x))
            coefficients = haar(self.shrink(inverse_haar(coefficients)))
            x = maps[-1] + activate(from_wavelet(coefficients))
        x = activate(self.last_conv(minibatch_deviation(x)))
        return self.score(activate(self.hidden(x.flatten(1)))).squeeze(1), maps


class CriticBlock(nn.Module):
    """3×3 convolution, then a blurred 3×3 convolution of stride 2, each with bias and activation; no shortcut."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        self.conv = EqualConv(fin, fin, 3)
        self.blur = Blur()
        self.down = EqualConv(fin, fout, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, fin, H, W), H and W even -> (B, fout, H/2, W/2)."""
        x = activate(self.conv(x))
        return activate(self.down(self.blur(x)))  # (H, W) -> (H + 1, W + 1) -> (H/2, W/2)


class Blur(nn.Module):
    """Low-pass filter [1, 3, 3, 1] along rows and columns, sum 1, before halving (Karras et al. 2020).

    stride 1: (B, K, H, W) -> (B, K, H + 1, W + 1), for a convolution of stride 2 without padding to follow.
    stride 2: -> (B, K, H/2, W/2). Zeros beyond the border.
    """

    kernel: Tensor

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        weight = self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(x, weight, stride=self.stride, padding=2 // self.stride, groups=x.shape[1])


class EqualConv(nn.Module):
    """Convolution with equalised learning rate: weight ~ N(0, 1), times 1/√fan_in at run time (Karras et al. 2018, 4.1)."""

    def __init__(self, fin: int, fout: int, kernel: int, stride: int = 1, padding: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fout, fin, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(fout))
        self.stride, self.padding = stride, kernel // 2 if padding is None else padding
        self.scale = (fin * kernel**2) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        """(B, fin, H, W) -> (B, fout, H', W')."""
        return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate, as `EqualConv`."""

    def __init__(self, fin: int, fout: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fout, fin))
        self.bias = nn.Parameter(torch.zeros(fout))
        self.scale = fin**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """(B, fin) -> (B, fout)."""
        return F.linear(x, self.weight * self.scale, self.bias)


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU 0.2, times √2 so that a map of unit variance keeps about that."""
    return leaky_relu(x) * math.sqrt(2)


def critic_levels(size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Halvings after the first and the coarsest map: 256² -> 5, (4, 4); 96×160 -> 4, (3, 5)."""
    height, width = size[0] // 2, size[1] // 2
    levels = 0
    while min(height, width) > COARSEST_SIDE and height % 2 == width % 2 == 0:
        height, width, levels = height // 2, width // 2, levels + 1
    return levels, (height, width)


def minibatch_deviation(x: Tensor) -> Tensor:
    """Append the minibatch standard deviation as one channel: (B, K, H, W) -> (B, K + 1, H, W) (Karras et al. 2018, sec. 3).

    The deviation over the samples of a group, averaged over K, H, W, the same at every pixel of its samples. Groups are
    neighbours in the batch; their size is the largest divisor of B up to GROUP, so any B works, though B = 5 or 7
    leaves each sample alone with the constant 1e-4. Where ranks share the batch, B and the groups are those of the whole.
    """
    whole = len(x) * world_size()
    size = next(n for n in range(min(GROUP, whole), 0, -1) if whole % n == 0)
    # Squares of small differences would be lost in bfloat16.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    across = len(x) % size > 0  # a group lies on several ranks
    grouped = (gathered(wide) if across else wide).unflatten(0, (-1, size))  # (B/n, n, K, H, W)
    deviation = (grouped.var(dim=1, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))  # (B/n,)
    by_sample = deviation.to(x.dtype).repeat_interleave(size)  # (B,)
    by_sample = own_part(by_sample) if across else by_sample
    channel = by_sample.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
    return torch.cat([x, channel], dim=1)
