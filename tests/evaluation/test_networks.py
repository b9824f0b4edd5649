"""FID's and LPIPS's networks, built from local files with random weights in the published format."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from evaluation.metrics.networks import inception, inception_features, lpips_alex, lpips_distances

CPU = torch.device("cpu")


def random_state(state: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Random numbers in the shapes of a state dict, scaled so that activations stay finite and not all zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        if name.endswith(("running_var", "bn.weight")):
            return torch.ones_like(tensor)
        fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 100
        return torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5

    return {name: draw(name, tensor) for name, tensor in state.items()}


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torchvision

    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    # Only the convolutions: the classifier's 230 MB are not used.
    state = {f"features.{name}": value for name, value in torchvision.models.alexnet().features.state_dict().items()}
    torch.save(random_state(state), path)
    return path


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pytorch_fid.inception import fid_inception_v3

    net = _build_without_weights(fid_inception_v3)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(random_state(net.state_dict()), path)
    return path


class _Captured(Exception):  # noqa: N818
    pass


def _build_without_weights(build: Any) -> torch.nn.Module:
    """pytorch-fid builds the network, then loads weights: take the network at that moment."""
    taken: list[torch.nn.Module] = []

    def stop(self: torch.nn.Module, *_: Any, **__: Any) -> None:
        taken.append(self)
        raise _Captured

    with (
        mock.patch("pytorch_fid.inception.load_state_dict_from_url", return_value={}),
        mock.patch.object(torch.nn.Module, "load_state_dict", stop),
        pytest.raises(_Captured),
    ):
        build()
    return taken[0]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (4, 64, 64)).astype(np.float32)


def test_inception_comes_from_the_file_and_ignores_batch_size(inception_file: Path, images: np.ndarray) -> None:
    with mock.patch("urllib.request.urlopen", side_effect=AssertionError("network")):
        net = inception(inception_file)
    saved = torch.load(inception_file, weights_only=True)
    assert torch.equal(net.state_dict()["blocks.0.0.conv.weight"], saved["Conv2d_1a_3x3.conv.weight"])
    features = inception_features(net, images[:2], CPU)
    assert features.shape == (2, 2048)
    assert features.std() > 0
    alone = inception_features(net, images[1:2], CPU)
    np.testing.assert_allclose(features[1:], alone, rtol=1e-4, atol=1e-5)


def reference_lpips(alexnet_file: Path) -> torch.nn.Module:
    """lpips with torchvision's own AlexNet carrying the same weights."""
    import torchvision

    backbone = torchvision.models.alexnet()
    backbone.load_state_dict(torch.load(alexnet_file, weights_only=True), strict=False)
    with warnings.catch_warnings(), mock.patch("torchvision.models.alexnet", return_value=backbone):
        warnings.simplefilter("ignore")
        import lpips

        return lpips.LPIPS(net="alex", verbose=False).eval()


def test_lpips_equals_lpips_with_the_same_backbone(alexnet_file: Path, images: np.ndarray) -> None:
    distances = lpips_distances(lpips_alex(alexnet_file), images[:2], images[2:], CPU)
    real, fake = (torch.from_numpy(x)[:, None].repeat(1, 3, 1, 1) * 2 - 1 for x in (images[:2], images[2:]))
    with torch.no_grad():
        expected = reference_lpips(alexnet_file)(real, fake).flatten().numpy()
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    assert (distances > 0).all()


def test_lpips_takes_minus_one_to_one(alexnet_file: Path, images: np.ndarray) -> None:
    """Feeding [0, 1] as it is, the predecessors' mistake, gives other numbers."""
    net = lpips_alex(alexnet_file)
    real, fake = (torch.from_numpy(x)[:, None].repeat(1, 3, 1, 1) for x in (images[:2], images[2:]))
    with torch.no_grad():
        wrong = net(real, fake).flatten().numpy()
        right = net(real, fake, normalize=True).flatten().numpy()
    distances = lpips_distances(net, images[:2], images[2:], CPU)
    np.testing.assert_allclose(distances, right, rtol=1e-5)
    assert np.abs(distances / wrong - 1).min() > 0.01


def test_lpips_identity_and_batch_size(alexnet_file: Path, images: np.ndarray) -> None:
    net = lpips_alex(alexnet_file)
    assert np.abs(lpips_distances(net, images, images, CPU)).max() < 1e-9
    together = lpips_distances(net, images, images[::-1].copy(), CPU)
    single = [lpips_distances(net, a[None], b[None], CPU)[0] for a, b in zip(images, images[::-1], strict=True)]
    np.testing.assert_allclose(together, single, rtol=1e-4)
