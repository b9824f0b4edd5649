"""Paired metrics: closed forms, agreement with scikit-image, and the traps others fell into."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from evaluation.metrics import paired


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
    reference = structural_similarity(real, fake, data_range=4095, **wang)
    assert paired.ssim(real, fake, 0, 4095) == pytest.approx(reference, abs=1e-12)


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


WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


@pytest.mark.parametrize("shape", [(11, 11), (11, 300), (26, 27), (27, 26), (139, 256), (300, 1024), (2000, 12)])
def test_ssim_of_any_size_is_that_of_scikit_image(shape: tuple[int, int]) -> None:
    """Smaller, equal and larger than the blocks and slabs it is computed in."""
    rng = np.random.default_rng(sum(shape))
    real = rng.uniform(-1000, 2000, shape)
    fake = 0.7 * real + rng.normal(0, 300, shape) + 50
    reference = structural_similarity(real + 1024, fake + 1024, data_range=4095, **WANG)
    assert paired.ssim(real, fake, -1024, 4095) == pytest.approx(reference, abs=1e-12)


def test_ssim_of_constant_images_does_not_lose_digits() -> None:
    """Variances of constants are differences of equal numbers; a window far from zero makes those large."""
    real, fake = np.full((256, 256), 3000.0), np.full((256, 256), 2000.0)
    x, y, c = 4024.0, 3024.0, (0.01 * 4095) ** 2
    assert paired.ssim(real, fake, -1024, 4095) == pytest.approx((2 * x * y + c) / (x * x + y * y + c), abs=1e-9)


def test_symmetry_and_precision(pair: tuple[np.ndarray, np.ndarray]) -> None:
    real, fake = pair
    assert paired.ssim(real, fake, -1024, 4095) == pytest.approx(paired.ssim(fake, real, -1024, 4095), abs=1e-14)
    single = [image.astype(np.float32) for image in pair]  # what the windows decode to
    double = [image.astype(np.float64) for image in single]
    assert paired.ssim(*single, -1024, 4095) == paired.ssim(*double, -1024, 4095)
    assert paired.ssim(real.T, fake.T, -1024, 4095) == pytest.approx(paired.ssim(real, fake, -1024, 4095), abs=1e-13)


def test_ssim_of_a_broken_image_is_not_a_number(pair: tuple[np.ndarray, np.ndarray]) -> None:
    real, fake = pair
    fake[20, 20] = math.nan
    assert math.isnan(paired.ssim(real, fake, -1024, 4095))


def test_sizes_have_to_match() -> None:
    with pytest.raises(ValueError, match=r"\(20, 20\) and \(20, 21\)"):
        paired.ssim(np.zeros((20, 20)), np.zeros((20, 21)), 0.0, 1.0)


def test_psnr_in_a_mask() -> None:
    real, fake = np.zeros((20, 20)), np.zeros((20, 20))
    fake[:10] = 8
    body = fake > 0
    assert paired.psnr(real, fake, 80.0, body) == pytest.approx(20)
    assert paired.psnr(real, fake, 80.0, ~body) == math.inf
    assert math.isnan(paired.psnr(real, fake, 80.0, np.zeros_like(body)))


@pytest.mark.parametrize(
    ("pixel", "fault"), [(0.0, "constant"), (1.0, None), (math.nan, "non-finite"), (-math.inf, "non-finite")]
)
def test_faults_of_images(pixel: float, fault: str | None) -> None:
    image = np.zeros((4, 5), np.float32)
    image[2, 3] = pixel
    assert paired.image_fault(image) == fault
    assert paired.image_fault(np.full((2, 2), 7, np.uint16)) == "constant"
