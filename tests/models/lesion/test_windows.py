"""Patches: every pixel is seen, averages are exact, lesions are found."""

from __future__ import annotations

import pytest
import torch

from models.lesion.windows import average_windows, cut, grid_corners, random_corners, window_starts


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 181, 218])
@pytest.mark.parametrize("stride", [16, 32, 64])
def test_windows_cover_every_pixel(length: int, stride: int) -> None:
    """The public grid left out up to stride - 1 rows and columns: (H - 64) mod stride."""
    starts = window_starts(length, 64, stride)
    covered = {pixel for start in starts for pixel in range(start, start + 64)}
    assert covered >= set(range(length))
    assert max(starts) + 64 <= max(length, 64)
    assert len(set(starts)) == len(starts)
    if (length - 64) % stride == 0 and length >= 64:
        assert starts == list(range(0, length - 63, stride))  # nothing but the published ones


@pytest.mark.parametrize("shape", [(20, 37), (5, 40), (11, 13, 17)])
def test_average_of_windows_gives_an_image_back(shape: tuple[int, ...]) -> None:
    image = torch.rand(2, 3, *shape)
    result = average_windows(shape, 8, 3, lambda corner: cut(image, corner, 8))
    assert torch.allclose(result, image, atol=1e-6)
    assert torch.isfinite(result).all()  # the public code had 0 / 0 at uncovered borders


def test_random_windows_hold_lesions_as_often_as_asked() -> None:
    lesion = torch.zeros(90, 70, dtype=torch.bool)
    lesion[3, 5] = lesion[80:84, 60:66] = True
    body = torch.ones_like(lesion)
    rng = torch.Generator().manual_seed(0)
    corners = random_corners(lesion, body, 200, 32, 1.0, rng)
    assert all(cut(lesion, corner, 32).any() for corner in corners)
    assert all(cut(body, corner, 32).shape == (32, 32) for corner in corners)
    some = random_corners(lesion, body, 400, 32, 0.5, torch.Generator().manual_seed(1))
    share = sum(bool(cut(lesion, corner, 32).any()) for corner in some) / 400
    assert 0.5 < share < 0.95
    assert corners == random_corners(lesion, body, 200, 32, 1.0, torch.Generator().manual_seed(0))


def test_slices_without_lesions_or_body_still_give_windows() -> None:
    empty = torch.zeros(40, 40, dtype=torch.bool)
    corners = random_corners(empty, empty, 3, 16, 1.0, torch.Generator().manual_seed(0))
    assert len(corners) == 3
    assert random_corners(empty, ~empty, 1, 64, 1.0, None) == [(0, 0)]  # a patch larger than the slice


def test_grid_windows_hold_body_by_mask() -> None:
    """The public code asks for voxels that are not 0, which interpolation's ringing makes true nearly everywhere."""
    body = torch.zeros(64, 64, dtype=torch.bool)
    body[40:, 40:] = True
    corners = grid_corners(body, 99, 16, 8, torch.Generator().manual_seed(0))
    assert len(set(corners)) == len(corners)
    assert all(cut(body, corner, 16).any() for corner in corners)
    assert len(grid_corners(body, 3, 16, 8, torch.Generator().manual_seed(0))) == 3
