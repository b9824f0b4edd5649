"""Mixture, texture, partial volume, bias field, range, gamma, noise and gradient: moments and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from models.gmm.intensity import acquire, add_noise, apply_bias, final_range, gradient_magnitude, textured_grain, tone
from models.gmm.resampling import grain_gain, upsample


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


# Mixture


# Texture


@pytest.mark.parametrize("fwhm", [2.0, 5.0, 10.0])
@pytest.mark.parametrize("shape", [(48, 48, 48), (128, 128)])
def test_texture_keeps_its_variance(fwhm: float, shape: tuple[int, ...]) -> None:
    """Predecessors: down to 17 %, 5 % and 2 % of the standard deviation in 3-D."""
    labels = torch.zeros(shape, dtype=torch.uint8)
    squares, edges = [], []
    for seed in range(6):
        found = textured_grain(noise(1, *shape, seed=seed), labels, torch.tensor([fwhm]))[0]
        squares.append(float(found.square().mean()))
        edges.append(float(found[0].square().mean()))
    assert math.sqrt(np.mean(squares)) == pytest.approx(1, abs=0.08)
    assert math.sqrt(np.mean(edges)) == pytest.approx(1, abs=0.25)  # few independent values at the edge


def test_each_label_has_its_own_texture() -> None:
    labels = torch.zeros(60, 400, dtype=torch.uint8)
    labels[:, 200:] = 1
    grain = noise(1, 60, 400)
    found = textured_grain(grain, labels, torch.tensor([0.0, 8.0]))[0]
    assert torch.equal(found[:, :200], grain[0, :, :200])
    assert float((found[1:, 200:] * found[:-1, 200:]).mean()) > 0.8
    assert torch.equal(textured_grain(grain, labels, torch.zeros(2)), grain)


@pytest.mark.parametrize("sigma", [0.5, 1.3])
def test_grain_gain_undoes_the_blur(sigma: float) -> None:
    shape = (40, 40, 40)
    blurred = acquire(noise(*shape), shape, (sigma,) * 3, shape)
    inside = blurred[6:-6, 6:-6, 6:-6]
    assert float(inside.std()) * grain_gain(shape, (sigma,) * 3) == pytest.approx(1, abs=0.05)
    assert grain_gain(shape, (0.0,) * 3) == 1


# Bias field


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("shape", [(90, 80, 70), (40, 33), (600, 500), (1, 9)])
def test_channels_are_multiplied_by_fields_of_their_own(shape: tuple[int, ...], order: int) -> None:
    """Slab by slab, in more than one slab for the large shapes."""
    image, grid = noise(2, *shape), noise(2, *[4] * len(shape))
    assert torch.allclose(apply_bias(image, grid, order), image * upsample(grid, shape, order).exp(), rtol=1e-5)


# Range and gamma


def test_minmax_spans_zero_to_one_per_image() -> None:
    image = 100 + 60 * noise(3, 20, 20)
    found = tone(image, None, "minmax")
    assert torch.equal(found.amin((1, 2)), torch.zeros(3))
    assert torch.equal(found.amax((1, 2)), torch.ones(3))
    clipped = tone(torch.tensor([[[-50.0, 0.0, 150.0, 300.0, 900.0]]]), None, "minmax")
    assert clipped.flatten().tolist() == pytest.approx([0, 0, 0.5, 1, 1])
    assert torch.isfinite(tone(torch.full((1, 4, 4), 7.0), None, "minmax")).all()


def test_max_and_quantile_ranges() -> None:
    image = torch.linspace(-0.2, 1.8, 101).view(1, 101, 1)
    top = final_range(image, "max")
    assert float(top.min()) == 0
    assert float(top.max()) == 1
    assert torch.allclose(top, image.clamp(min=0) / 1.8)
    values = torch.linspace(1, 5, 4001).view(1, 4001, 1).clone()
    values[0, :100] = 0  # background does not count
    found = final_range(values, "quantile")
    kept = values[values != 0].sort().values
    low, high = np.quantile(kept.double().numpy(), [0.01, 0.99])
    assert torch.allclose(found, ((values - low) / (high - low)).float(), atol=1e-3)
    assert float(found.max()) > 1  # unclipped
    assert torch.isfinite(final_range(torch.zeros(1, 5, 5), "quantile")).all()
    assert torch.isfinite(final_range(torch.zeros(1, 5, 5), "max")).all()


# Noise


@pytest.mark.parametrize("coils", [1, 2, 4, 8])
def test_chi_noise_of_zero_signal(coils: int) -> None:
    """Mean of chi with 2n degrees of freedom: std · sqrt(2) · Γ(n + 1/2) / Γ(n); for n = 1 std · sqrt(π / 2)."""
    std = 0.07
    found = add_noise(torch.zeros(60, 60, 30), std, generator(), coils)
    mean = std * math.sqrt(2) * math.exp(math.lgamma(coils + 0.5) - math.lgamma(coils))
    assert float(found.mean()) == pytest.approx(mean, rel=0.01)
    assert float(found.square().mean()) == pytest.approx(2 * coils * std**2, rel=0.01)
    assert float(found.min()) >= 0
    if coils == 1:
        assert mean == pytest.approx(std * math.sqrt(math.pi / 2))


# Gradient


@pytest.mark.parametrize("shape", [(14, 13), (9, 8, 7)])
def test_sobel_against_scipy_and_clip(shape: tuple[int, ...]) -> None:
    image = noise(2, *shape).double().numpy()
    for scale in (0.05, 3.0):
        expected = []
        for channel in scale * image:
            parts = [ndimage.sobel(channel, axis, mode="nearest") for axis in range(len(shape))]
            size = np.minimum(np.linalg.norm(parts, axis=0), 10)
            expected.append((size - size.min()) / (size.max() - size.min()))
        found = gradient_magnitude(torch.from_numpy(scale * image))
        assert np.abs(found.numpy() - np.stack(expected)).max() < 1e-6
