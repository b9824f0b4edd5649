"""Options of the lesion generator, its presets and their ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from models import MethodOptions
from models.ranges import check_at_least, check_fraction, check_positive, words

if TYPE_CHECKING:
    from config import Config

PUBLISHED_ALPHAS = (0.5, 0.8, 1.1, 1.4, 1.7, 2.1, 2.4, 2.7)  # the step from 1.7 to 2.1 is the paper's
PATCH_STEP = 8  # the encoder halves three times


@dataclass(frozen=True, kw_only=True)
class LesionConfig:
    """U-Net that paints lesions into scans without any (Salem et al., IEEE Access 2019)."""

    dims: Literal[2, 3] = 2
    """Convolutions in the slice, or in the volume, whose slices are then read a case at a time."""
    width: int = 32
    """Channels at full resolution; published 32."""
    levels: Literal["soft", "bands"] = "soft"
    """What tells the brightness of a lesion: its intensity beside white matter, or the published masks by band."""
    alphas: tuple[float, ...] = PUBLISHED_ALPHAS
    """Bands: lower limits, in standard deviations of the grey matter above its mean."""
    everywhere: bool = False
    """Bands of the whole scan as published, cortex included, instead of the lesions' alone."""
    level_blur: float = 1.0
    """Blur the intensities of soft levels in training by up to this sigma in pixels: carried lesions are not sharp."""
    prelu: Literal["channel", "element"] = "channel"
    """One slope per channel, or one per channel and pixel as published, which ties the network to its patch size."""
    residual: bool = True
    """Predict what lesions change in the image, instead of the whole image as published."""
    branches: Literal["all", "fused"] = "all"
    """Decode the latent maps of each modality alone and their maximum, as published, or the maximum alone."""
    patch: int = 64
    """Side of the training patches in pixels (3-D: of cubes); published 64."""
    patches: int = 4
    """Patches cut from each slice of a batch (3-D: blocks from each case)."""
    sampling: Literal["lesions", "grid"] = "lesions"
    """Patches around lesions, from slices that have some; or from the published grid over all slices."""
    lesion_share: float = 0.75
    """Share of the patches that hold a lesion; the others lie anywhere in the body."""
    stride: int = 32
    """Grid: distance of neighbouring patches; published 32."""
    lesion_weight: float = 10.0
    """The error counts 1 + this in lesions and the pixels beside them; published 0."""
    lambda_variance: float = 1.0
    """Weight of the variance of the latent maps over modalities; published 1."""
    ema_decay: float = 0.99
    """Decay of the moving average per step; published without, so 0."""
    composite: bool = True
    """Keep the scan outside of the lesions and blend at their borders; published: the whole image is generated."""
    reach: int = 2
    """Composite: how many pixels beyond a lesion may change."""
    feather: float = 1.0
    """Composite: sigma of the blend at the border of that zone in pixels."""
    windows: bool = False
    """Synthesise in overlapping patches and average them, as published, instead of whole slices."""
    window_stride: int = 16
    """Windows: distance of neighbouring patches; published 16."""


def check_lesion(lesion: LesionConfig) -> None:
    """Raise ValueError naming flag, value and allowed range for the first option out of range."""
    for name in ("width", "patches", "stride", "window_stride"):
        check_at_least(f"lesion.{name}", getattr(lesion, name), 1)
    for name in ("level_blur", "lesion_weight", "lambda_variance", "reach", "feather"):
        check_at_least(f"lesion.{name}", getattr(lesion, name), 0)
    check_fraction("lesion.ema_decay", lesion.ema_decay)
    if not 0 <= lesion.lesion_share <= 1:
        raise ValueError(f"--lesion.lesion_share {lesion.lesion_share}: must be in [0, 1]")
    if lesion.patch < PATCH_STEP or lesion.patch % PATCH_STEP:
        raise ValueError(f"--lesion.patch {lesion.patch}: must be a multiple of {PATCH_STEP}")
    if list(lesion.alphas) != sorted(set(lesion.alphas)) or not lesion.alphas:
        raise ValueError(f"--lesion.alphas {words(lesion.alphas)}: must rise")
    check_positive("lesion.alphas", len(lesion.alphas))
    used = {"stride": lesion.sampling == "grid", "window_stride": lesion.windows}
    for name in (name for name, needed in used.items() if needed):
        if getattr(lesion, name) > lesion.patch:
            raise ValueError(
                f"--lesion.{name} {getattr(lesion, name)}: must be at most --lesion.patch {lesion.patch}, "
                "or pixels between the patches are left out"
            )
    if lesion.prelu == "element" and not lesion.windows:
        raise ValueError("--lesion.prelu element: fits patches only, so it needs --lesion.windows")
    if lesion.dims == 3 and lesion.sampling == "grid":
        raise ValueError("--lesion.sampling grid: is the published one of slices; use lesions with --lesion.dims 3")
    if lesion.everywhere and lesion.levels != "bands":
        raise ValueError("--lesion.everywhere: only with --lesion.levels bands")


def _check(config: Config) -> None:
    check_lesion(config.lesion)


PUBLISHED: dict[str, Any] = {"lr_g": 1e-3, "beta1": 0.9, "num_epochs": 70}

LESION = MethodOptions(
    network="models.lesion.method:LesionUnet",
    workflow="engine.methods.lesion:LesionWorkflow",
    groups=("lesion",),
    presets={
        "lesion": PUBLISHED,  # composite in feathered lesions, patches around lesions; rates and memory as published
        # As published, with 32 patches a step; filling and levels of the whole scan, for data of --fill salem2019.
        "salem2019": {
            **PUBLISHED,
            "lesion": LesionConfig(
                levels="bands",
                everywhere=True,
                residual=False,
                sampling="grid",
                lesion_weight=0.0,
                ema_decay=0.0,
                composite=False,
                windows=True,
            ),
        },
        "demo": {  # ten minutes on a CPU: half the width, only the fused branch
            **PUBLISHED,
            "batch_size": 4,
            "num_epochs": 30,
            "lr_d": 1e-3,  # of no effect; what runs of version 0.1 say, so that they can be resumed
            "freq_print": 200,
            "freq_preview": 1200,
            "freq_fid": 1200,
            "freq_save_latest": 1200,
            "eval_slices": 16,
            "lesion": LesionConfig(width=16, branches="fused"),
        },
    },
    check=_check,
)
