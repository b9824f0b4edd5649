"""What all artefacts promise: pure, repeatable, recorded in JSON, indifferent to empty masks."""

import json

import pytest
import torch

from models.gmm.artefacts import ARTEFACTS, Masks, artefact_from_dict, artefact_to_dict

SPACING = (0.5, 0.5, 0.5)
CASES = [(name, ndim) for name in ARTEFACTS for ndim in (2, 3) if (name, ndim) != ("motion", 2)]


def head(shape):
    """Image (2, *S) and masks: a ball with a shell of cortex, in a grey background."""
    lines = [torch.linspace(-1, 1, n) for n in shape]
    radius = torch.stack(torch.meshgrid(*lines, indexing="ij")).norm(dim=0)
    masks = Masks(cortex=(radius < 0.7) & (radius > 0.6), white_matter=radius <= 0.6, brain=radius < 0.7)
    image = 0.1 + 0.5 * masks.cortex + 0.8 * masks.white_matter
    texture = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    return (image * (0.9 + 0.1 * texture)).clamp(0, 1), masks


def sampled(name, shape, seed):
    return ARTEFACTS[name].sample(torch.Generator().manual_seed(seed), shape, SPACING[: len(shape)])


def affecting(name, image, masks, start=0):
    """The first sample from this seed on that changes the image."""
    shape = tuple(image.shape[1:])
    samples = (sampled(name, shape, seed) for seed in range(start, start + 20))
    return next(a for a in samples if not torch.equal(a(image, masks), image))


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
    for seed in range(4):
        assert torch.equal(sampled(name, tuple(image.shape[1:]), seed)(image, Masks(nothing, nothing, nothing)), image)


def test_unknown_record():
    with pytest.raises(ValueError, match="ghosting"):
        artefact_from_dict({"name": "ghosting"})
    record = artefact_to_dict(sampled("blur_cortex", (8, 8), 0))
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
