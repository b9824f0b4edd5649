"""SynthRAD2023, as its description says, with scikit-image; and in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from evaluation.metrics.protocols import METRICS, synthrad2023
from tests.toy_cases import case_of


def scan(shape: tuple[int, int, int] = (12, 15, 14)) -> tuple[NDArray, NDArray, NDArray]:
    """Values beyond the window on both sides, and a body that touches one face of the volume."""
    rng = np.random.default_rng(0)
    real = rng.uniform(-1500, 3500, shape).astype(np.float32)
    fake = (real + rng.normal(0, 300, shape)).astype(np.float32)
    z, y, x = np.indices(shape)
    mask = ((z - 4) ** 2 / 40 + (y - 7) ** 2 / 36 + (x - 6) ** 2 / 30 < 1).astype(np.uint8)
    return real, fake, mask


def reference(real: NDArray, fake: NDArray, mask: NDArray) -> dict[str, float]:
    """With scikit-image's map of the whole volume, as the challenge does it; the outermost 3 voxels have no window."""
    x, y = (np.clip(image.astype(float), -1024, 3000) for image in (real, fake))
    inside = mask > 0
    mae = np.mean(np.abs(real.astype(float) - fake)[inside])
    psnr = 10 * math.log10(4024**2 / np.mean((x - y)[inside] ** 2))
    x, y = (np.where(inside, image, -1024) + 1024 for image in (x, y))
    _, ssim_map = structural_similarity(x, y, data_range=4024, full=True)
    inner = (slice(3, -3),) * 3
    return {"mae": float(mae), "psnr": psnr, "ssim": ssim_map[inner][inside[inner]].mean()}


def test_synthrad2023_against_scikit_image() -> None:
    found = synthrad2023(*scan())
    assert found == pytest.approx(reference(*scan()), rel=1e-10)
    assert list(found) == ["mae", "psnr", "ssim"]


def test_slabs_and_box_change_nothing() -> None:
    """A volume deeper than one slab, with the body in a part of it."""
    real, fake, _ = scan((80, 20, 22))
    mask = np.zeros(real.shape, bool)
    mask[2:75, 5:14, 4:22] = True
    assert synthrad2023(real, fake, mask) == pytest.approx(reference(real, fake, mask), rel=1e-10)


def test_closed_form_of_an_offset() -> None:
    real, fake = np.full((9, 9, 9), 0.0), np.full((9, 9, 9), 40.0)
    found = synthrad2023(real, fake, np.ones(real.shape))
    c, x, y = (0.01 * 4024) ** 2, 1024.0, 1064.0
    ssim = (2 * x * y + c) / (x * x + y * y + c)
    assert found == pytest.approx({"mae": 40, "psnr": 20 * math.log10(4024 / 40), "ssim": ssim}, rel=1e-9)


def test_of_a_case_only_as_one_whole_volume() -> None:
    """Across a gap, or of too few slices, there is no value: what lies there would be made up."""
    real, fake, mask = scan()
    of = {metric.key: metric.of for metric in METRICS}["synthrad2023_mae"]
    assert of is not None
    expected = {f"synthrad2023_{key}": value for key, value in synthrad2023(real, fake, mask).items()}
    assert of(case_of(real, fake, mask)) == expected
    assert of(case_of(real, fake, mask, [*range(6), *range(7, 13)])) == {}
    assert of(case_of(real[:6], fake[:6], mask[:6])) == of(case_of(real[:, :6], fake[:, :6], mask[:, :6])) == {}
