"""The engine against the plain float64 reference of tests/models/gmm/reference.py, step by step and as a whole.

Measured (SynthSeg's control grid, velocity of standard deviation 4, 48 x 44 x 40): the displacement that is integrated on
every fourth voxel differs from full resolution by 0.07 voxels on average and 1.3 at most; lab2im's finer grid: 0.25 and 2.1.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from models.gmm.intensity import acquire, textured_grain
from models.gmm.options import GMM_PRESETS, GmmConfig
from models.gmm.params import Params
from models.gmm.render import deform, paint, render
from models.gmm.resampling import nodes, upsample
from models.gmm.sampling import sample_params
from models.gmm.spatial import affine_matrix, integrate_velocity
from tests.models.gmm import reference

SHAPES = [(40, 37, 30), (47, 44)]
SYNTHSEG = GMM_PRESETS["synthseg"]()


@cache
def head(shape: tuple[int, ...]) -> torch.Tensor:
    """Nested ellipsoids 0..3 off the centre, and a box 4 on one side."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    distance = np.sqrt(sum((g / r - 0.1) ** 2 for g, r in zip(grid, (0.8, 0.9, 0.75), strict=False)))
    labels = np.digitize(-distance, [-0.95, -0.7, -0.35])
    labels[tuple(slice(n // 5, n // 3) for n in shape)] = 4
    return torch.from_numpy(labels.astype(np.uint8))


def draw(shape: tuple[int, ...], seed: int, options: GmmConfig = SYNTHSEG, channels: int = 1) -> Params:
    return sample_params(head(shape), torch.Generator().manual_seed(seed), options=options, channels=channels)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def velocity(shape: tuple[int, ...], std: float, scale: float = 0.04, seed: int = 1) -> torch.Tensor:
    return std * random(len(shape), *(nodes(size, scale) for size in shape), seed=seed)


# Deformation


@pytest.mark.parametrize(
    ("shape", "std", "scale", "mean", "most"),
    [
        ((48, 44, 40), 4, 0.04, 0.08, 1.8),
        ((48, 44, 40), 4, 0.0625, 0.2, 3.0),
        ((47, 33, 41), 2, 0.04, 0.06, 1.0),
        ((64, 61), 4, 0.04, 0.1, 1.0),
        ((61, 64), 8, 0.04, 0.3, 3.0),
    ],
)
def test_displacement_error_in_voxels(
    shape: tuple[int, ...], std: float, scale: float, mean: float, most: float
) -> None:
    v = velocity(shape, std, scale)
    exact = reference.displacement(v.double().numpy(), shape)
    found = upsample(integrate_velocity(v, shape), shape).double().numpy()
    error = np.linalg.norm(found - exact, axis=0)
    assert np.linalg.norm(exact, axis=0).mean() > 4 * error.mean()  # a field, not noise
    assert error.mean() < mean
    assert error.max() < most


@pytest.mark.parametrize("shape", SHAPES)
def test_spline_and_unintegrated_fields(shape: tuple[int, ...]) -> None:
    v = velocity(shape, 3, 0.07)
    smooth = upsample(integrate_velocity(v, shape, order=3), shape).double().numpy()
    assert np.linalg.norm(smooth - reference.displacement(v.double().numpy(), shape, order=3), axis=0).mean() < 0.2
    plain = upsample(integrate_velocity(v, shape, steps=0), shape).double().numpy()
    exact = np.stack([reference.control_grid(part.double().numpy(), shape) for part in v])
    assert np.linalg.norm(plain - exact, axis=0).mean() < 0.25  # only the kinks at the nodes are cut


@pytest.mark.parametrize("size", [(), (28, 50, 24)])
@pytest.mark.parametrize("fine", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_affine_labels_agree_voxel_for_voxel_cut_and_mirrored_too(
    shape: tuple[int, ...], fine: int, size: tuple
) -> None:
    options = replace(SYNTHSEG, translation_bounds=(4.0,), output_shape=size[: len(shape)])
    for seed in range(4):
        params = replace(draw(shape, seed, options), velocity=None, flip=seed % 2 == 1, partners=(0, 1, 2, 4, 3))
        found = deform(head(shape), params, tuple(fine * n for n in params.crop_shape)).numpy()
        exact = reference.deform(head(shape).numpy(), params, fine)
        assert found.shape == exact.shape
        assert (found != exact).mean() < 2e-5  # float32 at exact halves
        assert len(np.unique(found)) >= 4


def test_affine_matrix() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3) * 20:
        sizes = ((-60, 60, 1 if n == 2 else 3), (0.5, 2, n), (-0.3, 0.3, n * n - n), (-9, 9, n))
        given = [rng.uniform(*of) for of in sizes]
        found = affine_matrix(*(list(map(float, item)) for item in given))
        assert found.dtype == torch.float64
        assert np.allclose(found.numpy(), reference.affine(*given), atol=1e-12)


def determinants(u: np.ndarray) -> np.ndarray:
    """Jacobian determinants of x + u(x) at every voxel."""
    n = len(u)
    jacobian = np.stack([np.stack(np.gradient(part)) for part in np.indices(u.shape[1:]) + u]).reshape(n, n, -1)
    return np.linalg.det(np.moveaxis(jacobian, -1, 0))


# Last: twice any preset's largest velocity over cells of 15 voxels. The coarse integration folds in 3 voxels of 84,480 in
# one of six draws, full resolution in none; the same velocity as a plain displacement does in every draw.
@pytest.mark.parametrize(
    ("shape", "scale", "std", "folded"),
    [
        ((48, 44, 40), 0.04, 4, 0),
        ((48, 44, 40), 0.0625, 4, 0),
        ((64, 61), 0.0625, 8, 0),
        ((48, 44, 40), 0.0625, 8, 5e-4),
    ],
)
def test_integrated_fields_do_not_fold(shape: tuple[int, ...], scale: float, std: float, folded: float) -> None:
    for seed in range(4):
        v = velocity(shape, std, scale, seed)
        field, plain = (upsample(integrate_velocity(v, shape, steps=k), shape).double().numpy() for k in (2, 0))
        assert (determinants(field) <= 0).mean() <= folded, seed
        assert not folded or (determinants(plain) <= 0).mean() > 0.01


@pytest.mark.parametrize("start", [(3, 0, 5), (29, 7, 0)])
def test_window_is_the_same_region_of_the_whole(start: tuple[int, ...]) -> None:
    shape, size = (30, 27, 24), (1, 20, 11)
    params = replace(draw(shape, 0), velocity=velocity(shape, 3.0, 0.1), flip=False)
    whole = deform(head(shape), params, (60, 54, 48))
    part = deform(head(shape), replace(params, crop_start=start, crop_shape=size), tuple(2 * n for n in size))
    assert torch.equal(part, whole[tuple(slice(2 * s, 2 * (s + n)) for s, n in zip(start, size, strict=True))])


def test_spatial_off_leaves_the_map_alone() -> None:
    labels, generator = head((30, 27, 24)), torch.Generator().manual_seed(0)
    for options, spatial in ((replace(SYNTHSEG, output_shape=(16,)), False), (GmmConfig(), True)):
        params = sample_params(labels, generator, options=options, spatial=spatial)
        assert torch.equal(deform(labels, params), labels)


# Intensities and acquisition


def test_texture() -> None:
    grain = random(1, 20, 23, 17)
    found = textured_grain(grain, torch.zeros(20, 23, 17, dtype=torch.uint8), torch.tensor([6.0]))
    exact = reference.texture(grain[0].double().numpy(), 6.0 / np.sqrt(8 * np.log(2)))
    assert np.abs(found[0].numpy() - exact).max() < 1e-4


@pytest.mark.parametrize(
    ("shape", "low", "sigma", "out"),
    [
        ((40, 37, 30), (40, 37, 4), (0.5, 0.5, 6.0), (40, 37, 30)),
        ((40, 37, 30), (17, 11, 13), (1.7, 2.6, 0.0), (20, 18, 15)),
        ((40, 37), (11, 37), (2.7, 0.5), (80, 74)),
        ((1, 20, 3), (1, 6, 2), (2.0, 2.0, 2.0), (1, 20, 3)),
    ],
)
def test_acquisition(shape: tuple[int, ...], low: tuple, sigma: tuple, out: tuple) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    found = acquire(image, low, sigma, out).numpy()
    assert found.shape == out
    assert np.abs(found - reference.acquire(image.double().numpy(), low, sigma, out)).max() < 2e-6


# The whole chain

CHAINS = {
    "fitted": GMM_PRESETS["fitted"](),
    "lab2im": GMM_PRESETS["lab2im"](),
    "synthseg": SYNTHSEG,
    "partial volume, noise": replace(
        SYNTHSEG, partial_volume=True, noise_std=(0.1,), noise_coils=(0, 2), target_res=(1.5,)
    ),
    "spline, quantile": replace(GMM_PRESETS["cornucopia"](), texture_fwhm=(0.0,)),
    "maximum, noise": replace(GMM_PRESETS["lab2im"](), normalise="max", noise_std=(0.1,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("shape", SHAPES)
def test_image_of_the_same_deformed_labels(name: str, shape: tuple[int, ...]) -> None:
    """Everything behind the deformation: float32 against float64, on a range of 0 to 1."""
    fine = 2 if CHAINS[name].partial_volume else 1
    for seed in range(2):
        params = draw(shape, seed, CHAINS[name], channels=2)
        deformed = deform(head(shape), params, tuple(fine * size for size in params.crop_shape))
        found, exact = paint(deformed, params).numpy(), reference.paint(deformed.numpy(), params)
        assert found.shape == exact.shape
        assert exact.std() > 0.01
        assert np.abs(found - exact).max() < 5e-6, seed  # measured 6e-7


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_whole_chain_of_the_synthseg_preset(shape: tuple[int, ...]) -> None:
    """Same parameters, elastic field at full resolution: images differ where label borders moved by part of a voxel."""
    errors = []
    for seed in range(6):
        params = draw(shape, seed)
        found = render(head(shape), params).numpy()
        exact = reference.paint(reference.deform(head(shape).numpy(), params), params)
        errors.append(np.abs(found - exact).mean() / exact.std())
        assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.99, seed
    assert np.mean(errors) < 0.02
