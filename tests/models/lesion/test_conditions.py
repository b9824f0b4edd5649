"""Levels, masks, blends and losses, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from models.lesion.conditions import WHITE, band_masks, blend_weights, blurred, dilated
from models.lesion.losses import error_weights, latent_variance, weighted_mae
from models.lesion.options import PUBLISHED_ALPHAS
from models.lesion.profile import DEPTHS, LevelProfile, depths, measure_profile


def test_bands_are_the_published_differences_of_thresholds() -> None:
    z = torch.randn(2, 30, 40) * 2
    bands = band_masks(z, PUBLISHED_ALPHAS)
    above = [(z > alpha).float() for alpha in PUBLISHED_ALPHAS]
    for k in range(7):
        assert torch.equal(bands[:, k], above[k] - above[k + 1])
    assert torch.equal(bands[:, 7], above[7])
    assert torch.equal(bands.sum(1), above[0])


@pytest.mark.parametrize("shape", [(3, 20, 24), (2, 9, 12, 10)])
def test_dilation_and_blur_agree_with_scipy(shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(0).random(shape) > 0.97
    for step in (0, 1, 3):
        expected = np.stack([ndimage.maximum_filter(m, 2 * step + 1, mode="constant") for m in mask])
        assert np.array_equal(dilated(torch.from_numpy(mask), step).numpy(), expected)
    x = np.random.default_rng(1).random(shape)
    expected = np.stack([ndimage.gaussian_filter(v, 1.3, radius=4, mode="nearest") for v in x])
    assert np.allclose(blurred(torch.from_numpy(x), 1.3).numpy(), expected, atol=1e-9)


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
    depth = depths(lesion)
    assert depth[0, 4, 4] == 1
    assert depth[0, 9, 9] == DEPTHS
    assert depth[~lesion].max() == 0
    level = 0.1 * depth.float()
    profile = measure_profile([(level, lesion), (level + 0.2, lesion)])
    assert profile.mean == pytest.approx([0.2, 0.3, 0.4, 0.5], abs=1e-6)
    assert profile.between == pytest.approx(0.2 / 2**0.5, abs=1e-6)
    assert profile.within == pytest.approx(0, abs=1e-6)
    again = LevelProfile.of(profile.tensor())
    assert again.mean == pytest.approx(profile.mean)
    assert measure_profile([]).mean[0] > WHITE
