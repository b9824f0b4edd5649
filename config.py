"""Every option of train.py and test.py, once: name, default, range and one line of help; and the methods there are.

The options of each method are in models/<family>/options.py. tyro turns the dataclasses into the command line; the
comment string under a field is its ``--help`` line.
Periods and progress are counted in images seen, so they do not depend on batch size or number of devices.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_type_hints

import tyro

from dataloaders.io import ledger
from dataloaders.io.schema import (
    AtLeast0,
    AtLeast1,
    BelowOne,
    GpuIds,
    Iteration,
    NotNegative,
    Positive,
    Shard,
    check,
    decode,
    options_of,
)
from models import MethodOptions
from models.gan.options import OASIS, SPADE, OasisConfig, SpadeConfig
from models.gmm.options import GMM, GMM_PRESETS, GmmConfig
from models.lesion.options import LESION, LesionConfig
from models.segmenter.options import SEGMENTER, SegmenterConfig

Precision = Literal["auto", "fp32", "bf16"]
# --model -> what there is to know of it. Without --model the options of a method mean that method, and a --preset the first
# that has it; the first of all is the best that was measured (docs/results.md).
METHODS: dict[str, MethodOptions] = {
    "spade": SPADE,
    "oasis": OASIS,
    "lesion": LESION,
    "segmenter": SEGMENTER,
    "gmm": GMM,
}


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """Train a label-to-image method. The same command again resumes the run."""

    name: str
    """Name of the run; everything it writes goes to <checkpoints_dir>/<name>."""
    dataroot: Path
    """Folder written by scripts/prepare_data.py, or one with {train,val,test}/{images,labels}/X.png, or label maps."""
    patient_regex: str | None = None
    """Plain PNG folders: regular expression whose first group is the patient within a file name."""
    only_patients: tuple[str, ...] = ()
    """Train on these patients of the training split alone; by default on all of them."""
    model: str = "spade"
    """Method, whose options --help shows; where it is left out, that whose options or preset are given."""
    preset: str = "small"
    """Starting values: small for a dozen patients and a modest GPU or a CPU, demo for minutes, or as published."""
    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    seed: int = 42
    """Seed of weights, order, augmentation and noise."""
    gpu_ids: GpuIds = "auto"
    """GPU to use: a number, -1 for the CPU, auto for GPU 0 where there is one."""
    num_workers: AtLeast0 = 0
    """Loader processes; 0 loads in the main process, which is best while the data fit in memory (see cache_gb)."""
    cache_gb: NotNegative = 2.0
    """Keep decoded slices in memory up to this size."""
    precision: Precision = "auto"
    """Arithmetic: auto is bf16 on GPUs that have it, fp32 elsewhere. Losses are always fp32."""
    tuned: bool = True
    """Use the faster, equal arithmetic (docs/benchmarks.md); --no-tuned is the plain published way, for comparison."""
    compile: bool = False
    """Compile the networks with torch.compile; minutes at the start, worth it for long runs on a GPU."""

    batch_size: AtLeast1 = 8
    """Images per step of the optimisers."""
    accumulate: AtLeast1 = 1
    """Go through each batch in so many parts, one after the other, and step once: less memory, equal gradients."""
    num_epochs: AtLeast1 = 200
    """Passes over the training slices; published 200 (COCO 100)."""
    lr_g: Positive = 1e-4
    """Learning rate of the generator."""
    lr_d: Positive = 4e-4
    """Learning rate of the discriminator."""
    lr_decay: Literal["none", "linear", "cosine"] = "none"
    """Let all learning rates fall to 0 towards the end of --num_epochs, along a line or half a cosine."""
    lr_decay_from: BelowOne = 0.5
    """With --lr_decay: share of the run after which they begin to fall; SPADE publishes 0.5 and linear."""
    beta1: BelowOne = 0.0
    """Adam's beta1."""
    beta2: BelowOne = 0.999
    """Adam's beta2."""
    flip: bool = True
    """Mirror training slices left-right half of the time, swapping labels named left and right; axial and coronal only."""

    continue_train: bool = True
    """Resume where the run stands; with --no-continue_train an existing run folder is an error."""
    which_iter: Iteration = "latest"
    """State to resume from: latest, best (of the best evaluation), or a number of images of which a state is kept."""
    init_from: str | None = None
    """Begin a new run with another run's weights: its name or folder, RUN:best, :latest or :<images>, or a weights file."""
    freq_print: AtLeast1 = 1000
    """Images between log lines."""
    freq_preview: AtLeast1 = 10000
    """Images between preview pictures."""
    freq_fid: AtLeast1 = 50000
    """Images between evaluations of the moving-average generator on the validation split (all metrics, not only FID)."""
    freq_save_latest: AtLeast1 = 10000
    """Images between saved states; the newest three stay, of older ones fewer the older they are, and that of the best."""
    freq_save_ckpt: AtLeast1 = 100000
    """Images between weight files that are kept for good."""
    eval_slices: AtLeast0 = 512
    """At most this many validation slices per evaluation, evenly spaced; 0 for all."""
    metrics: str = "auto"
    """Metrics of the evaluation: auto for all that can be computed here, a comma-separated list, or none (best = newest)."""
    weights: Path | None = None
    """Folder or file with pretrained weights for FID and LPIPS; else $MEDSIS_WEIGHTS, else torch's cache."""

    stop_patience: AtLeast0 = 50000
    """Stop with advice when the discriminator has won for so many images (accuracy above 0.99 in every report); 0 never."""


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Options of a training: those of all methods, of which it reads its own and leaves the others at their defaults."""

    oasis: OasisConfig = field(default_factory=OasisConfig)
    spade: SpadeConfig = field(default_factory=SpadeConfig)
    gmm: GmmConfig = field(default_factory=GmmConfig)
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    lesion: LesionConfig = field(default_factory=LesionConfig)

    @property
    def method(self) -> MethodOptions:
        """What there is to know of the method that is trained."""
        return METHODS[self.model]

    @property
    def own(self) -> Any:
        """Options of that method alone."""
        return getattr(self, self.method.groups[0])

    def check_together(self) -> None:
        """ValueError for options that the method cannot be trained with."""
        self.method.check(self)


OF_LABELS = ("out", "label_map", "label_ids", "unknown_labels", "shard")  # options of test.py that go with --labels
OF_DATA = (
    "patient_regex",
    "phase",
    "only_patients",
    "inputs",
    "tissue",
    "volumes",
    "metrics",
    "weights",
    "results_dir",
)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Which trained run a command takes."""

    name: str
    """Name of the run."""
    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    ckpt_iter: Iteration = "best"
    """Weights to use: best, latest, or a number of images seen."""


@dataclass(frozen=True, kw_only=True)
class TestConfig(RunOptions):
    """Synthesise a split, or label maps without images (--labels), with a trained run: images, volumes, metrics."""

    dataroot: Path | None = None
    """Prepared data, with images or label maps alone; labels are found by name among the training's. Or give --labels."""
    patient_regex: str | None = None
    """Plain PNG folders: regular expression whose first group is the patient within a file name; default as in training."""
    labels: Path | None = None
    """Label maps without images, instead of --dataroot: a NIfTI or .mgz file, a folder (of BIDS its *_dseg), a .txt list."""
    out: Path | None = None
    """With --labels: folder of the NIfTI volumes, one per map and channel; the same command makes what is missing."""
    label_map: Path | None = None
    """With --labels: table of ids and names (dseg.tsv, .json, … or built-in: totalsegmentator); classes go by name."""
    label_ids: Literal["auto", "source", "class"] = "auto"
    """With --labels: ids of a table beside the maps (dseg.tsv), else (or source) of training; class: the run's 0 to N-1."""
    unknown_labels: Literal["refuse", "background"] = "refuse"
    """With --labels: what to do with ids that are no class of the run."""
    shard: Shard = "0/1"
    """With --labels: only every n-th map from the i-th on, as i/n; shards may run at the same time."""
    results_dir: Path = Path("results")
    """Results go to <results_dir>/<name>/<ckpt_iter>."""
    phase: Literal["test", "val", "train"] = "test"
    """Split to synthesise."""
    only_patients: tuple[str, ...] = ()
    """Only these patients of the split; by default all of them."""
    batch_size: AtLeast1 = 8
    """Images per forward pass; does not change the images."""
    seed: int = 0
    """Seed of the noise."""
    resample: str = ""
    """Labels whose noise is drawn anew while all others keep theirs: names or ids, comma-separated; see --draw."""
    draw: AtLeast1 = 1
    """Which of the endless other draws --resample takes."""
    noise: Literal["case", "slice"] = "case"
    """Draw the style noise once per case, so that stacked slices match, or anew for each slice."""
    gpu_ids: GpuIds = "auto"
    """GPU to use: a number, -1 for the CPU, auto for GPU 0 where there is one."""
    volumes: bool = True
    """Also stack the slices to NIfTI volumes in source geometry and units."""
    metrics: str = "auto"
    """Metrics: auto for all that can be computed here, none, or a comma-separated list."""
    weights: Path | None = None
    """Folder or file with pretrained weights for FID and LPIPS; else $MEDSIS_WEIGHTS, else torch's cache."""
    inputs: tuple[str, ...] = ()
    """Segmenter: channels of --dataroot to give the network instead of those it was trained on."""
    tissue: bool = False
    """Segmenter of brain structures: count them together as CSF, grey and white matter."""
    overwrite: bool = False
    """Replace results that were made with other weights, data or options."""

    def check_together(self) -> None:
        """ValueError unless there is a prepared folder or label maps, and only options of that."""
        if (self.dataroot is None) == (self.labels is None):
            both = "and" if self.labels else "or"
            raise ValueError(
                f"--dataroot {both} --labels: give one of them, a prepared folder or label maps (NIfTI) without images"
            )
        if self.labels is not None and self.out is None:
            raise ValueError("--labels: give --out, the folder for the volumes")
        if self.label_map is not None and self.label_ids != "auto":
            raise ValueError("--label_map and --label_ids: a table says by name what ids mean; give one of them")
        foreign, other = (OF_DATA, "--dataroot") if self.labels is not None else (OF_LABELS, "--labels")
        for name, flag in self.given(foreign):
            if (name, self.metrics) != ("metrics", "none"):
                raise ValueError(f"{flag}: goes with {other}")

    def given(self, names: Collection[str]) -> Iterator[tuple[str, str]]:
        """Those of the options that are not at their default, each with its flag."""
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in names and value != option.default:
                yield option.name, f"--{'no-' * (value is False)}{option.name}"


GROUPS = {group for method in METHODS.values() for group in method.groups}  # of options, in Config
# Options of how fast a run learns from here on, which may differ when it is resumed.
RATES = frozenset({"lr_g", "lr_d"} | {name for method in METHODS.values() for name in method.rates})
# Options that may differ when a run is resumed: they change neither the model nor what it learns from. Folders may move;
# the data themselves are compared by their fingerprints.
RUNTIME_OPTIONS = frozenset(
    {
        "name",
        "dataroot",
        "patient_regex",
        "checkpoints_dir",
        "preset",
        "gpu_ids",
        "num_workers",
        "cache_gb",
        "num_epochs",
        "metrics",
    }
    | {"continue_train", "which_iter", "weights", "eval_slices", "tuned", "compile", "stop_patience", "accumulate"}
    | {name for method in METHODS.values() for name in method.runtime}
    | RATES
    | {"lr_decay", "lr_decay_from"}
    | {"freq_print", "freq_preview", "freq_fid", "freq_save_latest", "freq_save_ckpt"}
)


_Any = TypeVar("_Any")


def starting_values(
    model: str | None = None, preset: str | None = None, gmm: str | None = None, groups: Collection[str] = ()
) -> Config:
    """Options of a method and a preset, without name and data; by default the preset's method and its first preset.

    gmm: preset of the generator instead of its own. groups: of several methods that fit, the first with its own options
    among these is meant. ValueError that lists the pairs where there is no such pair.
    """
    fitting = [
        n for n, method in METHODS.items() if model in (None, n) and (preset is None or preset in method.presets)
    ]
    if not fitting:
        pairs = "; ".join(f"--model {name} has {', '.join(method.presets)}" for name, method in METHODS.items())
        asked = [f"--{flag} {value}" for flag, value in (("model", model), ("preset", preset)) if value is not None]
        raise ValueError(f"{' '.join(asked)}: there is no such pair; {pairs}")
    model = next((name for name in fitting if METHODS[name].groups[0] in groups), fitting[0])
    presets = METHODS[model].presets
    preset = preset or next(iter(presets))
    values: dict[str, Any] = {"model": model, "preset": preset} | dict(presets[preset])
    if gmm in GMM_PRESETS:  # tyro refuses others
        values["gmm"] = GMM_PRESETS[gmm]()
    return Config(name=tyro.MISSING, dataroot=tyro.MISSING, **values)


def _chosen(arguments: Sequence[str]) -> Config:
    """The starting values that a command line asks for: what sets the defaults of all other options is read first."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--model", "--preset", "--gmm.preset"):
        first.add_argument(flag, nargs="?")  # without a value: tyro says so
    groups = {argument[2:].partition(".")[0] for argument in arguments if argument.startswith("--")}
    model, preset, gmm = vars(first.parse_known_args(arguments)[0]).values()
    return starting_values(model, preset, gmm, groups)


def parse_train(arguments: Sequence[str] | None = None) -> Config:
    """Command line -> checked Config; a bad value ends with one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    start = _refused_in_one_line(lambda: _chosen(arguments))
    method, choice = start.method, {"model": Literal[tuple(METHODS)], "preset": Literal[tuple(start.method.presets)]}
    kinds: dict[str, Any] = choice | {group: type(getattr(start, group)) for group in method.groups}
    own = [(name, kind, field(default=getattr(start, name))) for name, kind in kinds.items()]
    shown: Any = make_dataclass("Config", own, bases=(CommonConfig,), frozen=True, kw_only=True)
    default = shown(**{f.name: getattr(start, f.name) for f in fields(shown)})
    given = options_of(shown, _without_foreign(arguments, start), default=default, description=CommonConfig.__doc__)
    config = replace(start, **{f.name: getattr(given, f.name) for f in fields(shown)})
    _refused_in_one_line(lambda: check(config), arguments)
    for argument, why in method.idle(arguments, config):
        print(f"warning: {argument} has no effect: {why}", file=sys.stderr)
    return config


def _without_foreign(arguments: Sequence[str], start: Config) -> list[str]:
    """The arguments without options of other methods, which have no effect, so that only a warning is due."""
    foreign = GROUPS - set(start.method.groups)
    kept: list[str] = []
    dropping = False
    for argument in arguments:
        if argument.startswith("--"):
            dropping = argument[2:].partition(".")[0] in foreign
        if not dropping:
            kept.append(argument)
        elif argument.startswith("--"):
            print(f"warning: {argument} has no effect with --model {start.model}", file=sys.stderr)
    return kept


def parse_test(arguments: Sequence[str] | None = None) -> TestConfig:
    """Command line -> checked TestConfig; a bad value ends with one line on stderr and exit code 2."""
    config = options_of(TestConfig, arguments)
    _refused_in_one_line(lambda: check(config))
    return config


def set_by_preset(message: str, arguments: Sequence[str]) -> str:
    """`` (set by --preset demo)`` where a message begins with an option that the user has not given but a preset sets."""
    given = {argument.partition("=")[0].replace("-", "_") for argument in arguments}
    found = re.match(r"--([a-zA-Z_.]+)", message)
    if found is None or f"__{found[1]}" in given:
        return ""
    try:
        start = _chosen(arguments)
    except ValueError:
        return ""
    values: list[Any] = [start, Config(name=start.name, dataroot=start.dataroot)]
    for name in found[1].split("."):
        values = [getattr(value, name, None) for value in values]
    return f" (set by --preset {start.preset})" if values[0] != values[1] else ""


def _refused_in_one_line(check: Callable[[], _Any], arguments: Sequence[str] = ()) -> _Any:
    try:
        return check()
    except ValueError as error:
        print(f"error: {error}{set_by_preset(str(error), arguments)}", file=sys.stderr)
        raise SystemExit(2) from None


def to_dict(config: Config | TestConfig) -> dict[str, Any]:
    """Plain JSON-able values, for checkpoints and manifests."""
    return cast(dict[str, Any], ledger.plain(asdict(config)))


def without_paths(options: Any) -> dict[str, Any]:
    """Plain values of options without paths, which may name people and projects, for what is given away.

    Left out are patients and every option whose type holds a path; of a file that stands in the place of a word, its name
    is left.
    """
    hints = get_type_hints(type(options))
    kept: dict[str, Any] = {}
    for item in fields(options):
        value = getattr(options, item.name)
        if is_dataclass(value):
            kept[item.name] = without_paths(value)
        elif item.name != "only_patients" and not _holds_path(hints[item.name]):
            is_file = isinstance(value, str) and not value.startswith("{") and ("/" in value or "\\" in value)
            kept[item.name] = re.split(r"[/\\]", value)[-1] if is_file else ledger.plain(value)
    return kept


def _holds_path(hint: Any) -> bool:
    return hint is Path or any(_holds_path(part) for part in get_args(hint))


def from_dict(data: dict[str, Any]) -> Config:
    """Config of a checkpoint; options that this version does not know are refused, those it added get defaults.

    Version 0.1 took pairs of method and preset that there were not: its preset is then the method's first.
    """
    unknown = set(data) - {f.name for f in fields(Config)}
    if unknown:
        raise ValueError(f"the checkpoint has options that this version does not know: {sorted(map(repr, unknown))}")
    for group in data.values():
        if isinstance(group, dict) and str(group.get("generator")).startswith("wavelet"):
            raise ValueError(
                f"the weights are of --generator {group['generator']} of version 0.2, whose images show a grid: train anew "
                "with --generator haar, or use version 0.2"
            )
    config = cast(Config, decode(Config, data, "options"))
    if config.model not in METHODS:
        raise ValueError(f"options.model: found {config.model!r}, must be one of {', '.join(METHODS)}")
    presets = config.method.presets
    return config if config.preset in presets else replace(config, preset=next(iter(presets)))


def differences(old: dict[str, Any], new: dict[str, Any], rates: bool = False) -> list[str]:
    """Lines ``--flag: was X, now Y`` for every option that shapes the model or its training and is not equal.

    rates: instead for `RATES`. Of the methods' options those of the method in `new` count.
    """
    method = METHODS.get(new.get("model", ""))
    foreign = GROUPS - set(method.groups) if method else set()

    def chosen(options: dict[str, Any]) -> dict[str, Any]:
        groups = {group: values for group, values in options.items() if isinstance(values, dict)}
        flat = {name: value for name, value in options.items() if name not in groups}
        for group in groups.keys() - foreign:
            flat |= {f"{group}.{name}": value for name, value in groups[group].items()}
        return {
            name: value for name, value in flat.items() if (name in RATES if rates else name not in RUNTIME_OPTIONS)
        }

    return ledger.differences(chosen(old), chosen(new))
