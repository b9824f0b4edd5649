"""Options of the GMM generator, its presets and their ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

from dataloaders.io.files import read_toml
from dataloaders.io.schema import (
    SPREAD,
    UP_TO_THREE,
    Must,
    NotNegative,
    Positive,
    PositiveSpread,
    Shape,
    Share,
    Spread,
    at_least,
    is_range,
    spelled,
)
from models import MethodOptions

if TYPE_CHECKING:
    from config import Config

GmmPreset = Literal["fitted", "lab2im", "synthseg", "fetal", "cornucopia"]


def _are_multiples(values: int | tuple[int, ...]) -> bool:
    values = values if isinstance(values, tuple) else (values,)
    return 1 <= len(values) <= 3 and min(values) >= 1


def _are_bounds(values: Sequence[float]) -> bool:
    return values[0] >= 0 if len(values) == 1 else len(values) > 2 or is_range(values)


def _keep_sides(scales: Sequence[float]) -> bool:
    return scales[0] < 1 if len(scales) == 1 else min(scales) > 0


def _are_shares(values: Sequence[float]) -> bool:
    return min(values) >= 0 and abs(sum(values) - 1) < 1e-6


PriorRange = Annotated[
    tuple[float, ...],
    Must("one half-range, or low and high, not all below 0", lambda values: is_range(values) and values[-1] >= 0),
]
Bounds = Annotated[tuple[float, ...], Must("a number of 0 or more, or lows and highs", _are_bounds)]
Shares = Annotated[tuple[float, float, float, float], Must("four probabilities with sum 1", _are_shares)]
PartOfOne = Annotated[tuple[float, float], Must("low and high in [0, 1]", lambda v: 0 <= v[0] <= v[1] <= 1)]
KEEPS_SIDES = Must("below 1, or lows and highs above 0; anything else would mirror the anatomy", _keep_sides)


@dataclass(frozen=True, kw_only=True)
class GmmConfig:
    """Gaussian mixture by label. Bounds: b is drawn from c-b..c+b, two values low..high, 2n values per axis; 0 is off."""

    preset: GmmPreset = "fitted"
    """Starting values: fitted synthesises as the training images are; the others as published (docs/methods.md)."""
    priors: str = "fit"
    """Intensities: fit from the training images, random from prior_means and prior_stds, or a file of estimate_priors.py."""
    robust: bool = True
    """Fit median and 1.4826 x MAD of each label instead of mean and standard deviation."""
    vary: bool = True
    """Draw each case's label means and spreads from the prior over subjects; otherwise use the prior's centre."""
    covariance: bool = False
    """Draw all labels of a fitted prior together, with the covariance seen over subjects, so that T1-like stays T1-like."""
    prior_distributions: Literal["uniform", "normal"] = "uniform"
    """Random priors: uniform, or normal with the moments of the uniform range."""
    prior_means: PriorRange = (0.0, 250.0)
    """Random priors of the labels' means, on 0-255: low and high, or the half-range about 125."""
    prior_stds: PriorRange = (0.0, 30.0)
    """Random priors of the labels' standard deviations, on 0-255: low and high, or the half-range about 15."""
    specific_channels: bool = False
    """Priors of several modalities: give channel c the c-th pair of rows, instead of a random pair."""
    mix_prior_and_random: bool = False
    """Replace the given means by prior_means half of the time, the given spreads by prior_stds likewise."""
    background: Literal["class", "zero", "half", "synthseg"] = "class"
    """Background: a class like any other, always 0, 0 half of the time, or mostly dark (SynthSeg)."""
    skull_strip_prob: Share = 0.0
    """Probability that everything that is not kept in the output labels looks like background, as after skull stripping."""
    lesion_contrast: Annotated[
        tuple[Literal["random", "hyper", "hypo"], ...], Must("one word, or one per channel", bool)
    ] = ("random",)
    """Lesions beside white matter, one for all channels or one each: hyper as on FLAIR and T2w, hypo as on T1w."""
    tie_std: NotNegative = 25.0
    """Sub-clusters of one tissue (seeds): standard deviation of their means about the tissue's own, on 0-255."""

    flipping: bool = False
    """Mirror left-right half of the time, exchanging left and right labels; maps whose sides are unknown never."""
    scaling_bounds: Annotated[Bounds, KEEPS_SIDES] = (0.0,)
    """Zoom about 1."""
    rotation_bounds: Bounds = (0.0,)
    """Rotation about 0, degrees."""
    shearing_bounds: Bounds = (0.0,)
    """Shear about 0."""
    translation_bounds: Bounds = (0.0,)
    """Shift about 0, in spatial_unit."""
    nonlin_std: Spread = (0.0,)
    """Elastic velocity: its standard deviation is drawn from 0..x or low..high, in spatial_unit."""
    nonlin_scale: PositiveSpread = (0.04,)
    """Control grid of the velocity: fraction of the map's size, or number of nodes from 1 up; two values: drawn between."""
    spatial_unit: Literal["voxel", "fov"] = "voxel"
    """Unit of shifts and velocities: voxels of the map, or fractions of its size."""
    integrate: bool = True
    """Integrate the velocity to a deformation that does not fold; otherwise it is the displacement itself."""
    spline: Literal[1, 3] = 1
    """Interpolation of control grids: linear or cubic B-spline."""
    output_shape: Shape = ()
    """Random crop to this many voxels, one number or one per axis; maps that are smaller are padded with background."""
    output_div_by_n: Annotated[int | tuple[int, ...], Must("1 or more, one number or one per axis", _are_multiples)] = 1
    """Round the output shape down to multiples of this, one number or one per axis."""
    target_res: Annotated[tuple[float, ...], UP_TO_THREE] = ()
    """Voxel size of the output in mm; by default the map's."""

    texture_fwhm: Spread = (0.0,)
    """Width of each label's texture in voxels, drawn from 0..x or low..high; the label's spread is kept."""
    partial_volume: bool = False
    """Mix labels at their borders, from 2 samples per voxel and axis."""
    bias_field_std: Spread = (0.0,)
    """Bias field: standard deviation of its logarithm, drawn from 0..x or low..high."""
    bias_scale: PositiveSpread = (0.025,)
    """Control grid of the bias field, as nonlin_scale."""
    bias_form: Literal["exp", "linear"] = "exp"
    """Nodes of the bias field: exponentials of normal values, or 1 plus uniform ones."""
    bias_prob: Share = 0.95
    """Probability of a bias field."""
    gamma_std: NotNegative = 0.0
    """Standard deviation of the logarithm of the gamma exponent."""
    normalise: Literal["minmax", "window", "max", "quantile"] = "window"
    """Range: each image's minimum and maximum, the fixed window 0-255, the maximum alone, or the 1 and 99 % quantiles."""

    blur: Spread = (0.5,)
    """Standard deviation in voxels of the blur along axes of unchanged resolution: always x, or drawn from low..high."""
    blur_width: NotNegative = 0.75
    """Standard deviation of the blur along coarser axes, in slice widths."""
    blur_range: Annotated[float, at_least(1)] = 1.0
    """Multiply every blur by a factor drawn from 1/x..x."""
    keep_std: bool = True
    """Make the grain so much stronger that labels have their standard deviation after the blur at unchanged resolution."""
    resolution_mix: Shares = (
        1.0,
        0.0,
        0.0,
        0.0,
    )
    """Probabilities of unchanged resolution, one coarser on all axes alike, on one axis, on each axis by itself."""
    max_res_iso: Positive = 4.0
    """Coarsest resolution where all axes or each axis is drawn, in resolution_unit."""
    max_res_aniso: Positive = 8.0
    """Coarsest resolution where one axis is drawn, in resolution_unit."""
    resolution_unit: Literal["mm", "voxel"] = "mm"
    """Unit of the two above."""
    thickness_range: PartOfOne = (0.0, 1.0)
    """Slice thickness between the voxel size and the drawn resolution: fractions of that way."""
    data_res: Annotated[tuple[float, ...], Must("above 0", lambda mm: min(mm, default=1) > 0)] = ()
    """Fixed resolution in mm instead of a drawn one: one value, one per axis, or one row per channel."""
    thickness: Annotated[tuple[float, ...], Must("above 0", lambda mm: min(mm, default=1) > 0)] = ()
    """Slice thickness in mm that goes with data_res; by default the same."""
    noise_std: Spread = (0.0,)
    """Noise at the acquired resolution, in parts of the range 0-1: drawn from 0..x or low..high."""
    noise_prob: Share = 0.95
    """Probability of that noise."""
    noise_coils: Annotated[tuple[int, ...], SPREAD] = (0,)
    """Coils whose noise is summed: 0 Gaussian, 1 Rician, more chi; two values: drawn between."""
    return_gradients: bool = False
    """Return the magnitude of the image gradient instead of the image."""

    blur_cortex_prob: Share = 0.0
    """Fetal artefact: probability of patches of blurred cortex."""
    structured_noise_prob: Share = 0.0
    """Fetal artefact: probability of structured noise inside the brain."""
    motion_prob: Share = 0.0
    """Fetal artefact: probability of motion between slices of stacks and their reconstruction; 3-D only."""
    boundaries_prob: Share = 0.0
    """Fetal artefact: probability of masked, halo or fuzzy boundaries."""

    def check_together(self) -> None:
        """ValueError for options that do not go together."""
        if self.thickness and not self.data_res:
            raise ValueError(f"--thickness {spelled(self.thickness)}: only with --data_res")


PUBLISHED = read_toml(Path(__file__).with_name("presets.toml"), "table of presets")


def preset(name: str) -> GmmConfig:
    """A preset as published; fitted are the defaults."""
    table = PUBLISHED.get(name, {})
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return GmmConfig(preset=cast(GmmPreset, name), **values)


GMM_PRESETS: dict[str, Callable[[], GmmConfig]] = {name: partial(preset, name) for name in get_args(GmmPreset)}


def stripped_brain() -> GmmConfig:
    """SynthSeg's generator for brains without skull, in the narrower ranges that a small network learns in minutes."""
    return replace(
        GMM_PRESETS["synthseg"](),
        prior_stds=(2.0, 25.0),
        tie_std=8.0,
        skull_strip_prob=1.0,
        background="zero",
        bias_field_std=(0.3,),
        gamma_std=0.2,
        resolution_mix=(0.6, 0.2, 0.2, 0.0),
        max_res_iso=2.0,
        max_res_aniso=3.0,
    )


def _idle(arguments: Sequence[str], config: Config) -> list[tuple[str, str]]:
    """Options of the generator that do nothing in train.py and test.py as they are given, each with the reason."""
    moving = ["flipping", "spatial_unit", "integrate", "output_shape", "output_div_by_n"]
    moving += [
        "scaling_bounds",
        "rotation_bounds",
        "shearing_bounds",
        "translation_bounds",
        "nonlin_std",
        "nonlin_scale",
    ]
    random = ("prior_distributions", "prior_means", "prior_stds", "specific_channels", "mix_prior_and_random")
    reasons = dict.fromkeys(moving, "label maps stay as they are, so that image and label are a pair")
    reasons |= {"motion_prob": "motion between slices is of volumes"}
    if config.gmm.priors != "random":
        reasons |= dict.fromkeys(random, "the priors are fitted or from a file; give --gmm.priors random")
    found = []
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--gmm.").removeprefix("no-").replace("-", "_")
        if argument.startswith("--gmm.") and name in reasons:
            found.append((argument, reasons[name]))
    return found


def _check(config: Config) -> None:
    if config.gmm.target_res:
        raise ValueError(
            f"--gmm.target_res {spelled(config.gmm.target_res)}: images must keep the size of their label maps"
        )


GMM = MethodOptions(
    title="Gaussian mixture by label",
    network="models.gmm.method:Gmm",
    workflow="engine.methods.gmm:GmmWorkflow",
    groups=("gmm",),
    presets={name: {"gmm": values()} for name, values in GMM_PRESETS.items()},
    check=_check,
    idle=_idle,
    fitted=True,
    telling=(
        *("preset", "priors", "robust", "vary", "covariance", "background", "texture_fwhm", "partial_volume"),
        *("blur", "noise_std", "bias_field_std", "gamma_std"),
    ),
)
