"""The lesion generator as a method: what it may change, what it depends on, that it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from config import Config
from dataloaders.io.spec import Channel, DataSpec
from models import build_method
from models.base import Batch, SampleRandom, seeded_generator
from models.lesion.conditions import dilated
from models.lesion.method import LesionUnet
from models.lesion.options import LesionConfig
from tests.toy import toy_spec

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


def test_outside_the_zone_the_source_comes_back_bit_for_bit() -> None:
    method, batch = scrambled(method_of()), batch_of()
    image = method.synthesize(batch, randoms(batch))
    zone = (dilated(batch.label == LESION, method.options.reach) > 0)[:, None].expand_as(image)
    assert torch.equal(image[~zone], batch.source[~zone])
    assert not torch.equal(image[zone], batch.source[zone])


@pytest.mark.parametrize("levels", ["soft", "bands"])
def test_without_lesions_the_source_comes_back(levels: str) -> None:
    method, batch = scrambled(method_of(levels=levels)), batch_of()
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
