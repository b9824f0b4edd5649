"""Options in lab2im's and SynthSeg's words and forms."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from models.gmm.lab2im_options import gmm_options
from models.gmm.options import GMM_PRESETS, GmmConfig


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
