"""Options of the lesion generator, its presets and their ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from dataloaders.io.schema import AtLeast0, AtLeast1, BelowOne, Must, NotNegative, Share
from models import MethodOptions

PUBLISHED_ALPHAS = (0.5, 0.8, 1.1, 1.4, 1.7, 2.1, 2.4, 2.7)  # the step from 1.7 to 2.1 is the paper's
Rising = Annotated[tuple[float, ...], Must("one or more that rise", lambda v: bool(v) and list(v) == sorted(set(v)))]
PATCH_STEP = 8  # the encoder halves three times
Patch = Annotated[int, Must(f"a multiple of {PATCH_STEP}", lambda side: side > 0 and side % PATCH_STEP == 0)]


@dataclass(frozen=True, kw_only=True)
class LesionConfig:
    """U-Net that paints lesions into scans without any (Salem et al., IEEE Access 2019)."""

    dims: Literal[2, 3] = 2
    """Convolutions in the slice, or in the volume, whose slices are then read a case at a time."""
    width: AtLeast1 = 32
    """Channels at full resolution; published 32."""
    levels: Literal["soft", "bands"] = "soft"
    """What tells the brightness of a lesion: its intensity beside white matter, or the published masks by band."""
    alphas: Rising = PUBLISHED_ALPHAS
    """Bands: lower limits, in standard deviations of the grey matter above its mean."""
    everywhere: bool = False
    """Bands of the whole scan as published, cortex included, instead of the lesions' alone."""
    level_blur: NotNegative = 1.0
    """Blur the intensities of soft levels in training by up to this sigma in pixels: carried lesions are not sharp."""
    prelu: Literal["channel", "element"] = "channel"
    """One slope per channel, or one per channel and pixel as published, which ties the network to its patch size."""
    residual: bool = True
    """Predict what lesions change in the image, instead of the whole image as published."""
    branches: Literal["all", "fused"] = "all"
    """Decode the latent maps of each modality alone and their maximum, as published, or the maximum alone."""
    patch: Patch = 64
    """Side of the training patches in pixels (3-D: of cubes); published 64."""
    patches: AtLeast1 = 4
    """Patches cut from each slice of a batch (3-D: blocks from each case)."""
    sampling: Literal["lesions", "grid"] = "lesions"
    """Patches around lesions, from slices that have some; or from the published grid over all slices."""
    lesion_share: Share = 0.75
    """Share of the patches that hold a lesion; the others lie anywhere in the body."""
    stride: AtLeast1 = 32
    """Grid: distance of neighbouring patches; published 32."""
    lesion_weight: NotNegative = 10.0
    """The error counts 1 + this in lesions and the pixels beside them; published 0."""
    lambda_variance: NotNegative = 1.0
    """Weight of the variance of the latent maps over modalities; published 1."""
    ema_decay: BelowOne = 0.99
    """Decay of the moving average per step; published without, so 0."""
    composite: bool = True
    """Keep the scan outside of the lesions and blend at their borders; published: the whole image is generated."""
    reach: AtLeast0 = 2
    """Composite: how many pixels beyond a lesion may change."""
    feather: NotNegative = 1.0
    """Composite: sigma of the blend at the border of that zone in pixels."""
    windows: bool = False
    """Synthesise in overlapping patches and average them, as published, instead of whole slices."""
    window_stride: AtLeast1 = 16
    """Windows: distance of neighbouring patches; published 16."""

    def check_together(self) -> None:
        """ValueError for options that do not go together."""
        for name, used in {"stride": self.sampling == "grid", "window_stride": self.windows}.items():
            if used and getattr(self, name) > self.patch:
                raise ValueError(
                    f"--{name} {getattr(self, name)}: must be at most --patch {self.patch}, "
                    "or pixels between the patches are left out"
                )
        if self.prelu == "element" and not self.windows:
            raise ValueError("--prelu element: fits patches only, so it needs --windows")
        if self.dims == 3 and self.sampling == "grid":
            raise ValueError("--sampling grid: is the published one of slices; use lesions with --dims 3")
        if self.everywhere and self.levels != "bands":
            raise ValueError("--everywhere: only with --levels bands")


PUBLISHED: dict[str, Any] = {"lr_g": 1e-3, "beta1": 0.9, "num_epochs": 70}

LESION = MethodOptions(
    title="lesion U-Net",
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
)
