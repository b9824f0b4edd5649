"""study.toml: everything that a study depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dataloaders.io.files import read_toml
from dataloaders.io.schema import NAME
from pipeline.options import read_options

Contrast = Literal["t1", "random"]
PATH_SETTINGS = ("weights", "checkpoint", "model", "license")  # of tools; relative ones start from the study's folder


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """A BIDS folder of T1w scans; several may be listed."""

    source: Path
    """BIDS folder."""
    modality: str = "T1w"
    """Suffix of the scans."""
    subjects: tuple[str, ...] = ()
    """Subjects to take, as sub-01; all by default."""
    exclude: tuple[str, ...] = ()
    """Cases or subjects to leave out."""
    filter: tuple[str, ...] = ()
    """Of several files of a kind those with key=value, as "run=2"; see --bids_filter of prepare_data.py."""
    limit: int = 0
    """Take this many subjects, the first in order of their names; 0 for all."""
    stripped: bool = False
    """The scans show the brain alone; every stripper then takes what is above zero."""
    brain_masks: Path | None = None
    """Folder with *_desc-brain_mask.nii.gz, taken instead of stripping."""


@dataclass(frozen=True, kw_only=True)
class CaseOptions:
    """One scan by its files, where there is no BIDS folder."""

    id: str
    """Name of the case: letters, digits, '.', '_', '-'."""
    t1: Path
    """T1w scan, .nii or .nii.gz."""
    patient: str = ""
    """Scans of one patient are never in two splits; by default the case itself."""
    brain: Path | None = None
    """Brain mask on the scan's grid, taken instead of stripping."""
    stripped: bool = False
    """The scan shows the brain alone."""
    reference: Path | None = None
    """Tissue labels drawn by hand on the scan's grid: 1 GM, 2 WM, 3 CSF."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Who is trained on and who is tested on: by patient."""

    test: tuple[str, ...] = ()
    """Patients to test on; by default drawn."""
    val: tuple[str, ...] = ()
    """Patients whose synthetic slices nnU-Net validates on."""
    fractions: tuple[float, float, float] = (0.6, 0.0, 0.4)
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
    spacing: tuple[float, float, float] = (1.0, 1.0, 0.0)
    """Voxel size in mm, right-left, front-back, head-foot; 0 keeps the scan's."""


@dataclass(frozen=True, kw_only=True)
class StripOptions:
    """Skull stripping."""

    tools: tuple[str, ...] = ("bet",)
    """Strippers: bet, synthstrip, hdbet, or a variant of [tools]."""


@dataclass(frozen=True, kw_only=True)
class CropOptions:
    """The box around the brain that segmenters get."""

    margin_mm: float = 5.0
    """Kept around the brain."""


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Segmentation."""

    tools: tuple[str, ...] = ("hmrf",)
    """Segmenters: hmrf, atlas, fast, fastsurfer, samseg, synthseg, synthseg-torch, own, or a variant of [tools]."""


@dataclass(frozen=True, kw_only=True)
class TissueOptions:
    """Labels to GM, WM, CSF."""

    tables: dict[str, Path] = field(default_factory=dict)
    """Table of a tool instead of the one in pipeline/tables, as hmrf = "mine.toml"."""


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """What a tissue map must be like to be used."""

    fraction: tuple[float, float] = (0.05, 0.70)
    """Of each tissue in the brain."""
    litres: tuple[float, float] = (0.8, 2.0)
    """Volume of the brain."""
    largest: float = 0.95
    """Share of the brain in its largest connected part, at least."""
    contrast: bool = True
    """Mean intensity on T1w must rise from CSF to GM to WM."""


@dataclass(frozen=True, kw_only=True)
class SliceOptions:
    """Axial slices of the brain."""

    size: int = 256
    """Pixels, height and width."""
    count: int = 0
    """Slices of a case to synthesise from, spread evenly; 0 for all, -1 for the central one alone."""
    min_area: float = 0.25
    """Leave out slices with less brain than this share of the largest."""


@dataclass(frozen=True, kw_only=True)
class SynthesiseOptions:
    """Synthetic slices by segmenter and stripper."""

    methods: tuple[Literal["gmm", "gan"], ...] = ("gmm",)
    """Generators: gmm, and gan (train.py and test.py on the real training slices; the labels are the gmm's)."""
    train: int = 600
    """Images of a combination, over all its training and validation cases."""
    test: int = 60
    """Images of a combination, over all its test cases; 0 for none."""
    subclasses: int = 3
    """t1: Gaussians of each tissue, by intensity; 1 paints a tissue in one, as the original study did."""
    contrast: Contrast = "t1"
    """t1: intensities as measured in the training scans; random: any contrast."""
    gmm: dict[str, Any] = field(default_factory=dict)
    """Options of the generator to change, by their names in models/gmm/options.py."""
    gan: tuple[str, ...] = ("--preset", "small", "--num_epochs", "50")
    """Options of train.py."""


@dataclass(frozen=True, kw_only=True)
class NnunetOptions:
    """nnU-Net v2, 2-D."""

    epochs: int = 1000
    """Epochs."""
    iterations: int = 250
    """Steps of an epoch."""
    val_iterations: int = 50
    """Validation batches of an epoch."""
    trainer: str = ""
    """A trainer class of nnU-Net, with its own length; by default ours with the three numbers above."""
    plan: Literal["default", "small"] = "default"
    """default: nnU-Net's own; small: a network that trains on a CPU."""
    patch: int = 128
    """small: patch size in pixels."""
    batch: int = 8
    """small: batch size."""
    features: tuple[int, ...] = (16, 32, 64, 128)
    """small: channels of each stage."""
    device: Literal["cpu", "cuda", "mps"] = "cuda"
    """Where it trains and predicts."""
    workers: int = -1
    """Augmentation processes; 0 augments in the training process, -1 chooses by cores and memory."""
    fold: int = 0
    """Fold of splits_final.json: groups of patients, five at most."""
    tta: bool = False
    """Mirror slices when predicting."""
    checkpoint: Literal["final", "best"] = "best"
    """Weights to predict with."""
    first_id: int = 101
    """Number of the first data set."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Test on real held-out slices."""

    reference: str = "consensus"
    """consensus: vote of all combinations; a combination, as hmrf-bet; or labels: files given with the cases."""
    synthetic: bool = True
    """Also test every network on every combination's synthetic test slices."""


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """Job arrays; stages named in [slurm.stages] may differ."""

    options: tuple[str, ...] = ()
    """Options of sbatch for all stages, as "--account=brain"."""
    stages: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Options of sbatch for one stage, as train = ["--gres=gpu:1", "--time=24:00:00"]."""
    array: int = 100
    """Tasks of an array that run at a time."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What a study file holds."""

    name: str
    """Name of the study."""
    work: Path = Path("work")
    """Folder of all results."""
    seed: int = 42
    """Of the split and of all synthetic images."""
    time_limit: float = 7200.0
    """Seconds that an external tool may take for a case; training has no limit."""
    threads: int = 1
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
    segment: SegmentOptions = field(default_factory=SegmentOptions)
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
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    """Stage 8."""
    tools: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of tools, and variants of them: [tools.bet-wide] tool = "bet", fraction = 0.5."""
    slurm: SlurmOptions = field(default_factory=SlurmOptions)
    """Submission."""


def read_study(path: Path) -> StudyOptions:
    """The study of a file. ValueError naming the file, the key, the value and what is allowed."""
    data = read_toml(path, "study file")
    for key in ("input", "case"):  # one table where there is one source
        if isinstance(data.get(key), dict):
            data[key] = [data[key]]
    data.setdefault("work", "work")
    base = path.resolve().parent
    study = read_options(StudyOptions, data, f"{path}:", base)
    for settings in study.tools.values():
        for key in PATH_SETTINGS:
            if isinstance(settings.get(key), str) and settings[key]:
                settings[key] = str(base / Path(settings[key]).expanduser())
    check_study(study, path)
    return study


def check_study(study: StudyOptions, path: Path) -> None:
    """ValueError for the first value out of range."""
    NAME.of(study.name, f"{path}: name")

    def refuse(key: str, value: object, allowed: str) -> None:
        shown = list(value) if isinstance(value, tuple) else value
        raise ValueError(f"{path}: {key} = {shown}: must be {allowed}")

    if not study.input and not study.case:
        raise ValueError(f"{path}: give [[input]] with a BIDS folder as source, or [[case]] with files")
    at_least = {
        "time_limit": (study.time_limit, 1),
        "threads": (study.threads, 1),
        "crop.margin_mm": (study.crop.margin_mm, 0),
        "slices.size": (study.slices.size, 32),
        "slices.count": (study.slices.count, -1),
        "synthesise.train": (study.synthesise.train, 1),
        "synthesise.test": (study.synthesise.test, 0),
        "synthesise.subclasses": (study.synthesise.subclasses, 1),
        "nnunet.epochs": (study.nnunet.epochs, 1),
        "nnunet.iterations": (study.nnunet.iterations, 1),
        "nnunet.val_iterations": (study.nnunet.val_iterations, 1),
        "nnunet.batch": (study.nnunet.batch, 2),
        "nnunet.patch": (study.nnunet.patch, 32),
        "nnunet.workers": (study.nnunet.workers, -1),
        "nnunet.first_id": (study.nnunet.first_id, 1),
        "slurm.array": (study.slurm.array, 1),
        **{f"input.limit ({item.source.name})": (item.limit, 0) for item in study.input},
    }
    for key, (value, low) in at_least.items():
        if not value >= low:
            refuse(key, value, f"at least {low}")
    # Both become lines of job scripts, where a line break would begin a command of its own.
    scripts = {"slurm.options": study.slurm.options, "work": (str(study.work),)}
    scripts |= {f"slurm.stages.{stage}": options for stage, options in study.slurm.stages.items()}
    for key, texts in scripts.items():
        for text in texts:
            if not text.isprintable():
                refuse(key, repr(text), "one line of printable characters")
    if any(mm < 0 for mm in study.harmonise.spacing):
        refuse("harmonise.spacing", study.harmonise.spacing, "three lengths in mm, 0 for the scan's own")
    for key, pair in {"quality.fraction": study.quality.fraction, "quality.litres": study.quality.litres}.items():
        if not 0 <= pair[0] < pair[1]:
            refuse(key, pair, "low and high")
    for key, share in {"slices.min_area": study.slices.min_area, "quality.largest": study.quality.largest}.items():
        if not 0 <= share <= 1:
            refuse(key, share, "in [0, 1]")
    if min(study.split.fractions) < 0 or study.split.fractions[0] <= 0 or study.split.fractions[2] <= 0:
        refuse("split.fractions", study.split.fractions, "three fractions, the first and the last above 0")
    halvings = 2 ** (len(study.nnunet.features) - 1)
    if len(study.nnunet.features) < 3:  # nnU-Net's deep supervision divides by 0 with two
        refuse("nnunet.features", study.nnunet.features, "three stages or more")
    if study.nnunet.patch % halvings:
        refuse("nnunet.patch", study.nnunet.patch, f"a multiple of {halvings}, for {len(study.nnunet.features)} stages")
    for key, names in {"strip.tools": study.strip.tools, "segment.tools": study.segment.tools}.items():
        if not names or len(set(names)) < len(names):
            refuse(key, names, "one or more tools, each once")
    if not study.synthesise.methods or len(set(study.synthesise.methods)) < len(study.synthesise.methods):
        refuse("synthesise.methods", study.synthesise.methods, "gmm, gan, each once at most")
