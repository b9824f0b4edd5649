"""The lesion generator: the published layer table, and as a method what it may change and depends on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from config import Config
from dataloaders.io.spec import Channel, DataSpec
from models import build_method
from models.base import Batch, SampleRandom, seeded_generator
from models.lesion.conditions import (
    WHITE,
    band_masks,
    blend_weights,
    dilated,
    error_weights,
    latent_variance,
    measure_profile,
    weighted_mae,
    z_scores,
)
from models.lesion.method import LesionUnet
from models.lesion.network import Encoder, Layers, LesionNetwork
from models.lesion.options import PUBLISHED_ALPHAS, LesionConfig
from models.lesion.patches import cut, grid, grid_corners, random_corners
from tests.toy import toy_spec

# Salem et al. 2019, fig. 3, for 64×64 patches: layer -> (channels, side).
ENCODER = {
    "c1": (32, 64),
    "c2": (64, 32),
    "c3": (128, 16),
    "c4": (256, 8),
    "u1": (128, 16),
    "c5": (128, 16),
    "c6": (128, 16),
    "u2": (64, 32),
    "c7": (64, 32),
    "u3": (32, 64),
    "last": (32, 64),
}


def test_encoder_has_the_published_sizes() -> None:
    encoder = Encoder(Layers(LesionConfig()), 9, 32)
    seen: dict[str, tuple[int, int]] = {}
    for name in ENCODER:
        layer = getattr(encoder, name)
        layer.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: (out.shape[1], out.shape[2])}))
    assert encoder(torch.zeros(1, 9, 64, 64)).shape == (1, 32, 64, 64)
    assert seen == ENCODER


@pytest.mark.parametrize(("prelu", "millions"), [("channel", 2.06), ("element", 4.59)])
def test_published_parameter_counts(prelu: str, millions: float) -> None:
    network = LesionNetwork(2, 8, LesionConfig(prelu=prelu, windows=prelu == "element", residual=False))  # type: ignore[arg-type]
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


def test_fusion_is_the_maximum_and_decoders_share_their_weights_over_latents() -> None:
    network = LesionNetwork(2, 2, LesionConfig(width=4, residual=False))
    images, latents = network(torch.rand(1, 2, 16, 16), torch.rand(1, 2, 16, 16), every=True)
    assert len(images) == 3  # T1w alone, FLAIR alone, fused: six images for two modalities
    for z, image in zip([*latents, latents.amax(0)], images, strict=True):
        assert torch.equal(image, torch.cat([decoder(z) for decoder in network.decoders], 1))
    (fused,), _ = network(torch.rand(1, 2, 16, 16), torch.rand(1, 2, 16, 16))
    assert fused.shape == (1, 2, 16, 16)


@pytest.mark.parametrize(("modalities", "dims", "size"), [(1, 2, (13, 50)), (3, 2, (8, 17)), (2, 3, (9, 16, 11))])
def test_any_modalities_dimensions_and_sizes(modalities: int, dims: int, size: tuple[int, ...]) -> None:
    network = LesionNetwork(modalities, 2, LesionConfig(width=2, dims=dims, residual=False))  # type: ignore[arg-type]
    images, latents = network(torch.rand(2, modalities, *size), torch.rand(2, 2, *size), every=True)
    assert all(image.shape == (2, modalities, *size) for image in images)
    assert latents.shape == (modalities, 2, 2, *size)
    assert all(torch.isfinite(image).all() for image in images)


def test_a_residual_network_starts_at_its_source() -> None:
    source = torch.rand(1, 2, 16, 16)
    (image,), _ = LesionNetwork(2, 2, LesionConfig(width=4))(source, torch.rand(1, 2, 16, 16))
    assert torch.equal(image, source)


# -- windows ------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 96), (20, 181), (65, 70, 100)])
def test_windows_cover_every_pixel(shape: tuple[int, ...]) -> None:
    """The public grid left out up to stride - 1 rows and columns: (H - 64) mod stride."""
    count = torch.zeros(shape)
    for corner in grid(shape, 64, 32):
        window = cut(count, corner, 64)
        assert window.shape == tuple(min(n, 64) for n in shape)
        window += 1
    assert count.min() == 1
    assert count[0, 0].flatten()[0] == 1


def test_grid_windows_hold_body_by_mask() -> None:
    """The public code asks for voxels that are not 0, which interpolation's ringing makes true nearly everywhere."""
    body = torch.zeros(64, 64, dtype=torch.bool)
    body[40:, 40:] = True
    corners = grid_corners(body, 99, 16, 8, torch.Generator().manual_seed(0))
    assert sorted(corners) == [c for c in grid((64, 64), 16, 8) if cut(body, c, 16).any()]
    assert len(grid_corners(body, 3, 16, 8, torch.Generator().manual_seed(0))) == 3


def test_random_windows_hold_lesions_as_often_as_asked() -> None:
    lesion = torch.zeros(90, 70, dtype=torch.bool)
    lesion[3, 5] = lesion[80:84, 60:66] = True
    body = torch.ones_like(lesion)
    rng = torch.Generator().manual_seed(0)
    corners = random_corners(lesion, body, 200, 32, 1.0, rng)
    assert all(cut(lesion, corner, 32).any() for corner in corners)
    assert all(cut(body, corner, 32).shape == (32, 32) for corner in corners)
    some = random_corners(lesion, body, 400, 32, 0.5, torch.Generator().manual_seed(1))
    share = sum(bool(cut(lesion, corner, 32).any()) for corner in some) / 400
    assert 0.5 < share < 0.95
    assert corners == random_corners(lesion, body, 200, 32, 1.0, torch.Generator().manual_seed(0))
    nothing = torch.zeros(40, 40, dtype=torch.bool)
    assert len(random_corners(nothing, nothing, 3, 16, 1.0, None)) == 3
    assert random_corners(nothing, ~nothing, 1, 64, 1.0, None) == [(0, 0)]  # a patch larger than the slice


# -- conditions ------------------------------------------------------------


def test_bands_are_the_published_differences_of_thresholds() -> None:
    z = torch.randn(2, 30, 40) * 2
    bands = band_masks(z, PUBLISHED_ALPHAS)
    above = [(z > alpha).float() for alpha in PUBLISHED_ALPHAS]
    for k in range(7):
        assert torch.equal(bands[:, k], above[k] - above[k + 1])
    assert torch.equal(bands[:, 7], above[7])
    assert torch.equal(bands.sum(1), above[0])


@pytest.mark.parametrize("shape", [(3, 20, 24), (2, 9, 12, 10)])
def test_dilation_agrees_with_scipy(shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(0).random(shape) > 0.97
    for step in (0, 1, 3):
        expected = np.stack([ndimage.maximum_filter(m, 2 * step + 1, mode="constant") for m in mask])
        assert np.array_equal(dilated(torch.from_numpy(mask), step).numpy(), expected)


@pytest.mark.parametrize(("reach", "feather"), [(0, 1.0), (2, 0.0), (2, 1.0), (4, 2.0)])
def test_the_blend_is_one_in_lesions_and_exactly_zero_beyond_reach(reach: int, feather: float) -> None:
    lesion = torch.zeros(1, 32, 32, dtype=torch.bool)
    lesion[0, 10:14, 12:20] = True
    weights = blend_weights(lesion, reach, feather)
    assert (weights[lesion] == 1).all()
    assert (weights[dilated(lesion, reach) == 0] == 0).all()
    assert weights.min() >= 0
    if reach == 4:  # falls monotonically: no ring of its own
        row = weights[0, 12, 19:25]
        assert (row.diff() <= 0).all()
        assert 0 < row[1] < 1


def test_weighted_mae_is_the_sum_over_modalities() -> None:
    real = torch.zeros(2, 2, 4, 4)
    image = torch.cat([torch.full((2, 1, 4, 4), 1.0), torch.full((2, 1, 4, 4), -3.0)], 1)
    lesion = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert weighted_mae(image, real, error_weights(lesion, 0)).item() == pytest.approx(4.0)
    lesion[0, 0, 0] = True  # itself and three neighbours weigh 11, the other 28 pixels 1
    image = torch.zeros(2, 2, 4, 4)
    image[0, 0, 0, 0] = 2.0
    assert weighted_mae(image, real, error_weights(lesion, 10)).item() == pytest.approx(2 * 11 / (4 * 11 + 28))


def test_latent_variance_of_two_modalities() -> None:
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert latent_variance(torch.stack([a, b])).item() == pytest.approx(((a - b) / 2).square().mean().item(), rel=1e-5)
    assert latent_variance(torch.stack([a, a])).item() == 0


def test_profile_measures_brightness_by_depth() -> None:
    lesion = torch.zeros(1, 20, 20, dtype=torch.bool)
    lesion[0, 4:15, 4:15] = True
    level = torch.zeros(1, 20, 20)
    for depth in (1, 2, 3, 4):  # diagonal steps count as one; the fourth ring and everything within
        level[0, 3 + depth : 16 - depth, 3 + depth : 16 - depth] = 0.1 * depth
    lesion[0, 4, 4] = False  # from its corner the rings are a step nearer
    for depth in (1, 2, 3):
        level[0, 4 + depth, 4 + depth] = 0.1 * depth
    mean, between, within = measure_profile([(level, lesion), (level + 0.2, lesion)])
    assert mean.tolist() == pytest.approx([0.2, 0.3, 0.4, 0.5], abs=1e-6)
    assert between.tolist() == pytest.approx([0.2 / 2**0.5, 0, 0, 0], abs=1e-6)
    assert within.abs().max() < 1e-6
    assert measure_profile([])[0, 0] > WHITE


def test_z_scores_are_by_sample() -> None:
    level = torch.tensor([[[1.0, 3.0]], [[1.0, 3.0]]])
    z = z_scores(level, torch.tensor([[1.0, 2.0], [3.0, 0.5]]))
    assert z.tolist() == [[[0.0, 1.0]], [[-4.0, 0.0]]]


LESION = 4


def spec_of(*channels: str) -> DataSpec:
    return replace(toy_spec(), channels=tuple(Channel(name) for name in channels))


def method_of(spec: DataSpec | None = None, **options: Any) -> LesionUnet:
    torch.manual_seed(0)
    lesion = replace(LesionConfig(width=4, patch=16, patches=4, ema_decay=0.0), **options)
    config = Config(name="a", dataroot=None, model="lesion", lr_g=3e-3, beta1=0.9, lesion=lesion)  # type: ignore[arg-type]
    method = build_method(config, spec or spec_of("T1w", "FLAIR"))
    assert isinstance(method, LesionUnet)
    return method


def batch_of(count: int = 3, channels: int = 2, size: int = 32, seed: int = 0) -> Batch:
    """Discs of white matter with lesions that are brighter on the last channel and darker on the others."""
    rng = seeded_generator("toy", seed)
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).float()
    label = ((grid - size / 2).square().sum(0).sqrt() < size * 0.45).long()[None].repeat(count, 1, 1) * 3
    for i in range(count):
        centre = size / 2 + (torch.rand(2, generator=rng) - 0.5) * size * 0.4
        label[i][(grid - centre[:, None, None]).square().sum(0).sqrt() < 3] = LESION
    source = torch.full((count, channels, size, size), -1.0)
    source[(label > 0)[:, None].expand_as(source)] = -0.2
    source += 0.02 * torch.randn(source.shape, generator=rng) * (label > 0)[:, None]
    image = source.clone()
    strength = 0.3 + 0.2 * torch.rand((count, 1, 1), generator=rng)
    image[:, -1] += (label == LESION) * strength
    image[:, :-1] -= ((label == LESION) * strength)[:, None] * 0.7
    names = [f"case{i}" for i in range(count)]
    grey = torch.tensor([[0.0, 0.1]]).repeat(count, 1)
    return Batch(label, image, names, names, list(range(count)), seeded_generator("step"), source=source, grey=grey)


def randoms(batch: Batch) -> list[SampleRandom]:
    return [SampleRandom.of(0, case, index) for case, index in zip(batch.cases, batch.indices, strict=True)]


def scrambled(method: LesionUnet) -> LesionUnet:
    """Weights at which the network changes everything."""
    with torch.no_grad():
        for parameter in [*method.net.parameters(), *method.average.parameters()]:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded_generator(parameter.shape)))
    return method


@pytest.mark.parametrize("levels", ["soft", "bands"])
def test_outside_the_zone_the_source_comes_back_bit_for_bit_and_without_lesions_all_of_it(levels: str) -> None:
    method, batch = scrambled(method_of(levels=levels)), batch_of()
    image = method.synthesize(batch, randoms(batch))
    zone = (dilated(batch.label == LESION, method.options.reach) > 0)[:, None].expand_as(image)
    assert torch.equal(image[~zone], batch.source[~zone])
    assert not torch.equal(image[zone], batch.source[zone])
    batch.label[batch.label == LESION] = 3
    assert torch.equal(method.synthesize(batch, randoms(batch)), batch.source)  # type: ignore[arg-type]


def test_images_do_not_depend_on_the_batch() -> None:
    method, batch = scrambled(method_of()), batch_of()
    whole = method.synthesize(batch, randoms(batch))
    for part, image in zip(batch.parts(3), whole.split(1), strict=True):
        assert torch.allclose(method.synthesize(part, randoms(part)), image, atol=1e-6)


def test_given_levels_replace_those_of_the_image() -> None:
    """A healthy scan has no image with lesions; the same levels from elsewhere give the same picture."""
    method, batch = scrambled(method_of()), batch_of()
    healthy = replace(batch, image=None, level=batch.real[:, 1])
    assert torch.equal(method.synthesize(batch, randoms(batch)), method.synthesize(healthy, randoms(healthy)))


@pytest.mark.parametrize("prelu", ["channel", "element"])
def test_windows_take_lesions_larger_than_a_patch(prelu: str) -> None:
    method = scrambled(method_of(windows=True, window_stride=8, prelu=prelu))
    batch = batch_of(size=48)
    batch.label[0, 6:42, 6:42] = LESION
    seen: list[int] = []
    method.average.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    image = method.synthesize(batch, randoms(batch))
    assert sum(seen) == 3 * 5 * 5
    assert image.shape == (3, 2, 48, 48)
    assert image.isfinite().all()


def test_volumes_are_cases() -> None:
    """In three dimensions a case's slices are one volume, and the next case does not matter to it."""
    method, both = scrambled(method_of(dims=3, width=2)), batch_of(20)
    both.cases = ["a"] * 10 + ["b"] * 10
    a, _ = both.parts(2)
    together, alone = method.synthesize(both, randoms(both)), method.synthesize(a, randoms(a))
    assert together.shape == (20, 2, 32, 32)
    assert torch.allclose(together[:10], alone, atol=1e-6)
    changed = replace(a, level=a.real[:, 1] + 0.5 * (torch.arange(10) == 9)[:, None, None])
    other = method.synthesize(changed, randoms(a))
    assert not torch.allclose(other[8], alone[8], atol=1e-6)  # neighbouring slices do matter


@pytest.mark.parametrize("channels", [("FLAIR",), ("T1w", "T2w", "PDw"), ("T2w", "T1w")])
def test_any_modalities(channels: tuple[str, ...]) -> None:
    method, batch = method_of(spec_of(*channels)), batch_of(channels=len(channels))
    assert method.level_channel == {"FLAIR": 0, "T1w": 1, "T2w": 0}[channels[0]]
    assert method.synthesize(batch, randoms(batch)).shape == batch.real.shape
    assert ("variance" in method.losses(batch)) == (len(channels) > 1)


def test_release_keeps_the_average_and_the_profile() -> None:
    method, batch = scrambled(method_of()), batch_of()
    method.calibrate([batch])
    other = method_of()
    other.load_release(method.release())
    assert torch.equal(other.synthesize(batch, randoms(batch)), method.synthesize(batch, randoms(batch)))
    assert torch.equal(other.profile, method.profile)
    assert other.profile[0, 0] > -0.2 + 0.2


def test_data_without_the_class_are_refused() -> None:
    with pytest.raises(ValueError, match="no class named 'lesion'"):
        method_of(toy_spec(labels=4))
