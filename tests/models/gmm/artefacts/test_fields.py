import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from models.gmm.artefacts.fields import blur, gaussian_mixture, perlin


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_blur_agrees_with_scipy():
    image = torch.rand(1, 30, 26, 34, generator=seeded())
    ours = blur(image, (1.5, 0.0, 2.5))[0]
    theirs = gaussian_filter(image[0].numpy(), (1.5, 0, 2.5), truncate=8)
    middle = (slice(10, -10), slice(None), slice(14, -14))  # they mirror at the edge, we normalise
    np.testing.assert_allclose(ours[middle].numpy(), theirs[middle], atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 30), (12, 14, 16)])
def test_mixture_is_the_sum_of_gaussians(shape):
    centers = torch.rand(7, len(shape), generator=seeded()) * torch.tensor(shape)
    sigma = 1 + 3 * torch.rand(7, len(shape), generator=seeded(1))
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij"), -1)
    distance = (grid[..., None, :] - centers) / sigma
    expected = (torch.exp(-0.5 * (distance**2).sum(-1)) * (distance.abs() <= 4).all(-1)).sum(-1)
    torch.testing.assert_close(gaussian_mixture(centers, sigma, shape), expected)


def perlin_at(point, gradients, cells, shape):
    """Gradient noise at one voxel the usual way: over the corners of its cell."""
    x = (np.array(point) + 0.5) * cells / np.array(shape)
    value = 0.0
    for corner in np.ndindex(*(2,) * len(shape)):
        lattice = np.floor(x).astype(int) + corner
        offset = x - lattice
        t = 1 - np.abs(offset)
        value += np.prod(6 * t**5 - 15 * t**4 + 10 * t**3) * offset @ gradients[(slice(None), *lattice)]
    return value


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(20, 30), (12, 14, 16)])
def test_perlin_agrees_with_its_definition(shape):
    noise = perlin(shape, 2, 1, seeded(), torch.device("cpu"))
    gradients = torch.randn(len(shape), *(3,) * len(shape), generator=seeded())
    gradients = (gradients / gradients.norm(dim=0)).numpy()
    expected = torch.tensor([perlin_at(point, gradients, 2, shape) for point in np.ndindex(*shape)])
    expected = ((expected - expected.mean()) / expected.std()).view(shape).float()
    torch.testing.assert_close(noise, expected, atol=1e-4, rtol=1e-4)
