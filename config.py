"""Every option of train.py and test.py, once: name, default, range and one line of help. Imports none of ours.

tyro turns the dataclasses into the command line; the comment string under a field is its ``--help`` line.
Periods and progress are counted in images seen, so they do not depend on batch size or number of devices.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import tyro

Precision = Literal["auto", "fp32", "bf16"]
ParamFreeNorm = Literal["batch", "instance", "group"]
GmmPreset = Literal["fitted", "lab2im", "synthseg", "fetal", "cornucopia"]
GeneratorName = Literal[
    "image",
    "wavelet",
    "wavelet_multilevel",
    "wavelet_pixelnorm",
    "wavelet_reductive",
    "wavelet_reductive_pixelnorm",
    "wavelet_residual_coefficients",
    "wavelet_residual",
]


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """What every adversarial method has: the generator, its condition, its losses beside the adversarial one."""

    generator: GeneratorName = "image"
    """Generator: image domain, or one of the Haar wavelet family (docs/methods.md); wavelet_residual is its best known."""
    norm: Literal["spade", "clade"] = "spade"
    """Conditioned norm: SPADE as published, or CLADE, which looks gamma and beta up by class and costs next to nothing."""
    param_free_norm: ParamFreeNorm = "batch"
    """Statistics beneath the conditioned norm: batch as published (over all ranks), instance or group for small batches."""
    channels_G: int = 64
    """Width of the generator's last stage; published 64. The same widths for all generators."""
    spade_hidden: int = 128
    """Hidden channels of the SPADE layers; published 128. They cost three quarters of the generator's arithmetic."""
    spade_ks: int = 3
    """Kernel size of the SPADE convolutions; odd."""
    spectral_gain: float = 0.02
    """Initial gain of the spectrally normalised convolutions; published 0.02. 1 is steadier at small batches."""
    neighbours: int = 0
    """2.5-D: label slices before and after that are also given to the generator; 0 for plain 2-D."""
    slice_position: bool = False
    """2.5-D: also give the generator the slice's place in its scan, -1 for the first and 1 for the last."""
    lambda_l1: float = 0.0
    """Weight of the L1 distance to the real image; needs pairs."""
    lambda_edge: float = 0.0
    """Weight of the L1 distance between the image gradients of generated and real; needs pairs."""
    lambda_vgg: float = 0.0
    """Weight of the VGG19 perceptual loss; SPADE uses 10; needs pairs and the published weights (see --weights)."""
    lambda_feature: float = 0.0
    """Weight of feature matching in the patch or wavelet discriminator; SPADE uses 10; needs pairs."""
    lambda_mask: float = 0.0
    """Weight of the mask loss: how far the generated body is from the label's; 0 turns it off, 1 is a start."""
    mask_loss: Literal["dice", "bce"] = "dice"
    """Form of the mask loss: soft Dice or binary cross-entropy."""
    mask_threshold: float | None = None
    """Intensity in [-1, 1] above which a pixel is body for the mask loss; by default found in the training images."""
    ema_decay: float = 0.999
    """Decay of the generator's moving average per step; OASIS uses 0.9999 at batch 32; 0 for none."""
    reuse_fake: bool = True
    """Train the discriminators on the images of the generator's own step instead of drawing new ones: a seventh faster."""


@dataclass(frozen=True, kw_only=True)
class OasisConfig(GanConfig):
    """OASIS (Schönfeld et al., ICLR 2021): 3-D noise, N+1-class U-Net, LabelMix; optional wavelet critic, unpaired mode."""

    channels_D: int = 128
    """Width of the discriminator's first stage; published 128."""
    z_dim: int = 64
    """Length of the noise vector that is joined to every label pixel (3-D noise); 0 turns noise off."""
    lambda_segment: float = 1.0
    """Weight of the generator's segmentation loss."""
    lambda_labelmix: float = 5.0
    """Weight of the LabelMix consistency loss; 10 in the paper for ADE20K and COCO, 5 for Cityscapes; 0 turns it off."""
    balance_classes: bool = True
    """Weight each class by its inverse pixel frequency in the batch (paper, eq. 2); air counts like any other class."""
    max_class_weight: float = 100.0
    """Upper limit of a class weight, so that a lesion of two pixels does not drive a whole step; 0 for no limit."""
    critic: Literal["none", "wavelet"] = "none"
    """Second discriminator of whole images, without labels, on Haar coefficients; always there in unpaired mode."""
    channels_W: int = 128
    """Width of the wavelet critic's first stage; published 128."""
    lambda_critic: float = 1.0
    """Weight of the generator's loss against the wavelet critic."""
    lr_w: float = 4e-4
    """Learning rate of the wavelet critic; above 5e-4 the predecessor's curves show collapses."""
    r1_gamma: float = 10.0
    """Weight of the critic's gradient penalty R1 (gamma / 2 · squared gradient); 0 turns it off."""
    r1_every: int = 16
    """Apply R1 every so many steps, that many times as strongly (lazy regularisation)."""
    unpaired: bool = False
    """Labels and images that do not belong together: segmentation of fakes plus realism by the wavelet critic."""
    images_from: Path | None = None
    """Unpaired: prepared folder whose training images to imitate; its labels are never read. Default: --dataroot itself."""


@dataclass(frozen=True, kw_only=True)
class SpadeConfig(GanConfig):
    """SPADE (Park et al., CVPR 2019): no noise, multi-scale patch discriminator, hinge, feature matching, VGG."""

    lambda_feature: float = 10.0
    """Weight of feature matching in the patch discriminator; published 10."""
    lambda_vgg: float = 10.0
    """Weight of the VGG19 perceptual loss; published 10; needs the published weights (see --weights), 0 goes without."""
    ema_decay: float = 0.0
    """Decay of the generator's moving average per step; published without, so 0."""
    channels_D: int = 64
    """Width of the patch discriminator's first layer; published 64."""
    num_D: int = 2
    """Scales of the patch discriminator, each half as fine as the one before; published 2."""


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
    output_div_by_n: int = 1
    """Round the output shape down to multiples of this."""
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


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a label-to-image method. The same command again resumes the run."""

    name: str
    """Name of the run; everything it writes goes to <checkpoints_dir>/<name>."""
    dataroot: Path
    """Folder written by scripts/prepare_data.py, or one with {train,val,test}/{images,labels}/X.png."""
    model: Literal["oasis", "spade", "gmm"] = "oasis"
    """Method."""
    preset: Literal["oasis", "spade", "small", "demo"] = "oasis"
    """Starting values: oasis and spade as published, small for one modest GPU, demo for minutes on two cores."""
    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    seed: int = 42
    """Seed of weights, order, augmentation and noise."""
    gpu_ids: str = "auto"
    """GPU to use: a number, -1 for the CPU, auto for GPU 0 where there is one."""
    num_workers: int = 0
    """Loader processes; 0 loads in the main process, which is best while the data fit in memory (see cache_gb)."""
    cache_gb: float = 2.0
    """Keep decoded slices in memory up to this size."""
    precision: Precision = "auto"
    """Arithmetic: auto is bf16 on GPUs that have it, fp32 elsewhere. Losses are always fp32."""
    tuned: bool = True
    """Use the faster, equal arithmetic (docs/benchmarks.md); --no-tuned is the plain published way, for comparison."""
    compile: bool = False
    """Compile the networks with torch.compile; minutes at the start, worth it for long runs on a GPU."""

    batch_size: int = 8
    """Images per step."""
    num_epochs: int = 200
    """Passes over the training slices; published 200 (COCO 100)."""
    lr_g: float = 1e-4
    """Learning rate of the generator."""
    lr_d: float = 4e-4
    """Learning rate of the discriminator."""
    beta1: float = 0.0
    """Adam's beta1."""
    beta2: float = 0.999
    """Adam's beta2."""
    flip: bool = True
    """Mirror training slices left-right half of the time, swapping labels named left and right; axial and coronal only."""

    continue_train: bool = True
    """Resume where the run stands; with --no-continue_train an existing run folder is an error."""
    which_iter: str = "latest"
    """State to resume from: latest, or a number of images seen of which a state file is kept."""
    freq_print: int = 1000
    """Images between log lines."""
    freq_preview: int = 10000
    """Images between preview pictures."""
    freq_fid: int = 10000
    """Images between evaluations of the moving-average generator on the validation split (all metrics, not only FID)."""
    freq_save_latest: int = 10000
    """Images between saved states (the newest three are kept)."""
    freq_save_ckpt: int = 100000
    """Images between weight files that are kept for good."""
    eval_slices: int = 512
    """At most this many validation slices per evaluation, evenly spaced; 0 for all."""
    metrics: str = "auto"
    """Metrics of the evaluation: auto for all that can be computed here, or a comma-separated list."""
    weights: Path | None = None
    """Folder or file with pretrained weights for FID and LPIPS; else $MEDSIS_WEIGHTS, else torch's cache."""

    stop_patience: int = 50000
    """Stop with advice when the discriminator has won for so many images (accuracy above 0.99 in every report); 0 never."""

    oasis: OasisConfig = field(default_factory=OasisConfig)
    spade: SpadeConfig = field(default_factory=SpadeConfig)
    gmm: GmmConfig = field(default_factory=GmmConfig)

    @property
    def gan(self) -> OasisConfig | SpadeConfig | None:
        """Options of the adversarial method that is trained, None for the others."""
        if self.model == "oasis":
            return self.oasis
        return self.spade if self.model == "spade" else None

    @property
    def unpaired(self) -> bool:
        """Whether labels and images are trained on that do not belong together."""
        return self.model == "oasis" and self.oasis.unpaired


@dataclass(frozen=True, kw_only=True)
class TestConfig:
    """Synthesise a split from a trained run, write images and volumes, evaluate."""

    name: str
    """Name of the run to test."""
    dataroot: Path
    """Prepared data; its labels must be those of the training."""
    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    results_dir: Path = Path("results")
    """Results go to <results_dir>/<name>/<ckpt_iter>."""
    ckpt_iter: str = "best"
    """Weights to use: best, latest, or a number of images seen."""
    phase: Literal["test", "val", "train"] = "test"
    """Split to synthesise."""
    batch_size: int = 8
    """Images per forward pass; does not change the images."""
    seed: int = 0
    """Seed of the noise."""
    resample: str = ""
    """Labels whose noise is drawn anew while all others keep theirs: names or ids, comma-separated; see --draw."""
    draw: int = 1
    """Which of the endless other draws --resample takes."""
    noise: Literal["case", "slice"] = "case"
    """Draw the style noise once per case, so that stacked slices match, or anew for each slice."""
    gpu_ids: str = "auto"
    """GPU to use: a number, -1 for the CPU, auto for GPU 0 where there is one."""
    volumes: bool = True
    """Also stack the slices to NIfTI volumes in source geometry and units."""
    metrics: str = "auto"
    """Metrics: auto for all that can be computed here, none, or a comma-separated list."""
    weights: Path | None = None
    """Folder or file with pretrained weights for FID and LPIPS; else $MEDSIS_WEIGHTS, else torch's cache."""
    overwrite: bool = False
    """Replace results that were made with other weights, data or options."""


# Options that may differ when a run is resumed: they change neither the model nor what it learns from. Folders may move;
# the data themselves are compared by their fingerprints.
RUNTIME_OPTIONS = frozenset(
    {"name", "dataroot", "checkpoints_dir", "preset", "gpu_ids", "num_workers", "cache_gb", "num_epochs", "metrics"}
    | {"continue_train", "which_iter", "weights", "eval_slices", "tuned", "compile", "stop_patience"}
    | {"oasis.images_from"}
    | {"freq_print", "freq_preview", "freq_fid", "freq_save_latest", "freq_save_ckpt"}
)


def oasis_preset() -> Config:
    """The published setting."""
    return Config(name=tyro.MISSING, dataroot=tyro.MISSING)


def spade_preset() -> Config:
    """SPADE as published: two time-scale rates around 2e-4 and its own beta2."""
    return replace(oasis_preset(), model="spade", preset="spade", beta2=0.9)


def small_preset() -> Config:
    """A quarter of the published width: 128² in hours on a modest GPU, overnight on a CPU."""
    return replace(
        oasis_preset(),
        preset="small",
        oasis=OasisConfig(channels_G=24, channels_D=48, channels_W=32, spade_hidden=48, z_dim=32, spectral_gain=1.0),
        spade=SpadeConfig(channels_G=24, channels_D=32, spade_hidden=48, spectral_gain=1.0),
    )


def demo_preset() -> Config:
    """Minutes on two CPU cores; momentum, two images a step and the mask loss reach a picture sooner than published."""
    return replace(
        oasis_preset(),
        preset="demo",
        batch_size=2,
        num_epochs=26,
        lr_g=4e-4,
        lr_d=1e-3,
        beta1=0.5,
        freq_print=200,
        freq_preview=1200,
        freq_fid=1200,
        freq_save_latest=1200,
        eval_slices=16,
        oasis=OasisConfig(
            channels_G=16,
            channels_D=16,
            channels_W=16,
            spade_hidden=16,
            z_dim=8,
            param_free_norm="instance",
            spectral_gain=1.0,
            lambda_mask=1.0,
            ema_decay=0.99,
        ),
        spade=SpadeConfig(
            channels_G=16,
            channels_D=16,
            spade_hidden=16,
            param_free_norm="instance",
            spectral_gain=1.0,
            ema_decay=0.99,
        ),
    )


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

PRESETS: dict[str, Callable[[], Config]] = {
    "oasis": oasis_preset,
    "spade": spade_preset,
    "small": small_preset,
    "demo": demo_preset,
}

_AnyConfig = TypeVar("_AnyConfig", Config, TestConfig)


def parse_train(arguments: Sequence[str] | None = None) -> Config:
    """Command line -> checked Config; a bad value ends with one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    config = tyro.cli(Config, args=arguments, default=_defaults(arguments), description=Config.__doc__)
    for other in {"oasis", "spade", "gmm"} - {config.model}:
        for argument in arguments:
            if argument.startswith(f"--{other}."):
                print(f"warning: {argument} has no effect with --model {config.model}", file=sys.stderr)
    if config.model == "gmm":
        for argument, why in _idle_gmm_flags(arguments, config.gmm):
            print(f"warning: {argument} has no effect: {why}", file=sys.stderr)
    return _checked(config, check_train)


def _idle_gmm_flags(arguments: Sequence[str], gmm: GmmConfig) -> list[tuple[str, str]]:
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
    if gmm.priors != "random":
        reasons |= dict.fromkeys(random, "the priors are fitted or from a file; give --gmm.priors random")
    found = []
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--gmm.").removeprefix("no-").replace("-", "_")
        if argument.startswith("--gmm.") and name in reasons:
            found.append((argument, reasons[name]))
    return found


def _defaults(arguments: list[str]) -> Config:
    """The preset's values, with the optimiser's memory that the model was published with."""
    preset, model = _peek(arguments, "--preset"), _peek(arguments, "--model")
    if preset not in PRESETS:  # an unknown preset is refused by tyro, which lists the allowed ones
        preset = "spade" if model == "spade" else "oasis"
    config = PRESETS[preset]()
    gmm = _peek(arguments, "--gmm.preset")
    if gmm in GMM_PRESETS:
        config = replace(config, gmm=GMM_PRESETS[gmm]())
    if model in ("oasis", "gmm"):
        return replace(config, model=cast(Any, model), beta2=oasis_preset().beta2)
    return replace(config, model="spade", beta2=spade_preset().beta2) if model == "spade" else config


def parse_test(arguments: Sequence[str] | None = None) -> TestConfig:
    """Command line -> checked TestConfig; a bad value ends with one line on stderr and exit code 2."""
    return _checked(tyro.cli(TestConfig, args=arguments, description=TestConfig.__doc__), check_test)


def _peek(arguments: list[str], flag: str) -> str:
    """Value of a flag, "" without one: what sets the defaults that the other options override is needed before parsing."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
    return ""


def _checked(config: _AnyConfig, check: Callable[[Any], None]) -> _AnyConfig:
    try:
        check(config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    return config


def check_train(config: Config) -> None:
    """Raise ValueError naming flag, value and allowed range for the first option out of range."""
    at_least = {
        "batch_size": (config.batch_size, 1),
        "num_epochs": (config.num_epochs, 1),
        "num_workers": (config.num_workers, 0),
        "eval_slices": (config.eval_slices, 0),
        "cache_gb": (config.cache_gb, 0),
        "stop_patience": (config.stop_patience, 0),
    }
    at_least |= {f.name: (getattr(config, f.name), 1) for f in fields(config) if f.name.startswith("freq_")}
    for flag, (value, low) in at_least.items():
        _check_at_least(flag, value, low)
    for flag, value in {"lr_g": config.lr_g, "lr_d": config.lr_d}.items():
        _check_positive(flag, value)
    for flag, value in {"beta1": config.beta1, "beta2": config.beta2}.items():
        _check_fraction(flag, value)
    _check_gan("oasis", config.oasis)
    _check_gan("spade", config.spade)
    _check_oasis(config.oasis)
    check_gmm(config.gmm, "gmm.")
    if config.model == "gmm" and config.gmm.target_res:
        raise ValueError(
            f"--gmm.target_res {_words(config.gmm.target_res)}: images must keep the size of their label maps"
        )
    _check_at_least("spade.num_D", config.spade.num_D, 1)
    if config.which_iter != "latest" and not config.which_iter.isdigit():
        raise ValueError(f"--which_iter {config.which_iter}: must be latest or a number of images seen")
    _check_gpu_ids(config.gpu_ids)


def _check_gan(prefix: str, gan: OasisConfig | SpadeConfig) -> None:
    for f in fields(gan):
        if f.name.startswith("lambda_") or f.name == "neighbours":
            _check_at_least(f"{prefix}.{f.name}", getattr(gan, f.name), 0)
    for name, low in {"channels_G": 1, "channels_D": 2, "spade_hidden": 1}.items():
        _check_at_least(f"{prefix}.{name}", getattr(gan, name), low)
    _check_positive(f"{prefix}.spectral_gain", gan.spectral_gain)
    _check_fraction(f"{prefix}.ema_decay", gan.ema_decay)
    if gan.spade_ks % 2 == 0 or gan.spade_ks < 1:
        raise ValueError(f"--{prefix}.spade_ks {gan.spade_ks}: must be odd and positive")
    if gan.generator != "image" and gan.channels_G % 8:
        raise ValueError(
            f"--{prefix}.channels_G {gan.channels_G}: must be a multiple of 8 for --{prefix}.generator {gan.generator}"
        )
    if gan.mask_threshold is not None and not -1 < gan.mask_threshold < 1:
        raise ValueError(f"--{prefix}.mask_threshold {gan.mask_threshold}: must be between -1 and 1")


def _check_oasis(oasis: OasisConfig) -> None:
    for name, low in {"z_dim": 0, "max_class_weight": 0, "r1_gamma": 0, "r1_every": 1, "channels_W": 2}.items():
        _check_at_least(f"oasis.{name}", getattr(oasis, name), low)
    _check_positive("oasis.lr_w", oasis.lr_w)
    paired = [f"lambda_{name}" for name in ("l1", "edge", "vgg", "feature") if getattr(oasis, f"lambda_{name}") > 0]
    if oasis.unpaired and paired:
        raise ValueError(
            f"--oasis.{paired[0]} {getattr(oasis, paired[0])}: needs pairs, so must be 0 with --oasis.unpaired"
        )
    if oasis.images_from is not None and not oasis.unpaired:
        raise ValueError(f"--oasis.images_from {oasis.images_from}: only with --oasis.unpaired")
    if oasis.lambda_feature > 0 and oasis.critic == "none":
        raise ValueError(f"--oasis.lambda_feature {oasis.lambda_feature}: needs --oasis.critic wavelet")


def check_gmm(gmm: GmmConfig, prefix: str = "") -> None:
    """Raise ValueError naming flag, value and allowed range for the first option of the generator out of range."""

    def refuse(name: str, allowed: str) -> None:
        value = getattr(gmm, name)
        shown = _words(value) if isinstance(value, tuple) else value
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
    for name in ("output_div_by_n", "blur_range"):
        if getattr(gmm, name) < 1:
            refuse(name, "1 or more")
    for name in ("nonlin_std", "texture_fwhm", "bias_field_std", "noise_std", "noise_coils", "blur"):
        if not _is_range(getattr(gmm, name)) or min(getattr(gmm, name)) < 0:
            refuse(name, "one value of 0 or more, or low and high")
    for name in ("nonlin_scale", "bias_scale"):
        if not _is_range(getattr(gmm, name)) or min(getattr(gmm, name)) <= 0:
            refuse(name, "one value above 0, or low and high")
    for name in ("prior_means", "prior_stds"):
        if not _is_range(getattr(gmm, name)) or getattr(gmm, name)[-1] < 0:
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
        raise ValueError(f"--{prefix}thickness {_words(gmm.thickness)}: only with --{prefix}data_res")


def _is_range(values: Sequence[float]) -> bool:
    """One value, or low and high in this order."""
    return len(values) in (1, 2) and values[0] <= values[-1]


def _words(values: Sequence[Any]) -> str:
    return " ".join(str(value) if isinstance(value, str) else f"{value:g}" for value in values)


def _check_at_least(flag: str, value: float, low: float) -> None:
    if not value >= low:
        raise ValueError(f"--{flag} {value}: must be at least {low}")


def _check_positive(flag: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"--{flag} {value}: must be above 0")


def _check_fraction(flag: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"--{flag} {value}: must be in [0, 1)")


def check_test(config: TestConfig) -> None:
    """Raise ValueError naming flag, value and allowed range for the first option out of range."""
    if config.batch_size < 1:
        raise ValueError(f"--batch_size {config.batch_size}: must be at least 1")
    if config.draw < 1:
        raise ValueError(f"--draw {config.draw}: must be at least 1")
    if config.ckpt_iter not in ("best", "latest") and not config.ckpt_iter.isdigit():
        raise ValueError(f"--ckpt_iter {config.ckpt_iter}: must be best, latest or a number of images seen")
    _check_gpu_ids(config.gpu_ids)


def _check_gpu_ids(gpu_ids: str) -> None:
    if gpu_ids != "auto" and not gpu_ids.lstrip("-").isdigit():
        raise ValueError(f"--gpu_ids {gpu_ids}: must be auto, -1 for the CPU, or one GPU number")


def to_dict(config: Config | TestConfig) -> dict[str, Any]:
    """Plain JSON-able values, for checkpoints and manifests."""
    return cast(dict[str, Any], _plain(asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):  # as JSON gives it back, so that a resumed run's options compare equal
        return list(value)
    return str(value) if isinstance(value, Path) else value


def from_dict(data: dict[str, Any]) -> Config:
    """Config of a checkpoint; options that this version does not know are refused, those it added get defaults."""
    unknown = set(data) - {f.name for f in fields(Config)}
    if unknown:
        raise ValueError(f"the checkpoint has options that this version does not know: {sorted(unknown)}")
    data = dict(data)
    data["dataroot"], data["checkpoints_dir"] = Path(data["dataroot"]), Path(data["checkpoints_dir"])
    data["weights"] = None if data["weights"] is None else Path(data["weights"])
    oasis = dict(data["oasis"])
    oasis["images_from"] = None if oasis.get("images_from") is None else Path(oasis["images_from"])
    data["oasis"], data["spade"] = OasisConfig(**oasis), SpadeConfig(**data.get("spade", {}))
    data["gmm"] = gmm_from_dict(data["gmm"])
    return Config(**data)


def gmm_from_dict(data: dict[str, Any]) -> GmmConfig:
    """Options of a generator from JSON, where tuples came back as lists."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return GmmConfig(**values)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines ``--flag: was X, now Y`` for every option that shapes the model or its training and is not equal."""
    lines: list[str] = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if f"{prefix}{key}" in RUNTIME_OPTIONS:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"--{prefix}{key}: was {before}, now {after}")
    return lines
