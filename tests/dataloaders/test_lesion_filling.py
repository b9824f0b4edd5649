"""Painting lesions over: what changes, what it looks like, and the faults of the public code."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.lesions.filling import fill_slices, fill_volume
from tests.toy_lesions import patient

P = patient(0)
WAYS = {"volume": lambda i, m, w: fill_volume(i, m, w, seed=1), "slices": lambda i, m, w: fill_slices(i, m, w, seed=1)}


def box(*sides: tuple[int, int]) -> NDArray[np.bool_]:
    """True in a box of the patient's grid."""
    mask = np.zeros_like(P.lesion)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


@pytest.mark.parametrize("seed", [0, 1])
def test_filling_in_three_dimensions_changes_nothing_outside(seed: int) -> None:
    p = patient(seed)
    filled = fill_volume(p.flair, p.lesion, p.white)
    assert np.array_equal(filled[~p.lesion], p.flair[~p.lesion])
    assert (filled[p.lesion] != p.flair[p.lesion]).mean() > 0.99


def test_published_filling_changes_only_its_mask_and_the_white_matter_within_four_steps() -> None:
    filled = fill_slices(P.flair, P.lesion, P.white)
    near = np.stack([ndimage.binary_dilation(P.lesion[:, :, k], iterations=4) for k in range(P.lesion.shape[2])], -1)
    allowed = P.lesion | (near & P.white)
    assert np.array_equal(filled[~allowed], P.flair[~allowed])


@pytest.mark.parametrize("way", WAYS)
def test_filled_lesions_look_like_white_matter(way: str) -> None:
    p = patient(3, lesions=12)
    filled = WAYS[way](p.flair, p.lesion, p.white)
    deep = p.white & (ndimage.distance_transform_edt(~p.lesion) > 2)
    expected = p.flair[deep]
    assert abs(filled[p.lesion].mean() - expected.mean()) < 0.5 * expected.std()
    assert 0.2 * expected.std() < filled[p.lesion].std() < 1.5 * expected.std()
    assert p.flair[p.lesion].mean() > expected.mean() + 4 * expected.std()  # so there was something to do


@pytest.mark.parametrize("sigma", [0.0, 0.8])
def test_grain_is_the_scans_own_and_not_its_anatomy(sigma: float) -> None:
    """Slow changes of white matter are no grain: their spread as noise would speckle smooth scans."""
    rng = np.random.default_rng(0)
    shape = (40, 40, 40)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma) if sigma else rng.standard_normal(shape)
    noise *= 3 / noise.std()
    image = (100 + 20 * np.sin(np.arange(40) / 8)[:, None, None] + noise).astype(np.float32)
    mask = np.zeros(shape, bool)
    mask[14:26, 14:26, 14:26] = True
    filled = fill_volume(image, mask, ~mask)
    fine = [v - ndimage.gaussian_filter(v, 2.0) for v in (image, filled)]
    inner = ndimage.binary_erosion(mask, iterations=2)
    assert fine[1][inner].std() / fine[0][inner].std() == pytest.approx(1, abs=0.25)
    neighbours = [np.corrcoef(v[15:24, 15:25, 15:25].ravel(), v[16:25, 15:25, 15:25].ravel())[0, 1] for v in fine]
    assert neighbours[1] == pytest.approx(neighbours[0], abs=0.12)


@pytest.mark.parametrize("way", WAYS)
def test_every_voxel_is_filled_even_far_from_white_matter(way: str) -> None:
    """The public code leaves blobs without white matter around them as they are: the network sees what it is to paint."""
    mask = box((2, 5), (25, 28), (14, 17))  # in CSF and cortex
    image = np.where(mask, 500, P.flair).astype(np.float32)
    filled = WAYS[way](image, mask, (P.tissue == 3) & ~mask & (np.arange(44)[:, None, None] > 14))
    assert filled[mask].max() < 150


@pytest.mark.parametrize("way", WAYS)
def test_lesions_are_filled_from_the_image_as_it_came(way: str) -> None:
    """The public code fills in place, so each blob reads earlier fills and its neighbours' lesions."""
    both = box((18, 21), (10, 13), (8, 12)) | box((22, 25), (10, 13), (8, 12))  # each within the other's ring
    image = np.where(both, 400, P.flair).astype(np.float32)
    filled = WAYS[way](image, both, (P.tissue == 3) & ~both)
    white = P.flair[P.white]
    assert filled[both].max() < white.mean() + 6 * white.std()


def test_smoothing_does_not_mix_voxels_that_are_no_neighbours() -> None:
    """The public code filters the vector of masked voxels: here two patches of 0 and 100 that are neighbours only there."""
    image = np.zeros((40, 40, 1), np.float32)
    image[30:] = 100
    white = np.zeros((40, 40, 1), bool)
    white[2:10, 2:10] = white[32:39, 2:10] = True
    mask = np.zeros((40, 40, 1), bool)
    mask[5:7, 5:7] = mask[35:37, 5:7] = True
    filled = fill_slices(image, mask, white)
    assert filled[2:10, 2:10].max() == 0
    assert filled[32:39, 2:10].min() == pytest.approx(100)


def test_hyperintense_voxels_lend_no_intensity() -> None:
    mask, bright = box((20, 23), (10, 13), (8, 12)), box((17, 26), (7, 16), (6, 14))
    image = np.where(bright, 200, P.flair).astype(np.float32)
    filled = fill_volume(image, mask, P.tissue == 3, avoid=bright & ~mask)
    assert filled[mask].max() < 150
