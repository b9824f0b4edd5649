"""MS-SSIM: a naive version of the paper, closed forms, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d

from evaluation.metrics import paired
from evaluation.metrics.msssim import WEIGHTS, halved, ms_ssim, ssim_and_ms_ssim

LOW, WIDTH = -1024.0, 4095.0


@pytest.fixture(scope="module")
def pair() -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(0)
    real = gaussian_filter(rng.normal(0, 1, (176, 201)), 2) * 3000
    return real, real + rng.normal(0, 150, real.shape)


def naive(real: NDArray, fake: NDArray) -> float:
    """Written from Wang et al. 2003, with a full 11×11 window."""
    axis = np.arange(11) - 5
    window = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * WIDTH) ** 2, (0.03 * WIDTH) ** 2
    x, y = real - LOW, fake - LOW
    value = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        mx, my, xx, yy, xy = (convolve2d(m, window, "valid") for m in (x, y, x * x, y * y, x * y))
        cs = (2 * (xy - mx * my) + c2) / (xx - mx**2 + yy - my**2 + c2)
        if scale == 4:
            cs = cs * (2 * mx * my + c1) / (mx**2 + my**2 + c1)
        value *= np.mean(cs) ** weight
        x, y = (
            convolve2d(
                np.pad(m, ((0, m.shape[0] % 2), (0, m.shape[1] % 2)), "symmetric"), np.full((2, 2), 0.25), "valid"
            )
            for m in (x, y)
        )
        x, y = x[::2, ::2], y[::2, ::2]
    return float(value)


def test_agrees_with_a_naive_version(pair: tuple[NDArray, NDArray]) -> None:
    assert ms_ssim(*pair, LOW, WIDTH) == pytest.approx(naive(*pair), abs=1e-12)


def test_agrees_with_pytorch_msssim() -> None:
    """Its window has float32 coefficients. (torchmetrics lets SSIM run into mirrored borders and differs by 3e-5 here.)"""
    reference = pytest.importorskip("pytorch_msssim")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    real = gaussian_filter(rng.normal(0, 1, (192, 256)), 2) * 3
    fake = real + rng.normal(0, 0.1, real.shape)
    tensors = [torch.tensor(image)[None, None] for image in (real, fake)]
    assert ms_ssim(real, fake, 0.0, 4.0) == pytest.approx(float(reference.ms_ssim(*tensors, data_range=4.0)), abs=1e-8)


def test_the_first_scale_is_ssim(pair: tuple[NDArray, NDArray]) -> None:
    assert ssim_and_ms_ssim(*pair, LOW, WIDTH) == (paired.ssim(*pair, LOW, WIDTH), ms_ssim(*pair, LOW, WIDTH))


def test_identity_symmetry_and_unit(pair: tuple[NDArray, NDArray]) -> None:
    real, fake = pair
    assert ms_ssim(real, real, LOW, WIDTH) == pytest.approx(1, abs=1e-12)
    value = ms_ssim(real, fake, LOW, WIDTH)
    assert 0 < value < 1
    assert ms_ssim(fake, real, LOW, WIDTH) == pytest.approx(value, abs=1e-13)
    assert ms_ssim((real - LOW) / WIDTH, (fake - LOW) / WIDTH, 0.0, 1.0) == pytest.approx(value, abs=1e-12)


def test_constant_images_differ_in_luminance_at_the_coarsest_scale_only() -> None:
    assert sum(WEIGHTS) == pytest.approx(1, abs=1e-4)
    black, white = np.zeros((176, 176)), np.ones((176, 176))
    c = 0.01**2
    assert ms_ssim(black, white, 0.0, 1.0) == pytest.approx((c / (1 + c)) ** 0.1333)


def test_an_inverted_image_is_nothing_alike(pair: tuple[NDArray, NDArray]) -> None:
    """A negative mean of the structure term has no real power."""
    real, _ = pair
    assert ms_ssim(real, -real, -5000.0, 4095.0) == 0


def test_a_broken_image_is_not_a_number(pair: tuple[NDArray, NDArray]) -> None:
    fake = pair[1].copy()
    fake[50, 60] = math.nan
    assert math.isnan(ms_ssim(pair[0], fake, LOW, WIDTH))


@pytest.mark.parametrize("shape", [(160, 300), (300, 160), (32, 32)])
def test_small_images_are_refused_with_their_size(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"more than 160 pixels, got \({shape[0]}, {shape[1]}\)"):
        ms_ssim(np.zeros(shape), np.zeros(shape), 0.0, 1.0)


def test_161_pixels_are_enough() -> None:
    assert ms_ssim(np.zeros((161, 161)), np.zeros((161, 161)), 0.0, 1.0) == pytest.approx(1)


def test_halving() -> None:
    assert halved(np.arange(12.0).reshape(2, 6)).tolist() == [[3.5, 5.5, 7.5]]
    assert halved(np.array([[1.0, 3.0, 8.0]])).tolist() == [[2.0, 8.0]]
