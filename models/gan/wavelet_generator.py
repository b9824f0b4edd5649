"""Generators that work on Haar coefficients at half the resolution and end in one inverse transform.

After the wavelet family of USIS (Eskandar et al., 2021-23) and SWAGAN (Gal et al., SIGGRAPH 2021), written from their
description. The feature channels are read as four bands of C/4 each, so convolutions see coefficients, and the spatial
size, hence the arithmetic, is a quarter of the image domain's. Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.gan.blocks import INIT_GAIN, ResidualBlock, init_weights, leaky_relu
from models.gan.condition import Condition
from models.gan.generator import Generator, check_size, halvings, num_upsamplings, stage_widths
from models.gan.haar import haar, inverse_haar
from models.gan.norms import ConditionedNorm, MakeNorm, NormOptions

BANDS = 4
Upsampling = Literal["nearest", "multilevel", "pixel", "reductive", "residual"]


@dataclass(frozen=True)
class WaveletIdea:
    """What distinguishes the members of the family.

    upsampling: how coefficients are doubled between blocks. pixel_norm: conditioned norms work on the image that the
    coefficients stand for. plain_shortcut: learned shortcuts have no norm.
    """

    upsampling: Upsampling
    pixel_norm: bool = False
    plain_shortcut: bool = False


WAVELET_IDEAS = {
    "wavelet": WaveletIdea("nearest"),
    "wavelet_multilevel": WaveletIdea("multilevel"),
    "wavelet_pixelnorm": WaveletIdea("pixel", pixel_norm=True),
    "wavelet_reductive": WaveletIdea("reductive"),
    "wavelet_reductive_pixelnorm": WaveletIdea("reductive", pixel_norm=True),
    "wavelet_residual_coefficients": WaveletIdea("residual"),
    "wavelet_residual": WaveletIdea("residual", pixel_norm=True, plain_shortcut=True),
}


def upsample_nearest(x: Tensor) -> Tensor:
    """Every coefficient doubled along rows and columns: (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2)


def upsample_multilevel(x: Tensor) -> Tensor:
    """The image of the coefficients becomes the coarse band; the detail bands are spread with zeros between.

    (B, C, H, W) -> (B, C, 2H, 2W), C a multiple of 4.
    """
    details = x[:, x.shape[1] // 4 :]
    spread = details.new_zeros(*details.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    spread[:, :, ::2, ::2] = details
    return torch.cat([inverse_haar(x), spread], dim=1)


def upsample_in_pixels(x: Tensor, mode: str = "nearest") -> Tensor:
    """The image of the coefficients, enlarged and transformed again: (B, C, H, W) -> (B, C, 2H, 2W)."""
    return haar(F.interpolate(inverse_haar(x), scale_factor=2, mode=mode))


class PixelDomain(ConditionedNorm):
    """A conditioned norm of wavelet coefficients, applied to the image they stand for: inverse Haar, norm, Haar."""

    def __init__(self, inner: ConditionedNorm) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, condition: Condition, normalised: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) coefficients -> (B, C, H, W)."""
        return haar(self.inner(inverse_haar(x), condition, normalised))

    def normalise(self, x: Tensor) -> Tensor:
        """The image (B, C/4, 2H, 2W) of the coefficients with mean 0 and variance 1."""
        return self.inner.normalise(inverse_haar(x))


class WaveletGenerator(Generator):
    """Conditioned residual blocks on Haar coefficients; ends in a 1×1 convolution, the inverse transform and tanh.

    Widths are those of the image domain at the same `channels`; a quarter of them in the reductive ones, whose
    upsampling turns four channels into one. idea: a key of WAVELET_IDEAS.
    """

    def __init__(
        self,
        norms: NormOptions,
        out_channels: int,
        size: tuple[int, int],
        channels: int = 64,
        spectral_gain: float = INIT_GAIN,
        idea: str = "wavelet_residual",
    ) -> None:
        super().__init__(norms)
        check_size(size)
        if channels % 8:
            raise ValueError(f"channels {channels}: wavelet generators need a multiple of 8")
        self.idea = WAVELET_IDEAS[idea]
        # The first map has half the side of the image domain's, so the same number of doublings ends at half the size.
        doublings = min(num_upsamplings(size), halvings(size[0]) - 1, halvings(size[1]) - 1)
        self.halvings = doublings + 1
        widths = [channels * multiplier for multiplier in stage_widths(doublings)]

        def make_in_pixels(channels: int, own_statistics: bool = True) -> ConditionedNorm:
            return PixelDomain(norms.make(channels // BANDS, own_statistics))

        make_norm: MakeNorm = make_in_pixels if self.idea.pixel_norm else norms.make
        self.stem = nn.Conv2d(norms.condition_channels, widths[0], 3, padding=1)
        blocks = []
        for i, (fin, fout) in enumerate(itertools.pairwise(widths)):
            enters = fin // 4 if i > 0 and self.idea.upsampling == "reductive" else fin
            blocks.append(ResidualBlock(enters, fout, make_norm, self.idea.plain_shortcut))
        self.blocks = nn.ModuleList(blocks)
        self.to_coefficients = nn.Conv2d(widths[-1], 4 * out_channels, 1)
        init_weights(self, spectral_gain)

    def forward(self, label: Tensor, noise: Tensor | None = None, grain: Tensor | None = None) -> Tensor:
        """label (B, H, W) or (B, K, H, W) int64, noise (B, Z), (B, N, Z) or (B, Z, H, W) -> (B, C, H, W) in [-1, 1]."""
        condition = self.condition(label, noise, grain)
        x = self.stem(self.coarsest(condition).dense())
        x = self._residual(x, condition) if self.idea.upsampling == "residual" else self._plain(x, condition)
        return torch.tanh(inverse_haar(self.to_coefficients(leaky_relu(x)).float()))

    def _plain(self, x: Tensor, condition: Condition) -> Tensor:
        upsampling: dict[str, Callable[[Tensor], Tensor]] = {
            "nearest": upsample_nearest,
            "multilevel": upsample_multilevel,
            "pixel": upsample_in_pixels,
            "reductive": inverse_haar,
        }
        upsample = upsampling[self.idea.upsampling]
        for i, block in enumerate(self.blocks):
            x = block(upsample(x) if i > 0 else x, condition)
        return x

    def _residual(self, x: Tensor, condition: Condition) -> Tensor:
        """Shortcuts are enlarged smoothly as images, what the blocks add as coefficients."""
        for i, block in enumerate(self.blocks):
            assert isinstance(block, ResidualBlock)
            shortcut, delta = block.parts(x, condition)
            if i < len(self.blocks) - 1:
                shortcut, delta = upsample_in_pixels(shortcut, "bilinear"), upsample_nearest(delta)
            x = shortcut + delta
        return x
