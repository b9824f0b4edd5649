"""Extractors from files: right preparation, right layer, refusals, and the cache of features."""

from __future__ import annotations

import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import skimage
import torch
import torchvision
from torch import Tensor, nn

from dataloaders.io.files import file_sha256
from dataloaders.io.weights import MissingWeights, load_state, resolve
from evaluation.metrics.extractors import (
    Extractor,
    cached_features,
    efficientnet_extractor,
    extractor,
    inception_extractor,
    torchscript_extractor,
    torchvision_extractor,
)
from evaluation.metrics.perceptual import lpips_alex, lpips_distances
from tests.evaluation.helpers import randomised, save_script

CPU = torch.device("cpu")
MODEL = "shufflenet_v2_x0_5"  # 1.4 million weights


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (5, 48, 48)).astype(np.float32)


class Corner(nn.Module):
    """The four pixels of the top left corner of every channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :2, :2]


# -- TorchScript --------------------------------------------------------------------------------------------------


def test_torchscript_gets_three_equal_channels_at_its_size(tmp_path: Path, images: np.ndarray) -> None:
    path = save_script(Corner(), tmp_path / "corner.pt")
    net = torchscript_extractor(path, CPU)
    assert (net.name, net.dim, net.sha256) == ("torchscript:corner", 12, file_sha256(path))
    large = np.random.default_rng(0).uniform(0, 1, (3, 224, 224)).astype(np.float32)
    features = net.features(large)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, np.tile(large[:, :2, :2].reshape(3, 4), 3), rtol=1e-6)
    np.testing.assert_allclose(net.features(np.full((1, 30, 20), 0.25)), 0.25, rtol=1e-6)  # resized
    other = torchscript_extractor(save_script(nn.Flatten(), tmp_path / "b.pt"), CPU)
    assert (other.dim, other.key != net.key) == (3 * 224 * 224, True)


# -- torchvision --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(MODEL, weights=None).eval()


@pytest.fixture(scope="module")
def state_file(classifier: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(classifier.state_dict(), path)
    return path


def test_torchvision_gives_what_enters_the_last_layer(
    classifier: nn.Module, state_file: Path, images: np.ndarray
) -> None:
    net = torchvision_extractor(MODEL, state_file, CPU)
    assert (net.name, net.dim, net.sha256) == (f"torchvision:{MODEL}", 1024, file_sha256(state_file))
    entered: list[Tensor] = []
    hook = classifier.fc.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    x = torch.nn.functional.interpolate(torch.from_numpy(images)[:, None], (224, 224), mode="bilinear", antialias=True)
    x = torchvision.transforms.functional.normalize(x.repeat(1, 3, 1, 1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        classifier(x)
    hook.remove()
    np.testing.assert_allclose(net.features(images), entered[0].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_common_wrappings_and_another_head_are_understood(
    classifier: nn.Module, state_file: Path, images: np.ndarray, tmp_path: Path
) -> None:
    expected = torchvision_extractor(MODEL, state_file, CPU).features(images)
    state = {f"module.{key}": value for key, value in classifier.state_dict().items()}
    state["module.fc.weight"], state["module.fc.bias"] = torch.zeros(7, 1024), torch.zeros(7)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "wrapped.pth")
    assert np.array_equal(torchvision_extractor(MODEL, tmp_path / "wrapped.pth", CPU).features(images), expected)


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file:UserWarning")
def test_files_that_do_not_fit_are_refused(classifier: nn.Module, tmp_path: Path) -> None:
    state = {key: value for key, value in classifier.state_dict().items() if key != "conv1.0.weight"}
    for name, content in {"short": state, "numbers": {"epoch": 3}, "pickle": classifier}.items():
        torch.save(content, tmp_path / f"{name}.pth")
    save_script(Corner(), tmp_path / "script.pth")
    (tmp_path / "text.pth").write_text("text")
    (tmp_path / "empty.pth").write_bytes(b"")
    unsafe = "is not a state dict that can be read safely"
    for model, name, message in (
        (MODEL, "short", rf"does not hold the weights of {MODEL}: Missing key.*conv1\.0\.weight"),
        (MODEL, "numbers", "holds no state dict"),
        *((MODEL, name, f"{name}.pth {unsafe}") for name in ("pickle", "script", "text", "empty")),
        ("resnet51", "short", "'resnet51' is no classifier of torchvision; there are alexnet"),
        ("squeezenet1_1", "short", "squeezenet1_1 has no linear layer"),
    ):
        with pytest.raises(ValueError, match=message):
            torchvision_extractor(model, tmp_path / f"{name}.pth", CPU)


# -- names and published networks -------------------------------------------------------------------------------------


def test_an_extractor_is_chosen_by_text(state_file: Path, tmp_path: Path) -> None:
    path = save_script(Corner(), tmp_path / "corner.pt")
    assert extractor(f"torchscript:{path}", CPU).name == "torchscript:corner"
    assert extractor(f"{MODEL}:{state_file}", CPU).name == f"torchvision:{MODEL}"
    for text in ("", "vgg", ":file", "torchscript:"):
        with pytest.raises(ValueError, match="use torchscript:FILE or a torchvision model"):
            extractor(text, CPU)
    with pytest.raises(MissingWeights, match=r"resnet50:absent\.pt: no such file") as missing:
        extractor("resnet50:absent.pt", CPU)
    assert missing.value.reason == "weights missing: absent.pt"


@pytest.fixture
def squares() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (4, 64, 64)).astype(np.float32)


@pytest.mark.slow
def test_inception_comes_from_the_file_and_ignores_batch_size(inception_file: Path, squares: np.ndarray) -> None:
    with mock.patch("urllib.request.urlopen", side_effect=AssertionError("network")):
        net = inception_extractor(CPU, inception_file)
    assert (net.name, net.dim, net.sha256) == ("pt_inception-2015-12-05-6726825d", 2048, file_sha256(inception_file))
    features = net.features(squares[:2])
    assert features.shape == (2, 2048)
    assert features.std() > 0
    np.testing.assert_allclose(features[1:], net.features(squares[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_lpips_equals_lpips_with_the_same_backbone(tmp_path: Path, squares: np.ndarray) -> None:
    backbone = torchvision.models.alexnet()
    state = {f"features.{name}": value for name, value in randomised(backbone.features).state_dict().items()}
    torch.save(state, tmp_path / "alexnet.pth")
    distances = lpips_distances(lpips_alex(tmp_path / "alexnet.pth"), squares[:2], squares[2:], CPU)
    with warnings.catch_warnings(), mock.patch("torchvision.models.alexnet", return_value=backbone):
        warnings.simplefilter("ignore")
        import lpips

        reference = lpips.LPIPS(net="alex", verbose=False).eval()
    real, fake = (torch.from_numpy(x)[:, None].repeat(1, 3, 1, 1) * 2 - 1 for x in (squares[:2], squares[2:]))
    with torch.no_grad():
        np.testing.assert_allclose(distances, reference(real, fake).flatten().numpy(), rtol=1e-5)
    assert (distances > 0).all()


# -- cache --------------------------------------------------------------------------------------------------------


class Counting:
    """A stand-in network that counts the images it sees."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.seen += len(images)
        return np.stack([images.mean((1, 2)), images.max((1, 2))], axis=1)

    def extractor(self, weights: str = "0" * 64) -> Extractor:
        return Extractor("counting", weights, 2, "as they are", self)


def test_a_damaged_file_is_computed_again(tmp_path: Path, images: np.ndarray) -> None:
    net = Counting()
    expected = cached_features(net.extractor(), images, tmp_path)
    files = sorted(tmp_path.rglob("*.npy"))
    assert len(files) == 5
    files[0].write_bytes(files[0].read_bytes()[:-3])
    files[1].write_bytes(b"")
    np.save(files[2], np.zeros(3, np.float32))
    np.save(files[3], np.array([object()], dtype=object), allow_pickle=True)
    np.save(files[4], np.full(2, np.nan, np.float32))
    net.seen = 0
    assert np.array_equal(cached_features(net.extractor(), images, tmp_path), expected)
    assert net.seen == 5
    assert not list(tmp_path.rglob(".tmp*"))


def test_only_what_was_not_seen_before_is_computed(tmp_path: Path, images: np.ndarray) -> None:
    """A copy, a second call and another order cost nothing; a changed image does, and so does another network."""
    net = Counting()
    first = cached_features(net.extractor(), [*images, images[0]], tmp_path)
    assert net.seen == 5
    np.testing.assert_allclose(first[:5], net(images))
    changed = images.copy()
    changed[2, 0, 0] = 1 - changed[2, 0, 0]
    for given, weights, seen in ((images[::-1], "0", 0), (changed, "0", 1), (images, "1", 5)):
        net.seen = 0
        found = cached_features(net.extractor(weights * 64), given, tmp_path)
        assert net.seen == seen
        np.testing.assert_allclose(found, net(np.asarray(given)), rtol=1e-6)
    np.testing.assert_allclose(cached_features(net.extractor(), images, None), first[:5])  # without a folder


# -- EfficientNet-Lite0 -------------------------------------------------------------------------------------------


@pytest.mark.slow  # timm takes seconds to import
def test_efficientnet_is_that_of_timm(images: np.ndarray) -> None:
    timm = pytest.importorskip("timm")
    reference = timm.create_model("tf_efficientnet_lite0").eval()
    state = load_state(resolve("efficientnet_lite0"))
    names = reference.state_dict()  # in the same order
    assert [x.shape for x in names.values()] == [x.shape for x in state.values()]
    reference.load_state_dict(dict(zip(names, state.values(), strict=True)))
    x = nn.functional.interpolate(torch.from_numpy(images)[:, None], (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        theirs = reference.forward_head(reference.forward_features((x.expand(-1, 3, -1, -1) * 255 - 127) / 128), True)
    ours = efficientnet_extractor(CPU, resolve("efficientnet_lite0")).features(images)
    assert np.abs(ours - theirs.numpy()).max() < 1e-4 * theirs.std()


@pytest.mark.parametrize(("photograph", "imagenet"), [("chelsea", 285), ("coffee", 967)])  # Egyptian cat, espresso
def test_efficientnet_sees_what_a_photograph_shows(photograph: str, imagenet: int) -> None:
    path = resolve("efficientnet_lite0")
    grey = skimage.color.rgb2gray(getattr(skimage.data, photograph)())
    side = min(grey.shape)
    top, left = ((length - side) // 2 for length in grey.shape)
    features = efficientnet_extractor(CPU, path).features(grey[None, top : top + side, left : left + side])
    state = load_state(path)
    assert int((features @ state["_fc.weight"].numpy().T + state["_fc.bias"].numpy()).argmax()) == imagenet
