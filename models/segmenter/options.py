"""Options of the segmenter, its presets and their ranges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dataloaders.io.schema import (
    AtLeast0,
    AtLeast1,
    BelowOne,
    Must,
    NotNegative,
    Positive,
    Share,
    Spacing,
    is_range,
    spelled,
)
from models import MethodOptions
from models.gmm.options import GMM_PRESETS, GmmConfig, stripped_brain

if TYPE_CHECKING:
    from config import Config

Network = Literal["unet", "basic", "dynunet"]
Margin = Annotated[
    tuple[float, ...],
    Must("nothing, one value of 0 or more, or low and high", lambda v: not v or (is_range(v) and v[0] >= 0)),
]
BASIC_LEVELS = 5  # MONAI's BasicUNet has no other number


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """Images to labels: network, data and losses. Folders of data are --dataroot, label_maps and results."""

    dims: Literal[2, 3] = 2
    """Dimensions of the network: volumes in patches, or slices."""
    neighbours: AtLeast0 = 1
    """2.5-D: image slices before and after that the network also sees; 0 for plain 2-D; of no effect in 3-D."""
    axis: Literal["axial", "coronal", "sagittal"] = "axial"
    """Slices of a 2-D network; of prepared data that of the folder."""
    network: Network = "dynunet"
    """MONAI's UNet (FetalSynthSeg's), BasicUNet (two convolutions a level, as SynthSeg's), or DynUNet (nnU-Net's)."""
    features: tuple[int, ...] = (16, 32, 64, 128, 128)
    """Channels of each level, finest first; basic has five levels."""
    norm: Literal["instance", "batch"] = "instance"
    """Normalisation of features."""
    activation: Literal["leakyrelu", "elu"] = "leakyrelu"
    """Activation; DynUNet always leaky ReLU."""
    dropout: BelowOne = 0.0
    """Dropout."""
    spacing: Spacing = ()
    """Voxel size in mm that images are brought to: one number, or right-left, front-back, head-foot; default the data's."""
    patch: tuple[int, ...] = (96,)
    """Voxels of a training patch and of the sliding window: one number, or one per axis of the network, in RAS order."""
    classes: str = "auto"
    """What to segment: auto for the labels as they are, tissue, structures, or a .json file {name: [values, names]}."""
    inputs: tuple[str, ...] = ()
    """Channels of --dataroot that the network sees, all at once; by default all of them."""

    real_fraction: Share = 1.0
    """Share of the training patches that is cut from real images; the others are synthetic."""
    label_maps: Path | None = None
    """Label maps to synthesise from while training; by default those of --dataroot's training split."""
    scheme: str = "auto"
    """What the label maps' labels are, as --scheme of scripts/generate.py: auto, or a table by name or file."""
    generation_labels: Path | None = None
    """.npy file of every label of the label maps, in SynthSeg's order: without side, left, right; instead of scheme."""
    generation_classes: Path | None = None
    """.npy file: intensity class of each of generation_labels; by default each its own."""
    output_labels: Path | None = None
    """.npy file: what each of generation_labels is learned as; 0 is background."""
    neutral_labels: int | None = None
    """How many of generation_labels have no side; by default found in FreeSurfer's table."""
    prior_means_file: Path | None = None
    """.npy file of priors of the class means of the label maps, (2, K) or (2R, K), instead of contrasts and tie_classes."""
    prior_stds_file: Path | None = None
    """.npy file of priors of the class standard deviations."""
    seeds: Path | None = None
    """Folder of scripts/make_seeds.py for the label maps; those without seeds are painted by their labels."""
    lesions: Path | None = None
    """Lesion masks for the label maps, as --lesions of scripts/generate.py."""
    tie_classes: bool = False
    """Give the label maps' labels of one class like intensities, apart by --gmm.tie_std; else each its own, as SynthSeg."""
    contrasts: str = "any"
    """Class means of label maps: any, mr (T1w, T2w, FLAIR), one of them, or a .json file {contrast: {class: [a, b]}}."""
    fluid_margin: Margin = ()
    """Label maps: mm of fluid around the brain that skull stripping leaves, drawn from 0..x or low..high; by default all."""
    rim: NotNegative = 0.0
    """Label maps: mm of fluid beside the cortex that count as cortex, painted between the two (partial volume)."""
    anatomies: AtLeast0 = 0
    """Label maps: so many new ones beside them, anatomies between and around them; validation stays with the given."""
    results: tuple[Path, ...] = ()
    """Folders of test.py or scripts/generate.py whose images are the synthetic share, instead of label_maps."""
    augment: bool = True
    """Deform, bias, blur and darken images from disk as the generator does its own (--gmm.*)."""
    foreground: Share = 0.7
    """Share of the patches that are laid over a voxel of a class; the others lie anywhere."""
    depth: AtLeast1 = 24
    """2-D: slices of a synthesised volume; intensities are scaled over all of them."""
    slices_per_volume: AtLeast1 = 16
    """2-D: slices that are cut from one drawn volume; patches come from 16 volumes in turn."""
    epoch_samples: AtLeast1 = 1000
    """Patches that --num_epochs counts as one pass."""

    lambda_dice: NotNegative = 1.0
    """Weight of the soft Dice loss, without background."""
    lambda_log_dice: NotNegative = 0.2
    """Weight of the mean negative logarithm of the soft Dice of the classes at hand, by which small ones are found early."""
    lambda_ce: NotNegative = 1.0
    """Weight of the cross-entropy."""
    batch_dice: bool = True
    """Soft Dice over all patches of a step together, or of each by itself."""
    lr: Positive = 1e-3
    """Learning rate of Adam."""
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    """Learning rate: constant, to 0 along half a cosine over --num_epochs, or a tenth after lr_patience evaluations."""
    lr_patience: AtLeast1 = 500
    """With plateau: evaluations without a better one after which the learning rate falls to a tenth."""
    patience: AtLeast0 = 0
    """Stop after so many evaluations without a better one; 0 never."""
    overlap: BelowOne = 0.25
    """Overlap of neighbouring windows, as a share of the window."""
    val_samples: AtLeast0 = 8
    """Synthetic patches to validate on where --dataroot has no images to validate on; 0 for none."""

    @property
    def spatial_patch(self) -> tuple[int, ...]:
        """Patch voxels, one per axis of the network."""
        return self.patch * self.dims if len(self.patch) == 1 else self.patch

    @property
    def stack(self) -> int:
        """Slices of one channel that the network sees at once."""
        return 1 if self.dims == 3 else 2 * self.neighbours + 1

    @property
    def synthetic(self) -> bool:
        """Whether any patches are synthetic."""
        return self.real_fraction < 1

    def check_together(self) -> None:
        """ValueError for options that do not go together."""
        self._check_network()
        if self.results and (self.label_maps or self.seeds or self.lesions):
            raise ValueError("--results and --label_maps, seeds or lesions cannot both be given")
        if not self.synthetic and (
            given := next((n for n in ("results", "label_maps", "seeds") if getattr(self, n)), "")
        ):
            raise ValueError(f"--{given}: of no use with --real_fraction 1, which has no synthetic share")
        if (self.prior_means_file or self.prior_stds_file) and self.seeds:
            raise ValueError("--prior_means_file or prior_stds_file and --seeds cannot both be given")
        if self.anatomies and (self.seeds or self.lesions):
            raise ValueError(f"--anatomies {self.anatomies} and --seeds or --lesions cannot both be given")
        if self.anatomies and (self.results or not self.synthetic):
            raise ValueError(f"--anatomies {self.anatomies}: is for images that are painted from label maps")
        if self.seeds and self.lesions:
            raise ValueError("--seeds and --lesions cannot both be given")

    def _check_network(self) -> None:
        if self.lambda_dice == self.lambda_log_dice == self.lambda_ce == 0:
            raise ValueError("--lambda_dice 0, --lambda_log_dice 0 and --lambda_ce 0: nothing would be learned")
        allowed, fits = {
            "unet": ("two or more numbers above 0", len(self.features) >= 2),
            "basic": ("five numbers for basic", len(self.features) == BASIC_LEVELS),
            "dynunet": ("three or more numbers above 0 for dynunet", len(self.features) >= 3),  # MONAI wants them
        }[self.network]
        if not fits or min(self.features) < 1:
            raise ValueError(f"--features {spelled(self.features)}: must be {allowed}")
        step = 2 ** (len(self.features) - 1)
        if len(self.patch) not in (1, self.dims) or any(n < step or n % step for n in self.patch):
            multiples = f"one or {self.dims} multiples of {step} for {len(self.features)} levels"
            raise ValueError(f"--patch {spelled(self.patch)}: must be {multiples}")


def _check(config: Config) -> None:
    if config.gmm.priors == "fit":
        raise ValueError("--gmm.priors fit: a segmenter has nothing to fit them to; give random, or a file of priors")


def _preset(batch_size: int, num_epochs: int, gmm: GmmConfig, segmenter: SegmenterConfig) -> dict[str, Any]:
    """With the generator of its family; one patch is an image, one epoch `epoch_samples`."""
    periods = {"freq_print": 200, "freq_preview": 2000, "freq_fid": 2000, "freq_save_latest": 1000}
    own = {"batch_size": batch_size, "num_epochs": num_epochs, "gmm": gmm, "segmenter": segmenter}
    return {"beta1": 0.9, **periods, **own}


# Of stripped adult heads, from label maps of whole ones alone.
STRIPPED: dict[str, Any] = {
    "spacing": (1.0,),
    "real_fraction": 0.0,
    "tie_classes": True,
    "contrasts": "mr",
    "fluid_margin": (0.5, 4.0),
    "rim": 1.0,
    "val_samples": 24,
}

SEGMENTER = MethodOptions(
    title="segmentation network",
    network="models.segmenter.method:Segmenter",
    workflow="engine.methods.segmenter:SegmenterWorkflow",
    groups=("segmenter", "gmm"),  # it trains on what the generator paints
    presets={
        # 2.5-D; nnU-Net's U-Net, narrow: the cortex needs convolutions at full size after the skip connection. MONAI's
        # UNet, which strides first, is twice as fast a patch, but draws even crisp images coarsely.
        "small": _preset(8, 10, GMM_PRESETS["synthseg"](), SegmenterConfig()),
        # CSF, grey and white matter of stripped adult heads on T1w, T2w or FLAIR, from label maps alone. A short training
        # wants many steps: at equal processor time two patches a step learn far more than eight.
        "brain": _preset(2, 28, stripped_brain(), SegmenterConfig(classes="tissue", **STRIPPED)),
        # 32 structures of T1w, left and right; a window that holds most of a head tells the sides apart.
        "structures": _preset(
            2,
            40,
            stripped_brain(),
            SegmenterConfig(
                **STRIPPED
                | {"classes": "structures", "contrasts": "T1w", "spacing": (1.5,), "patch": (112,)}
                | {"slices_per_volume": 24}
            ),
        ),
        # SynthSeg (Billot et al., Med. Image Anal. 2023): five levels, 24 features doubled, ELU, batch norm, 160³ at 1 mm.
        "synthseg": _preset(
            1,
            50,
            GMM_PRESETS["synthseg"](),
            SegmenterConfig(
                dims=3,
                network="basic",
                features=(24, 48, 96, 192, 384),
                norm="batch",
                activation="elu",
                spacing=(1.0,),
                patch=(160,),
                real_fraction=0.0,
                foreground=0.0,
                lr=1e-4,
                lambda_log_dice=0.0,
                schedule="constant",
                epoch_samples=5000,
            ),
        ),
        # FetalSynthSeg (Zalevskyi et al., MICCAI 2024): its U-Net, optimiser and 0.5 mm; 8 classes are those of the maps.
        # Its patches are whole volumes of 256³; 128³ with a sliding window need an eighth of the memory.
        "fetalsynthseg": _preset(
            1,
            1000,
            GMM_PRESETS["fetal"](),
            SegmenterConfig(
                dims=3,
                network="unet",
                features=(32, 64, 128, 256, 512),
                dropout=0.1,
                spacing=(0.5,),
                patch=(128,),
                real_fraction=0.0,
                lr=1e-4,
                lambda_log_dice=0.0,
                schedule="plateau",
                lr_patience=500,
                batch_dice=False,
                epoch_samples=500,
            ),
        ),
    },
    check=_check,
    runtime=(
        "segmenter.label_maps",
        "segmenter.seeds",
        "segmenter.lesions",
        "segmenter.results",
        "segmenter.patience",
        "segmenter.overlap",
        "segmenter.epoch_samples",
    ),
    rates=("segmenter.lr",),
)
