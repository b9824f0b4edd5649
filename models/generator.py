"""The OASIS generator: labels and noise -> image, through SPADE residual blocks.

Legend: B batch, N labels, Z noise length, C image channels, H W pixels.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import INIT_GAIN, SpadeBlock, init_weights, leaky_relu

MIN_SIDE = 32  # sizes must be multiples of it
START_SIDE = 8  # the coarsest feature map is about this long on its shorter side


def check_size(size: tuple[int, int]) -> None:
    """Raise ValueError unless both sides are multiples of 32."""
    if any(side < MIN_SIDE or side % MIN_SIDE for side in size):
        raise ValueError(f"slice size {size[0]}x{size[1]}: both sides must be multiples of {MIN_SIDE}")


def halvings(side: int) -> int:
    """How often a length can be halved without remainder."""
    return (side & -side).bit_length() - 1


def num_upsamplings(size: tuple[int, int]) -> int:
    """Doublings from the coarsest map (shorter side at least 8) to `size`: 5 for 256, 4 for 128, 3 for 64."""
    steps = max(0, (min(size) // START_SIDE).bit_length() - 1)
    return min(steps, halvings(size[0]), halvings(size[1]))


def stage_widths(upsamplings: int) -> list[int]:
    """Channel multipliers from coarse to fine: [16, 16, 16, 8, 4, 2, 1] for 5 doublings, as published for 256²."""
    return [min(2**i, 16) for i in range(upsamplings + 2)][::-1]


class OasisGenerator(nn.Module):
    """SPADE generator with 3-D noise (Schönfeld et al., ICLR 2021, sec. 3.3).

    The noise vector is joined to the one-hot labels at every pixel; the result conditions the first convolution and
    all SPADE layers. Output in [-1, 1] by tanh.
    """

    def __init__(
        self,
        num_labels: int,
        out_channels: int,
        size: tuple[int, int],
        channels: int = 64,
        z_dim: int = 64,
        spade_hidden: int = 128,
        spade_ks: int = 3,
        norm: str = "batch",
        spectral_gain: float = INIT_GAIN,
    ) -> None:
        super().__init__()
        check_size(size)
        self.num_labels, self.z_dim = num_labels, z_dim
        doublings = num_upsamplings(size)
        self.start = (size[0] >> doublings, size[1] >> doublings)
        widths = [channels * multiplier for multiplier in stage_widths(doublings)]
        condition = num_labels + z_dim
        self.stem = nn.Conv2d(condition, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            SpadeBlock(fin, fout, condition, spade_hidden, spade_ks, norm) for fin, fout in itertools.pairwise(widths)
        )
        self.to_image = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        init_weights(self, spectral_gain)

    def forward(self, label: Tensor, noise: Tensor | None = None) -> Tensor:
        """label (B, H, W) int64, noise (B, Z) or (B, Z, H, W) -> image (B, C, H, W) in [-1, 1].

        noise per pixel allows resampling one region while keeping the rest; None means zeros.
        """
        condition = self.condition(label, noise)
        x = self.stem(F.interpolate(condition, size=self.start))
        for i, block in enumerate(self.blocks):
            if i > 0:
                x = F.interpolate(x, scale_factor=2)
            x = block(x, F.interpolate(condition, size=x.shape[2:]))
        return torch.tanh(self.to_image(leaky_relu(x)))

    def condition(self, label: Tensor, noise: Tensor | None) -> Tensor:
        """One-hot labels behind noise: (B, Z + N, H, W) float32."""
        one_hot = F.one_hot(label, self.num_labels).permute(0, 3, 1, 2).float()
        if self.z_dim == 0:
            return one_hot
        if noise is None:
            noise = one_hot.new_zeros(len(label), self.z_dim)
        if noise.ndim == 2:
            noise = noise[:, :, None, None].expand(-1, -1, *label.shape[1:])
        return torch.cat([noise, one_hot], dim=1)
