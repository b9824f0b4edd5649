"""The orthonormal Haar wavelet transform as a butterfly of sums and differences, in one, two or three dimensions.

l = [1, 1]/√2 and h = [-1, 1]/√2 along each spatial axis. Bands are stacked band-major in the channels, the first axis
slowest: in 2-D LL, LH, HL, HH with the letter of the rows first, so the first C channels are the coarse image.
Orthonormal: the inverse is exact and the energy is kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def haar(x: Tensor) -> Tensor:
    """(B, C, *S) -> (B, 2^d·C, *S/2), d spatial axes of even length."""
    dims = x.ndim - 2
    for axis in range(x.ndim - 1, 1, -1):  # the last axis first, so that the first axis is the slowest band index
        even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
        x = torch.cat([even + odd, odd - even], dim=1)
    return x * 2 ** (-dims / 2)


def inverse_haar(x: Tensor) -> Tensor:
    """(B, 2^d·C, *S) -> (B, C, 2·S): the exact inverse of `haar`."""
    dims = x.ndim - 2
    for axis in range(2, x.ndim):
        low, high = x.chunk(2, dim=1)
        x = torch.stack([low - high, low + high], dim=axis + 1).flatten(axis, axis + 1)
    return x * 2 ** (-dims / 2)


class HaarConv(nn.Conv2d):
    """A convolution of pixels, computed on their Haar coefficients: (B, C, H, W) -> (B, D, H, W) by 4·C -> 4·D at half size.

    Flat images stay flat: kernels from the coarse band to the details sum to zero, and details have no bias. A plain
    convolution of coefficients turns what is constant into details, the same in every 2×2 pixels, which is a grid.
    shift: 0 or 1, the place of the 2×2 pixels; two convolutions with different ones treat all pixels alike.
    """

    def __init__(self, fin: int, fout: int, kernel: int, padding: int, bias: bool = True, shift: int = 0) -> None:
        super().__init__(4 * fin, 4 * fout, kernel, padding=padding, bias=bias)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        """See above; borders are continued."""
        C, H, W = x.shape[1:]
        D, s = self.out_channels // 4, self.shift
        coefficients = haar(F.pad(x, (s, (W + s) % 2, s, (H + s) % 2), mode="replicate"))
        weight = self.weight  # read once: behind spectral norm every read is a power step
        to_details = weight[D:, :C] - weight[D:, :C].mean((2, 3), keepdim=True)
        weight = torch.cat([weight[:D], torch.cat([to_details, weight[D:, C:]], dim=1)])
        bias = None if self.bias is None else torch.cat([self.bias[:D], torch.zeros_like(self.bias[D:])])
        y = inverse_haar(F.conv2d(coefficients, weight, bias, padding=self.padding))
        return y[:, :, s : s + H, s : s + W]
