"""Paired metrics: closed forms, agreement with scikit-image, and the traps others fell into."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from evaluation import paired


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    real = rng.uniform(-1000, 2000, (40, 33))
    return real, real + rng.normal(0, 100, real.shape)


def test_constant_offset_has_closed_forms() -> None:
    real, fake = np.zeros((20, 20)), np.full((20, 20), 50.0)
    assert paired.mae(real, fake) == paired.rmse(real, fake) == 50
    assert paired.psnr(real, fake, 4095.0) == pytest.approx(20 * math.log10(4095 / 50))


def test_only_the_mask_counts() -> None:
    real, fake = np.zeros((20, 20)), np.zeros((20, 20))
    fake[:10] = 8
    body = fake > 0
    assert paired.mae(real, fake, body) == 8
    assert paired.mae(real, fake) == 4
    assert math.isnan(paired.mae(real, fake, np.zeros_like(body)))
    assert math.isnan(paired.rmse(real, fake, np.zeros_like(body)))


def test_identical_images(pair: tuple[np.ndarray, np.ndarray]) -> None:
    real, _ = pair
    assert paired.mae(real, real) == paired.rmse(real, real) == 0
    assert paired.psnr(real, real, 4095.0) == math.inf
    assert paired.ssim(real, real, -1024, 4095.0) == pytest.approx(1, abs=1e-12)


def test_agrees_with_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    real, fake = pair
    assert paired.rmse(real, fake) ** 2 == pytest.approx(mean_squared_error(real, fake), rel=1e-12)
    assert paired.psnr(real, fake, 4095) == pytest.approx(
        peak_signal_noise_ratio(real, fake, data_range=4095), rel=1e-12
    )
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert paired.ssim(real, fake, 0, 4095) == structural_similarity(real, fake, data_range=4095, **wang)


def test_black_against_white_is_nothing_alike() -> None:
    """A data range of 255 on images in [0, 1] gives 0.867 here."""
    black, white = np.zeros((32, 32)), np.ones((32, 32))
    assert paired.ssim(black, white, 0.0, 1.0) == pytest.approx(1e-4, rel=0.01)


def test_unit_of_the_images_does_not_change_ratios(pair: tuple[np.ndarray, np.ndarray]) -> None:
    real, fake = pair
    low, width = -1024.0, 4095.0
    unit = [(image - low) / width for image in pair]
    assert paired.psnr(real, fake, width) == pytest.approx(paired.psnr(*unit, 1.0))
    assert paired.ssim(real, fake, low, width) == pytest.approx(paired.ssim(*unit, 0.0, 1.0))


def test_ssim_does_not_hang_on_the_sign_of_hu() -> None:
    """20 HU too dark is a small fault in soft tissue, even where it turns +10 into -10 HU."""
    real = np.full((32, 32), 10.0)
    assert paired.ssim(real, -real, -1024, 4095) > 0.999
    assert paired.ssim(real, -real, 0, 4095) < 0.9  # what plain HU would give


def test_small_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 11×11"):
        paired.ssim(np.zeros((8, 30)), np.zeros((8, 30)), 0.0, 1.0)


def test_integers_do_not_wrap_around() -> None:
    real, fake = np.full((16, 16), 3, np.uint8), np.full((16, 16), 250, np.uint8)
    assert paired.mae(real, fake) == paired.mae(fake, real) == 247
