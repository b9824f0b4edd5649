"""The discriminator of SPADE: patches at several scales, judged together with their labels.

Legend: B batch, N labels, C image channels, H W pixels, K feature channels, S slices that are judged at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from models.gan.blocks import init_weights, leaky_relu
from models.gan.condition import one_hot
from models.gan.options import SpadeConfig

LAYERS = 4  # convolutions before the last one
DIFFERENCE = 10.0  # gain of what slices differ by; see `detail` of PatchDiscriminator
KERNEL, PADDING = 4, 2  # as published: with a padding of 2 each map is one pixel longer than its share


class MultiscalePatchDiscriminator(nn.Module):
    """Equal PatchGANs on the image and on its halvings (Wang et al., CVPR 2018, sec. 3.2; Park et al., CVPR 2019, app. A).

    Reads the image and its one-hot labels side by side. o.channels_D: width of the first layer; it doubles up to 8 times
    that. o.num_D: patch networks, each on half the size of the one before. 5.8 M parameters for 151 labels and three
    channels.
    o.detail_D: see PatchDiscriminator; for single slices.
    slices: S neighbouring slices are read side by side with what each differs from the one before, as frames of a video
    with their motion (vid2vid: Wang et al., NeurIPS 2018, sec. 3.1).
    """

    def __init__(self, num_labels: int, in_channels: int, o: SpadeConfig, slices: int = 1) -> None:
        super().__init__()
        self.num_labels, self.slices = num_labels, slices
        images, detail = in_channels * (2 * slices - 1), o.detail_D if slices == 1 else 0.0
        self.nets = nn.ModuleList(
            PatchDiscriminator(num_labels * slices, images, o.channels_D, detail) for _ in range(o.num_D)
        )
        init_weights(self, o.spectral_gain)

    def forward(self, image: Tensor, label: Tensor) -> list[list[Tensor]]:
        """image (M·B, C, H, W) in [-1, 1], label (B, H, W) int64 in 0..N-1 -> feature maps by scale, finest first.

        With M > 1 the labels are those of each B images in turn, as of real and generated ones. Every S images are a row
        of neighbours. Each scale's list holds its layers' outputs, (M·B/S, K, h, w), and as the last one the logits
        (M·B/S, 1, h, w), for the hinge loss: above 1 is real, below -1 is generated.
        """
        labels = one_hot(label, self.num_labels).permute(0, 3, 1, 2).to(image.dtype)  # (B, N, H, W)
        if self.slices > 1:
            rows = image.unflatten(0, (-1, self.slices))  # (M·B/S, S, C, H, W)
            image = torch.cat([rows, DIFFERENCE * rows.diff(dim=1)], dim=1).flatten(1, 2)
            labels = labels.unflatten(0, (-1, self.slices)).flatten(1, 2)
        result = []
        for i, net in enumerate(self.nets):
            if i > 0:
                # Padded pixels are not counted, or the border would fade towards zero.
                image, labels = (
                    F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False) for x in (image, labels)
                )
            result.append(net(image, labels))
        return result


class PatchDiscriminator(nn.Module):
    """4×4 convolutions with leaky ReLU: widths 1, 2, 4, 8 times `channels`, stride 2, but 1 for the last two.

    All but the first and the last have spectral norm and instance norm without scale and shift. labels, images: channels
    of each. detail: gain at which what pixels differ from the mean of their 3×3 neighbours is read too; 0 for none. Real and
    generated images differ in little else, which is lost among edges of labels and intensities until it is that large.
    """

    def __init__(self, labels: int, images: int, channels: int, detail: float) -> None:
        super().__init__()
        self.detail = detail
        widths = [channels * min(2**i, 8) for i in range(LAYERS)]
        inputs = labels + images * (2 if detail else 1)
        self.first = nn.Conv2d(inputs, widths[0], KERNEL, stride=2, padding=PADDING)
        # No bias in front of a norm that would subtract it again.
        self.convs = nn.ModuleList(
            spectral_norm(
                nn.Conv2d(
                    widths[i - 1], widths[i], KERNEL, stride=1 if i == LAYERS - 1 else 2, padding=PADDING, bias=False
                )
            )
            for i in range(1, LAYERS)
        )
        self.norms = nn.ModuleList(nn.InstanceNorm2d(width) for width in widths[1:])
        self.to_logits = nn.Conv2d(widths[-1], 1, KERNEL, padding=PADDING)

    def forward(self, image: Tensor, labels: Tensor) -> list[Tensor]:
        """image (M·B, C, H, W), labels (B, N, H, W) -> the outputs of all layers, logits (M·B, 1, h, w) last.

        The first convolution reads both side by side; its sum over the labels, most of its channels, is computed once.
        """
        if self.detail:
            around = F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
            image = torch.cat([image, self.detail * (image - around)], dim=1)
        C, first = image.shape[1], self.first
        of_label = F.conv2d(labels, first.weight[:, C:], first.bias, first.stride, first.padding)
        of_image = F.conv2d(image, first.weight[:, :C], None, first.stride, first.padding)
        maps = [leaky_relu(of_image + of_label.repeat(len(image) // len(labels), 1, 1, 1))]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps.append(leaky_relu(norm(conv(maps[-1]))))
        return [*maps, self.to_logits(maps[-1])]
