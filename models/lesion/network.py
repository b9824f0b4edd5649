"""The network of Salem et al., IEEE Access 2019, sec. II-C: an encoder per modality, maximum fusion, a decoder per modality.

Legend: B batch, M modalities, K condition maps, C width, S the two or three spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.lesion.options import LesionConfig

HALVINGS = 3
STEP = 2**HALVINGS


class ElementPrelu(nn.Module):
    """PReLU with a slope for each channel and pixel, as Keras has it; ties the network to one size."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full(tuple(shape), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> the same."""
        return torch.where(x > 0, x, self.slope * x)


class Layers:
    """Makes the layers of one network: convolutions of two or three dimensions, slopes by channel or by element.

    o.patch: pixels at full resolution along each axis, for slopes by element.
    """

    def __init__(self, o: LesionConfig) -> None:
        self.dims, self.kind, self.patch = o.dims, o.prelu, o.patch
        self._conv = (nn.Conv2d, nn.Conv3d)[o.dims - 2]
        self._up = (nn.ConvTranspose2d, nn.ConvTranspose3d)[o.dims - 2]
        self.pool = (F.max_pool2d, F.max_pool3d)[o.dims - 2]

    def conv(self, fin: int, fout: int, kernel: int, zero: bool = False) -> nn.Module:
        """A convolution that keeps the size, with bias; started for the PReLU behind it, or at 0."""
        conv = self._conv(fin, fout, kernel, padding=kernel // 2)
        nn.init.kaiming_normal_(conv.weight, a=0.25)
        if zero:
            nn.init.zeros_(conv.weight)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        return conv

    def up(self, fin: int, fout: int) -> nn.Module:
        """Transposed convolution that doubles the size."""
        return self._up(fin, fout, 2, stride=2)

    def prelu(self, channels: int, halvings: int = 0) -> nn.Module:
        """PReLU at full resolution or after so many halvings."""
        if self.kind == "channel":
            return nn.PReLU(channels)
        return ElementPrelu((channels, *(self.patch // 2**halvings,) * self.dims))


class Block(nn.Module):
    """y = PReLU(conv3x3(x) + conv1x1(x)), no norm."""

    def __init__(self, layers: Layers, fin: int, fout: int, halvings: int = 0) -> None:
        super().__init__()
        self.wide, self.narrow = layers.conv(fin, fout, 3), layers.conv(fin, fout, 1)
        self.act = layers.prelu(fout, halvings)

    def forward(self, x: Tensor) -> Tensor:
        """(B, fin, *S) -> (B, fout, *S)."""
        return self.act(self.wide(x) + self.narrow(x))


class Encoder(nn.Module):
    """(B, 1 + K, *S) -> latent (B, C, *S); the sides must be multiples of 8. Skips are added, not concatenated."""

    def __init__(self, layers: Layers, fin: int, width: int) -> None:
        super().__init__()
        w, self.pool = width, layers.pool
        self.c1, self.c2 = Block(layers, fin, w), Block(layers, w, 2 * w, 1)
        self.c3, self.c4 = Block(layers, 2 * w, 4 * w, 2), Block(layers, 4 * w, 8 * w, 3)
        self.u1, self.c5 = layers.up(8 * w, 4 * w), Block(layers, 4 * w, 4 * w, 2)
        self.a6, self.c6 = layers.prelu(4 * w, 2), Block(layers, 4 * w, 4 * w, 2)
        self.u2, self.a7 = layers.up(4 * w, 2 * w), layers.prelu(2 * w, 1)
        self.c7 = Block(layers, 2 * w, 2 * w, 1)
        self.u3, self.a8 = layers.up(2 * w, w), layers.prelu(w)
        self.last, self.act = layers.conv(w, w, 1), layers.prelu(w)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        c1 = self.c1(x)
        c2 = self.c2(self.pool(c1, 2))
        c3 = self.c3(self.pool(c2, 2))
        c4 = self.c4(self.pool(c3, 2))
        x = self.c6(self.a6(c3 + self.c5(self.u1(c4))))
        x = self.c7(self.a7(c2 + self.u2(x)))
        return self.act(self.last(self.a8(c1 + self.u3(x))))


class Decoder(nn.Module):
    """Latent (B, C, *S) -> image (B, 1, *S), at full resolution throughout. linear: no PReLU at the end."""

    def __init__(self, layers: Layers, width: int, linear: bool) -> None:
        super().__init__()
        w = width
        self.first = nn.Sequential(Block(layers, w, w), Block(layers, w, w))
        self.second = nn.Sequential(Block(layers, 2 * w, w), Block(layers, w, w))
        self.last = layers.conv(3 * w, 1, 1, zero=linear)  # a residual starts at "nothing changes"
        self.act = nn.Identity() if linear else layers.prelu(1)

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        x = torch.cat([z, self.first(z)], 1)
        x = torch.cat([x, self.second(x)], 1)
        return self.act(self.last(x))


class LesionNetwork(nn.Module):
    """Scans without lesions and condition maps -> scans with lesions.

    modalities, conditions: M, K. o.width: C. o.residual: images are sources plus what the decoder says. 2.06 M parameters
    for M 2, K 8, C 32; 4.59 M with slopes by element at patch 64.
    """

    def __init__(self, modalities: int, conditions: int, o: LesionConfig) -> None:
        super().__init__()
        layers = Layers(o)
        self.residual = o.residual
        self.encoders = nn.ModuleList(Encoder(layers, 1 + conditions, o.width) for _ in range(modalities))
        self.decoders = nn.ModuleList(Decoder(layers, o.width, o.residual) for _ in range(modalities))

    def forward(self, source: Tensor, conditions: Tensor, every: bool = False) -> tuple[list[Tensor], Tensor]:
        """source (B, M, *S), conditions (B, K, *S) -> images, latents (M, B, C, *S). Any size; borders are repeated.

        images: the fused one, (B, M, *S), last; with `every` before it those decoded from each modality's latent alone.
        """
        size = source.shape[2:]
        source, conditions = _padded(source), _padded(conditions)
        pairs = zip(self.encoders, source.split(1, 1), strict=True)
        latents = torch.stack([encoder(torch.cat([x, conditions], 1)) for encoder, x in pairs])
        wanted = [latents.amax(0)]
        if every:
            wanted = [*latents, *wanted]
        images = [torch.cat([decoder(z) for decoder in self.decoders], 1) for z in wanted]
        if self.residual:
            images = [source + image for image in images]
        crop: Any = (..., *(slice(0, n) for n in size))
        return [image[crop] for image in images], latents[crop]


def _padded(x: Tensor) -> Tensor:
    """Sides up to the next multiple of 8, the last pixels repeated."""
    missing = [-n % STEP for n in x.shape[2:]]
    if not any(missing):
        return x
    return F.pad(x, [side for n in reversed(missing) for side in (0, n)], mode="replicate")
