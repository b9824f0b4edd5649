"""Steps of the generator in closed form; test_reference.py compares them all with plain float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from models.base import seeded_generator
from models.gmm import LabelScheme, render_pair, sample_params
from models.gmm.intensity import (
    acquire,
    add_noise,
    apply_bias,
    gradient_magnitude,
    low_shape,
    nearest_labels,
    textured_grain,
)
from models.gmm.lab2im_options import gmm_options
from models.gmm.resampling import upsample

BALL = LabelScheme.from_lists([0, 1], names=["background", "ball"])


def ball(shape: tuple[int, ...]) -> torch.Tensor:
    grids = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape], indexing="ij")
    radius = sum(grid**2 for grid in grids) ** 0.5  # type: ignore[union-attr]
    return (radius < min(shape) / 3.2).to(torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


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


def test_low_shape_is_what_fits_and_never_more_than_there_is() -> None:
    assert low_shape((160, 160, 160), (1.0, 1.0, 1.0), (1.0, 4.0, 8.0)) == (160, 40, 20)
    assert low_shape((40, 41, 7), (1.0, 1.0, 1.0), (3.0, 3.0, 8.0)) == (13, 13, 1)
    assert low_shape((40, 40), (0.7, 0.7), (0.7, 1.4)) == (40, 20)  # no voxel lost to rounding
    assert low_shape((40, 40), (1.0, 2.0), (0.5, 1.0)) == (40, 40)
    assert low_shape((21,), (0.7,), (2.1,)) == (7,)  # 21 · 0.7 / 2.1 is below 7 in float64


@pytest.mark.parametrize(("size", "out"), [(30, 10), (35, 7), (30, 30), (31, 30), (45, 9), (10, 30)])
def test_labels_lie_where_their_image_does(size: int, out: int) -> None:
    """Odd factors have a voxel at each centre: an image of the label numbers, resampled, is the resampled label map."""
    labels = torch.arange(size).int()
    kept = nearest_labels(labels, (out,))
    where = (torch.arange(out, dtype=torch.float64) + 0.5) * size / out - 0.5
    assert ((kept - where).abs() <= 0.5 + 1e-9).all()
    if size % out == 0 and size // out % 2 == 1:
        assert torch.equal(kept.double(), where)
        image = acquire(labels.double(), (out,), (0.0,), (out,))
        assert torch.allclose(image, kept.double())


def centre(weights: torch.Tensor) -> np.ndarray:
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in weights.shape], indexing="ij")
    return np.array([float((weights * axis).sum() / weights.sum()) for axis in axes])


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0, 4.0, 0.5])
@pytest.mark.parametrize("moving", [True, False])
def test_image_and_labels_share_their_place_at_every_target_resolution(factor: float, moving: bool) -> None:
    """Labels that are looked up half a voxel off at even ratios moved by 0.5 mm against the image."""
    label = ball((48, 44, 40))
    bounds = {"rotation_bounds": 20.0, "translation_bounds": 2.0} if moving else {}
    options = gmm_options("fitted", target_res=factor, blur=0.0, **bounds)
    shifts = []
    for number in range(30 if moving else 1):
        params = sample_params(label, seeded_generator(number), options=options, scheme=BALL)
        params = replace(params, means=torch.tensor([[0.0, 255.0]]), stds=torch.zeros(1, 2))
        image, labels = render_pair(label, params, BALL)
        assert image[0].shape == labels.shape == params.out_shape
        shifts.append((centre(labels.double()) - centre(image[0].double())) * factor)
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.05 * max(factor, 1)  # of a voxel of the output, at worst
