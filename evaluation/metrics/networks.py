"""Pretrained networks behind FID and LPIPS, built from local files only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dataloaders.io.weights import load_state


def inception(weights: Path) -> nn.Module:
    """pytorch-fid's Inception up to the last pooling (2048 features), from its published weight file.

    Its constructor fetches the file by URL; for the time of construction that one function is replaced by one that
    returns the verified local file, so the network itself is pytorch-fid's, untouched.
    """
    from pytorch_fid import inception as pytorch_fid_inception

    state = load_state(weights)
    with mock.patch.object(pytorch_fid_inception, "load_state_dict_from_url", return_value=state):
        net = pytorch_fid_inception.InceptionV3([pytorch_fid_inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
    return net.eval()


@torch.no_grad()
def inception_features(net: nn.Module, images: NDArray, device: torch.device) -> NDArray[np.float32]:
    """Features (n, 2048) of images (n, H, W) in [0, 1]; the grey channel is repeated three times."""
    batch = torch.from_numpy(np.asarray(images, np.float32)).unsqueeze(1).expand(-1, 3, -1, -1).to(device)
    return net(batch)[0].flatten(1).cpu().numpy()


def lpips_alex(weights: Path) -> nn.Module:
    """LPIPS v0.1 with AlexNet (Zhang et al., CVPR 2018): heads of the lpips package, backbone of torchvision's file."""
    with _quiet_lpips():
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
def lpips_distances(net: nn.Module, real: NDArray, fake: NDArray, device: torch.device) -> NDArray[np.float64]:
    """LPIPS (n,) of image pairs (n, H, W) in [0, 1], given to the network in [-1, 1] with three equal channels."""

    def prepare(images: NDArray) -> Tensor:
        scaled = torch.from_numpy(np.asarray(images, np.float32)) * 2 - 1
        return scaled.unsqueeze(1).expand(-1, 3, -1, -1).to(device)

    return net(prepare(real), prepare(fake)).flatten().cpu().numpy().astype(np.float64)


@contextmanager
def _quiet_lpips() -> Iterator[None]:
    """lpips 0.1.4 uses torchvision's old `pretrained=` argument, which warns twice at every construction."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
