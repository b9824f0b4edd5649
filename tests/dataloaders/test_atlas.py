"""Tissue by intensity and place: means, places of structures, islands, and the template classified by itself."""

from __future__ import annotations

import numpy as np
import pytest

from dataloaders.io.geometry import regrid, resample
from dataloaders.prepare import atlas
from dataloaders.prepare.atlas import VENTRICLES, Anatomy, atlas_tissue, structures, tissue_levels
from dataloaders.prepare.sources import embedded_volumes
from dataloaders.registration import dice

MEANS = np.array([200.0, 900.0, 1500.0])


def mixed(seed: int = 0) -> tuple[np.ndarray, Anatomy]:
    """Intensities of 1 % fluid in ventricles, 15 % partial volume, grey and white matter; shares that are half wrong."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(4, 40_000, p=[0.01, 0.15, 0.5, 0.34])
    values = np.array([MEANS[0], (MEANS[0] + MEANS[1]) / 2, MEANS[1], MEANS[2]])[kind] + rng.normal(0, 90, kind.size)
    zero = np.zeros(kind.size, np.float32)
    places = {s.name: zero for s in structures()} | {VENTRICLES: (kind == 0).astype(np.float32)}
    grey, white = (np.where(kind == k, 0.6, 0.2).astype(np.float32) for k in (2, 3))
    return values, Anatomy(grey, white, grey, places)


def test_means_are_found_where_there_is_hardly_any_fluid() -> None:
    values, anatomy = mixed()
    levels = tissue_levels(values, anatomy)
    np.testing.assert_allclose(levels.means[[2, 3]], MEANS[1:], rtol=0.04)
    assert abs(levels.means[0] - MEANS[0]) < 150
    assert levels.means[1] == pytest.approx(levels.means[[0, 2]].mean())


def test_structures_lie_where_anatomy_has_them() -> None:
    """Mirrored, and each in its own place: no point belongs to two."""
    centres = {"thalamus": (11, -19, 7), "pallidum": (20, -5, -1), "putamen": (27, 3, 0), "caudate": (13, 14, 9)}
    centres |= {"brain stem": (2, -28, -30), VENTRICLES: (7, 5, 17), "cerebellar white matter": (24, -57, -36)}
    points = np.array([*centres.values()], float)
    shares = {s.name: s.share(points) for s in structures()}
    for i, name in enumerate(centres):
        assert shares[name][i] > 0.7, name
        assert sum(share[i] for share in shares.values()) < 1.3
    mirrored = points * (-1, 1, 1)
    assert all(np.array_equal(s.share(mirrored), shares[s.name]) for s in structures())


@pytest.mark.slow
def test_the_template_is_found_again_and_its_deep_structures_with_it() -> None:
    """Turned by 8 degrees, 5 % larger, shifted, at 3 mm, with a dark lesion in white matter."""
    volumes = embedded_volumes(("T1w",))
    turn, angle = np.eye(4), np.radians(8)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, :3] *= 1.05
    turn[:3, 3] = [6.0, -9.0, 4.0]
    t1, label = volumes["T1w"], volumes["label"]
    moved = turn @ t1.affine
    shape, grid = regrid(t1.data.shape, moved, (3, 3, 3))
    image = resample(t1.data, moved, shape, grid)
    truth = resample(label.data, moved, shape, grid, labels=True)
    points = (np.linalg.inv(turn) @ grid @ np.vstack([np.indices(shape).reshape(3, -1), np.ones(image.size)]))[:3].T
    lesion = (np.linalg.norm(points - (28, -20, 30), axis=1) < 5).reshape(shape)
    assert (truth[lesion] == atlas.WHITE).mean() > 0.9
    image[lesion] = np.median(image[truth == atlas.GREY])
    found = atlas_tissue(image + 1, grid, truth > 0)
    assert (found[lesion] == atlas.WHITE).mean() > 0.8
    assert min(dice(found == i, truth == i) for i in (2, 3)) > 0.75
    for name in ("thalamus", "pallidum", "brain stem"):
        structure = next(s for s in structures() if s.name == name)
        core = (structure.share(points) > 0.8).reshape(shape) & (truth > 0)
        assert (found[core] == structure.tissue).mean() > 0.85, name
