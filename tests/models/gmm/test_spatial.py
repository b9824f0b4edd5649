"""Deformation of label maps: affine, elastic, window, mirror; and images that move with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.gmm.options import GMM_PRESETS, GmmConfig
from models.gmm.render import deform
from models.gmm.resampling import nodes, upsample
from models.gmm.sampling import sample_params
from models.gmm.spatial import affine_matrix, integrate_velocity
from tests.models.gmm import reference


def random_labels(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 9, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def velocity(shape: tuple[int, ...], std: float, scale: float = 0.04, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(len(shape), *(nodes(size, scale) for size in shape), generator=generator)


def test_affine_matrix_against_an_independent_construction() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        for n in (2, 3):
            given = (
                rng.uniform(-60, 60, 1 if n == 2 else 3),
                rng.uniform(0.5, 2, n),
                rng.uniform(-0.3, 0.3, n * n - n),
                rng.uniform(-9, 9, n),
            )
            found = affine_matrix(*(list(map(float, item)) for item in given))
            assert found.dtype == torch.float64
            assert np.allclose(found.numpy(), reference.affine(*given), atol=1e-12)


def determinants(u: np.ndarray) -> np.ndarray:
    """Jacobian determinants of x + u(x) at every voxel."""
    n = len(u)
    jacobian = np.stack([np.stack(np.gradient(part)) for part in np.indices(u.shape[1:]) + u]).reshape(n, n, -1)
    return np.linalg.det(np.moveaxis(jacobian, -1, 0))


@pytest.mark.parametrize(
    ("shape", "scale", "std", "folded"),
    [
        ((48, 44, 40), 0.04, 4.0, 0.0),
        ((48, 44, 40), 0.0625, 4.0, 0.0),
        ((64, 61), 0.0625, 8.0, 0.0),
        # Twice any preset's largest velocity over cells of 15 voxels: the coarse integration folds in 3 voxels of 84,480
        # in one of six draws, full resolution in none.
        ((48, 44, 40), 0.0625, 8.0, 5e-4),
    ],
)
def test_integrated_fields_do_not_fold(shape: tuple[int, ...], scale: float, std: float, folded: float) -> None:
    for seed in range(4):
        v = velocity(shape, std, scale, seed)
        field, plain = (upsample(integrate_velocity(v, shape, steps=k), shape).double().numpy() for k in (2, 0))
        assert (determinants(field) <= 0).mean() <= folded, seed
        if std == 8 and scale > 0.05 and len(shape) == 3:
            assert (determinants(plain) <= 0).mean() > 0.01  # the same velocity as a plain displacement


@pytest.mark.parametrize("start", [(3, 0, 5), (29, 7, 0)])
def test_window_is_the_same_region_of_the_whole(start: tuple[int, ...]) -> None:
    labels, size = random_labels((30, 27, 24)), (1, 20, 11)
    params = sample_params(labels, torch.Generator().manual_seed(0), options=GMM_PRESETS["synthseg"]())
    params = replace(params, velocity=velocity((30, 27, 24), 3.0, 0.1), flip=False)
    whole = deform(labels, params, (60, 54, 48))
    part = deform(labels, replace(params, crop_start=start, crop_shape=size), tuple(2 * n for n in size))
    assert torch.equal(part, whole[tuple(slice(2 * s, 2 * (s + n)) for s, n in zip(start, size, strict=True))])


def test_spatial_off_leaves_the_map_alone() -> None:
    labels = random_labels((30, 27, 24))
    options = replace(GMM_PRESETS["synthseg"](), output_shape=(16,))
    params = sample_params(labels, torch.Generator().manual_seed(0), options=options, spatial=False)
    assert torch.equal(deform(labels, params), labels)
    still = sample_params(labels, torch.Generator().manual_seed(0), options=GmmConfig())
    assert torch.equal(deform(labels, still), labels)
