from dataclasses import replace

import pytest
import torch

from models.gmm.artefacts import Masks, StructuredNoise
from models.gmm.artefacts.structured_noise import noise_pyramid

SHAPE, SPACING = (48, 48, 48), (0.5, 0.5, 0.5)


def samples(count):
    return [StructuredNoise.sample(torch.Generator().manual_seed(s), SHAPE, SPACING) for s in range(count)]


def half_brain():
    brain = torch.zeros(SHAPE, dtype=torch.bool)
    brain[:24] = True
    return Masks(cortex=brain, white_matter=brain, brain=brain)


def test_published_ranges():
    drawn = samples(300)
    assert {a.stages for a in drawn} == {1, 2, 3, 4}
    assert {a.weight for a in drawn} == {"perlin", "gaussians"}
    assert {a.periods for a in drawn} == {1, 2}
    assert {a.octaves for a in drawn} == {1, 2, 4}
    assert {a.gaussians for a in drawn} == set(range(5, 15))
    strength = torch.tensor([a.strength for a in drawn])
    assert 0.2 <= strength.min() < 0.21
    assert 0.39 < strength.max() <= 0.4


def test_only_inside_the_brain_and_no_stronger_than_said():
    image = torch.full((2, *SHAPE), 0.5)
    for artefact in samples(8):
        change = artefact(image, half_brain()) - image
        assert change[:, :24].abs().amax() > 0
        assert change[:, 24:].abs().amax() == 0
        assert change.abs().amax() <= artefact.strength + 1e-6
        assert not torch.equal(change[0], change[1])  # channels have noise of their own


def test_more_stages_give_coarser_noise():
    def neighbours(stages):
        noise = noise_pyramid(torch.Size((1, 64, 64, 64)), stages, torch.Generator().manual_seed(1))[0]
        assert noise.abs().max().item() == pytest.approx(1)
        return torch.corrcoef(torch.stack([noise[8:].flatten(), noise[:-8].flatten()]))[0, 1]

    assert abs(neighbours(1)) < 0.05
    assert neighbours(4) > 0.3


def test_noise_does_not_follow_its_weight():
    image = torch.full((1, *SHAPE), 0.5)
    everywhere = Masks(*(torch.ones(SHAPE, dtype=torch.bool),) * 3)
    for artefact in samples(6):
        change = replace(artefact, stages=1)(image, everywhere) - image
        assert abs(change.mean()) < 0.1 * change.std()
