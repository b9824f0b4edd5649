"""Faults that a review found, each with the check that would have shown it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import config
from models.base import Batch, SampleRandom, seeded_generator
from models.gmm import Gmm, LabelScheme, Params, render_pair, sample_params
from models.gmm.lab2im_options import gmm_options
from models.gmm.options import GmmConfig
from models.gmm.priors import pool_subjects
from models.gmm.render import render
from tests.toy import toy_spec

BALL = LabelScheme.from_lists([0, 1], names=["background", "ball"])


def ball(shape: tuple[int, ...]) -> torch.Tensor:
    grids = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape], indexing="ij")
    radius = sum(grid**2 for grid in grids) ** 0.5  # type: ignore[union-attr]
    return (radius < min(shape) / 3.2).to(torch.uint8)


def centre(weights: torch.Tensor) -> np.ndarray:
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in weights.shape], indexing="ij")
    return np.array([float((weights * axis).sum() / weights.sum()) for axis in axes])


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0, 4.0, 0.5])
@pytest.mark.parametrize("moving", [True, False])
def test_image_and_labels_share_their_place_at_every_target_resolution(factor: float, moving: bool) -> None:
    """Labels that are looked up half a voxel off at even ratios moved by 0.5 mm against the image."""
    label = ball((48, 44, 40))
    bounds = {"rotation_bounds": 20.0, "translation_bounds": 2.0} if moving else {}
    options = gmm_options("fitted", target_res=factor, blur=0.0, **bounds)
    shifts = []
    for number in range(30 if moving else 1):
        params = sample_params(label, seeded_generator(number), options=options, scheme=BALL)
        params = replace(params, means=torch.tensor([[0.0, 255.0]]), stds=torch.zeros(1, 2))
        image, labels = render_pair(label, params, BALL)
        assert image[0].shape == labels.shape == params.out_shape
        shifts.append((centre(labels.double()) - centre(image[0].double())) * factor)
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.05 * max(factor, 1)  # of a voxel of the output, at worst


def test_a_scheme_without_background_is_refused_where_the_outside_is_seen() -> None:
    scheme = LabelScheme.from_lists([3, 5])
    label = torch.zeros(20, 20, dtype=torch.uint8)
    for options in (gmm_options("fitted", output_shape=30), gmm_options("lab2im")):
        with pytest.raises(ValueError, match="no background"):
            sample_params(label, seeded_generator(0), options=options, scheme=scheme)
    sample_params(label, seeded_generator(0), options=gmm_options("fitted", output_shape=10), scheme=scheme)


@pytest.mark.parametrize("preset", ["cornucopia", "fetal", "synthseg", "lab2im"])
def test_painted_slices_stay_in_the_range_of_the_models(preset: str) -> None:
    given = ["--name", "t", "--dataroot", "d", "--model", "gmm", "--gmm.preset", preset]
    method = Gmm(config.parse_train(given), toy_spec(labels=3, channels=2, size=(48, 48)))
    label = torch.zeros(4, 48, 48, dtype=torch.long)
    label[:, 10:30, 10:40], label[:, 30:40, 10:40] = 1, 2
    names = ["a", "b", "c", "d"]
    out = method.synthesize(Batch(label, None, names, names, [0] * 4), [SampleRandom.of(0, n, 0) for n in names])
    assert out.min() >= -1
    assert out.max() <= 1


def test_options_without_effect_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--name", "t", "--dataroot", "d", "--model", "gmm"]
    config.parse_train([*given, "--gmm.flipping", "--gmm.prior_means", "0", "9", "--gmm.motion_prob", "1"])
    text = capsys.readouterr().err
    assert text.count("has no effect") == 3
    config.parse_train([*given, "--gmm.priors", "random", "--gmm.prior_means", "0", "9", "--gmm.gamma_std", "0.1"])
    assert "no effect" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        config.parse_train([*given, "--gmm.target_res", "6"])
    assert "must keep the size of their label maps" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"data_res.*randomise_res"):
        gmm_options("synthseg", randomise_res=True, data_res=3)


def test_priors_on_another_scale_than_the_data_are_refused() -> None:
    """Priors on percentiles of each image gave CT an SSIM of 0.01."""
    given = ["--name", "t", "--dataroot", "d", "--model", "gmm", "--gmm.priors", "x.json"]
    spec = toy_spec(labels=2)
    prior = pool_subjects(torch.tensor([[[0.0, 40.0]]]), torch.ones(1, 1, 2))
    data = prior.to_dict(["CT"], [label.name for label in spec.labels])
    hounsfield = replace(spec, channels=(replace(spec.channels[0], unit="HU"),))
    arbitrary = replace(spec, channels=(replace(spec.channels[0], unit="a.u."),))
    with pytest.raises(ValueError, match="estimate them with --window LOW HIGH"):
        Gmm(config.parse_train(given), hounsfield).load_priors(data | {"scale": {"percentiles": [2, 98]}})
    Gmm(config.parse_train(given), hounsfield).load_priors(data | {"scale": {"window": [-1024, 3071]}})
    with pytest.raises(ValueError, match="estimate them with percentiles"):
        Gmm(config.parse_train(given), arbitrary).load_priors(data | {"scale": {"window": [0, 9]}})


def test_numpy_numbers_and_lists_are_as_good_as_pythons() -> None:
    options = gmm_options("synthseg", spline=np.int64(3), nonlin_std=np.float32(2))
    label = ball((20, 20))
    params = sample_params(label, seeded_generator(0), options=options, scheme=BALL, fixed={"gamma": [0.3]})
    again = Params.from_dict(json.loads(json.dumps(params.to_dict())))
    assert torch.equal(render(label, params), render(label, again))
    listed = replace(GmmConfig(), prior_means=[0.0, 250.0], prior_stds=[0.0, 30.0])  # type: ignore[arg-type]
    sample_params(label, seeded_generator(0), options=listed, scheme=BALL)
    with pytest.raises(ValueError, match=r"max_res_iso .*must be a valid number"):
        gmm_options("synthseg", max_res_iso=[4, 8])


def test_artefacts_that_are_given_find_their_regions() -> None:
    label = (ball((24, 24, 24)) * 2).to(torch.uint8)
    scheme = LabelScheme.feta()
    drawn = sample_params(label, seeded_generator(1), options=gmm_options("fetal", blur_cortex_prob=1.0), scheme=scheme)
    cortex = [a for a in drawn.artefacts if type(a).__name__ == "BlurCortex"]
    assert cortex
    plain = gmm_options("fitted")
    without = sample_params(label, seeded_generator(1), options=plain, scheme=scheme)
    given = sample_params(label, seeded_generator(1), options=plain, scheme=scheme, fixed={"artefacts": tuple(cortex)})
    assert not torch.equal(render(label, without), render(label, given))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bias_field_std", float("nan")),
        ("tie_std", float("inf")),
        ("target_res", float("inf")),
        ("prior_stds", [-5, -1]),
        ("prior_means", [200, 100]),
        ("lesion_contrast", ()),
        ("rotation_bounds", [5, -5]),
        ("scaling_bounds", 1.0),  # these would mirror the anatomy
        ("scaling_bounds", [-0.5, 1.2]),
        ("output_shape", [8, 8, 8, 8]),
    ],
)
def test_values_that_make_no_sense_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        gmm_options("synthseg", **{name: value})
