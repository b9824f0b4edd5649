"""What is drawn for a sample: distributions, bounds, rules, shapes, streams."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from models.gmm.lab2im_options import gmm_options
from models.gmm.options import GMM_PRESETS, GmmConfig
from models.gmm.params import Params
from models.gmm.priors import GivenPriors, parse_prior
from models.gmm.render import render
from models.gmm.sampling import draw_bounds, sample_params
from models.gmm.scheme import LabelScheme

PLAIN = GmmConfig()
LABELS = torch.zeros(32, 30, 28, dtype=torch.uint8)
LABELS[6:26, 5:24, 4:22] = 1
LABELS[10:18, 8:20, 6:18] = 2
LABELS[20:24, 8:20, 6:18] = 3
SCHEME = LabelScheme.from_lists([0, 1, 2, 3], n_neutral_labels=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(options: GmmConfig, seed: int = 0, labels: torch.Tensor = LABELS, **given: object) -> Params:
    given.setdefault("scheme", SCHEME)
    return sample_params(labels, generator(seed), options=options, **given)  # type: ignore[arg-type]


def shape_only(*shape: int) -> torch.Tensor:
    """A map of which only the shape is used."""
    return torch.zeros(1, dtype=torch.uint8).expand(shape)


def same(one: Params, other: Params) -> set[str]:
    """Names of the fields that are equal."""

    def equal(a: object, b: object) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return torch.equal(a, b)
        return type(a) is type(b) and a == b

    return {f.name for f in fields(Params) if equal(getattr(one, f.name), getattr(other, f.name))}


ALL = {f.name for f in fields(Params)}

# Resolution


def resolution_only(**options: object) -> GmmConfig:
    """SynthSeg's resolutions without the stages that cost time."""
    return replace(PLAIN, blur_range=1.03, resolution_mix=(0.05, 0.095, 0.855, 0.0), **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_kinds_of_resolution_come_at_synthsegs_rates() -> None:
    assert GMM_PRESETS["synthseg"]().resolution_mix == (0.05, 0.095, 0.855, 0.0)
    count: Counter[int] = Counter()
    axes: Counter[int] = Counter()
    options = replace(resolution_only(), blur_range=1.0)
    for seed in range(2000):
        params = draw(options, seed, shape_only(240, 240, 240))
        coarse = [axis for axis in range(3) if params.sigma[0][axis] > 0.5]
        assert all(params.low_shape[0][axis] == 240 for axis in range(3) if axis not in coarse)
        count[len(coarse)] += 1
        axes.update(coarse if len(coarse) == 1 else [])
    # 4 standard errors of a binomial of 2000
    for kind, rate in ((0, 0.05), (3, 0.095), (1, 0.855)):
        assert count[kind] / 2000 == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 2000) ** 0.5), count
    assert set(count) == {0, 1, 3}
    assert min(axes.values()) > 480  # of 1710: each axis a third


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((240, 240, 240), (1.0, 1.0, 1.0)), ((240, 160, 120), (1.0, 1.5, 2.0)), ((240, 120), (0.5, 1.0))],
)
def test_isotropic_is_alike_on_all_axes_in_mm(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    """Predecessors drew each axis by itself. The field of view is a cube, so the counts must be alike."""
    seen = []
    for seed in range(100):
        options = replace(resolution_only(), resolution_mix=(0.0, 1.0, 0.0, 0.0))
        low = draw(options, seed, shape_only(*shape), spacing=spacing).low_shape[0]
        assert len(set(low)) == 1
        seen.append(shape[0] * spacing[0] / low[0])
    assert max(spacing) <= min(seen) < max(spacing) + 0.3
    assert 3.7 < max(seen) <= 4.15  # max_res_iso, and part of a voxel


def test_fixed_resolution_in_its_forms() -> None:
    for res, expected in (((4.0,), [(8, 7, 7)] * 2), ((1.0, 1.0, 7.0), [(32, 30, 4)] * 2)):
        assert draw(replace(PLAIN, data_res=res), channels=2).low_shape == tuple(expected)
    rows = replace(PLAIN, data_res=(1.0, 1.0, 7.0, 2.0, 2.0, 2.0), thickness=(1.0, 1.0, 3.0, 2.0, 2.0, 2.0))
    params = draw(rows, channels=2)
    assert params.low_shape == ((32, 30, 4), (16, 15, 14))
    assert params.sigma[0] == pytest.approx((0.5, 0.5, 0.75 * 3))
    assert params.sigma[1] == pytest.approx((1.5, 1.5, 1.5))
    with pytest.raises(ValueError, match="data_res has 4 values"):
        draw(replace(PLAIN, data_res=(1.0, 1.0, 1.0, 1.0)), channels=2)


def test_channels_have_their_own_resolution_and_means() -> None:
    drawn = [draw(GMM_PRESETS["synthseg"](), seed, shape_only(120, 120, 120), channels=2) for seed in range(40)]
    assert sum(params.low_shape[0] != params.low_shape[1] for params in drawn) > 30
    means = torch.stack([params.means for params in drawn])
    assert means.shape == (40, 2, 4)
    assert abs(float(torch.corrcoef(means[:, :, 2].T)[0, 1])) < 0.5
    for params in drawn:
        assert not torch.equal(params.means[0], params.means[1])
        assert params.bias is None or not torch.equal(params.bias[0], params.bias[1])
        assert params.gamma is None or params.gamma[0] != params.gamma[1]


# Bounds


@pytest.mark.parametrize(
    ("bounds", "centre", "low", "high"),
    [
        ((0.2,), 1.0, [0.8] * 3, [1.2] * 3),
        ((2.0, 5.0), 0.0, [2.0] * 3, [5.0] * 3),
        ((-1.0, 10.0, 5.0, 1.0, 20.0, 5.0), 0.0, [-1.0, 10.0, 5.0], [1.0, 20.0, 5.0]),
    ],
)
def test_bounds_as_one_number_as_low_and_high_and_by_axis(
    bounds: tuple[float, ...], centre: float, low: list[float], high: list[float]
) -> None:
    drawn = np.array([draw_bounds(bounds, centre, 3, generator(seed)) for seed in range(400)])
    width = np.subtract(high, low)
    assert ((drawn.min(0) >= np.subtract(low, 1e-6)) & (drawn.min(0) <= low + 0.02 * width)).all()
    assert ((drawn.max(0) <= np.add(high, 1e-6)) & (drawn.max(0) >= high - 0.02 * width)).all()
    assert abs(np.corrcoef(drawn[:, :2].T)[0, 1]) < 0.2  # each axis by itself


def test_bounds_as_one_of_several_pairs_of_rows() -> None:
    """lab2im's (2k, n) arrays: a pair of rows, drawn for each sample (it chose one for good)."""
    pairs = (0.0, 0.0, 1.0, 1.0, 10.0, 20.0, 11.0, 21.0)
    drawn = np.array([draw_bounds(pairs, 0.0, 2, generator(seed)) for seed in range(200)])
    first = drawn[:, 0] < 5
    assert 60 < first.sum() < 140
    assert (drawn[first] <= 1).all()
    assert (drawn[~first] >= [10, 20]).all()
    assert (drawn[~first] <= [11, 21]).all()


def test_spatial_bounds_reach_the_affine() -> None:
    options = replace(PLAIN, translation_bounds=(3.0, 3.0), scaling_bounds=(1.5, 1.5))
    params = draw(options)
    assert torch.allclose(params.affine, torch.tensor([[1.5, 0, 0, 3], [0, 1.5, 0, 3], [0, 0, 1.5, 3]]).double())
    fov = draw(replace(options, translation_bounds=(0.1, 0.1), spatial_unit="fov"))
    assert fov.affine[:, 3].tolist() == pytest.approx([3.2, 3.0, 2.8])
    assert draw(PLAIN).affine is None
    assert draw(PLAIN).velocity is None


def test_velocity_has_the_drawn_std_and_grid() -> None:
    options = replace(PLAIN, nonlin_std=(4.0, 4.0), nonlin_scale=(0.25,))
    velocity = torch.stack([v for s in range(10) if (v := draw(options, s).velocity) is not None])
    assert velocity.shape == (10, 3, 9, 9, 8)
    assert float(velocity.std()) == pytest.approx(4, rel=0.03)
    spread = [
        float(v.std()) for s in range(200) if (v := draw(replace(options, nonlin_std=(4.0,)), s).velocity) is not None
    ]
    assert min(spread) < 0.4
    assert max(spread) == pytest.approx(4, rel=0.1)
    assert np.mean(spread) == pytest.approx(2, rel=0.12)
    nodes = {draw(replace(options, nonlin_scale=(2.0, 5.0)), s).velocity.shape[1:] for s in range(60)}  # type: ignore[union-attr]
    assert nodes == {(k,) * 3 for k in (2, 3, 4, 5)}


# Intensities


def test_mix_prior_and_random_replaces_half() -> None:
    given = GivenPriors(parse_prior([100.0, 100.0], "uniform", 4), parse_prior([7.0, 7.0], "uniform", 4))
    options = replace(GMM_PRESETS["synthseg"](), mix_prior_and_random=True, background="class")
    drawn = [draw(options, seed, priors=given) for seed in range(400)]
    means = np.array([bool((params.means == 100).all()) for params in drawn])
    stds = np.array([bool((params.stds == 7).all()) for params in drawn])
    assert means.mean() == pytest.approx(0.5, abs=0.1)
    assert stds.mean() == pytest.approx(0.5, abs=0.1)
    assert (means & stds).mean() == pytest.approx(0.25, abs=0.09)


def test_row_pairs_by_channel_or_at_random() -> None:
    table = np.array([[0.0] * 4, [1.0] * 4, [100.0] * 4, [101.0] * 4])
    given = GivenPriors(parse_prior(table, "uniform", 4), parse_prior(table, "uniform", 4))
    options = replace(PLAIN, specific_channels=True)
    for seed in range(20):
        means = draw(options, seed, priors=given, channels=2).means
        assert (means[0] <= 1).all()
        assert (means[1] >= 100).all()
    at_random = [bool((draw(PLAIN, seed, priors=given).means >= 100).all()) for seed in range(60)]
    assert 15 < sum(at_random) < 45
    with pytest.raises(ValueError, match="use_specific_stats_for_channel needs one row pair for each of 3 channels"):
        draw(options, priors=given, channels=3)


def test_lesion_contrast() -> None:
    names = ["background", "grey matter", "white matter", "lesion"]
    scheme = LabelScheme.from_lists(range(4), names=names)
    for seed in range(40):
        hyper = draw(replace(PLAIN, lesion_contrast=("hyper",)), seed, scheme=scheme).means[0]
        assert 30 <= float(hyper[3] - hyper[2]) <= 90.001
        both = draw(replace(PLAIN, lesion_contrast=("hyper", "hypo")), seed, scheme=scheme, channels=2).means
        assert both[0, 3] > both[0, 2]
        assert both[1, 3] < both[1, 2] or both[1, 3] == 0
        plain = draw(PLAIN, seed, scheme=scheme, channels=2).means
        assert torch.equal(plain[:, :3], both[:, :3])
    with pytest.raises(ValueError, match="lesion_contrast has 3 values"):
        draw(replace(PLAIN, lesion_contrast=("hyper",) * 3), scheme=scheme, channels=2)
    alone = LabelScheme.from_lists(range(4), names=["background", "a", "b", "lesion"])
    with pytest.raises(ValueError, match="lesion_contrast needs a label named white matter"):
        draw(replace(PLAIN, lesion_contrast=("hypo",)), scheme=alone)


# Flips


def test_never_a_flip_where_sides_are_unknown() -> None:
    """Predecessors flipped without exchanging left and right."""
    unknown = LabelScheme.from_lists([0, 1, 2, 3])
    assert unknown.partners is None
    assert not any(draw(GMM_PRESETS["synthseg"](), seed, scheme=unknown).flip for seed in range(60))
    assert not any(sample_params(LABELS, generator(seed), options=GMM_PRESETS["synthseg"]()).flip for seed in range(60))
    flips = sum(draw(GMM_PRESETS["synthseg"](), seed).flip for seed in range(400))
    assert 160 < flips < 240
    assert not any(draw(replace(GMM_PRESETS["synthseg"](), flipping=False), seed).flip for seed in range(60))


# Shapes


@pytest.mark.parametrize(
    ("options", "out", "crop"),
    [
        ({}, (32, 30, 28), (32, 30, 28)),
        ({"output_shape": (20, 40, 11)}, (20, 40, 11), (20, 40, 11)),
        ({"output_div_by_n": 8}, (32, 24, 24), (32, 24, 24)),
        ({"output_shape": (30,), "output_div_by_n": 16}, (16, 16, 16), (16, 16, 16)),
        ({"target_res": (2.0,)}, (16, 15, 14), (32, 30, 28)),
        ({"target_res": (0.5,)}, (64, 60, 56), (32, 30, 28)),
        ({"target_res": (2.0, 1.0, 4.0)}, (16, 30, 7), (32, 30, 28)),
        ({"target_res": (2.0,), "output_shape": (10,)}, (10, 10, 10), (20, 20, 20)),
    ],
)
def test_shapes(options: dict, out: tuple, crop: tuple) -> None:
    for seed in range(5):
        params = draw(replace(GMM_PRESETS["synthseg"](), **options), seed)
        assert params.out_shape == out
        assert params.crop_shape == crop
        for start, part, size in zip(params.crop_start, crop, LABELS.shape, strict=True):
            if part <= size:
                assert 0 <= start <= size - part
            else:
                assert start == -((part - size) // 2)
    image = render(LABELS, params)
    assert image.shape == (1, *out)


def test_crops_reach_every_place_the_last_too() -> None:
    starts = {draw(replace(PLAIN, output_shape=(30, 30, 28)), seed).crop_start for seed in range(60)}
    assert starts == {(0, 0, 0), (1, 0, 0), (2, 0, 0)}


# Streams


@pytest.mark.parametrize(
    ("off", "changed"),
    [
        ({"bias_field_std": (0.0,)}, {"bias"}),
        ({"gamma_std": 0.0}, {"gamma"}),
        ({"nonlin_std": (0.0,)}, {"velocity"}),
        ({"flipping": False}, {"flip"}),
        ({f"{way}_bounds": (0.0,) for way in ("scaling", "rotation", "shearing", "translation")}, {"affine"}),
        ({"resolution_mix": (1.0, 0.0, 0.0, 0.0)}, {"low_shape", "sigma"}),
        ({"noise_prob": 0.0}, {"noise"}),
        ({"texture_fwhm": (0.0,)}, {"fwhm"}),
        ({"motion_prob": 0.0}, {"artefacts", "roles"}),
        ({"background": "class"}, {"means", "stds"}),
        ({"partial_volume": True}, {"partial_volume"}),
    ],
)
def test_a_stage_turned_off_leaves_the_other_draws(off: dict, changed: set[str]) -> None:
    more = {"noise_std": (0.1,), "texture_fwhm": (5.0,), "translation_bounds": (2.0,), "motion_prob": 1.0}
    full = replace(GMM_PRESETS["synthseg"](), **more, bias_prob=1.0)  # type: ignore[arg-type]
    seen: set[str] = set()
    for seed in range(8):
        one, other = draw(full, seed), draw(replace(full, **off), seed)
        assert ALL - same(one, other) <= changed, seed
        seen |= ALL - same(one, other)
    assert seen == changed


def test_fixed_replaces_the_given_fields_only() -> None:
    means = torch.full((1, 4), 50.0)
    options = GMM_PRESETS["synthseg"]()
    one, other = draw(options, 2), draw(options, 2, fixed={"means": means, "gamma": None})
    assert ALL - same(one, other) == {"means", "gamma"}
    assert torch.equal(other.means, means)
    assert other.gamma is None
    with pytest.raises(ValueError, match=r"contrast, zoom: no parameter of a synthetic image; there are: .*means"):
        draw(PLAIN, fixed={"zoom": 1, "contrast": 2, "seed": 3})


def test_skull_stripping_makes_dropped_labels_background() -> None:
    scheme = LabelScheme.from_lists([0, 1, 2, 3], output_labels=[0, 1, 0, 3])
    labels = torch.zeros(8, 8, dtype=torch.uint8)
    for prob, same in ((1.0, True), (0.0, False)):
        options = gmm_options("synthseg", skull_strip_prob=prob)
        drawn = sample_params(labels, generator(1), options=options, scheme=scheme, channels=2)
        assert torch.equal(drawn.means[:, 2], drawn.means[:, 0]) == same
        assert not torch.equal(drawn.means[:, 1], drawn.means[:, 0])
