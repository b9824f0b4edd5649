from dataclasses import replace

import pytest
import torch
from scipy.ndimage import distance_transform_edt

from models.gmm.artefacts import Masks, SimulatedMotion
from models.gmm.artefacts.fields import blur

SHAPE, SPACING = (48, 44, 52), (0.8, 0.8, 0.8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def samples(count, shape=SHAPE, spacing=SPACING):
    return [SimulatedMotion.sample(seeded(s), shape, spacing) for s in range(count)]


def still(seed, **changes):
    """Nothing but acquisition and reconstruction of densely spaced slices."""
    calm = {
        "rotation": 0.0,
        "translation": 0.0,
        "noise": 0.0,
        "gamma": False,
        "void_probability": 0.0,
        "misregistered": 0.0,
        "misregistered_stack": -1,
        "removed": 0.0,
        "smooth": False,
        "thickness": 1.5,
        "slice_spacing": 1.5,
        "resolution": 0.8,
    }
    return replace(SimulatedMotion.sample(seeded(seed), SHAPE, SPACING), **{**calm, **changes})


def phantom():
    """A smooth image (1, X, Y, Z), off centre so that shifts show, and its brain."""
    lines = [torch.arange(n) - n / 2 for n in SHAPE]
    x, y, z = torch.meshgrid(*lines, indexing="ij")
    brain = ((x / 17) ** 2 + (y / 15) ** 2 + (z / 19) ** 2) < 1
    image = 0.6 * torch.exp(-0.5 * (((x - 3) / 5) ** 2 + ((y + 2) / 4) ** 2 + ((z - 4) / 6) ** 2))
    return blur((image + 0.3 * brain)[None], (1.5,) * 3).clamp(0, 1), Masks(brain, brain, brain)


def centroid(image):
    lines = [torch.arange(n, dtype=torch.float64) for n in image.shape]
    grid = torch.stack(torch.meshgrid(*lines, indexing="ij"))
    return (grid * image).sum((1, 2, 3)) / image.sum()


def test_published_ranges():
    drawn = samples(500, spacing=(0.5, 0.5, 0.5))
    assert {a.stacks for a in drawn} == {2, 3, 4, 5, 6}
    for name, low, high in (
        ("resolution", 0.25, 1.0),
        ("thickness", 1.5, 3.5),
        ("slice_spacing", 1.5, 5.5),
        ("repetition_time", 1.0, 2.0),
        ("noise", 0.0, 0.1),
    ):
        values = torch.tensor([getattr(a, name) for a in drawn])
        assert low - 1e-6 <= values.min() < low + 0.05 * (high - low), name
        assert high - 0.05 * (high - low) < values.max() <= high + 1e-6, name
    for name, expected in (("gamma", 0.1), ("misregistered", 0.1), ("removed", 0.3), ("smooth", 0.2)):
        assert sum(bool(getattr(a, name)) for a in drawn) / 500 == pytest.approx(expected, abs=0.06), name
    assert sum(a.misregistered_stack >= 0 for a in drawn) / 500 == pytest.approx(0.1, abs=0.05)
    assert all(0.1 <= a.removed <= 0.4 for a in drawn if a.removed)
    assert max(a.resolution for a in samples(50, spacing=(1.0, 1.0, 1.0))) == 1.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_without_motion_nothing_moves(seed):
    image, masks = phantom()
    result, seen = still(seed).reconstruct(image, masks.brain, seeded(seed))
    assert seen[masks.brain].all()
    inside = masks.brain & (image[0] > 0)
    assert (result - image)[0][inside].abs().mean() < 0.02
    shift = centroid(torch.where(seen, result, image)[0].double()) - centroid(image[0].double())
    assert shift.abs().max() < 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_known_motion_does_not_shift_the_anatomy(seed):
    image, masks = phantom()
    moving = still(seed, rotation=6.0, translation=3.0)
    result, seen = moving.reconstruct(image, masks.brain, seeded(seed))
    shift = centroid(torch.where(seen, result, image)[0].double()) - centroid(image[0].double())
    assert shift.abs().max() < 0.2


def test_reconstruction_is_seen_in_the_image_within_the_weight():
    image, masks = phantom()
    artefact = still(2, thickness=3.5, noise=0.1, weight="gaussians", gaussians=14)
    change = (artefact(image, masks) - image)[0].abs()
    assert change[masks.brain].mean() > 0.003
    distance = torch.tensor(distance_transform_edt(~masks.brain.numpy())) * SPACING[0]
    assert change[distance > 6].max() == 0
    assert (change[(distance > 0) & (distance < 1)] > 0).any()  # no edge along the mask
    bare = replace(artefact, removed=1.0)  # no slice left: every voxel keeps the image
    assert torch.equal(bare(image, masks), image)
