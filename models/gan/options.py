"""Options of the adversarial methods."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models import MethodOptions
from models.ranges import check_at_least, check_fraction, check_positive

if TYPE_CHECKING:
    from config import Config

ParamFreeNorm = Literal["batch", "instance", "group"]
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
    """Unpaired: folder whose training images to imitate; labels are never read, nor needed. Default: --dataroot."""


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


def check_gan(prefix: str, gan: OasisConfig | SpadeConfig) -> None:
    """Raise ValueError naming flag, value and allowed range for the first option out of range that all GANs have."""
    for f in fields(gan):
        if f.name.startswith("lambda_") or f.name == "neighbours":
            check_at_least(f"{prefix}.{f.name}", getattr(gan, f.name), 0)
    for name, low in {"channels_G": 1, "channels_D": 2, "spade_hidden": 1}.items():
        check_at_least(f"{prefix}.{name}", getattr(gan, name), low)
    check_positive(f"{prefix}.spectral_gain", gan.spectral_gain)
    check_fraction(f"{prefix}.ema_decay", gan.ema_decay)
    if gan.spade_ks % 2 == 0 or gan.spade_ks < 1:
        raise ValueError(f"--{prefix}.spade_ks {gan.spade_ks}: must be odd and positive")
    if gan.generator != "image" and gan.channels_G % 8:
        raise ValueError(
            f"--{prefix}.channels_G {gan.channels_G}: must be a multiple of 8 for --{prefix}.generator {gan.generator}"
        )
    if gan.mask_threshold is not None and not -1 < gan.mask_threshold < 1:
        raise ValueError(f"--{prefix}.mask_threshold {gan.mask_threshold}: must be between -1 and 1")


def check_oasis(oasis: OasisConfig) -> None:
    """The same for the options of OASIS alone."""
    for name, low in {"z_dim": 0, "max_class_weight": 0, "r1_gamma": 0, "r1_every": 1, "channels_W": 2}.items():
        check_at_least(f"oasis.{name}", getattr(oasis, name), low)
    check_positive("oasis.lr_w", oasis.lr_w)
    paired = [f"lambda_{name}" for name in ("l1", "edge", "vgg", "feature") if getattr(oasis, f"lambda_{name}") > 0]
    if oasis.unpaired and paired:
        raise ValueError(
            f"--oasis.{paired[0]} {getattr(oasis, paired[0])}: needs pairs, so must be 0 with --oasis.unpaired"
        )
    if oasis.images_from is not None and not oasis.unpaired:
        raise ValueError(f"--oasis.images_from {oasis.images_from}: only with --oasis.unpaired")
    if oasis.lambda_feature > 0 and oasis.critic == "none":
        raise ValueError(f"--oasis.lambda_feature {oasis.lambda_feature}: needs --oasis.critic wavelet")


def _check_oasis(config: Config) -> None:
    check_gan("oasis", config.oasis)
    check_oasis(config.oasis)


def _check_spade(config: Config) -> None:
    check_gan("spade", config.spade)
    check_at_least("spade.num_D", config.spade.num_D, 1)


# Minutes on two CPU cores; momentum, two images a step and the mask loss reach a picture sooner than published.
DEMO: dict[str, Any] = {
    "batch_size": 2,
    "num_epochs": 26,
    "lr_g": 4e-4,
    "lr_d": 1e-3,
    "beta1": 0.5,
    "freq_print": 200,
    "freq_preview": 1200,
    "freq_fid": 1200,
    "freq_save_latest": 1200,
    "eval_slices": 16,
}
DEMO_NETWORKS: dict[str, Any] = {
    "channels_G": 16,
    "channels_D": 16,
    "spade_hidden": 16,
    "param_free_norm": "instance",
    "spectral_gain": 1.0,
    "ema_decay": 0.99,
}

OASIS = MethodOptions(
    network="models.gan.oasis:Oasis",
    workflow="engine.methods.gan:OasisWorkflow",
    groups=("oasis",),
    presets={
        "oasis": {},  # as published
        # A quarter of the published width: 128² in hours on a modest GPU, overnight on a CPU.
        "small": {
            "oasis": OasisConfig(
                channels_G=24, channels_D=48, channels_W=32, spade_hidden=48, z_dim=32, spectral_gain=1.0
            )
        },
        "demo": DEMO | {"oasis": OasisConfig(channels_W=16, z_dim=8, lambda_mask=1.0, **DEMO_NETWORKS)},
    },
    check=_check_oasis,
    runtime=("oasis.images_from",),
)
# Published with two time-scale rates around 2e-4 and its own beta2.
SPADE = MethodOptions(
    network="models.gan.spade:SpadeGan",
    workflow="engine.methods.gan:GanWorkflow",
    groups=("spade",),
    presets={
        "spade": {"beta2": 0.9},
        "small": {
            "beta2": 0.9,
            "spade": SpadeConfig(channels_G=24, channels_D=32, spade_hidden=48, spectral_gain=1.0),
        },
        "demo": DEMO | {"beta2": 0.9, "spade": SpadeConfig(**DEMO_NETWORKS)},
    },
    check=_check_spade,
)
