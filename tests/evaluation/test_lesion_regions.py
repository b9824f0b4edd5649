"""RegionScores by region, profiles and contrast, against closed forms and scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from evaluation.metrics.lesion_regions import border_distance, contrast, radial_profile, regions, score_regions


def ball(radius: float, size: int = 31) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(size),) * 3, indexing="ij")) - size // 2
    return (grid**2).sum(0) <= radius**2


def test_regions_share_nothing_and_fill_the_body() -> None:
    body, lesion = ball(14), ball(4)
    masks = regions(lesion, body)
    assert (sum(m.astype(int) for m in masks.values()) == body).all()
    assert masks["rim"].any()
    distance = np.abs(np.argwhere(masks["rim"])[:, None] - np.argwhere(lesion)[None]).max(-1).min(-1)
    assert distance.max() == 3
    assert not regions(lesion, body, rim=0)["rim"].any()


def test_errors_count_in_their_region_only() -> None:
    body, lesion = ball(14), ball(4)
    real = np.random.default_rng(0).random(body.shape)
    fake = real + 0.5 * lesion
    masks = regions(lesion, body)
    scores = score_regions(real, fake, masks, data_range=2.0)
    assert scores["lesion"].mse == pytest.approx(0.25)
    assert scores["lesion"].psnr == pytest.approx(10 * math.log10(4 / 0.25))
    assert scores["rim"].mse == scores["outside"].mse == 0
    assert scores["outside"].psnr == math.inf
    far = score_regions(real, fake, {"far": body & (border_distance(lesion) > 8)}, 2.0)["far"]
    assert far.ssim == pytest.approx(1)
    _, full = structural_similarity(real, fake, data_range=2.0, full=True)
    assert scores["lesion"].ssim == pytest.approx(full[lesion].mean())


def test_profile_and_contrast_of_a_known_lesion() -> None:
    lesion, white = ball(5), ball(14)
    distance = border_distance(lesion)
    image = np.where(distance < 0, 150.0, 100.0) * white
    profile = radial_profile(image, lesion, white)
    assert [profile[k] for k in (-4, -1, 1, 6)] == pytest.approx([1.5, 1.5, 1, 1])
    assert 0 not in profile
    assert contrast(image, lesion, white) == contrast(image, lesion, white, distance) == pytest.approx(0.5)
    image = np.where(lesion, 100 + 10 * -distance, 100.0)
    profile = radial_profile(image, lesion, white)
    assert profile[-4] > profile[-3] > profile[-2] > profile[-1] > 1
    assert math.isnan(contrast(image, np.zeros_like(lesion), white))
    assert border_distance(np.zeros_like(lesion)).min() == np.inf
