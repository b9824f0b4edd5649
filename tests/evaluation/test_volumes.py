"""Metrics of volumes: scikit-image in three dimensions, closed forms, sums in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from evaluation.metrics import paired
from evaluation.metrics.volumes import Errors, ssim3d, volume_errors

WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def volumes(shape: tuple[int, ...]) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(sum(shape))
    real = rng.uniform(-1000, 2000, shape)
    return real, 0.8 * real + rng.normal(0, 200, shape)


@pytest.mark.parametrize("shape", [(11, 11, 11), (12, 30, 17), (40, 16, 21), (27, 128, 130)])
def test_ssim3d_is_that_of_scikit_image(shape: tuple[int, int, int]) -> None:
    real, fake = volumes(shape)
    reference = structural_similarity(real + 1024, fake + 1024, data_range=4095, **WANG)
    assert ssim3d(real, fake, -1024, 4095) == pytest.approx(reference, abs=1e-12)


def test_ssim3d_identity_symmetry_and_black_against_white() -> None:
    real, fake = volumes((20, 24, 22))
    assert ssim3d(real, real, -1024, 4095) == pytest.approx(1, abs=1e-12)
    assert ssim3d(real, fake, -1024, 4095) == pytest.approx(ssim3d(fake, real, -1024, 4095), abs=1e-14)
    assert ssim3d(real, fake, -1024, 4095) == pytest.approx(ssim3d(real.T, fake.T, -1024, 4095), abs=1e-13)
    assert ssim3d(np.zeros((12, 12, 12)), np.ones((12, 12, 12)), 0.0, 1.0) == pytest.approx(1e-4, rel=0.01)


def test_ssim3d_sees_flicker_that_ssim_of_slices_does_not() -> None:
    """Slice by slice, offsets of ±0.1 in turn are as good as the mean of +0.1 and -0.1 everywhere."""
    real = np.repeat(np.random.default_rng(0).uniform(0.3, 1, (1, 40, 40)), 20, axis=0)
    up, down = real + 0.1, real - 0.1
    turns = np.where(np.arange(20)[:, None, None] % 2, up, down)

    def of_slices(fake: NDArray) -> float:
        return float(np.mean([paired.ssim(a, b, 0, 1) for a, b in zip(real, fake, strict=True)]))

    assert of_slices(turns) == pytest.approx((of_slices(up) + of_slices(down)) / 2, abs=1e-12)
    assert ssim3d(real, turns, 0, 1) < (ssim3d(real, up, 0, 1) + ssim3d(real, down, 0, 1)) / 2 - 0.05


@pytest.mark.parametrize(
    ("shape", "said"), [((10, 30, 30), "11×11×11"), ((30, 30), "two volumes"), ((30, 30, 9), "got")]
)
def test_ssim3d_refuses(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ssim3d(np.zeros(shape), np.zeros(shape), 0.0, 1.0)
    with pytest.raises(ValueError, match="of one shape"):
        ssim3d(np.zeros((12, 12, 12)), np.zeros((12, 12, 13)), 0.0, 1.0)


def test_errors_agree_with_scikit_image_and_the_2d_functions() -> None:
    real, fake = volumes((5, 20, 21))
    errors = volume_errors(real, fake)
    assert errors.rmse**2 == pytest.approx(mean_squared_error(real, fake), rel=1e-12)
    assert errors.psnr(4095) == pytest.approx(peak_signal_noise_ratio(real, fake, data_range=4095), rel=1e-12)
    assert errors.mae == pytest.approx(paired.mae(real, fake), rel=1e-12)
    mask = real > 500
    inside = volume_errors(real, fake, mask)
    assert inside.mae == pytest.approx(paired.mae(real, fake, mask), rel=1e-12)
    assert inside.rmse == pytest.approx(paired.rmse(real, fake, mask), rel=1e-12)
    assert inside.psnr(4095) == pytest.approx(paired.psnr(real, fake, 4095, mask), rel=1e-12)


def test_slices_add_up_in_any_order() -> None:
    real, fake = volumes((6, 20, 21))
    mask = real > 0
    parts = [volume_errors(r, f, m) for r, f, m in zip(real, fake, mask, strict=True)]
    whole = volume_errors(real, fake, mask)
    for order in (parts, parts[::-1], [parts[0] + parts[3], *parts[1:3], *parts[4:]]):
        total = sum(order, Errors())
        assert total.voxels == whole.voxels
        assert (total.mae, total.rmse) == pytest.approx((whole.mae, whole.rmse), rel=1e-13)


def test_nothing_is_not_a_number_and_identical_is_infinite() -> None:
    real, _ = volumes((3, 12, 12))
    empty = volume_errors(real, real, np.zeros(real.shape, bool))
    assert all(math.isnan(value) for value in (empty.mae, empty.rmse, empty.psnr(1.0)))
    same = volume_errors(real, real)
    assert (same.mae, same.rmse, same.psnr(1.0)) == (0, 0, math.inf)


def test_integers_do_not_wrap_around() -> None:
    a, b = np.full((4, 4), 3, np.uint8), np.full((4, 4), 250, np.uint8)
    assert volume_errors(a, b).mae == volume_errors(b, a).mae == 247


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="have shapes"):
        volume_errors(np.zeros((3, 4)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="their mask"):
        volume_errors(np.zeros((3, 4)), np.zeros((3, 4)), np.ones(3, bool))
