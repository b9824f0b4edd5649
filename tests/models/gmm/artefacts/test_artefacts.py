"""What all artefacts promise: pure, repeatable, recorded in JSON, indifferent to empty masks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from models.gmm.artefacts import ARTEFACTS, artefact_from_dict, artefact_to_dict
from models.gmm.artefacts.blur_cortex import BlurCortex
from models.gmm.artefacts.boundaries import SimulatedBoundaries, squared_distance
from models.gmm.artefacts.fields import Masks, gaussian_mixture, perlin
from models.gmm.artefacts.motion import SimulatedMotion
from models.gmm.artefacts.structured_noise import StructuredNoise, noise_pyramid
from models.gmm.resampling import blurred

SPACING, SHAPE, CUBE = (0.5, 0.5, 0.5), (48, 44, 52), (48, 48, 48)
CASES = [(name, ndim) for name in ARTEFACTS for ndim in (2, 3) if (name, ndim) != ("motion", 2)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def samples(kind, count, shape=SHAPE, spacing=SPACING):
    return [kind.sample(seeded(s), shape, spacing) for s in range(count)]


def grid(lines):
    return torch.stack(torch.meshgrid(*lines, indexing="ij"))


def head(shape):
    """Image (2, *S) and masks: a ball with a shell of cortex, in a grey background."""
    radius = grid([torch.linspace(-1, 1, n) for n in shape]).norm(dim=0)
    masks = Masks(cortex=(radius < 0.7) & (radius > 0.6), white_matter=radius <= 0.6, brain=radius < 0.7)
    image = 0.1 + 0.5 * masks.cortex + 0.8 * masks.white_matter
    texture = torch.rand(2, *shape, generator=seeded())
    return (image * (0.9 + 0.1 * texture)).clamp(0, 1), masks


def affecting(name, image, masks):
    """The first sample that changes the image."""
    shape = tuple(image.shape[1:])
    drawn = samples(ARTEFACTS[name], 20, shape, SPACING[: len(shape)])
    return next(a for a in drawn if not torch.equal(a(image, masks), image))


@pytest.mark.parametrize(("name", "ndim"), CASES)
def test_pure_and_repeatable_also_after_json(name, ndim):
    image, masks = head((40, 44, 36)[:ndim])
    artefact = affecting(name, image, masks)
    before, state = image.clone(), torch.get_rng_state()
    first = artefact(image, masks)
    torch.rand(7)
    torch.manual_seed(3)
    second = artefact(image, masks)
    assert torch.equal(first, second)
    assert torch.equal(image, before)
    torch.set_rng_state(state)
    artefact(image, masks)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == image.shape
    assert first.dtype == torch.float32
    assert first.isfinite().all()
    assert first.min() >= 0
    again = artefact_from_dict(json.loads(json.dumps(artefact_to_dict(artefact))))
    assert again == artefact
    assert torch.equal(again(image, masks), first)


@pytest.mark.parametrize(("name", "ndim"), CASES)
def test_empty_masks_leave_the_image(name, ndim):
    image, _ = head((40, 44, 36)[:ndim])
    nothing = torch.zeros(image.shape[1:], dtype=torch.bool)
    for artefact in samples(ARTEFACTS[name], 4, image.shape[1:], SPACING[:ndim]):
        assert torch.equal(artefact(image, Masks(nothing, nothing, nothing)), image)


def test_unknown_record():
    with pytest.raises(ValueError, match="ghosting"):
        artefact_from_dict({"name": "ghosting"})
    record = artefact_to_dict(samples(BlurCortex, 1, (8, 8))[0])
    with pytest.raises(ValueError, match="blobs"):
        artefact_from_dict({key: value for key, value in record.items() if key != "blobs"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", list(ARTEFACTS))
def test_repeatable_on_the_gpu(name):
    image, masks = head((40, 44, 36))
    on_gpu = Masks(masks.cortex.cuda(), masks.white_matter.cuda(), masks.brain.cuda())
    artefact = affecting(name, image, masks)
    first = artefact(image.cuda(), on_gpu)
    assert first.is_cuda
    assert torch.equal(first, artefact(image.cuda(), on_gpu))


# Of each kind: the values a field takes, the range it fills, or the share of samples in which it is more than 0.
PUBLISHED = {
    "blur_cortex": {"blobs": (50, 199)},
    "structured_noise": {
        "stages": {1, 2, 3, 4},
        "weight": {"perlin", "gaussians"},
        "periods": {1, 2},
        "octaves": {1, 2, 4},
        "gaussians": set(range(5, 15)),
        "strength": (0.2, 0.4),
    },
    "motion": {
        "stacks": {2, 3, 4, 5, 6},
        "resolution": (0.25, 1.0),
        "thickness": (1.5, 3.5),
        "slice_spacing": (1.5, 5.5),
        "repetition_time": (1.0, 2.0),
        "noise": (0.0, 0.1),
        "gamma": 0.1,
        "misregistered": 0.1,
        "removed": 0.3,
        "smooth": 0.2,
    },
    "boundaries": {"masked": 0.5, "halo": {0, *range(5, 15)}, "rounds": {0, 2, 3, 4}},
}


@pytest.mark.parametrize("name", ARTEFACTS)
def test_published_ranges_and_probabilities(name):
    drawn = samples(ARTEFACTS[name], 500)
    for field, expected in PUBLISHED[name].items():
        values = [getattr(a, field) for a in drawn]
        if isinstance(expected, set):
            assert set(values) == expected, field
        elif isinstance(expected, float):
            assert sum(bool(value) for value in values) / 500 == pytest.approx(expected, abs=0.06), field
        else:
            low, high = expected
            margin = 0.05 * (high - low)
            assert low <= min(values) < low + margin, field
            assert high - margin < max(values) <= high, field


# -- fields ------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20, 30), (12, 14, 16)])
def test_mixture_is_the_sum_of_gaussians(shape):
    centers = torch.rand(7, len(shape), generator=seeded()) * torch.tensor(shape)
    sigma = 1 + 3 * torch.rand(7, len(shape), generator=seeded(1))
    points = grid([torch.arange(n) for n in shape]).movedim(0, -1)
    distance = (points[..., None, :] - centers) / sigma
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


# -- blur cortex ------------------------------------------------------------


def test_only_near_cortex():
    cortex = torch.zeros(CUBE, dtype=torch.bool)
    cortex[:2, :2, :2] = True
    masks = Masks(cortex=cortex, white_matter=torch.zeros_like(cortex), brain=torch.ones_like(cortex))
    image, distance = torch.rand(1, *CUBE, generator=seeded()), torch.tensor(distance_transform_edt(~cortex.numpy()))
    for artefact in samples(BlurCortex, 5, CUBE):
        changed = artefact(image, masks)[0] != image[0]
        assert changed.any()
        assert not changed[distance > 60].any()
        near, far = artefact.weight_map(cortex)[distance < 4], artefact.weight_map(cortex)[distance > 30]
        assert near.mean() > 0.5
        assert far.mean() < 0.001


# -- structured noise ------------------------------------------------------------


def test_only_inside_the_brain_and_no_stronger_than_said():
    image, half = torch.full((2, *CUBE), 0.5), torch.arange(48).expand(CUBE).movedim(-1, 0) < 24
    for artefact in samples(StructuredNoise, 8, CUBE):
        change = artefact(image, Masks(half, half, half)) - image
        assert change[:, :24].abs().amax() > 0
        assert change[:, 24:].abs().amax() == 0
        assert change.abs().amax() <= artefact.strength + 1e-6
        assert not torch.equal(change[0], change[1])  # channels have noise of their own


def test_more_stages_give_coarser_noise():
    def neighbours(stages):
        noise = noise_pyramid(torch.Size((1, 64, 64, 64)), stages, seeded(1))[0]
        assert noise.abs().max().item() == pytest.approx(1)
        return torch.corrcoef(torch.stack([noise[8:].flatten(), noise[:-8].flatten()]))[0, 1]

    assert abs(neighbours(1)) < 0.05
    assert neighbours(4) > 0.3


def test_noise_does_not_follow_its_weight():
    image = torch.full((1, *CUBE), 0.5)
    everywhere = Masks(*(torch.ones(CUBE, dtype=torch.bool),) * 3)
    for artefact in samples(StructuredNoise, 6, CUBE):
        change = replace(artefact, stages=1)(image, everywhere) - image
        assert abs(change.mean()) < 0.1 * change.std()


# -- boundaries ------------------------------------------------------------


def ball(shape, radius):
    return grid([torch.arange(n) - n // 2 for n in shape]).float().norm(dim=0) <= radius


PLAIN = SimulatedBoundaries(masked=True, halo=0, rounds=0, thickness=4.0, bumps=40, seed=5)


@pytest.mark.parametrize("radius", [1, 5, 14])
@pytest.mark.parametrize("shape", [SHAPE, (60, 50)])
def test_distance_is_exact_up_to_the_radius(radius, shape):
    mask = torch.rand(shape, generator=seeded(radius)) < 0.002
    exact = np.rint(distance_transform_edt(~mask.numpy()) ** 2).astype(int)
    ours = squared_distance(mask, radius).numpy()
    within = exact <= radius**2
    np.testing.assert_array_equal(ours[within], exact[within])
    assert (ours[~within] == radius**2 + 1).all()


def test_halo_is_a_ball_and_holes_inside_the_brain_stay_filled():
    brain = ball(SHAPE, 12)
    halo = torch.tensor(distance_transform_edt(~brain.numpy()) <= 9)
    assert torch.equal(replace(PLAIN, halo=9).field_of_view(brain), halo)
    assert torch.equal(PLAIN.field_of_view(brain & ~ball(SHAPE, 3)), brain)


@pytest.mark.parametrize("shape", [SHAPE, (60, 50)])
def test_growth_is_ragged_bounded_and_contains_the_brain(shape):
    brain = ball(shape, 12)
    artefact = replace(PLAIN, rounds=3)
    kept = artefact.field_of_view(brain)
    distance = torch.tensor(distance_transform_edt(~brain.numpy()))
    assert kept[brain].all()
    assert not kept[distance > artefact.rounds * artefact.thickness].any()
    rim = kept[(distance > 1) & (distance <= 2)].float().mean()
    assert 0.05 < rim < 0.999
    assert kept.sum() > 1.05 * brain.sum()


# -- motion ------------------------------------------------------------

MM = (0.8, 0.8, 0.8)


def still(seed, **changes):
    """Nothing but acquisition and reconstruction of densely spaced slices."""
    calm = dict.fromkeys(("rotation", "translation", "noise", "void_probability", "misregistered", "removed"), 0.0)
    calm |= {"gamma": False, "smooth": False, "misregistered_stack": -1}
    calm |= {"thickness": 1.5, "slice_spacing": 1.5, "resolution": 0.8}
    return replace(SimulatedMotion.sample(seeded(seed), SHAPE, MM), **{**calm, **changes})


def phantom():
    """A smooth image (1, X, Y, Z), off centre so that shifts show, and its brain."""
    x, y, z = grid([torch.arange(n) - n / 2 for n in SHAPE])
    brain = ((x / 17) ** 2 + (y / 15) ** 2 + (z / 19) ** 2) < 1
    image = 0.6 * torch.exp(-0.5 * (((x - 3) / 5) ** 2 + ((y + 2) / 4) ** 2 + ((z - 4) / 6) ** 2))
    return blurred((image + 0.3 * brain)[None], (1.5,) * 3).clamp(0, 1), Masks(brain, brain, brain)


def centroid(image):
    return (grid([torch.arange(n) for n in image.shape]) * image).sum((1, 2, 3)) / image.sum()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("motion", "voxels"), [({}, 0.1), ({"rotation": 6.0, "translation": 3.0}, 0.2)])
def test_known_motion_does_not_shift_the_anatomy(motion, voxels, seed):
    image, masks = phantom()
    result, seen = still(seed, **motion).reconstruct(image, masks.brain, seeded(seed))
    shift = centroid(torch.where(seen, result, image)[0].double()) - centroid(image[0].double())
    assert shift.abs().max() < voxels
    if not motion:
        assert seen[masks.brain].all()
        assert (result - image)[0][masks.brain & (image[0] > 0)].abs().mean() < 0.02


def test_reconstruction_is_seen_in_the_image_within_the_weight():
    image, masks = phantom()
    artefact = still(2, thickness=3.5, noise=0.1, weight="gaussians", gaussians=14)
    change = (artefact(image, masks) - image)[0].abs()
    assert change[masks.brain].mean() > 0.003
    distance = torch.tensor(distance_transform_edt(~masks.brain.numpy())) * MM[0]
    assert change[distance > 6].max() == 0
    assert (change[(distance > 0) & (distance < 1)] > 0).any()  # no edge along the mask
    bare = replace(artefact, removed=1.0)  # no slice left: every voxel keeps the image
    assert torch.equal(bare(image, masks), image)
