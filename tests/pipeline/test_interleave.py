from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.interleave import even_slices
from tests.pipeline.heads import head


def scan(count: int = 20) -> NDArray[np.float32]:
    """A head of thin slices, one every fourth of which would be a clinical scan; brighter from slice to slice."""
    image, _ = head(0, skull=False)
    data = np.repeat(image[:, :, 10:30], 1, 2)[..., :count]
    return (data * np.exp(np.linspace(0, 0.2, count))).astype(np.float32)


@pytest.mark.parametrize("axis", [2, 0])
def test_what_alternates_is_taken_off(axis: int) -> None:
    clean = scan()
    gain = np.where(np.arange(clean.shape[2]) % 2, 1.04, 1 / 1.04)
    mm = np.full(3, 0.9)
    mm[axis] = 3.0
    found = np.moveaxis(even_slices(np.moveaxis(clean * gain, 2, axis), mm), axis, 2)
    inside = clean > 30
    ratio = np.array([np.median(found[..., k][inside[..., k]] / clean[..., k][inside[..., k]]) for k in range(20)])
    assert abs(gain[5] / gain[4] - 1) > 0.07
    assert np.abs(np.diff(ratio)).max() < 0.015
    # The slope along the head is the coil's or the brain's, and stays.
    assert np.log(ratio[-1] / ratio[0]) == pytest.approx(0, abs=0.03)


def test_scans_without_it_stay_as_they_are() -> None:
    clean = scan()
    np.testing.assert_allclose(even_slices(clean, np.array([0.9, 0.9, 3.0])), clean, rtol=0.02)
    ripple = clean * np.where(np.arange(20) % 2, 1.04, 1 / 1.04).astype(np.float32)
    assert even_slices(ripple, np.array([1.0, 1.0, 1.2])) is ripple  # 3-D
    empty = np.zeros((5, 5, 5), np.float32)
    np.testing.assert_array_equal(even_slices(empty, np.array([1.0, 1.0, 5.0])), empty)
