"""VGG19 features, with random weights in the published format."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from models.gan.perceptual import VggFeatures, load_vgg


@pytest.fixture(scope="module")
def torchvision_features() -> nn.Sequential:
    """torchvision's own layers, all 37, with random weights that keep the activations' size."""
    import torchvision

    with torch.device("meta"):  # the classifier's 494 MB are not needed
        features = torchvision.models.vgg19(weights=None).features
    features = features.to_empty(device="cpu")
    rng = torch.Generator().manual_seed(0)
    for name, parameter in features.named_parameters():
        fan_in = parameter[0].numel() if name.endswith("weight") else 100
        nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5, generator=rng)
    return features.requires_grad_(False)


@pytest.fixture(scope="module")
def state(torchvision_features: nn.Sequential) -> dict[str, torch.Tensor]:
    """As in torchvision's file, which also has the classifier."""
    state = {f"features.{name}": value for name, value in torchvision_features.state_dict().items()}
    return {**state, "classifier.0.weight": torch.zeros(1)}


@pytest.fixture
def net(state: dict[str, torch.Tensor]) -> VggFeatures:
    return load_vgg(state)


def images(batch: int = 2, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, channels, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def reference(features: nn.Sequential, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """The ReLU behind the first convolution of each block; blocks end with a pooling."""
    convolutions = 0
    for layer in features:
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            convolutions += 1
        elif isinstance(layer, nn.MaxPool2d):
            convolutions = 0
        elif convolutions == 1:
            yield x.clone()


def test_features_are_those_of_torchvision(net: VggFeatures, torchvision_features: nn.Sequential) -> None:
    image = images()
    rgb = (image.repeat(1, 3, 1, 1) + 1) / 2
    # All three predecessors fed [-1, 1] as it is.
    rgb = (rgb - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = list(reference(torchvision_features, rgb))
    maps = net(image)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    for ours, theirs in zip(maps, expected, strict=True):
        assert ours.std() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_loss_formula(net: VggFeatures) -> None:
    fake, real = images(seed=1), images(seed=2)
    expected = sum(
        weight * (a - b).abs().mean()
        for weight, a, b in zip([1 / 32, 1 / 16, 1 / 8, 1 / 4, 1], net(fake), net(real), strict=True)
    )
    torch.testing.assert_close(net.loss(fake, real), expected)
    assert net.loss(fake, real) > 0
    assert net.loss(fake, fake).item() == 0.0


def test_only_the_fake_gets_a_gradient(net: VggFeatures) -> None:
    fake, real = images(seed=1).requires_grad_(), images(seed=2).requires_grad_()
    net.loss(fake, real).backward()
    assert fake.grad.abs().min(dim=0).values.max() > 0
    assert real.grad is None
    assert all(not p.requires_grad and p.grad is None for p in net.parameters())
    assert not net.training


def test_channels_are_images_of_their_own(net: VggFeatures) -> None:
    fake, real = images(2, 3, seed=1), images(2, 3, seed=2)
    assert net(fake)[0].shape[0] == 6
    single = [net.loss(fake[:, c : c + 1], real[:, c : c + 1]) for c in range(3)]
    torch.testing.assert_close(net.loss(fake, real), torch.stack(single).mean(), rtol=1e-4, atol=1e-6)
