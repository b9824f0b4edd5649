"""Options of the GMM generator, its presets and their ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

from models import MethodOptions
from models.ranges import is_range, words

if TYPE_CHECKING:
    from config import Config

GmmPreset = Literal["fitted", "lab2im", "synthseg", "fetal", "cornucopia"]


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
    prior_means: tuple[float, ...] = (0.0, 250.0)
    """Random priors of the labels' means, on 0-255: low and high, or the half-range about 125."""
    prior_stds: tuple[float, ...] = (0.0, 30.0)
    """Random priors of the labels' standard deviations, on 0-255: low and high, or the half-range about 15."""
    specific_channels: bool = False
    """Priors of several modalities: give channel c the c-th pair of rows, instead of a random pair."""
    mix_prior_and_random: bool = False
    """Replace the given means by prior_means half of the time, the given spreads by prior_stds likewise."""
    background: Literal["class", "zero", "half", "synthseg"] = "class"
    """Background: a class like any other, always 0, 0 half of the time, or mostly dark (SynthSeg)."""
    skull_strip_prob: float = 0.0
    """Probability that everything that is not kept in the output labels looks like background, as after skull stripping."""
    lesion_contrast: tuple[Literal["random", "hyper", "hypo"], ...] = ("random",)
    """Lesions beside white matter, one for all channels or one each: hyper as on FLAIR and T2w, hypo as on T1w."""
    tie_std: float = 25.0
    """Sub-clusters of one tissue (seeds): standard deviation of their means about the tissue's own, on 0-255."""

    flipping: bool = False
    """Mirror left-right half of the time, exchanging left and right labels; maps whose sides are unknown never."""
    scaling_bounds: tuple[float, ...] = (0.0,)
    """Zoom about 1."""
    rotation_bounds: tuple[float, ...] = (0.0,)
    """Rotation about 0, degrees."""
    shearing_bounds: tuple[float, ...] = (0.0,)
    """Shear about 0."""
    translation_bounds: tuple[float, ...] = (0.0,)
    """Shift about 0, in spatial_unit."""
    nonlin_std: tuple[float, ...] = (0.0,)
    """Elastic velocity: its standard deviation is drawn from 0..x or low..high, in spatial_unit."""
    nonlin_scale: tuple[float, ...] = (0.04,)
    """Control grid of the velocity: fraction of the map's size, or number of nodes from 1 up; two values: drawn between."""
    spatial_unit: Literal["voxel", "fov"] = "voxel"
    """Unit of shifts and velocities: voxels of the map, or fractions of its size."""
    integrate: bool = True
    """Integrate the velocity to a deformation that does not fold; otherwise it is the displacement itself."""
    spline: Literal[1, 3] = 1
    """Interpolation of control grids: linear or cubic B-spline."""
    output_shape: tuple[int, ...] = ()
    """Random crop to this many voxels, one number or one per axis; maps that are smaller are padded with background."""
    output_div_by_n: int | tuple[int, ...] = 1
    """Round the output shape down to multiples of this, one number or one per axis."""
    target_res: tuple[float, ...] = ()
    """Voxel size of the output in mm; by default the map's."""

    texture_fwhm: tuple[float, ...] = (0.0,)
    """Width of each label's texture in voxels, drawn from 0..x or low..high; the label's spread is kept."""
    partial_volume: bool = False
    """Mix labels at their borders, from 2 samples per voxel and axis."""
    bias_field_std: tuple[float, ...] = (0.0,)
    """Bias field: standard deviation of its logarithm, drawn from 0..x or low..high."""
    bias_scale: tuple[float, ...] = (0.025,)
    """Control grid of the bias field, as nonlin_scale."""
    bias_form: Literal["exp", "linear"] = "exp"
    """Nodes of the bias field: exponentials of normal values, or 1 plus uniform ones."""
    bias_prob: float = 0.95
    """Probability of a bias field."""
    gamma_std: float = 0.0
    """Standard deviation of the logarithm of the gamma exponent."""
    normalise: Literal["minmax", "window", "max", "quantile"] = "window"
    """Range: each image's minimum and maximum, the fixed window 0-255, the maximum alone, or the 1 and 99 % quantiles."""

    blur: tuple[float, ...] = (0.5,)
    """Standard deviation in voxels of the blur along axes of unchanged resolution: always x, or drawn from low..high."""
    blur_width: float = 0.75
    """Standard deviation of the blur along coarser axes, in slice widths."""
    blur_range: float = 1.0
    """Multiply every blur by a factor drawn from 1/x..x."""
    keep_std: bool = True
    """Make the grain so much stronger that labels have their standard deviation after the blur at unchanged resolution."""
    resolution_mix: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    """Probabilities of unchanged resolution, one coarser on all axes alike, on one axis, on each axis by itself."""
    max_res_iso: float = 4.0
    """Coarsest resolution where all axes or each axis is drawn, in resolution_unit."""
    max_res_aniso: float = 8.0
    """Coarsest resolution where one axis is drawn, in resolution_unit."""
    resolution_unit: Literal["mm", "voxel"] = "mm"
    """Unit of the two above."""
    thickness_range: tuple[float, float] = (0.0, 1.0)
    """Slice thickness between the voxel size and the drawn resolution: fractions of that way."""
    data_res: tuple[float, ...] = ()
    """Fixed resolution in mm instead of a drawn one: one value, one per axis, or one row per channel."""
    thickness: tuple[float, ...] = ()
    """Slice thickness in mm that goes with data_res; by default the same."""
    noise_std: tuple[float, ...] = (0.0,)
    """Noise at the acquired resolution, in parts of the range 0-1: drawn from 0..x or low..high."""
    noise_prob: float = 0.95
    """Probability of that noise."""
    noise_coils: tuple[int, ...] = (0,)
    """Coils whose noise is summed: 0 Gaussian, 1 Rician, more chi; two values: drawn between."""
    return_gradients: bool = False
    """Return the magnitude of the image gradient instead of the image."""

    blur_cortex_prob: float = 0.0
    """Fetal artefact: probability of patches of blurred cortex."""
    structured_noise_prob: float = 0.0
    """Fetal artefact: probability of structured noise inside the brain."""
    motion_prob: float = 0.0
    """Fetal artefact: probability of motion between slices of stacks and their reconstruction; 3-D only."""
    boundaries_prob: float = 0.0
    """Fetal artefact: probability of masked, halo or fuzzy boundaries."""


def lab2im_preset() -> GmmConfig:
    """lab2im's ImageGenerator; its blur follows the voxel size, so there is no separate resolution."""
    return GmmConfig(
        preset="lab2im",
        priors="random",
        prior_means=(25.0, 225.0),
        prior_stds=(5.0, 25.0),
        scaling_bounds=(0.15,),
        rotation_bounds=(10.0,),
        shearing_bounds=(0.02,),
        nonlin_std=(4.0,),
        nonlin_scale=(0.0625,),
        bias_field_std=(0.3,),
        gamma_std=0.2,
        normalise="minmax",
        blur_range=1.15,
        keep_std=False,
    )


def synthseg_preset() -> GmmConfig:
    """SynthSeg's BrainGenerator (Billot et al., Med. Image Anal. 2023)."""
    return GmmConfig(
        preset="synthseg",
        priors="random",
        background="synthseg",
        flipping=True,
        scaling_bounds=(0.2,),
        rotation_bounds=(15.0,),
        shearing_bounds=(0.012,),
        nonlin_std=(4.0,),
        bias_field_std=(0.7,),
        gamma_std=0.5,
        normalise="minmax",
        blur_range=1.03,
        keep_std=False,
        resolution_mix=(0.05, 0.095, 0.855, 0.0),
    )


def stripped_brain() -> GmmConfig:
    """SynthSeg's generator for brains without skull, in the narrower ranges that a small network learns in minutes."""
    return replace(
        synthseg_preset(),
        prior_stds=(2.0, 15.0),
        tie_std=8.0,
        skull_strip_prob=1.0,
        background="zero",
        bias_field_std=(0.3,),
        gamma_std=0.2,
        resolution_mix=(0.6, 0.2, 0.2, 0.0),
        max_res_iso=2.0,
        max_res_aniso=3.0,
    )


def fetal_preset() -> GmmConfig:
    """FetalSynthSeg's ranges with fetalsyngen's artefacts; noise and shifts on their 0-300 scale."""
    return GmmConfig(
        preset="fetal",
        priors="random",
        prior_means=(25.0, 225.0),
        prior_stds=(5.0, 25.0),
        background="half",
        flipping=True,
        scaling_bounds=(0.1,),
        rotation_bounds=(20.0,),
        shearing_bounds=(0.02,),
        nonlin_std=(4.0,),
        nonlin_scale=(0.03, 0.06),
        bias_field_std=(0.01, 0.3),
        bias_scale=(0.004, 0.02),
        bias_prob=1.0,
        gamma_std=0.1,
        normalise="max",
        keep_std=False,
        resolution_mix=(0.2, 0.8, 0.0, 0.0),
        blur=(0.0,),
        blur_width=0.512,
        blur_range=1.15,
        thickness_range=(1.0, 1.0),
        max_res_iso=1.5,
        noise_std=(5 / 300, 15 / 300),
        noise_prob=1.0,
        blur_cortex_prob=0.4,
        structured_noise_prob=0.4,
        motion_prob=0.4,
        boundaries_prob=1.0,
    )


def cornucopia_preset() -> GmmConfig:
    """cornucopia's SynthFromLabelTransform (0.5.1)."""
    return GmmConfig(
        preset="cornucopia",
        priors="random",
        prior_means=(0.0, 255.0),
        prior_stds=(0.0, 12.75),
        background="zero",
        scaling_bounds=(0.15,),
        rotation_bounds=(15.0,),
        shearing_bounds=(0.012,),
        translation_bounds=(0.1,),
        nonlin_std=(0.05,),
        nonlin_scale=(2.0, 10.0),
        spatial_unit="fov",
        spline=3,
        texture_fwhm=(10.0,),
        bias_field_std=(0.5,),
        bias_scale=(2.0, 7.0),
        bias_form="linear",
        bias_prob=1.0,
        gamma_std=0.6,
        normalise="quantile",
        keep_std=False,
        blur=(0.0, 1.27),
        resolution_mix=(0.0, 0.5, 0.5, 0.0),
        max_res_iso=8.0,
        max_res_aniso=8.0,
        resolution_unit="voxel",
        thickness_range=(0.1, 1.0),
        noise_std=(0.1,),
        noise_prob=1.0,
        noise_coils=(2, 8),
    )


GMM_PRESETS: dict[str, Callable[[], GmmConfig]] = {
    "fitted": GmmConfig,
    "lab2im": lab2im_preset,
    "synthseg": synthseg_preset,
    "fetal": fetal_preset,
    "cornucopia": cornucopia_preset,
}


def check_gmm(gmm: GmmConfig, prefix: str = "") -> None:
    """Raise ValueError naming flag, value and allowed range for the first option of the generator out of range."""

    def refuse(name: str, allowed: str) -> None:
        value = getattr(gmm, name)
        shown = words(value) if isinstance(value, tuple) else value
        raise ValueError(f"--{prefix}{name} {shown}: must be {allowed}")

    for f in fields(gmm):
        value = getattr(gmm, f.name)
        numbers = [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, (int, float))]
        if any(not abs(x) < float("inf") for x in numbers):
            refuse(f.name, "finite")
        if f.name.endswith("_prob") and not 0 <= value <= 1:
            refuse(f.name, "in [0, 1]")
    for name in ("tie_std", "gamma_std", "blur_width"):
        if getattr(gmm, name) < 0:
            refuse(name, "0 or more")
    if gmm.blur_range < 1:
        refuse("blur_range", "1 or more")
    multiples = gmm.output_div_by_n if isinstance(gmm.output_div_by_n, tuple) else (gmm.output_div_by_n,)
    if not 1 <= len(multiples) <= 3 or min(multiples) < 1:
        refuse("output_div_by_n", "1 or more, one number or one per axis")
    for name in ("nonlin_std", "texture_fwhm", "bias_field_std", "noise_std", "noise_coils", "blur"):
        if not is_range(getattr(gmm, name)) or min(getattr(gmm, name)) < 0:
            refuse(name, "one value of 0 or more, or low and high")
    for name in ("nonlin_scale", "bias_scale"):
        if not is_range(getattr(gmm, name)) or min(getattr(gmm, name)) <= 0:
            refuse(name, "one value above 0, or low and high")
    for name in ("prior_means", "prior_stds"):
        if not is_range(getattr(gmm, name)) or getattr(gmm, name)[-1] < 0:
            refuse(name, "one half-range, or low and high, not all below 0")
    for name in ("output_shape", "target_res", "data_res", "thickness", "max_res_iso", "max_res_aniso"):
        value = getattr(gmm, name)
        if any(x <= 0 for x in (value if isinstance(value, tuple) else (value,))):
            refuse(name, "above 0")
    for name in ("output_shape", "target_res"):
        if len(getattr(gmm, name)) > 3:
            refuse(name, "one value, or one per axis")
    for name in ("scaling_bounds", "rotation_bounds", "shearing_bounds", "translation_bounds"):
        values = getattr(gmm, name)
        if not values or (len(values) == 1 and values[0] < 0) or (len(values) == 2 and values[0] > values[1]):
            refuse(name, "a number of 0 or more, or lows and highs")
    scaling = gmm.scaling_bounds
    if (len(scaling) == 1 and scaling[0] >= 1) or (len(scaling) > 1 and min(scaling) <= 0):
        refuse("scaling_bounds", "below 1, or lows and highs above 0; anything else would mirror the anatomy")
    if not gmm.lesion_contrast:
        refuse("lesion_contrast", "one word, or one per channel")
    mix = gmm.resolution_mix
    if len(mix) != 4 or min(mix) < 0 or not abs(sum(mix) - 1) < 1e-6:
        refuse("resolution_mix", "four probabilities with sum 1")
    share = gmm.thickness_range
    if len(share) != 2 or not 0 <= share[0] <= share[1] <= 1:
        refuse("thickness_range", "low and high in [0, 1]")
    if gmm.thickness and not gmm.data_res:
        raise ValueError(f"--{prefix}thickness {words(gmm.thickness)}: only with --{prefix}data_res")


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
    check_gmm(config.gmm, "gmm.")
    if config.gmm.target_res:
        raise ValueError(
            f"--gmm.target_res {words(config.gmm.target_res)}: images must keep the size of their label maps"
        )


GMM = MethodOptions(
    network="models.gmm.method:Gmm",
    workflow="engine.methods.gmm:GmmWorkflow",
    groups=("gmm",),
    presets={name: {"gmm": values()} for name, values in GMM_PRESETS.items()},
    check=_check,
    idle=_idle,
    fitted=True,
)
