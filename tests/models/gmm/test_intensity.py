"""Mixture, texture, partial volume, bias field, range, gamma, noise and gradient: moments and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from models.gmm.intensity import add_noise, apply_bias, gradient_magnitude, textured_grain
from models.gmm.resampling import upsample


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.mark.parametrize("fwhm", [2.0, 10.0])
def test_texture_keeps_its_variance(fwhm: float) -> None:
    """Predecessors: down to 17 and 2 % of the standard deviation."""
    shape = (48, 48, 48)
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


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("shape", [(90, 80, 70), (600, 500), (1, 9)])
def test_channels_are_multiplied_by_fields_of_their_own(shape: tuple[int, ...], order: int) -> None:
    """Slab by slab, in more than one slab for the large shapes."""
    image, grid = noise(2, *shape), noise(2, *[4] * len(shape))
    assert torch.allclose(apply_bias(image, grid, order), image * upsample(grid, shape, order).exp(), rtol=1e-5)


@pytest.mark.parametrize("coils", [1, 4])
def test_chi_noise_of_zero_signal(coils: int) -> None:
    """Mean of chi with 2n degrees of freedom: std · sqrt(2) · Γ(n + 1/2) / Γ(n)."""
    std = 0.07
    found = add_noise(torch.zeros(60, 60, 30), std, generator(), coils)
    mean = std * math.sqrt(2) * math.exp(math.lgamma(coils + 0.5) - math.lgamma(coils))
    assert float(found.mean()) == pytest.approx(mean, rel=0.01)
    assert float(found.square().mean()) == pytest.approx(2 * coils * std**2, rel=0.01)


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
