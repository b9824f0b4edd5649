from dataclasses import replace

import torch
from scipy.ndimage import distance_transform_edt

from models.gmm.artefacts import BlurCortex, Masks
from models.gmm.artefacts.fields import blur

SHAPE, SPACING = (48, 48, 48), (0.5, 0.5, 0.5)


def samples(count):
    return [BlurCortex.sample(torch.Generator().manual_seed(s), SHAPE, SPACING) for s in range(count)]


def only_cortex(cortex):
    return Masks(cortex=cortex, white_matter=torch.zeros_like(cortex), brain=torch.ones_like(cortex))


def test_published_ranges():
    drawn = samples(400)
    blobs = torch.tensor([a.blobs for a in drawn]).float()
    assert blobs.min() >= 50
    assert blobs.max() <= 199
    assert blobs.min() < 60
    assert blobs.max() > 190
    sigma = torch.tensor([a.blur_sigma for a in drawn])  # Gamma(2, 1): mean 2, variance 2
    assert abs(sigma.mean() - 2) < 0.15
    assert abs(sigma.var() - 2) < 0.4


def test_only_near_cortex():
    cortex = torch.zeros(SHAPE, dtype=torch.bool)
    cortex[:2, :2, :2] = True
    image = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    for artefact in samples(5):
        changed = artefact(image, only_cortex(cortex))[0] != image[0]
        distance = torch.tensor(distance_transform_edt(~cortex.numpy()))
        assert changed.any()
        assert not changed[distance > 60].any()
        near, far = artefact.weight_map(cortex)[distance < 4], artefact.weight_map(cortex)[distance > 30]
        assert near.mean() > 0.5
        assert far.mean() < 0.001


def test_mixes_image_and_blurred_copy():
    image = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    masks = only_cortex(torch.ones(SHAPE, dtype=torch.bool))
    artefact = samples(1)[0]
    weight = artefact.weight_map(masks.cortex)
    assert 0 <= weight.min() <= weight.max() <= 1
    expected = (1 - weight) * image + weight * blur(image, artefact.blur_sigma)
    torch.testing.assert_close(artefact(image, masks), expected)


def test_frontal_option_prefers_both_frontal_corners():
    cortex = torch.ones(SHAPE, dtype=torch.bool)
    maps = torch.stack([replace(a, frontal=True).weight_map(cortex) for a in samples(4)]).mean(
        0
    )  # axes: right, anterior, superior
    assert maps[:, 32:].mean() > 3 * maps[:, :16].mean()
    left, right = maps[:16, 32:].mean(), maps[32:, 32:].mean()
    assert 0.5 < left / right < 2
    assert maps[16:32, 32:].mean() < min(left, right)
