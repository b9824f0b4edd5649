"""Radial power spectra: white noise, single waves, physical units; distances with a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from evaluation.metrics.spectrum import BINS, CaseSpectrum, spectrum_distance


def noise(shape: tuple[int, ...] = (64, 64), seed: int = 0) -> NDArray:
    return np.random.default_rng(seed).normal(0, 10, shape)


def spectrum_of(real: NDArray, fake: NDArray, spacing: tuple[float, float] = (1, 1)) -> CaseSpectrum:
    spectrum = CaseSpectrum(spacing)
    spectrum.add(real, fake)
    return spectrum


def distance_of(spectrum: CaseSpectrum) -> float:
    return spectrum_distance(*spectrum.curves)


def naive(image: NDArray, spacing: tuple[float, float], bins: int = BINS) -> NDArray:
    """The full transform, one coefficient after the other."""
    H, W = image.shape
    hann = [0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n) for n in (H, W)]
    window = hann[0][:, None] * hann[1]
    values = (image - (window * image).sum() / window.sum()) * window
    power = np.abs(np.fft.fft2(values)) ** 2 * spacing[0] * spacing[1] / (window**2).sum()
    sums, counts = np.zeros(bins), np.zeros(bins)
    nyquist = min(0.5 / spacing[0], 0.5 / spacing[1])
    for i in range(H):
        for j in range(W):
            y, x = (
                (k if k <= n // 2 else k - n) / (n * size) for k, n, size in ((i, H, spacing[0]), (j, W, spacing[1]))
            )
            place = math.ceil(round(math.hypot(x, y) / nyquist * bins, 9)) - 1  # (0, 1], (1, 2], ...
            if (i, j) != (0, 0) and place < bins:
                sums[place] += power[i, j]
                counts[place] += 1
    with np.errstate(invalid="ignore"):
        return sums / counts


@pytest.mark.parametrize(("shape", "spacing"), [((20, 24), (1, 1)), ((21, 17), (0.5, 2.0)), ((16, 31), (1.2, 0.7))])
def test_agrees_with_a_naive_version(shape: tuple[int, int], spacing: tuple[float, float]) -> None:
    real, fake = noise(shape), noise(shape, 1) + 5
    for curve, image in zip(spectrum_of(real, fake, spacing).curves, (real, fake), strict=True):
        np.testing.assert_allclose(curve, naive(image, spacing), rtol=1e-9)


def test_white_noise_is_flat_at_its_variance_times_the_pixel_area() -> None:
    spectrum = CaseSpectrum((0.5, 2.0))
    for seed in range(40):
        spectrum.add(noise((256, 128), seed), 2 * noise((256, 128), seed))
    # Without the lowest bins: the window spreads the mean that is taken off into its frequencies.
    np.testing.assert_allclose(spectrum.curves[0][2:], 100 * 0.5 * 2.0, rtol=0.2)
    assert spectrum.curves[0][1:].mean() == pytest.approx(100 * 0.5 * 2.0, rel=0.05)
    np.testing.assert_allclose(spectrum.curves[1], 4 * spectrum.curves[0], rtol=1e-12)
    assert distance_of(spectrum) == pytest.approx(math.log10(4))


@pytest.mark.parametrize(("spacing", "axis"), [((1.0, 1.0), 0), ((0.5, 2.0), 0), ((0.5, 2.0), 1)])
def test_a_wave_is_found_at_its_frequency_in_mm(spacing: tuple[float, float], axis: int) -> None:
    """Anisotropic pixels: the same wave has another number of pixels along each axis."""
    frequency = 0.3 * 0.5 / max(spacing)
    mm = np.arange(96) * spacing[axis]
    wave = np.sin(2 * np.pi * frequency * mm)
    image = np.broadcast_to(wave[:, None] if axis == 0 else wave, (96, 96))
    spectrum = spectrum_of(image, image, spacing)
    peak = int(np.nanargmax(spectrum.curves[0]))
    resolution = 1 / (96 * spacing[axis])  # the window blurs a line by about this
    assert abs(spectrum.frequencies[peak] - frequency) <= 0.5 / max(spacing) / BINS + resolution
    assert spectrum.frequencies[-1] == pytest.approx(0.5 / max(spacing) * (1 - 0.5 / BINS))


def test_identity_symmetry_offset_and_unit() -> None:
    real, fake = noise(), gaussian_filter(noise(seed=1), 1)
    assert distance_of(spectrum_of(real, real)) == 0
    assert distance_of(spectrum_of(real, real + 1000)) == pytest.approx(0, abs=1e-9)
    distance = distance_of(spectrum_of(real, fake))
    assert distance > 0.5
    assert distance_of(spectrum_of(fake, real)) == pytest.approx(distance)
    assert distance_of(spectrum_of(real / 4095, fake / 4095)) == pytest.approx(distance)
    assert distance_of(spectrum_of(real, fake, (0.7, 0.7))) == pytest.approx(distance)


def test_constant_images_are_far_but_not_infinitely() -> None:
    real, flat = noise(), np.full((64, 64), 7.0)
    assert distance_of(spectrum_of(flat, flat)) == 0
    assert 5 < distance_of(spectrum_of(real, flat)) <= 12
    assert distance_of(spectrum_of(flat, real)) == pytest.approx(distance_of(spectrum_of(real, flat)))


def test_closed_form_of_the_distance() -> None:
    assert spectrum_distance(np.array([1.0, 100.0, np.nan]), np.array([10.0, 1.0, np.nan])) == pytest.approx(1.5)
