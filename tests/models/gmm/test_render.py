"""Rendering: the same parameters give the same image, whatever the threads; a given image moves with its labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from dataloaders.segmenter.patches import PLAIN
from models.base import seeded_generator
from models.gmm.options import GMM_PRESETS, GmmConfig
from models.gmm.params import Params
from models.gmm.render import deform, deform_image, render, render_pair, repaint
from models.gmm.sampling import sample_params
from models.gmm.scheme import LabelScheme
from tests.models.gmm.test_sampling import ALL, same

NAMES = ("background", "csf", "left cerebral cortex", "right cerebral cortex", "white matter", "brainstem")
SCHEME = LabelScheme.from_lists(range(6), names=NAMES)
FETAL_ARTEFACTS = ("blur_cortex_prob", "structured_noise_prob", "motion_prob", "boundaries_prob")


def head(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    distance = np.sqrt(sum((g / r) ** 2 for g, r in zip(grid, (0.85, 0.9, 0.8), strict=False)))
    labels = np.digitize(-distance, [-1, -0.85, -0.6, -0.25])
    labels = np.array([0, 1, 2, 4, 5])[labels]
    labels[(labels == 2) & (grid[0] > 0)] = 3
    return torch.from_numpy(labels).to(dtype)


def draw(labels: torch.Tensor, seed: int = 0, options: GmmConfig | None = None, channels: int = 1) -> Params:
    generator = torch.Generator().manual_seed(seed)
    options = GMM_PRESETS["synthseg"]() if options is None else options
    return sample_params(labels, generator, options=options, scheme=SCHEME, channels=channels)


def rich(preset: str, dimensions: int) -> GmmConfig:
    """A preset with every further step on that does not contradict it."""
    options = replace(GMM_PRESETS[preset](), noise_std=(0.02, 0.05), noise_coils=(0, 2), texture_fwhm=(4.0,))
    if preset == "fetal":
        options = replace(options, **dict.fromkeys(FETAL_ARTEFACTS, 1.0))
        options = replace(options, motion_prob=float(dimensions == 3))
    if preset == "synthseg":
        options = replace(options, partial_volume=True, output_shape=(28,), target_res=(1.2,))
    return options


@pytest.mark.slow
@pytest.mark.parametrize("preset", GMM_PRESETS)
@pytest.mark.parametrize("shape", [(36, 40, 33), (41, 36)])
def test_parameters_make_the_same_image_again_also_those_of_a_file(preset: str, shape: tuple[int, ...]) -> None:
    labels = head(shape)
    params = draw(labels, 3, rich(preset, len(shape)), channels=2)
    assert len(params.artefacts) == (1 + len(shape) if preset == "fetal" else 0)
    before = labels.clone(), deepcopy(params)
    image = render(labels, params)
    assert torch.equal(labels, before[0])
    assert same(params, before[1]) == ALL
    torch.rand(3)  # the global stream plays no part
    again = Params.from_dict(json.loads(json.dumps(params.to_dict())))
    assert same(params, again) == ALL
    assert torch.equal(render(labels, again), image)
    assert not torch.equal(render(labels, replace(params, seed=params.seed + 1)), image)
    tensors = {name: value for name, value in vars(params).items() if isinstance(value, torch.Tensor)}
    assert same(params, Params.from_dict({**params.to_dict(), **tensors})) == ALL


@pytest.fixture
def threads() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.slow
@pytest.mark.parametrize("preset", GMM_PRESETS)
@pytest.mark.parametrize("shape", [(40, 44, 37), (121, 97)])
@pytest.mark.usefixtures("threads")
def test_threads_change_the_image_by_rounding_at_most(preset: str, shape: tuple[int, ...]) -> None:
    """Labels are equal bit for bit. Of images, powers at the ends of the threads' parts and products of small matrices
    round differently; measured 1.2e-7 (one unit in the last place of 1).
    """
    labels, results = head(shape), []
    params = draw(labels, 1, rich(preset, len(shape)))
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(render_pair(labels, params, SCHEME))
    assert torch.equal(results[0][1], results[1][1])
    assert torch.allclose(results[0][0], results[1][0], rtol=0, atol=5e-7)


def test_labels_of_the_image_are_the_deformed_ones() -> None:
    """Zero spread, one blurless channel: every intensity is its label's mean, so image and labels agree everywhere."""
    labels = head((36, 40, 33))
    options = replace(GMM_PRESETS["synthseg"](), resolution_mix=(1.0, 0.0, 0.0, 0.0), blur=(0.0,), normalise="window")
    for seed in range(4):
        params = draw(labels, seed, options)
        means = torch.tensor([[0.0, 50.0, 100.0, 150.0, 200.0, 250.0]])
        params = replace(params, means=means, stds=torch.zeros(1, 6), bias=None, gamma=None)
        image, kept = render_pair(labels, params, SCHEME)
        assert torch.equal((image[0] * 255 / 50).round().int(), kept)
        assert torch.equal(kept, deform(labels, params).int())


def test_image_moments_reproduce_the_parameters_through_the_whole_chain() -> None:
    """Standard deviations too: the grain is made stronger by what the blur takes (keep_std)."""
    labels = torch.zeros(48, 48, 48, dtype=torch.uint8)
    labels[24:] = 4
    means, stds = torch.tensor([[100.0, 0, 0, 0, 170.0, 0]]), torch.tensor([[10.0, 0, 0, 0, 20.0, 0]])
    params = replace(draw(labels, 0, GmmConfig()), means=means, stds=stds)
    image = render(labels, params)[0] * 255
    for region, k in ((image[3:21, 3:-3, 3:-3], 0), (image[27:-3, 3:-3, 3:-3], 4)):
        assert float(region.mean()) == pytest.approx(float(means[0, k]), abs=1)
        assert float(region.std()) == pytest.approx(float(stds[0, k]), rel=0.04)
    without = render(labels, replace(params, gain=(1.0,)))[0] * 255
    assert float(without[3:21, 3:-3, 3:-3].std()) < 6  # of 10


SIDES = LabelScheme.from_lists(range(4), n_neutral_labels=2, names=["background", "middle", "left x", "right x"])
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
    params = sample_params(label, seeded_generator(0), options=PLAIN, scheme=SIDES, channels=2)
    out, moved = repaint(image, label, params, SIDES)
    assert torch.allclose(out, image, atol=1e-5)  # places are float32
    assert torch.equal(moved, label)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("shape", [(48, 40), (36, 32, 30)])
def test_the_image_moves_with_its_labels(shape: tuple[int, ...], number: int) -> None:
    """An image of the labels themselves: where linear interpolation saw one label, it is the label of the map."""
    label = blocks(shape)
    unsided = replace(SIDES, partners=tuple(range(4)))  # mirrored without exchanging, as the image is
    options = replace(MOVING, output_shape=tuple(s - 6 for s in shape))
    params = sample_params(label, seeded_generator(number), options=options, scheme=unsided)
    image = torch.stack([(label == k).float() for k in range(4)])
    soft = deform_image(image, params)
    hard = deform(label, params)
    sure = soft.amax(0) > 0.999
    assert sure.float().mean() > 0.6
    assert torch.equal(soft.argmax(0)[sure].int(), hard[sure].int())
