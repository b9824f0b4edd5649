from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from models.gmm.artefacts import SimulatedBoundaries
from models.gmm.artefacts.boundaries import squared_distance

SHAPE = (48, 44, 52)
SPACING = (0.5, 0.5, 0.5)


def samples(count):
    return [SimulatedBoundaries.sample(torch.Generator().manual_seed(s), SHAPE, SPACING) for s in range(count)]


def ball(shape, radius):
    lines = [torch.arange(n) - n // 2 for n in shape]
    return torch.stack(torch.meshgrid(*lines, indexing="ij")).float().norm(dim=0) <= radius


PLAIN = SimulatedBoundaries(masked=True, halo=0, rounds=0, thickness=4.0, bumps=40, seed=5)


def test_published_probabilities_and_ranges():
    drawn = samples(600)
    share = [
        sum(chosen) / len(drawn) for chosen in zip(*((a.masked, a.halo > 0, a.rounds > 0) for a in drawn), strict=True)
    ]
    assert share == pytest.approx([0.5, 0.5, 0.5], abs=0.07)
    assert {a.halo for a in drawn} == {0, *range(5, 15)}
    assert {a.rounds for a in drawn} == {0, 2, 3, 4}


@pytest.mark.parametrize("radius", [1, 5, 14])
@pytest.mark.parametrize("shape", [SHAPE, (60, 50)])
def test_distance_is_exact_up_to_the_radius(radius, shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(radius)) < 0.002
    exact = np.rint(distance_transform_edt(~mask.numpy()) ** 2).astype(int)
    ours = squared_distance(mask, radius).numpy()
    within = exact <= radius**2
    np.testing.assert_array_equal(ours[within], exact[within])
    assert (ours[~within] == radius**2 + 1).all()


@pytest.mark.parametrize("radius", [5, 9, 14])
def test_halo_is_a_ball(radius):
    brain = ball(SHAPE, 6)
    kept = replace(PLAIN, halo=radius).field_of_view(brain)
    expected = distance_transform_edt(~brain.numpy()) <= radius
    np.testing.assert_array_equal(kept.numpy(), expected)


def test_holes_inside_the_brain_stay_filled():
    brain = ball(SHAPE, 12)
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
