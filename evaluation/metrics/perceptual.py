"""LPIPS: how different two images look to a network that was trained on photographs, built from local files only."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dataloaders.io.weights import load_state
from evaluation.metrics.metric import AGREEMENT, VARIETY, Metric
from evaluation.metrics.similarity import BETWEEN_DRAWS
from evaluation.pairs import Item

LPIPS = "lpips_alex_v0.1"
SMALLEST = 31  # pixels a side that AlexNet's two poolings leave something of


def lpips_alex(weights: Path) -> nn.Module:
    """LPIPS v0.1 with AlexNet (Zhang et al., CVPR 2018): heads of the lpips package, backbone of torchvision's file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips 0.1.4 uses torchvision's old `pretrained=` argument
        import lpips

        # pnet_rand keeps lpips from fetching the backbone; its weights are put in below.
        net = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = load_state(weights)
    layers = {name: layer for part in net.net.children() for name, layer in part.named_children()}
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d):
            layer.load_state_dict({key: state[f"features.{name}.{key}"] for key in ("weight", "bias")})
    return net.eval()


@torch.no_grad()
def lpips_distances(
    net: nn.Module, real: Sequence[NDArray], fake: Sequence[NDArray], device: torch.device
) -> NDArray[np.float64]:
    """LPIPS (n,) of n pairs of images (H, W) in [0, 1], given to the network in [-1, 1] with three equal channels."""

    def prepare(images: Sequence[NDArray]) -> Tensor:
        scaled = torch.from_numpy(np.stack(images).astype(np.float32)) * 2 - 1
        return scaled.unsqueeze(1).expand(-1, 3, -1, -1).to(device)

    return net(prepare(real), prepare(fake)).flatten().cpu().numpy().astype(np.float64)


def _of_slices(net: nn.Module, items: Sequence[Item], device: torch.device) -> list[float]:
    real, fake = ([item.unit[side] for item in items] for side in (0, 1))
    return lpips_distances(net, real, fake, device).tolist()


def _between_draws(net: nn.Module, items: Sequence[Item], device: torch.device) -> list[float]:
    values = []
    for item in items:
        shares = [((draw - item.window.low) / item.window.width).clip(0, 1) for draw in item.draws]
        one, other = zip(*itertools.combinations(shares, 2), strict=True)
        values.append(float(lpips_distances(net, one, other, device).mean()))
    return values


_SMALL = f"slices need sides of at least {SMALLEST} pixels"
METRICS = (
    Metric(
        *(LPIPS, "LPIPS", AGREEMENT, "slice", "lower", ""),
        weights="alexnet",
        windowed=True,
        reason=_SMALL,
        setting="lpips 0.1 heads, torchvision's AlexNet, window to [-1, 1], three equal channels",
        of=_of_slices,
    ),
    Metric(
        *("diversity_lpips", "LPIPS between draws", VARIETY, "slice", None, "", ("draws",)),
        weights="alexnet",
        windowed=True,
        reason=_SMALL,
        setting=BETWEEN_DRAWS,
        of=_between_draws,
    ),
)
