"""study.toml: everything that a study depends on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ValidationInfo

from config import parse_train
from dataloaders.io.files import read_toml
from dataloaders.io.schema import (
    NAME,
    TEXT,
    AtLeast0,
    AtLeast1,
    Mismatch,
    Must,
    Name,
    NotNegative,
    Share,
    Text,
    at_least,
    check,
    decode,
)
from models.gmm.options import GMM_PRESETS, GmmConfig

Contrast = Literal["t1", "random"]


def _from_study(path: Path, info: ValidationInfo) -> Path:
    """Relative paths start from the study's folder."""
    return Path(str(info.context), path.expanduser())


StudyPath = Annotated[Path, AfterValidator(_from_study)]
OrNothing = Annotated[str, Must(NAME.words, lambda name: not name or NAME.test(name))]
ToolNames = Annotated[
    tuple[str, ...], Must("one or more tools, each once", lambda names: 0 < len(names) == len(set(names)))
]
Range = Annotated[tuple[float, float], Must("low and high", lambda pair: 0 <= pair[0] < pair[1])]
Fractions = Annotated[
    tuple[float, float, float],
    Must("three fractions, the first and the last above 0", lambda f: min(f) >= 0 and f[0] > 0 and f[2] > 0),
]
Methods = Annotated[
    tuple[Literal["gmm", "gan"], ...],
    Must("gmm, gan, each once at most", lambda names: 0 < len(names) == len(set(names))),
]
PATH_SETTINGS = ("weights", "checkpoint", "model", "license")  # of tools; relative ones start from the study's folder


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """A BIDS folder of T1w scans; several may be listed."""

    source: StudyPath
    """BIDS folder."""
    modality: str = "T1w"
    """Suffix of the scans."""
    subjects: tuple[str, ...] = ()
    """Subjects to take, as sub-01; all by default."""
    exclude: tuple[str, ...] = ()
    """Cases or subjects to leave out."""
    filter: tuple[str, ...] = ()
    """Of several files of a kind those with key=value, as "run=2"; see --bids_filter of prepare_data.py."""
    limit: AtLeast0 = 0
    """Take this many subjects, the first in order of their names; 0 for all."""
    stripped: bool = False
    """The scans show the brain alone; every stripper then takes what is above zero."""
    brain_masks: StudyPath | None = None
    """Folder with *_desc-brain_mask.nii.gz, taken instead of stripping."""


@dataclass(frozen=True, kw_only=True)
class CaseOptions:
    """One scan by its files, where there is no BIDS folder."""

    id: Name
    """Name of the case: letters, digits, '.', '_', '-'."""
    t1: StudyPath
    """T1w scan, .nii or .nii.gz."""
    patient: OrNothing = ""
    """Scans of one patient are never in two splits; by default the case itself."""
    brain: StudyPath | None = None
    """Brain mask on the scan's grid, taken instead of stripping."""
    stripped: bool = False
    """The scan shows the brain alone."""
    reference: StudyPath | None = None
    """Labels drawn by hand on the scan's grid: 1 GM, 2 WM, 3 CSF, or what [tissue.tables] labels says. Of a BIDS folder
    *_dseg."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Who is trained on and who is tested on: by patient."""

    test: tuple[str, ...] = ()
    """Patients to test on; by default drawn."""
    val: tuple[str, ...] = ()
    """Patients whose synthetic slices nnU-Net validates on."""
    fractions: Fractions = (0.6, 0.0, 0.4)
    """Train, validation and test, where no patients are named."""


@dataclass(frozen=True, kw_only=True)
class HarmoniseOptions:
    """Orientation, bias field, voxel size, contrast."""

    method: Literal["rescale", "synthsr", "none"] = "rescale"
    """rescale: N4 and the scan's own contrast; synthsr: strip and segment SynthSR's image instead; none: as it is."""
    even_slices: bool = True
    """Take off brightness that alternates between slices of 2-D scans (not with none)."""
    n4: bool = True
    """Correct the bias field (not with none)."""
    spacing: tuple[NotNegative, NotNegative, NotNegative] = (1.0, 1.0, 0.0)
    """Voxel size in mm, right-left, front-back, head-foot; 0 keeps the scan's."""


@dataclass(frozen=True, kw_only=True)
class StripOptions:
    """Skull stripping."""

    tools: ToolNames = ("deepbet",)
    """Strippers: deepbet, bet, synthstrip, hdbet, or a variant of [tools]."""


@dataclass(frozen=True, kw_only=True)
class CropOptions:
    """The box around the brain that segmenters get."""

    margin_mm: NotNegative = 5.0
    """Kept around the brain."""


@dataclass(frozen=True, kw_only=True)
class SegmenterOptions:
    """Segmentation."""

    tools: ToolNames = ("atlas",)
    """Segmenters: atlas, hmrf, fast, fastsurfer, samseg, synthseg, synthseg-torch, own, labels (those that came with the
    scans), or a variant of [tools]."""


@dataclass(frozen=True, kw_only=True)
class TissueOptions:
    """Labels to GM, WM, CSF."""

    tables: dict[str, StudyPath] = field(default_factory=dict)
    """Table of a tool instead of the one in dataloaders/labelmaps/tables, as labels = "tissues.tsv"."""
    fluid_is_rest: tuple[str, ...] = ()
    """Segmenters that leave fluid around the brain without a label, as people who draw and FreeSurfer do: what they leave
    of the brain mask is CSF."""


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """What a tissue map must be like to be used."""

    fraction: Range = (0.01, 0.70)
    """Of each tissue in the brain; young brains that were stripped tightly have 2 % of fluid."""
    litres: Range = (0.8, 2.0)
    """Volume of the brain."""
    largest: Share = 0.95
    """Share of the brain in its largest connected part, at least."""
    contrast: bool = True
    """Mean intensity on T1w must rise from CSF to GM to WM."""


@dataclass(frozen=True, kw_only=True)
class SliceOptions:
    """Axial slices of the brain."""

    size: Annotated[int, at_least(32)] = 256
    """Pixels, height and width."""
    count: Annotated[int, at_least(-1)] = 0
    """Slices of a case to synthesise from, spread evenly; 0 for all, -1 for the central one alone."""
    min_area: Share = 0.25
    """Leave out slices with less brain than this share of the largest."""


@dataclass(frozen=True, kw_only=True)
class SynthesiseOptions:
    """Synthetic slices by segmenter and stripper."""

    methods: Methods = ("gmm",)
    """Generators: gmm, and gan (train.py and test.py on the real training slices; the labels are the gmm's)."""
    train: AtLeast1 = 600
    """Images of a combination, over all its training and validation cases."""
    test: AtLeast0 = 60
    """Images of a combination, over all its test cases; 0 for none."""
    subclasses: AtLeast1 = 3
    """t1: Gaussians of each tissue, by intensity; 1 paints a tissue in one, as the original study did."""
    contrast: Contrast = "t1"
    """t1: intensities as measured in the training scans; random: any contrast."""
    gmm: dict[str, Any] = field(default_factory=dict)
    """Options of the generator to change, by their names in models/gmm/options.py."""
    gan: tuple[str, ...] = ("--preset", "small", "--spade.neighbours", "0", "--num_epochs", "50")
    """Options of train.py."""

    def __post_init__(self) -> None:
        """The label slices to paint are drawn one by one: whatever lies beside one of them is none of its neighbours."""
        own = parse_train(["--name", "gan", "--dataroot", "data", *self.gan]).own if "gan" in self.methods else None
        for option, alone in (("neighbours", 0), ("slice_position", False)):
            if getattr(own, option, alone) != alone:
                raise ValueError(f"gan: {option} must be {alone}, since synthetic label slices do not lie side by side")


@dataclass(frozen=True, kw_only=True)
class NnunetOptions:
    """nnU-Net v2, 2-D."""

    epochs: AtLeast1 = 1000
    """Epochs."""
    iterations: AtLeast1 = 250
    """Steps of an epoch."""
    val_iterations: AtLeast1 = 50
    """Validation batches of an epoch."""
    trainer: str = ""
    """A trainer class of nnU-Net, with its own length; by default ours with the three numbers above."""
    plan: Literal["default", "small"] = "default"
    """default: nnU-Net's own; small: a network that trains on a CPU."""
    patch: Annotated[int, at_least(32)] = 128
    """small: patch size in pixels."""
    batch: Annotated[int, at_least(2)] = 8
    """small: batch size."""
    features: tuple[int, ...] = (16, 32, 64, 128)
    """small: channels of each stage."""
    device: Literal["cpu", "cuda", "mps"] = "cuda"
    """Where it trains and predicts."""
    workers: Annotated[int, at_least(-1)] = -1
    """Augmentation processes; 0 augments in the training process, -1 chooses by cores and memory."""
    fold: int = 0
    """Fold of splits_final.json: groups of patients, five at most."""
    tta: bool = False
    """Mirror slices when predicting."""
    checkpoint: Literal["final", "best"] = "best"
    """Weights to predict with."""
    first_id: AtLeast1 = 101
    """Number of the first data set."""

    def __post_init__(self) -> None:
        halvings = 2 ** (len(self.features) - 1)
        if len(self.features) < 3:  # nnU-Net's deep supervision divides by 0 with two
            raise ValueError(f"features = {list(self.features)}: must be three stages or more")
        if self.patch % halvings:
            raise ValueError(f"patch = {self.patch}: must be a multiple of {halvings}, for {len(self.features)} stages")


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """Test on real held-out slices."""

    reference: str = "consensus"
    """consensus: vote of all combinations; a combination, as hmrf_bet; or labels: files given with the cases."""
    tissues: Annotated[
        tuple[Literal["GM", "WM", "CSF"], ...],
        Must("GM, WM, CSF, each once at most", lambda names: 0 < len(names) == len(set(names))),
    ] = ("GM", "WM", "CSF")
    """Means are over these; the others are shown beside."""
    synthetic: bool = True
    """Also test every network on every combination's synthetic test slices."""


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """Job arrays; stages named in [slurm.stages] may differ."""

    options: tuple[Text, ...] = ()  # lines of job scripts, where a line break would begin a command
    """Options of sbatch for all stages, as "--account=brain"."""
    stages: dict[str, tuple[Text, ...]] = field(default_factory=dict)
    """Options of sbatch for one stage, as train = ["--gres=gpu:1", "--time=24:00:00"]."""
    array: AtLeast1 = 100
    """Tasks of an array that run at a time."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study file holds."""

    name: Name
    """Name of the study."""
    work: StudyPath = Path("work")
    """Folder of all results."""
    seed: int = 42
    """Of the split and of all synthetic images."""
    time_limit: Annotated[float, at_least(1)] = 7200.0
    """Seconds that an external tool may take for a case; training has no limit."""
    threads: AtLeast1 = 1
    """Threads of each tool."""
    input: tuple[InputOptions, ...] = ()
    """BIDS folders."""
    case: tuple[CaseOptions, ...] = ()
    """Single scans."""
    split: SplitOptions = field(default_factory=SplitOptions)
    """Train, validation, test."""
    harmonise: HarmoniseOptions = field(default_factory=HarmoniseOptions)
    """Stage 1."""
    strip: StripOptions = field(default_factory=StripOptions)
    """Stage 2."""
    crop: CropOptions = field(default_factory=CropOptions)
    """Stage 3."""
    segment: SegmenterOptions = field(default_factory=SegmenterOptions)
    """Stage 4."""
    tissue: TissueOptions = field(default_factory=TissueOptions)
    """Stage 5."""
    quality: QualityOptions = field(default_factory=QualityOptions)
    """Gate after stage 5."""
    slices: SliceOptions = field(default_factory=SliceOptions)
    """Slices of stages 6 to 8."""
    synthesise: SynthesiseOptions = field(default_factory=SynthesiseOptions)
    """Stage 6."""
    nnunet: NnunetOptions = field(default_factory=NnunetOptions)
    """Stage 7."""
    evaluate: ReferenceOptions = field(default_factory=ReferenceOptions)
    """Stage 8."""
    tools: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of tools, and variants of them: [tools.bet-wide] tool = "bet", fraction = 0.5."""
    slurm: SlurmOptions = field(default_factory=SlurmOptions)
    """Submission."""

    def __post_init__(self) -> None:
        if not self.input and not self.case:
            raise ValueError("give [[input]] with a BIDS folder as source, or [[case]] with files")
        TEXT.of(str(self.work), "work")  # a line of job scripts, too


def read_study(path: Path) -> Study:
    """The study of a file. ValueError naming the file, the key, the value and what is allowed."""
    data = read_toml(path, "study file")
    for key in ("input", "case"):  # one table where there is one source
        if isinstance(data.get(key), dict):
            data[key] = [data[key]]
    data.setdefault("work", "work")
    base = path.resolve().parent
    try:
        study: Study = decode(Study, data, "", context=base)
    except Mismatch as error:
        raise ValueError(f"{path}: {error}") from None
    for settings in study.tools.values():
        for key in PATH_SETTINGS:
            if isinstance(settings.get(key), str) and settings[key]:
                settings[key] = str(base / Path(settings[key]).expanduser())
    return study


def gmm_options(contrast: str, changes: dict[str, Any]) -> GmmConfig:
    """The generator of slices, this repository's GMM with what the original study got wrong set right.

    The background is 0 as in stripped scans, and labels are deformed before they are painted.

    t1: measured means and spreads, lab2im's deformation. random: lab2im's ranges, means in 25..225, each tissue for itself.
    ValueError for options that do not exist or are out of range.
    """
    base = GMM_PRESETS["lab2im"]()
    common = replace(base, background="zero", flipping=False, partial_volume=True, normalise="max")
    # Measured means are on the scan's window, so slices keep it: none is stretched by what it happens to show.
    measured = replace(common, vary=True, covariance=True, gamma_std=0.1, normalise="window")
    options = measured if contrast == "t1" else common
    if fixed := {"preset", "priors"} & changes.keys():
        raise ValueError(f"synthesise.gmm {', '.join(sorted(fixed))}: follows from synthesise.contrast")
    made: GmmConfig = decode(GmmConfig, {**vars(options), **changes}, "synthesise.gmm")
    check(made, "synthesise.gmm.")
    return made
