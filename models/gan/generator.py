"""Generators in the image domain: labels and noise -> image, through residual blocks of conditioned norms.

Legend: B batch, N labels, K label slices, Z noise length, C image channels, H W pixels.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.gan.blocks import ResidualBlock, init_weights, leaky_relu
from models.gan.condition import Condition
from models.gan.norms import NormOptions

MIN_SIDE = 32  # sizes must be multiples of it
GRAIN_LEVELS = 3  # finest stages that noise for every pixel is added to
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


class SpadeGenerator(nn.Module):
    """SPADE generator with 3-D noise (Schönfeld et al., ICLR 2021, sec. 3.3).

    The noise vector is joined to the one-hot labels at every pixel; the result conditions the first convolution and
    all norms. Output in [-1, 1] by tanh.
    middle_block: a further block at the second resolution, as in SPADE's own generator (Park et al., CVPR 2019).
    grain: noise for every pixel in the finest stages, see `ResidualBlock`.
    haar: feature maps have a quarter of the channels, and the 3×3 convolutions of all stages but the finest, which writes
    the pixels, see their Haar coefficients: as many channels again at half the size, a quarter of the arithmetic. Maps are
    enlarged smoothly. After the wavelet generators of USIS (Eskandar et al., 2021-23) and SWAGAN (Gal et al., SIGGRAPH
    2021). `channels_G` is then a multiple of 4.
    halvings: how often the first feature map is halved against the label; labels of other sizes than the one that a
    generator is built for must be multiples of 2 ** halvings.
    """

    def __init__(
        self, norms: NormOptions, out_channels: int, size: tuple[int, int], middle_block: bool = False
    ) -> None:
        super().__init__()
        o = norms.options
        self.norms, self.grain, self.haar = norms, o.grain, o.generator == "haar"
        doublings = num_upsamplings(size)
        self.halvings = doublings
        widths = [o.channels_G * multiplier // (4 if self.haar else 1) for multiplier in stage_widths(doublings)]
        self.stem = nn.Conv2d(norms.condition_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            ResidualBlock(fin, fout, norms, self.haar and i < doublings, self.grain and i > doublings - GRAIN_LEVELS)
            for i, (fin, fout) in enumerate(itertools.pairwise(widths))
        )
        self.middle = ResidualBlock(widths[1], widths[1], norms, self.haar) if middle_block else None
        self.to_image = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        init_weights(self, o.spectral_gain)

    def condition(self, label: Tensor, noise: Tensor | None, grain: Tensor | None = None) -> Condition:
        """label (B, H, W) or, with neighbours, (B, K, H, W); noise and grain as `Condition` takes them, None for zeros."""
        label = label if label.ndim == 4 else label[:, None]
        assert label.shape[1] == self.norms.slices, (label.shape, self.norms.slices)
        z_dim = self.norms.z_dim
        if noise is None and z_dim:
            noise = torch.zeros(len(label), z_dim, device=label.device)
        if grain is None and self.grain:
            grain = torch.zeros(len(label), GRAIN_LEVELS, *label.shape[2:], device=label.device)
        return Condition(label, self.norms.num_labels, noise if z_dim else None, grain)

    def forward(self, label: Tensor, noise: Tensor | None = None, grain: Tensor | None = None) -> Tensor:
        """label (B, H, W) or (B, K, H, W) int64, noise (B, Z) or (B, N, Z) -> (B, C, H, W) in [-1, 1].

        noise by class allows resampling one of them while keeping the rest. grain: (B, L, H, W), see `Condition`.
        None means zeros.
        """
        condition = self.condition(label, noise, grain)
        height, width = condition.size  # which need not be that of training
        x = self.stem(condition.at((height >> self.halvings, width >> self.halvings)).dense)
        for i, block in enumerate(self.blocks):
            if i > 0:
                x = F.interpolate(x, scale_factor=2, mode="bilinear" if self.haar else "nearest")
            if i == 1 and self.middle is not None:
                x = self.middle(x, condition)
            x = block(x, condition)
        return torch.tanh(self.to_image(leaky_relu(x)).float())
