"""Label, neighbours and image of a pair stay together when they are augmented."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from config import parse_train
from models import build_method
from models.base import Batch, seeded_generator
from models.gan import augment
from tests.toy import toy_spec

SIZE = (64, 96)


def pairs(count: int = 4, channels: int = 2, neighbours: int = 2) -> Batch:
    """Blobs of four labels in the middle of air; each label has its own brightness, in all channels alike."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1 + neighbours, 6, 8, generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic", align_corners=True)
    label = (smooth * 4).long().clamp(0, 3) + 1
    label[..., :8, :], label[..., -8:, :], label[..., :8], label[..., -8:] = 0, 0, 0, 0
    image = coded(label[:, 0])[:, None].repeat(1, channels, 1, 1)
    names = [f"sub-{i}" for i in range(count)]
    return Batch(label[:, 0], image, names, names, [0] * count, seeded_generator("step"), label[:, 1:])


def coded(label: torch.Tensor) -> torch.Tensor:
    """Brightness of each label, air at -1."""
    return label / 2.5 - 1


def seen(batch: Batch, geometry: float, intensity: float, seed: str = "step") -> Batch:
    return augment.augmented(replace(batch, rng=seeded_generator(seed)), geometry, intensity)


def test_without_a_share_nothing_is_drawn_and_nothing_changes() -> None:
    config = parse_train(["--name", "t", "--dataroot", "d", "--preset", "demo"])
    batch = pairs()
    assert build_method(config, toy_spec(2)).augmented(batch) is batch
    assert torch.equal(batch.rng.get_state(), seeded_generator("step").get_state())  # type: ignore[union-attr]


@pytest.mark.parametrize("model", ["oasis", "spade"])
def test_the_options_reach_what_the_players_see(model: str) -> None:
    flags = [f"--{model}.augment_geometry", "1", f"--{model}.neighbours", "1"]
    config = parse_train(["--name", "t", "--dataroot", "d", "--model", model, "--preset", "demo", *flags])
    batch = build_method(config, toy_spec(2)).augmented(pairs())
    expected = seen(pairs(), 1, 0)
    assert torch.equal(batch.label, expected.label)
    assert torch.equal(batch.real, expected.real)


def test_the_label_moves_with_its_image() -> None:
    """An image that codes its label still does, but for the pixels beside an outline, between whose sides cubics pass."""
    before = pairs()
    after = seen(before, 1, 0)
    assert (after.label != before.label).float().mean() > 0.2
    wrong = (after.real[:, 0] - coded(after.label)).abs() > 0.2
    nearest = torch.nn.functional.max_pool2d(after.label.float()[:, None], 3, 1, 1)
    inside = (nearest == -torch.nn.functional.max_pool2d(-after.label.float()[:, None], 3, 1, 1))[:, 0]
    assert not wrong[inside].any()
    assert inside.float().mean() > 0.6
    assert torch.equal(after.real[:, 0], after.real[:, 1])


def test_neighbours_move_as_their_slice_does() -> None:
    before = pairs()
    before.neighbours[:, 1] = before.label
    after = seen(before, 1, 0)
    assert torch.equal(after.neighbours[:, 1], after.label)
    assert not torch.equal(after.neighbours[:, 0], before.neighbours[:, 0])
    assert after.neighbours.dtype == after.label.dtype == torch.int64


def test_only_its_share_is_moved_and_the_rest_is_the_same_bits() -> None:
    before = pairs(64, neighbours=0)
    after = seen(before, 0.5, 0.5)
    still = [torch.equal(a, b) for a, b in zip(after.label, before.label, strict=True)]
    untouched = [torch.equal(a, b) for a, b in zip(after.real, before.real, strict=True)]
    assert 16 < sum(still) < 48
    assert 4 < sum(untouched) < sum(still)


def test_air_stays_air_and_values_stay_in_range() -> None:
    batch = pairs()
    full = torch.ones_like(batch.real)  # a body that reaches every border
    for image in (batch.real, full, -full):
        after = seen(replace(batch, image=image), 1, 1)
        assert after.real.isfinite().all()
        assert after.real.min() >= -1
        assert after.real.max() <= 1
    assert (seen(replace(batch, image=-full), 1, 1).real == -1).all()
    toned = seen(batch, 0, 1)
    assert torch.equal(toned.real == -1, batch.real == -1)
    assert torch.equal(toned.label, batch.label)
    assert not torch.equal(toned.real[:, 0], toned.real[:, 1])  # each channel has a tone of its own


def test_cubic_interpolation_keeps_the_texture_that_the_discriminator_sees() -> None:
    """Of noise down to 3 pixels per wave, nine tenths of the energy outlive it; linear interpolation leaves .73."""
    fine = torch.fft.fft2(torch.randn(8, 1, 64, 96, generator=torch.Generator().manual_seed(0)))
    y, x = torch.fft.fftfreq(64)[:, None], torch.fft.fftfreq(96)[None]
    image = torch.fft.ifft2(fine * (y**2 + x**2 < 0.3**2)).real
    image = image / image.abs().max() * 0.9
    batch = replace(pairs(8, 1, 0), image=image)
    middle = (slice(None), slice(None), slice(16, 48), slice(24, 72))
    kept = seen(batch, 1, 0).real[middle].var() / image[middle].var()
    assert 0.9 < kept < 1.1
