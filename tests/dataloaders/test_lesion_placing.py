"""Placing lesions: inside white matter, to order, seeded."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from dataloaders.lesions.placing import Variation, allowed_zone, place
from dataloaders.lesions.preparing import Tissue
from tests.toy_lesions import patient

MM = (1.0, 1.0, 1.0)
HOST = patient(9, lesions=0)
DONOR = patient(4, lesions=8)
BRAIN = HOST.tissue > 0
ZONE = allowed_zone(HOST.masks, BRAIN, MM)
LEVEL = np.where(DONOR.lesion, 0.3, -0.2).astype(np.float32)


def put(mask: np.ndarray = DONOR.lesion, **how: object):
    return place(mask, LEVEL, ZONE, BRAIN, MM, Variation(**how))


def test_lesions_as_they_are() -> None:
    placed = put()
    assert np.array_equal(placed.mask, DONOR.lesion & ZONE)
    assert (placed.level[placed.mask] == np.float32(0.3)).all()
    _, count = ndimage.label(DONOR.lesion, np.ones((3, 3, 3)))
    assert len(placed.lesions) + placed.left_out == count
    assert sum(lesion.ml for lesion in placed.lesions) == pytest.approx(placed.mask.sum() / 1000)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("load", [0.05, 0.4, 1.5])
def test_load_to_order(load: float, seed: int) -> None:
    placed = put(load_ml=load, scale=(0.8, 1.3), mirror=0.5, elastic=0.5, shift=4, seed=seed)
    assert placed.mask.sum() == round(load * 1000)
    assert not (placed.mask & ~ZONE).any()
    assert not (placed.mask & (HOST.tissue == 1)).any()  # no lesions in CSF


def test_a_load_beyond_what_is_there_uses_lesions_again_elsewhere() -> None:
    have = put().mask.sum() / 1000
    placed = put(load_ml=3 * have)
    assert placed.mask.sum() == pytest.approx(3000 * have, abs=1)
    sources = [lesion.source for lesion in placed.lesions]
    assert len(sources) > len(set(sources))


def test_scale_changes_volumes_by_its_cube() -> None:
    ball = np.zeros(HOST.tissue.shape, bool)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in ball.shape), indexing="ij"))
    centre = np.argwhere(HOST.tissue == 3)[
        np.argmax(ndimage.distance_transform_edt(HOST.tissue == 3)[HOST.tissue == 3])
    ]
    ball[((grid - centre[:, None, None, None]) ** 2).sum(0) <= 9] = True
    placed = place(ball, LEVEL, np.ones_like(ball), BRAIN, MM, Variation(scale=(1.5, 1.5)))
    assert placed.mask.sum() / ball.sum() == pytest.approx(1.5**3, rel=0.12)
    assert np.allclose(np.argwhere(placed.mask).mean(0), np.argwhere(ball).mean(0), atol=0.3)


def test_mirrored_lesions_lie_on_the_other_side() -> None:
    mask = np.zeros(HOST.tissue.shape, bool)
    mask[8:11, 20:24, 10:13] = True
    everywhere = np.ones_like(mask)
    placed = place(mask, LEVEL, everywhere, BRAIN, MM, Variation(mirror=1.0))
    sides = np.flatnonzero(BRAIN.any((1, 2)))
    middle = (sides[0] + sides[-1]) / 2
    assert np.argwhere(placed.mask).mean(0)[0] == pytest.approx(2 * middle - 9, abs=0.51)
    assert np.argwhere(placed.mask).mean(0)[1:] == pytest.approx([21.5, 11], abs=0.01)
    assert placed.lesions[0].mirrored


def test_lesions_that_do_not_fit_are_counted() -> None:
    mask = DONOR.lesion.copy()
    mask[1:4, 1:4, 1:4] = True  # outside the brain
    assert put(mask).left_out == put().left_out + 1
    outside = np.zeros_like(mask)
    outside[1:4, 1:4, 1:4] = True
    with pytest.raises(ValueError, match="none of the 1 lesions fits"):
        put(outside)
    assert place(np.zeros_like(mask), LEVEL, ZONE, BRAIN, MM, Variation(load_ml=1.0)).lesions == []
    nothing = np.zeros_like(BRAIN)
    with pytest.raises(ValueError, match="no white matter"):
        allowed_zone(Tissue(nothing, BRAIN, nothing), BRAIN, MM)
