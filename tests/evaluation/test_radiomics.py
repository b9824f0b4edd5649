"""Weight-free texture features: closed forms, what is left out, and that they are always numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from skimage.feature import graycomatrix, graycoprops

from evaluation.metrics.radiomics import FEATURE_NAMES, slice_features, standardise


def named(image: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    values = slice_features(image, np.ones(image.shape, bool) if mask is None else mask)
    assert values.shape == (len(FEATURE_NAMES),)
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    return dict(zip(FEATURE_NAMES, values.tolist(), strict=True))


def noise(size: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (size, size))


def disc(size: int = 64) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2
    return x**2 + y**2 < (size / 3) ** 2


def test_only_pixels_in_the_mask_count() -> None:
    image, mask = noise(), disc()
    other = np.where(mask, image, np.nan)
    assert np.array_equal(slice_features(image, mask), slice_features(other, mask))


def test_first_order_features_equal_their_definitions() -> None:
    image, mask = noise() ** 2, disc()
    values, of = image[mask], named(image, mask)
    assert of["mean"] == pytest.approx(values.mean())
    assert of["std"] == pytest.approx(values.std())
    assert of["skewness"] == pytest.approx(stats.skew(values))
    assert of["kurtosis"] == pytest.approx(stats.kurtosis(values))
    assert of["p05"] == pytest.approx(np.percentile(values, 5))
    assert of["interquartile_range"] == pytest.approx(stats.iqr(values))
    assert of["mean_absolute_deviation"] == pytest.approx(np.abs(values - values.mean()).mean())
    assert of["root_mean_square"] == pytest.approx(np.sqrt((values**2).mean()))
    share = np.histogram(values, 32, (0, 1))[0] / len(values)
    assert of["entropy"] == pytest.approx(stats.entropy(share, base=2))
    assert of["uniformity"] == pytest.approx((share**2).sum())


def test_co_occurrence_features_equal_scikit_images_where_nothing_is_masked() -> None:
    image = noise(32)
    levels = np.minimum((image * 32).astype(int), 31).astype(np.uint8)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    of = named(image)
    for distance in (1, 2):
        pooled = graycomatrix(levels, [distance], angles, 32, symmetric=True).sum(axis=3, keepdims=True)
        for name in ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "ASM", "entropy"):
            assert of[f"glcm_{name.lower()}_{distance}"] == pytest.approx(graycoprops(pooled, name)[0, 0])


def test_local_binary_patterns_equal_a_plain_loop() -> None:
    image, mask = noise(24), disc(24)
    levels = np.minimum((image * 256).astype(int), 255)
    around = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    counts = np.zeros(10)
    for y, x in zip(*np.nonzero(mask), strict=True):
        if mask[y - 1 : y + 2, x - 1 : x + 2].all():
            ring = [levels[y + i, x + j] >= levels[y, x] for i, j in around]
            changes = sum(ring[i] != ring[i - 1] for i in range(8))
            counts[sum(ring) if changes <= 2 else 9] += 1
    of = named(image, mask)
    assert [of[f"lbp_{i}"] for i in range(10)] == pytest.approx(list(counts / counts.sum()))


def test_haar_bands_of_the_first_scale_hold_the_energy_that_averages_lose() -> None:
    """An orthonormal transform keeps the sum of squares."""
    image = noise(64)
    blocks = image.reshape(32, 2, 32, 2).sum((1, 3)) / 2
    of = named(image)
    details = sum(of[f"haar_{band}_1"] ** 2 for band in ("lh", "hl", "hh")) * 32**2
    assert details + (blocks**2).sum() == pytest.approx((image**2).sum())


def test_texture_does_not_depend_on_where_the_body_lies_nor_which_way_it_faces() -> None:
    body = noise(40)
    values = []
    for y, x in ((3, 5), (20, 11)):
        image, mask = np.zeros((64, 64)), np.zeros((64, 64), bool)
        image[y : y + 40, x : x + 40], mask[y : y + 40, x : x + 40] = body, True
        values.append(slice_features(image, mask))
    np.testing.assert_allclose(values[0], values[1], rtol=1e-12)
    turned, upright = named(body.T), named(body)
    for name in FEATURE_NAMES:
        if not name.startswith("haar"):
            assert turned[name] == pytest.approx(upright[name]), name
    assert turned["haar_lh_2"] == pytest.approx(upright["haar_hl_2"])


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_image_has_numbers(value: float) -> None:
    of = named(np.full((32, 32), value))
    assert [of[name] for name in ("mean", "p50", "root_mean_square")] == pytest.approx([value] * 3)
    assert of["std"] == of["skewness"] == of["kurtosis"] == of["entropy"] == of["gradient_mean"] == 0
    assert of["uniformity"] == of["glcm_correlation_1"] == of["glcm_energy_2"] == of["lbp_8"] == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2), (3, 3), (7, 5)])
def test_thin_masks_give_numbers(shape: tuple[int, int]) -> None:
    mask = np.zeros((16, 16), bool)
    mask[: shape[0], : shape[1]] = True
    of = named(noise(16), mask)
    of_small = named(noise(16)[: shape[0], : shape[1]])
    assert of == pytest.approx(of_small)
    assert of["haar_hh_3"] == 0
    if shape == (1, 1):
        assert of["glcm_energy_1"] == of["glcm_correlation_1"] == 0


def test_z_scores_are_by_the_real_set_and_constants_are_named() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(5, 3, (50, 53)), rng.normal(0, 1, (20, 53))
    real[:, 1] = 0.1  # 0.1 has no exact mean
    x, y, dropped = standardise(real=real, fake=fake)
    assert dropped == (FEATURE_NAMES[1],)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(x.std(0), 1)
    kept = np.delete(np.arange(53), 1)
    np.testing.assert_allclose(y, (fake - real.mean(0))[:, kept] / real.std(0)[kept])


def test_a_ramp_has_its_slope_as_gradient() -> None:
    image = np.tile(np.linspace(0, 1, 65), (65, 1))
    of = named(image)
    assert of["gradient_mean"] == of["gradient_p50"] == of["gradient_p90"] == pytest.approx(1 / 64)
    assert of["gradient_std"] == pytest.approx(0, abs=1e-12)
    assert of["haar_lh_1"] == pytest.approx(1 / 64)
    assert of["haar_hl_1"] == pytest.approx(0, abs=1e-12)
