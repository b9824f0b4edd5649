"""Options of the adversarial methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from dataloaders.io.schema import AtLeast0, AtLeast1, BelowOne, Must, NotNegative, Positive, at_least
from models import MethodOptions

ParamFreeNorm = Literal["batch", "instance", "group"]
GeneratorName = Literal["image", "haar"]

# Weights of losses that compare a generated image with the real one of its label.
PAIRED_LOSSES = (
    *("lambda_l1", "lambda_label_l1", "lambda_edge", "lambda_spectrum", "lambda_vgg", "lambda_lite", "lambda_feature"),
)
WindowSize = Annotated[tuple[int, int], Must("multiples of 32", lambda size: all(x > 0 and x % 32 == 0 for x in size))]
AtLeast2 = Annotated[int, at_least(2)]


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """What every adversarial method has: the generator, its condition, its losses beside the adversarial one."""

    generator: GeneratorName = "image"
    """Generator: in the image domain, or on Haar coefficients at half the size: a quarter of the arithmetic."""
    norm: Literal["spade", "clade"] = "spade"
    """Conditioned norm: SPADE as published, or CLADE, which looks gamma and beta up by class and costs next to nothing."""
    param_free_norm: ParamFreeNorm = "batch"
    """Statistics beneath the conditioned norm: batch as published (over all ranks), instance or group for small batches."""
    channels_G: AtLeast1 = 64
    """Width of the generator's last stage; published 64. The same widths for all generators."""
    spade_hidden: AtLeast1 = 128
    """Hidden channels of the SPADE layers, about as many as labels or more; published 128. Most of the arithmetic."""
    spade_ks: Annotated[int, Must("odd and positive", lambda size: size > 0 and size % 2 == 1)] = 3
    """Kernel size of the SPADE convolutions; odd."""
    spectral_gain: Positive = 0.02
    """Initial gain of the spectrally normalised convolutions; published 0.02. 1 is steadier at small batches."""
    grain: bool = False
    """Noise for every pixel in the three finest stages (StyleGAN), so that tissue has a texture of its own."""
    neighbours: AtLeast0 = 0
    """2.5-D: label slices before and after that are also given to the generator; 0 for plain 2-D."""
    slice_position: bool = False
    """2.5-D: also give the generator the slice's place in its scan, -1 for the first and 1 for the last."""
    lambda_l1: NotNegative = 0.0
    """Weight of the L1 distance to the real image; needs pairs."""
    lambda_label_l1: NotNegative = 0.0
    """Weight of the same distance where every label counts alike, small structures as much as large ones; needs pairs."""
    lambda_edge: NotNegative = 0.0
    """Weight of the L1 distance between the image gradients of generated and real; needs pairs."""
    lambda_spectrum: NotNegative = 0.0
    """Weight of the L1 distance between the log power spectra of generated and real, for texture; needs pairs."""
    lambda_vgg: NotNegative = 0.0
    """Weight of the VGG19 perceptual loss; SPADE uses 10; needs pairs and the published weights (see --weights)."""
    lambda_lite: NotNegative = 0.0
    """Weight of the perceptual loss of EfficientNet-Lite1, whose weights come with the installation; 5 is a start; pairs."""
    lambda_feature: NotNegative = 0.0
    """Weight of feature matching in SPADE's patches, OASIS's wavelet critic or else its U-Net; 10 in SPADE; needs pairs."""
    lambda_mask: NotNegative = 0.0
    """Weight of the mask loss: how far the generated body is from the label's; 0 turns it off, 1 is a start."""
    mask_loss: Literal["dice", "bce"] = "bce"
    """Form of the mask loss: binary cross-entropy, which has a slope wherever a pixel is wrong, or soft Dice."""
    mask_threshold: Annotated[float, Must("between -1 and 1", lambda level: -1 < level < 1)] | None = None
    """Intensity in [-1, 1] above which a pixel is body for the mask loss; by default found in the training images."""
    ema_decay: BelowOne = 0.999
    """Decay of the generator's moving average per step; OASIS uses 0.9999 at batch 32; 0 for none."""
    crop: WindowSize | None = None
    """Train on windows H W at random places of the slices, whose images are still made whole; by default on whole slices."""
    reuse_fake: bool = True
    """Train the discriminators on the images of the generator's own step instead of drawing new ones: a seventh faster."""

    @property
    def row(self) -> int:
        """Neighbouring slices of a case, one after the other, that batches are made of."""
        return 1

    def check_together(self) -> None:
        """ValueError where the generator's width does not fit its kind, or the mask loss not what is trained on."""
        if self.crop is not None and self.lambda_mask > 0:
            raise ValueError(
                f"--lambda_mask {self.lambda_mask:g}: must be 0 with --crop, which cuts dark holes of the body open, so "
                "that they look like background"
            )
        if self.generator != "image" and self.channels_G % 4:
            raise ValueError(
                f"--channels_G {self.channels_G}: must be a multiple of 4 for --generator {self.generator}"
            )


@dataclass(frozen=True, kw_only=True)
class OasisConfig(GanConfig):
    """OASIS (Schönfeld et al., ICLR 2021): 3-D noise, N+1-class U-Net, LabelMix; optional wavelet critic, unpaired mode."""

    channels_D: AtLeast2 = 128
    """Width of the discriminator's first stage; published 128."""
    z_dim: AtLeast0 = 64
    """Length of the noise vector that is joined to every label pixel (3-D noise); 0 turns noise off."""
    lambda_segment: NotNegative = 1.0
    """Weight of the generator's segmentation loss."""
    lambda_labelmix: NotNegative = 5.0
    """Weight of the LabelMix consistency loss; 10 in the paper for ADE20K and COCO, 5 for Cityscapes; 0 turns it off."""
    balance_classes: bool = True
    """Weight each class by its inverse pixel frequency in the batch (paper, eq. 2); air counts like any other class."""
    max_class_weight: NotNegative = 100.0
    """Upper limit of a class weight, so that a lesion of two pixels does not drive a whole step; 0 for no limit."""
    critic: Literal["none", "wavelet"] = "none"
    """Second discriminator of whole images, without labels, on Haar coefficients; always there in unpaired mode."""
    channels_W: AtLeast2 = 128
    """Width of the wavelet critic's first stage; published 128."""
    lambda_critic: NotNegative = 1.0
    """Weight of the generator's loss against the wavelet critic."""
    lr_w: Positive = 4e-4
    """Learning rate of the wavelet critic; above 5e-4 the predecessor's curves show collapses."""
    r1_gamma: NotNegative | None = None
    """Weight of the critic's gradient penalty R1 (gamma / 2 · squared gradient); default 0.0002 · pixels / batch."""
    r1_every: AtLeast1 = 16
    """Apply R1 every so many steps, that many times as strongly (lazy regularisation)."""
    unpaired: bool = False
    """Labels and images that do not belong together: segmentation of fakes plus realism by the wavelet critic."""
    images_from: Path | None = None
    """Unpaired: folder whose training images to imitate; labels are never read, nor needed. Default: --dataroot."""

    def check_together(self) -> None:
        """ValueError also where a loss needs pairs or a critic that are not there."""
        super().check_together()
        for name in PAIRED_LOSSES if self.unpaired else ():
            if getattr(self, name) > 0:
                raise ValueError(
                    f"--{name} {getattr(self, name)}: needs pairs, so must be 0 with --unpaired (as in small_unpaired)"
                )
        if self.images_from is not None and not self.unpaired:
            raise ValueError(f"--images_from {self.images_from}: only with --unpaired")


@dataclass(frozen=True, kw_only=True)
class SpadeConfig(GanConfig):
    """SPADE (Park et al., CVPR 2019): no noise, multi-scale patch discriminator, hinge, feature matching, VGG."""

    lambda_feature: NotNegative = 10.0
    """Weight of feature matching in the patch discriminator; published 10."""
    lambda_vgg: NotNegative = 10.0
    """Weight of the VGG19 perceptual loss; published 10; needs the published weights (see --weights), 0 goes without."""
    ema_decay: BelowOne = 0.0
    """Decay of the generator's moving average per step; published without, so 0."""
    channels_D: AtLeast2 = 64
    """Width of the patch discriminator's first layer; published 64."""
    num_D: AtLeast1 = 2
    """Scales of the patch discriminator, each half as fine as the one before; published 2."""
    detail_D: NotNegative = 0.0
    """Gain at which single slices are judged by what pixels differ from those around as well; published 0, 10 is a start."""
    slices_D: AtLeast1 = 1
    """Neighbouring slices that a second discriminator judges at once, whether they differ as real ones do; 1 for none."""

    @property
    def row(self) -> int:
        """The slices that are judged at once."""
        return self.slices_D


# For a dozen patients: momentum, higher rates and two images a step reach a picture sooner than published.
FEW: dict[str, Any] = {"batch_size": 2, "lr_g": 4e-4, "lr_d": 1e-3, "beta1": 0.5}
# Minutes on two CPU cores.
DEMO: dict[str, Any] = FEW | {
    "num_epochs": 26,
    "freq_print": 200,
    "freq_preview": 1200,
    "freq_fid": 1200,
    "freq_save_latest": 1200,
    "eval_slices": 16,
}
DEMO_NETWORKS: dict[str, Any] = {
    "channels_G": 16,
    "channels_D": 16,
    "spade_hidden": 64,  # what tells dozens of labels apart; with 16 small structures have their neighbours' intensity
    "param_free_norm": "instance",
    "spectral_gain": 1.0,
}
# For few patients (docs/methods.md): pairs and the labels above and below say where things are, the discriminator, the
# spectrum and noise how they look.
RECIPE: dict[str, Any] = {
    "neighbours": 1,
    "lambda_l1": 5.0,
    "lambda_label_l1": 1.0,
    "lambda_lite": 5.0,
    "lambda_spectrum": 0.3,
    "lambda_vgg": 0.0,
    "grain": True,
    "ema_decay": 0.999,
}
SMALL_OASIS: dict[str, Any] = {"channels_G": 24, "channels_D": 48, "channels_W": 32, "z_dim": 32, "spectral_gain": 1.0}
DEMO_OASIS: dict[str, Any] = DEMO_NETWORKS | {"channels_W": 16, "z_dim": 8, "lambda_mask": 1.0}

TELLING = (
    *("generator", "norm", "param_free_norm", "channels_G", "channels_D", "spade_hidden", "z_dim", "grain"),
    *("neighbours", "slice_position", "slices_D", "detail_D", "critic", "unpaired", "lambda_segment"),
    *("lambda_labelmix", "lambda_l1", "lambda_label_l1", "lambda_edge", "lambda_spectrum", "lambda_vgg"),
    *("lambda_lite", "lambda_feature", "lambda_mask", "ema_decay", "crop"),
)

OASIS = MethodOptions(
    title="OASIS: adversarial, 3-D noise, segmentation discriminator",
    network="models.gan.oasis:Oasis",
    workflow="engine.methods.gan:OasisWorkflow",
    groups=("oasis",),
    presets={
        # A quarter of the published width: 128² in hours on a modest GPU, overnight on a CPU.
        "small": {"freq_fid": 10000, "oasis": OasisConfig(**SMALL_OASIS, **RECIPE)},
        "demo": DEMO | {"oasis": OasisConfig(**DEMO_OASIS, **RECIPE)},
        "oasis": {"lr_g": 4e-4},  # as published for Cityscapes, but for its batch of 20
        # Without pairs, from which most of the recipe learns.
        "small_unpaired": {"freq_fid": 10000, "oasis": OasisConfig(unpaired=True, **SMALL_OASIS)},
        "demo_unpaired": DEMO | {"oasis": OasisConfig(unpaired=True, **DEMO_OASIS)},
    },
    telling=TELLING,
    runtime=("oasis.images_from",),
    rates=("oasis.lr_w",),
)
# Published with two time-scale rates around 2e-4 and its own beta2.
SPADE = MethodOptions(
    title="SPADE: adversarial, patch discriminator",
    network="models.gan.spade:SpadeGan",
    workflow="engine.methods.gan:GanWorkflow",
    groups=("spade",),
    presets={
        # What docs/results.md measures, after a quarter of these epochs.
        "small": FEW
        | {
            "num_epochs": 20,
            "lr_decay": "cosine",
            "beta2": 0.9,
            "freq_preview": 5000,
            "freq_fid": 5000,
            "freq_save_latest": 2000,
            "spade": SpadeConfig(
                **DEMO_NETWORKS | {"spade_hidden": 128},
                detail_D=10.0,
                slices_D=2,  # takes thousands of images to learn, which the minutes of `demo` do not have
                **RECIPE,
            ),
        },
        "demo": DEMO | {"beta2": 0.9, "spade": SpadeConfig(**DEMO_NETWORKS, detail_D=10.0, **RECIPE)},
        "spade": {"beta2": 0.9},
    },
    telling=TELLING,
)
