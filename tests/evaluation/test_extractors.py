"""Extractors from files: right preparation, right layer, refusals, and the cache of features."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from dataloaders.io.weights import MissingWeights, sha256
from evaluation.metrics import extractors, networks
from evaluation.metrics.extractors import (
    Extractor,
    cached_features,
    extractor,
    image_sha256,
    inception_extractor,
    torchscript_extractor,
    torchvision_extractor,
)

CPU = torch.device("cpu")
MODEL = "shufflenet_v2_x0_5"  # 1.4 million weights


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (5, 48, 48)).astype(np.float32)


def save_script(net: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated; the format is still what people share
        torch.jit.script(net).save(str(path))
    return path


class Corner(nn.Module):
    """The four pixels of the top left corner of every channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :2, :2]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Total(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) / x.sum(dim=[1, 2, 3]).reshape(-1, 1)


# -- TorchScript --------------------------------------------------------------------------------------------------


def test_torchscript_gets_three_equal_normalised_channels(tmp_path: Path, images: np.ndarray) -> None:
    path = save_script(Corner(), tmp_path / "corner.pt")
    net = torchscript_extractor(path, CPU, size=None)
    features = net.features(images)
    assert (net.name, net.dim, net.sha256) == ("torchscript:corner", 12, sha256(path))
    assert features.dtype == np.float32
    corner = images[:, :2, :2].reshape(5, 4)
    np.testing.assert_allclose(features, np.tile(corner, 3), rtol=1e-6)
    symmetric = torchscript_extractor(path, CPU, size=None, normalisation="symmetric").features(images)
    np.testing.assert_allclose(symmetric, 2 * np.tile(corner, 3) - 1, atol=1e-6)


def test_torchscript_resizes_to_what_was_asked(tmp_path: Path, images: np.ndarray) -> None:
    path = save_script(nn.Flatten(), tmp_path / "flat.pt")
    net = torchscript_extractor(path, CPU, size=8)
    assert net.dim == 3 * 8 * 8
    assert net.features(images).shape == (5, 192)
    np.testing.assert_allclose(net.features(np.full((1, 30, 20), 0.25)), 0.25, rtol=1e-6)
    whole = torchscript_extractor(path, CPU, size=None)
    with pytest.raises(ValueError, match=r"gave \(5, 6912\) for 5 images, not \(5, 150528\)"):
        whole.features(images)


def test_what_is_no_torchscript_or_gives_no_rows_is_refused(tmp_path: Path, images: np.ndarray) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("not a network")
    for name in ("state.pt", "text.pt"):
        with pytest.raises(ValueError, match=f"{name} is not a TorchScript file"):
            torchscript_extractor(tmp_path / name, CPU)
    with pytest.raises(ValueError, match="gave tuple for 2 images"):
        torchscript_extractor(save_script(Pair(), tmp_path / "pair.pt"), CPU)
    with pytest.raises(ValueError, match=r"gave a tensor \(\) for 2 images; one row for each is needed"):
        torchscript_extractor(save_script(Total(), tmp_path / "total.pt"), CPU)
    with pytest.raises(ValueError, match=r"does not take images \(2, 1, 224, 224\)"):
        torchscript_extractor(save_script(nn.Linear(3, 2), tmp_path / "linear.pt"), CPU)
    with pytest.raises(MissingWeights, match=r"absent\.pt: no such weight file") as missing:
        torchscript_extractor(tmp_path / "absent.pt", CPU)
    assert missing.value.reason == "weights missing: absent.pt"
    with pytest.raises(ValueError, match="use one of unit, symmetric, imagenet"):
        torchscript_extractor(save_script(Corner(), tmp_path / "c.pt"), CPU, normalisation="minmax")
    with pytest.raises(ValueError, match="features that are not finite"):
        torchscript_extractor(save_script(Broken(), tmp_path / "broken.pt"), CPU, size=8).features(0 * images)


def test_images_of_another_range_or_shape_are_refused(tmp_path: Path, images: np.ndarray) -> None:
    net = torchscript_extractor(save_script(Corner(), tmp_path / "corner.pt"), CPU)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 0 to 2"):
        net.features(np.array([[[0, 2.0], [1, 1]]]))
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        net.features(np.full((1, 4, 4), np.nan))
    with pytest.raises(ValueError, match=r"must be \(n, H, W\), got \(48, 48\)"):
        net.features(images[0])
    assert net.features(images[:0]).shape == (0, 12)


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
    net = torchvision_extractor(MODEL, state_file, CPU, size=64)
    assert (net.name, net.dim, net.sha256) == (f"torchvision:{MODEL}", 1024, sha256(state_file))
    entered: list[Tensor] = []
    hook = classifier.fc.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    x = torch.nn.functional.interpolate(torch.from_numpy(images)[:, None], (64, 64), mode="bilinear", antialias=True)
    x = torchvision.transforms.functional.normalize(x.repeat(1, 3, 1, 1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        classifier(x)
    hook.remove()
    np.testing.assert_allclose(net.features(images), entered[0].numpy(), rtol=1e-4, atol=1e-6)


def test_features_do_not_depend_on_the_batch(
    state_file: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = torchvision_extractor(MODEL, state_file, CPU, size=64)
    together = net.features(images)
    assert together.std() > 0
    monkeypatch.setattr(extractors, "BATCH", 2)
    np.testing.assert_allclose(net.features(images), together, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(net.features(images[3:4]), together[3:4], rtol=1e-4, atol=1e-6)


def test_common_wrappings_and_another_head_are_understood(
    classifier: nn.Module, state_file: Path, images: np.ndarray, tmp_path: Path
) -> None:
    expected = torchvision_extractor(MODEL, state_file, CPU, size=64).features(images)
    state = {f"module.{key}": value for key, value in classifier.state_dict().items()}
    state["module.fc.weight"], state["module.fc.bias"] = torch.zeros(7, 1024), torch.zeros(7)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "wrapped.pth")
    assert np.array_equal(
        torchvision_extractor(MODEL, tmp_path / "wrapped.pth", CPU, size=64).features(images), expected
    )


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file:UserWarning")
def test_files_that_do_not_fit_are_refused(classifier: nn.Module, tmp_path: Path) -> None:
    state = dict(classifier.state_dict())
    state.pop("conv1.0.weight")
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=rf"does not hold the weights of {MODEL}: Missing key.*conv1\.0\.weight"):
        torchvision_extractor(MODEL, tmp_path / "short.pth", CPU)
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        torchvision_extractor(MODEL, tmp_path / "numbers.pth", CPU)
    torch.save(classifier, tmp_path / "pickle.pth")
    save_script(Corner(), tmp_path / "script.pth")
    (tmp_path / "text.pth").write_text("text")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("pickle", "script", "text", "empty"):
        with pytest.raises(ValueError, match=f"{name}.pth is not a state dict that can be read safely"):
            torchvision_extractor(MODEL, tmp_path / f"{name}.pth", CPU)
    with pytest.raises(MissingWeights, match="no such weight file"):
        torchvision_extractor(MODEL, tmp_path / "absent.pth", CPU)
    with pytest.raises(ValueError, match="'resnet51' is no classifier of torchvision; there are alexnet"):
        torchvision_extractor("resnet51", tmp_path / "short.pth", CPU)
    with pytest.raises(ValueError, match="squeezenet1_1 has no linear layer"):
        torchvision_extractor("squeezenet1_1", tmp_path / "short.pth", CPU)


@pytest.mark.parametrize(("model", "dim"), [("mobilenet_v3_small", 1024), ("resnet18", 512), ("mnasnet0_5", 1280)])
def test_heads_of_other_families_are_found(model: str, dim: int, tmp_path: Path) -> None:
    torch.save(torchvision.models.get_model(model, weights=None).state_dict(), tmp_path / "net.pth")
    assert torchvision_extractor(model, tmp_path / "net.pth", CPU, size=64).dim == dim


# -- names and Inception ------------------------------------------------------------------------------------------


def test_an_extractor_is_chosen_by_text(
    state_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: np.ndarray
) -> None:
    path = save_script(Corner(), tmp_path / "corner.pt")
    assert extractor(f"torchscript:{path}", CPU).name == "torchscript:corner"
    assert extractor(f"{MODEL}:{state_file}", CPU).name == f"torchvision:{MODEL}"
    assert "to 64x64, imagenet" in extractor(f"torchscript:{path}", CPU, size=64, normalisation="imagenet").preparation
    with pytest.raises(ValueError, match="prepares images by itself: size cannot be set"):
        extractor("inception", CPU, size=64)
    for text in ("", "vgg", ":file", "torchscript:"):
        with pytest.raises(ValueError, match="use 'inception', 'torchscript:FILE'"):
            extractor(text, CPU)
    monkeypatch.setenv("MEDSIS_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingWeights, match=r"pt_inception-2015-12-05-6726825d\.pth, not found"):
        extractor("inception", CPU)
    with pytest.raises(MissingWeights, match="no such file or folder"):
        extractor(f"inception:{tmp_path / 'absent.pth'}", CPU)


def test_inception_is_pytorch_fids_with_its_verified_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: np.ndarray
) -> None:
    """The network itself is tested in test_networks.py."""
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    asked: list[object] = []
    monkeypatch.setattr(extractors, "resolve", lambda key, explicit: asked.append((key, explicit)) or path)

    class Net(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x.mean((1, 2, 3)).reshape(-1, 1, 1, 1).expand(-1, 2048, 1, 1)]

    monkeypatch.setattr(networks, "inception", lambda file: Net() if file == path else None)
    net = inception_extractor(CPU, tmp_path)
    assert asked == [("inception", tmp_path)]
    assert (net.name, net.dim, net.sha256) == ("pt_inception-2015-12-05-6726825d", 2048, sha256(path))
    np.testing.assert_allclose(net.features(images)[:, 7], images.mean((1, 2)), rtol=1e-5)


def test_the_key_changes_with_weights_and_preparation(tmp_path: Path) -> None:
    path, other = save_script(Corner(), tmp_path / "a.pt"), save_script(nn.Flatten(), tmp_path / "b.pt")
    keys = {
        torchscript_extractor(path, CPU).key,
        torchscript_extractor(path, CPU, size=8).key,
        torchscript_extractor(path, CPU, normalisation="imagenet").key,
        torchscript_extractor(other, CPU).key,
    }
    assert len(keys) == 4
    assert torchscript_extractor(path, CPU).key in keys


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


def items(images: np.ndarray) -> list[tuple[str, Callable[[], np.ndarray]]]:
    return [(image_sha256(image), lambda image=image: image) for image in images]  # type: ignore[misc]


def refuse() -> np.ndarray:
    raise AssertionError("loaded an image whose features are known")


def test_the_second_call_runs_and_loads_nothing(tmp_path: Path, images: np.ndarray) -> None:
    net = Counting()
    first = cached_features(net.extractor(), items(images), tmp_path)
    assert net.seen == 5
    np.testing.assert_allclose(first, net(images))
    net.seen = 0
    again = cached_features(net.extractor(), [(digest, refuse) for digest, _ in items(images)], tmp_path)
    assert net.seen == 0
    assert np.array_equal(first, again)
    assert again.dtype == np.float32
    backwards = cached_features(net.extractor(), items(images[::-1]), tmp_path)
    assert np.array_equal(backwards, first[::-1])


def test_a_changed_image_or_network_is_computed_again(tmp_path: Path, images: np.ndarray) -> None:
    net = Counting()
    cached_features(net.extractor(), items(images), tmp_path)
    net.seen = 0
    changed = images.copy()
    changed[2, 0, 0] = 1 - changed[2, 0, 0]
    np.testing.assert_allclose(cached_features(net.extractor(), items(changed), tmp_path)[2], net(changed[2:3])[0])
    assert net.seen == 1 + 1
    net.seen = 0
    cached_features(net.extractor("1" * 64), items(images), tmp_path)
    assert net.seen == 5


def test_a_damaged_file_is_computed_again(tmp_path: Path, images: np.ndarray) -> None:
    net = Counting()
    expected = cached_features(net.extractor(), items(images), tmp_path)
    files = sorted(tmp_path.rglob("*.npy"))
    assert len(files) == 5
    files[0].write_bytes(files[0].read_bytes()[:-3])
    files[1].write_bytes(b"")
    np.save(files[2], np.zeros(3, np.float32))
    np.save(files[3], np.array([object()], dtype=object), allow_pickle=True)
    np.save(files[4], np.full(2, np.nan, np.float32))
    net.seen = 0
    assert np.array_equal(cached_features(net.extractor(), items(images), tmp_path), expected)
    assert net.seen == 5
    assert not list(tmp_path.rglob(".tmp*"))


def test_a_failed_write_leaves_no_file(tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        cached_features(Counting().extractor(), items(images), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_copies_other_sizes_and_nothing(tmp_path: Path, images: np.ndarray) -> None:
    net = Counting()
    mixed = [*items(images[:2]), *items(images[:1]), *items(images[2:, :20])]
    result = cached_features(net.extractor(), mixed, tmp_path)
    assert net.seen == 5
    assert np.array_equal(result[0], result[2])
    np.testing.assert_allclose(result[3:], net(images[2:, :20]))
    assert cached_features(net.extractor(), [], tmp_path).shape == (0, 2)
    with pytest.raises(ValueError, match="is not a SHA-256"):
        cached_features(net.extractor(), [("../" * 21 + "a", refuse)], tmp_path)


def test_the_hash_of_an_image_is_of_type_shape_and_pixels() -> None:
    image = np.zeros((4, 6), np.float32)
    hashes = {image_sha256(x) for x in (image, image.reshape(6, 4), image.astype(np.uint8), image + 1)}
    assert len(hashes) == 4
    assert image_sha256(np.zeros((6, 4), np.float32).T) == image_sha256(image)
