"""Errors and structural similarity: closed forms, naive and published versions, and the traps others fell into."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from dataloaders.io.intensity import Window
from evaluation.metrics.errors import mae, psnr, rmse
from evaluation.metrics.similarity import pairwise_similarities, similarities, similarity, ssim_3d
from tests.toy_cases import WINDOW, case_of

LOW, WIDTH = WINDOW.low, WINDOW.width
WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def pair(shape: tuple[int, ...] = (40, 33)) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(sum(shape))
    real = rng.uniform(-1000, 2000, shape)
    return real, 0.7 * real + rng.normal(0, 300, shape) + 50


def smooth() -> tuple[NDArray, NDArray]:
    """Large enough for five scales."""
    rng = np.random.default_rng(0)
    real = gaussian_filter(rng.normal(0, 1, (176, 201)), 2) * 3000
    return real, real + rng.normal(0, 150, real.shape)


def ssim(real: NDArray, fake: NDArray, low: float = LOW, width: float = WIDTH) -> float:
    return similarity(real, fake, low, width)[0]


def ms_ssim(real: NDArray, fake: NDArray, window: Window = WINDOW) -> float:
    return similarities(real, fake, window)[1]


# -- errors -------------------------------------------------------------------------------------------------------


def test_errors_have_closed_forms_and_are_those_of_scikit_image() -> None:
    real, fake = np.zeros((20, 20)), np.full((20, 20), 50.0)
    assert mae(real, fake) == rmse(real, fake) == 50
    assert psnr(real, fake, 4095.0) == pytest.approx(20 * math.log10(4095 / 50))
    real, fake = pair()
    assert rmse(real, fake) ** 2 == pytest.approx(mean_squared_error(real, fake), rel=1e-12)
    reference = peak_signal_noise_ratio(real, fake, data_range=4095)
    assert psnr(real, fake, 4095) == pytest.approx(reference, rel=1e-12)
    assert psnr((real - LOW) / WIDTH, (fake - LOW) / WIDTH, 1.0) == pytest.approx(reference)
    assert (mae(real, real), rmse(real, real), psnr(real, real, 4095.0)) == (0, 0, math.inf)


def test_only_the_mask_counts() -> None:
    real, fake = np.zeros((20, 20)), np.zeros((20, 20))
    fake[:10] = 8
    body = fake > 0
    assert (mae(real, fake, body), mae(real, fake)) == (8, 4)
    assert math.isnan(mae(real, fake, np.zeros_like(body)))
    assert math.isnan(rmse(real, fake, np.zeros_like(body)))


# -- one scale ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        *((11, 11), (11, 300), (26, 27), (27, 26), (139, 256), (300, 1024), (2000, 12)),
        *((11, 11, 11), (12, 30, 17), (40, 16, 21), (27, 128, 130)),
    ],
)
def test_ssim_of_any_size_is_that_of_scikit_image(shape: tuple[int, ...]) -> None:
    """Slices and volumes smaller, equal and larger than the blocks and slabs it is computed in."""
    real, fake = pair(shape)
    reference = structural_similarity(real + 1024, fake + 1024, data_range=4095, **WANG)
    assert ssim(real, fake) == pytest.approx(reference, abs=1e-12)


def test_ssim_of_constant_images_does_not_lose_digits() -> None:
    """Variances of constants are differences of equal numbers; a window far from zero makes those large."""
    x, y, c = 4024.0, 3024.0, (0.01 * 4095) ** 2
    found = ssim(np.full((256, 256), 3000.0), np.full((256, 256), 2000.0))
    assert found == pytest.approx((2 * x * y + c) / (x * x + y * y + c), abs=1e-9)


# -- five scales --------------------------------------------------------------------------------------------------


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
        padded = [np.pad(m, ((0, m.shape[0] % 2), (0, m.shape[1] % 2)), "symmetric") for m in (x, y)]
        x, y = (convolve2d(m, np.full((2, 2), 0.25), "valid")[::2, ::2] for m in padded)
    return float(value)


def test_ms_ssim_agrees_with_a_naive_version() -> None:
    real, fake = smooth()
    value = ms_ssim(real, fake)
    assert value == pytest.approx(naive(real, fake), abs=1e-12)
    assert 0 < value < 1
    assert similarities(real, fake, WINDOW)[0] == ssim(real, fake)  # the first scale
    fake[50, 60] = math.nan
    assert math.isnan(ms_ssim(real, fake))


def test_ms_ssim_agrees_with_pytorch_msssim() -> None:
    """Its window has float32 coefficients. (torchmetrics lets SSIM run into mirrored borders and differs by 3e-5 here.)"""
    reference = pytest.importorskip("pytorch_msssim")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    real = gaussian_filter(rng.normal(0, 1, (192, 256)), 2) * 3
    fake = real + rng.normal(0, 0.1, real.shape)
    tensors = [torch.tensor(image)[None, None] for image in (real, fake)]
    expected = float(reference.ms_ssim(*tensors, data_range=4.0))
    assert ms_ssim(real, fake, Window(0.0, 4.0)) == pytest.approx(expected, abs=1e-8)


def test_an_inverted_image_is_nothing_alike() -> None:
    """A negative mean of the structure term has no real power."""
    real, _ = smooth()
    assert ms_ssim(real, -real, Window(-5000.0, -905.0)) == 0


@pytest.mark.parametrize(
    ("shape", "known"), [((8, 30), 0), ((11, 11), 1), ((160, 300), 1), ((300, 160), 1), ((161, 161), 2)]
)
def test_slices_that_are_too_small_have_no_value(shape: tuple[int, int], known: int) -> None:
    values = similarities(np.zeros(shape), np.zeros(shape), Window(0.0, 1.0))
    assert [math.isfinite(value) for value in values] == [known > 0, known > 1]


# -- volumes and draws --------------------------------------------------------------------------------------------


def test_ssim_3d_sees_flicker_that_ssim_of_slices_does_not() -> None:
    """Slice by slice, offsets of ±0.1 in turn are as good as the mean of +0.1 and -0.1 everywhere."""
    real = np.repeat(np.random.default_rng(0).uniform(0.3, 1, (1, 40, 40)), 20, axis=0)
    up, down = real + 0.1, real - 0.1
    turns = np.where(np.arange(20)[:, None, None] % 2, up, down)

    def of_slices(fake: NDArray) -> float:
        return float(np.mean([ssim(a, b, 0, 1) for a, b in zip(real, fake, strict=True)]))

    assert of_slices(turns) == pytest.approx((of_slices(up) + of_slices(down)) / 2, abs=1e-12)
    assert ssim(real, turns, 0, 1) < (ssim(real, up, 0, 1) + ssim(real, down, 0, 1)) / 2 - 0.05


def test_ssim_3d_of_runs_weighted_by_their_places() -> None:
    """Slices on both sides of a gap, or of another size, are no neighbours; each run counts by the places of the window."""
    real, fake = pair((24, 16, 14))
    assert ssim_3d(case_of(real, fake))["ssim_3d"] == pytest.approx(ssim(real, fake), rel=1e-12)
    parts = [ssim(real[part], fake[part]) for part in (slice(0, 11), slice(11, 24))]
    expected = pytest.approx((parts[0] + 3 * parts[1]) / 4, rel=1e-12)
    assert ssim_3d(case_of(real, fake, indices=[*range(11), *range(12, 25)]))["ssim_3d"] == expected
    mixed = [[*image[:12], image[12, :12]] for image in (real, fake)]
    assert ssim_3d(case_of(*mixed))["ssim_3d"] == pytest.approx(ssim(real[:12], fake[:12]), rel=1e-12)


@pytest.mark.parametrize("indices", [list(range(10)), list(range(0, 40, 2))])
def test_too_few_adjacent_slices(indices: list[int]) -> None:
    real, fake = pair((len(indices), 16, 14))
    assert math.isnan(ssim_3d(case_of(real, fake, indices=indices))["ssim_3d"])


def test_every_pair_of_draws_counts_once() -> None:
    rng = np.random.default_rng(1)
    a, b, c = (rng.uniform(20, 80, (20, 24)) for _ in range(3))
    window = Window(0.0, 100.0)
    expected = np.mean([ssim(*two, 0, 100) for two in ((a, b), (a, c), (b, c))])
    for order in ([a, b, c], [c, a, b]):
        assert pairwise_similarities(order, window)[0] == pytest.approx(expected, rel=1e-12)
    image = rng.normal(0.1, 33.3, (170, 165)).astype(np.float32)
    assert pairwise_similarities([image] * 3, window) == (1, 1)  # no rounding in the quotients
