"""Options in lab2im's and SynthSeg's words and forms, and faults that a review found."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import config
from models.base import Batch, SampleRandom, seeded_generator
from models.gmm import Gmm, LabelScheme, Params, sample_params
from models.gmm.lab2im_options import gmm_options
from models.gmm.options import GMM_PRESETS, GmmConfig
from models.gmm.priors import pool_subjects
from models.gmm.render import render
from tests.models.gmm.test_acquisition import BALL, ball
from tests.toy import toy_spec


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (0.3, (0.3,)),
        (0, (0.0,)),
        ([0.8, 1.2], (0.8, 1.2)),
        ((0.8, 1.2), (0.8, 1.2)),
        (np.array([[0.8, 0.9, 1.0], [1.2, 1.1, 1.3]]), (0.8, 0.9, 1.0, 1.2, 1.1, 1.3)),
        (torch.tensor([0.5]), (0.5,)),
        (np.float32(0.5), (0.5,)),
        (False, (0.0,)),
        (None, (0.2,)),
    ],
)
def test_forms_of_bounds(given: object, kept: tuple[float, ...]) -> None:
    options = gmm_options("synthseg", scaling_bounds=given)
    assert options.scaling_bounds == pytest.approx(kept)
    assert all(type(value) is float for value in options.scaling_bounds)
    assert (
        replace(options, scaling_bounds=(0.2,), resolution_mix=GMM_PRESETS["synthseg"]().resolution_mix)
        == GMM_PRESETS["synthseg"]()
    )


@pytest.mark.parametrize(
    "name", ["rotation_bounds", "shearing_bounds", "translation_bounds", "nonlin_std", "bias_field_std", "noise_std"]
)
def test_false_turns_a_step_off(name: str) -> None:
    assert not any(getattr(gmm_options("synthseg", **{name: False}), name))


def test_none_keeps_what_the_preset_has() -> None:
    names = {f.name for f in fields(GmmConfig)} - {"preset", "max_res_iso", "max_res_aniso"}
    for preset in GMM_PRESETS:
        options = gmm_options(preset, **dict.fromkeys(names))
        assert options == replace(GMM_PRESETS[preset](), resolution_mix=options.resolution_mix)
        assert options.resolution_mix == pytest.approx(GMM_PRESETS[preset]().resolution_mix)


def test_words_of_the_predecessors() -> None:
    options = gmm_options(
        "lab2im", use_specific_stats_for_channel=True, nonlin_shape_factor=0.05, bias_shape_factor=0.03
    )
    assert options.specific_channels is True
    assert options.nonlin_scale == (0.05,)
    assert options.bias_scale == (0.03,)


def test_max_res_of_none_rules_that_kind_out() -> None:
    aniso = gmm_options("synthseg", max_res_iso=None).resolution_mix
    assert aniso == pytest.approx((0.05 / 0.905, 0, 0.855 / 0.905, 0))
    iso = gmm_options("synthseg", max_res_aniso=None, max_res_iso=6).resolution_mix
    assert iso == pytest.approx((0.05 / 0.145, 0.095 / 0.145, 0, 0))
    assert gmm_options("synthseg", max_res_iso=6).max_res_iso == 6.0
    neither = gmm_options("synthseg", max_res_iso=None, max_res_aniso=None)
    assert neither.resolution_mix == pytest.approx((1, 0, 0, 0))
    assert gmm_options("cornucopia", max_res_iso=None, max_res_aniso=None).resolution_mix == (1, 0, 0, 0)
    assert sum(gmm_options("lab2im", randomise_res=True, max_res_iso=None).resolution_mix) == pytest.approx(1)


def test_unknown_words_are_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"scaling_bound: no option of the generator; there are .*scaling_bounds"):
        gmm_options(scaling_bound=0.2)
    with pytest.raises(ValueError, match=r"preset 'synthsegg': must be one of fitted, lab2im, synthseg"):
        gmm_options("synthsegg")


def test_presets_are_those_of_the_papers() -> None:
    synthseg, lab2im = GMM_PRESETS["synthseg"](), GMM_PRESETS["lab2im"]()
    assert (synthseg.scaling_bounds, synthseg.rotation_bounds, synthseg.shearing_bounds) == ((0.2,), (15.0,), (0.012,))
    assert (lab2im.scaling_bounds, lab2im.rotation_bounds, lab2im.shearing_bounds) == ((0.15,), (10.0,), (0.02,))
    assert (synthseg.nonlin_std, synthseg.nonlin_scale) == ((4.0,), (0.04,))
    assert (lab2im.nonlin_std, lab2im.nonlin_scale) == ((4.0,), (0.0625,))
    assert (synthseg.bias_field_std, synthseg.bias_scale, synthseg.gamma_std) == ((0.7,), (0.025,), 0.5)
    assert (lab2im.bias_field_std, lab2im.bias_scale, lab2im.gamma_std) == ((0.3,), (0.025,), 0.2)
    assert (synthseg.prior_means, synthseg.prior_stds) == ((0.0, 250.0), (0.0, 30.0))
    assert (lab2im.prior_means, lab2im.prior_stds) == ((25.0, 225.0), (5.0, 25.0))
    assert (synthseg.max_res_iso, synthseg.max_res_aniso) == (4.0, 8.0)
    assert synthseg.flipping
    assert not lab2im.flipping
    assert (synthseg.normalise, lab2im.normalise) == ("minmax", "minmax")


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
