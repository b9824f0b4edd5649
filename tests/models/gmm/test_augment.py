from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dataloaders.segmenter.patches import PLAIN
from models.base import seeded_generator
from models.gmm.options import GmmConfig
from models.gmm.render import deform, deform_image, repaint
from models.gmm.sampling import sample_params
from models.gmm.scheme import LabelScheme

SCHEME = LabelScheme.from_lists(range(4), n_neutral_labels=2, names=["background", "middle", "left x", "right x"])
MOVING = GmmConfig(
    flipping=True,
    rotation_bounds=(12.0,),
    scaling_bounds=(0.1,),
    shearing_bounds=(0.02,),
    nonlin_std=(2.0,),
    nonlin_scale=(0.2,),
    blur=(0.0,),
    normalise="minmax",
    priors="random",
)


def blocks(shape: tuple[int, ...]) -> torch.Tensor:
    """Left half 2, right half 3, a block of 1 in the middle, background around."""
    label = torch.zeros(shape, dtype=torch.int32)
    inner = tuple(slice(4, -4) for _ in shape)
    label[inner] = 2
    label[(slice(shape[0] // 2, -4), *inner[1:])] = 3
    label[tuple(slice(s // 2 - 4, s // 2 + 4) for s in shape)] = 1
    return label


@pytest.mark.parametrize("shape", [(32, 40), (28, 32, 30)])
def test_without_options_the_pair_is_cut_and_nothing_else(shape: tuple[int, ...]) -> None:
    label = blocks(shape)
    image = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    image[:, 0], image[:, -1] = 0, 1  # each channel spans the range
    params = sample_params(label, seeded_generator(0), options=PLAIN, scheme=SCHEME, channels=2)
    out, moved = repaint(image, label, params, SCHEME)
    assert torch.allclose(out, image, atol=1e-5)  # places are float32
    assert torch.equal(moved, label)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("shape", [(48, 40), (36, 32, 30)])
def test_the_image_moves_with_its_labels(shape: tuple[int, ...], number: int) -> None:
    """An image of the labels themselves: where linear interpolation saw one label, it is the label of the map."""
    label = blocks(shape)
    unsided = replace(SCHEME, partners=tuple(range(4)))  # mirrored without exchanging, as the image is
    options = replace(MOVING, output_shape=tuple(s - 6 for s in shape))
    params = sample_params(label, seeded_generator(number), options=options, scheme=unsided)
    image = torch.stack([(label == k).float() for k in range(4)])
    soft = deform_image(image, params)
    hard = deform(label, params)
    sure = soft.amax(0) > 0.999
    assert sure.float().mean() > 0.6
    assert torch.equal(soft.argmax(0)[sure].int(), hard[sure].int())


def test_a_mirror_exchanges_left_and_right_labels_but_not_the_image() -> None:
    label = blocks((32, 32))
    params = replace(sample_params(label, seeded_generator(0), options=PLAIN, scheme=SCHEME), flip=True)
    image = (label == 2).float()[None]
    out, moved = repaint(image, label, params, SCHEME)
    assert torch.equal(out[0] > 0.5, image[0].flip(0) > 0.5)
    assert torch.equal(moved == 3, label.flip(0) == 2)
