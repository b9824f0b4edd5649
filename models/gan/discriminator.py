"""The OASIS discriminator: a U-Net that sorts every pixel into N real classes or "fake"."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.gan.blocks import DownBlock, UpBlock, init_weights
from models.gan.generator import halvings, num_upsamplings
from models.gan.options import OasisConfig


class OasisDiscriminator(nn.Module):
    """Segmentation U-Net with N+1 outputs (Schönfeld et al., ICLR 2021, sec. 3.1 and table of appendix A).

    Spectral norm on all convolutions but the last; no normalisation layers; the label enters only as target.
    Six levels at 256² as published, one fewer for each halving of the size. tuned: see DownBlock and UpBlock.
    """

    def __init__(
        self, num_labels: int, in_channels: int, size: tuple[int, int], o: OasisConfig, tuned: bool = True
    ) -> None:
        super().__init__()
        self.tuned = tuned
        levels = min(num_upsamplings(size) + 1, halvings(size[0]), halvings(size[1]))
        widths = [o.channels_D * multiplier for multiplier in (1, 1, 2, 2, 4, 4, 4, 4)[:levels]]
        self.down = nn.ModuleList(
            DownBlock(fin, fout, first=i == 0, tuned=tuned)
            for i, (fin, fout) in enumerate(zip([in_channels, *widths], widths, strict=False))
        )
        # Decoder outputs mirror the encoder's inputs; from its second block on it reads [upsampled, skip].
        outputs = [*widths[-2::-1], o.channels_D // 2]
        inputs = [widths[-1], *(2 * width for width in widths[-2::-1])]
        self.up = nn.ModuleList(UpBlock(fin, fout, tuned) for fin, fout in zip(inputs, outputs, strict=True))
        self.to_logits = nn.Conv2d(o.channels_D // 2, num_labels + 1, 1)
        init_weights(self, o.spectral_gain)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """image (B, C, H, W) in [-1, 1] -> logits (B, N+1, H, W); channel 0 is fake, channel y + 1 is label y.

        And the outputs of all blocks, encoder first, (B, K, H/2^i, W/2^i).
        """
        x = image.contiguous(memory_format=torch.channels_last) if self.tuned else image
        maps: list[Tensor] = []
        for down in self.down:
            x = down(x)
            maps.append(x)
        skips = maps[:-1]
        for i, up in enumerate(self.up):
            x = up(torch.cat([x, skips.pop()], dim=1) if i > 0 else x)
            maps.append(x)
        return self.to_logits(x), maps
