"""Every option of train.py and test.py, once: name, default, range and one line of help.

The options of each method are in method_options/.

tyro turns the dataclasses into the command line; the comment string under a field is its ``--help`` line.
Periods and progress are counted in images seen, so they do not depend on batch size or number of devices.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_type_hints

import tyro

from dataloaders.io.schema import decode
from models.gan.options import OasisConfig, SpadeConfig, check_gan, check_oasis
from models.gmm.options import GMM_PRESETS, GmmConfig, check_gmm, idle_gmm_flags, stripped_brain
from models.lesion.options import LESION_PRESETS, LesionConfig, check_lesion
from models.ranges import check_at_least, check_fraction, check_positive, words
from models.segmenter.options import SEGMENTER_PRESETS, SegmenterConfig, check_segmenter

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a label-to-image method. The same command again resumes the run."""

    name: str
    """Name of the run; everything it writes goes to <checkpoints_dir>/<name>."""
    dataroot: Path
    """Folder written by scripts/prepare_data.py, or one with {train,val,test}/{images,labels}/X.png, or label maps."""
    patient_regex: str | None = None
    """Plain PNG folders: regular expression whose first group is the patient within a file name."""
    model: Literal["oasis", "spade", "gmm", "lesion", "segmenter"] = "oasis"
    """Method."""
    preset: Literal["oasis", "spade", "salem2019", "lesion", "small", "demo", "brain", "synthseg", "fetalsynthseg"] = (
        "oasis"
    )
    """Starting values: as published, small for a modest GPU (segmenter: a CPU), demo for minutes on two cores."""
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
    """Metrics of the evaluation: auto for all that can be computed here, a comma-separated list, or none (best = newest)."""
    weights: Path | None = None
    """Folder or file with pretrained weights for FID and LPIPS; else $MEDSIS_WEIGHTS, else torch's cache."""

    stop_patience: int = 50000
    """Stop with advice when the discriminator has won for so many images (accuracy above 0.99 in every report); 0 never."""

    oasis: OasisConfig = field(default_factory=OasisConfig)
    spade: SpadeConfig = field(default_factory=SpadeConfig)
    gmm: GmmConfig = field(default_factory=GmmConfig)
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    lesion: LesionConfig = field(default_factory=LesionConfig)

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

    @property
    def paints_labels(self) -> bool:
        """Whether the method makes images of label maps alone."""
        return self.model in ("oasis", "spade", "gmm")


@dataclass(frozen=True, kw_only=True)
class TestConfig:
    """Synthesise a split, or label maps without images (--labels), with a trained run: images, volumes, metrics."""

    name: str
    """Name of the run to test."""
    dataroot: Path | None = None
    """Prepared data, with images or label maps alone; labels are found by name among the training's. Or give --labels."""
    patient_regex: str | None = None
    """Plain PNG folders: regular expression whose first group is the patient within a file name; default as in training."""
    labels: Path | None = None
    """Label maps without images, instead of --dataroot: a NIfTI or .mgz file, a folder (of BIDS its *_dseg), a .txt list."""
    out: Path | None = None
    """With --labels: folder of the NIfTI volumes, one per map and channel; the same command makes what is missing."""
    label_map: Path | None = None
    """With --labels: table of ids and names (.json, .csv, .tsv, or built-in: totalsegmentator, …); classes go by name."""
    label_ids: Literal["auto", "source", "class"] = "auto"
    """With --labels: ids of a table beside the maps (dseg.tsv), else (or source) of training; class: the run's 0 to N-1."""
    unknown_labels: Literal["refuse", "background"] = "refuse"
    """With --labels: what to do with ids that are no class of the run."""
    shard: str = "0/1"
    """With --labels: only every n-th map from the i-th on, as i/n; shards may run at the same time."""
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
    inputs: tuple[str, ...] = ()
    """Segmenter: channels of --dataroot to give the network instead of those it was trained on."""
    overwrite: bool = False
    """Replace results that were made with other weights, data or options."""


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
    | {"continue_train", "which_iter", "weights", "eval_slices", "tuned", "compile", "stop_patience"}
    | {"oasis.images_from", "segmenter.label_maps", "segmenter.seeds", "segmenter.lesions", "segmenter.results"}
    | {"segmenter.patience", "segmenter.overlap", "segmenter.epoch_samples"}
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


SEGMENTER_RUNS: dict[str, tuple[int, int, Callable[[], GmmConfig]]] = {  # preset -> batch size, epochs, generator
    "small": (8, 10, GMM_PRESETS["synthseg"]),
    "brain": (8, 30, stripped_brain),
    "synthseg": (1, 50, GMM_PRESETS["synthseg"]),
    "fetalsynthseg": (1, 1000, GMM_PRESETS["fetal"]),
}


def segmenter_preset(name: str) -> Config:
    """A segmenter of that name with the generator of its family; one patch is an image, one epoch `epoch_samples`."""
    batch_size, num_epochs, generator = SEGMENTER_RUNS[name]
    return replace(
        oasis_preset(),
        model="segmenter",
        preset=cast(Any, name),
        batch_size=batch_size,
        beta1=0.9,
        num_epochs=num_epochs,
        freq_print=200,
        freq_preview=2000,
        freq_fid=2000,
        freq_save_latest=1000,
        segmenter=SEGMENTER_PRESETS[name](),
        gmm=generator(),
    )


def lesion_preset() -> Config:
    """The lesion generator: composite in feathered lesions, patches around lesions; rates and memory as published."""
    return replace(oasis_preset(), model="lesion", preset="lesion", lr_g=1e-3, beta1=0.9, num_epochs=70)


def salem2019_preset() -> Config:
    """The lesion generator as published: 32 patches a step (8 slices with 4 each), 70 epochs."""
    return replace(lesion_preset(), preset="salem2019", lesion=LESION_PRESETS["salem2019"]())


PRESETS: dict[str, Callable[[], Config]] = {
    "oasis": oasis_preset,
    "spade": spade_preset,
    "salem2019": salem2019_preset,
    "lesion": lesion_preset,
    "small": small_preset,
    "demo": demo_preset,
    **{name: partial(segmenter_preset, name) for name in ("brain", "synthseg", "fetalsynthseg")},
}

_AnyConfig = TypeVar("_AnyConfig", Config, TestConfig)


def parse_train(arguments: Sequence[str] | None = None) -> Config:
    """Command line -> checked Config; a bad value ends with one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    config = tyro.cli(Config, args=arguments, default=_defaults(arguments), description=Config.__doc__)
    unused = {"oasis", "spade", "gmm", "lesion", "segmenter"} - {config.model}
    for other in unused - {"gmm"} if config.model == "segmenter" else unused:  # it paints with the generator
        for argument in arguments:
            if argument.startswith(f"--{other}."):
                print(f"warning: {argument} has no effect with --model {config.model}", file=sys.stderr)
    if config.model == "gmm":
        for argument, why in idle_gmm_flags(arguments, config.gmm):
            print(f"warning: {argument} has no effect: {why}", file=sys.stderr)
    return _checked(config, check_train, arguments)


def _defaults(arguments: list[str]) -> Config:
    """The preset's values, with the optimiser's memory that the model was published with."""
    preset, model = _peek(arguments, "--preset"), _peek(arguments, "--model")
    if preset not in PRESETS:  # an unknown preset is refused by tyro, which lists the allowed ones
        preset = model if model in ("spade", "lesion") else "oasis"
    if model == "segmenter":
        config = segmenter_preset(preset if preset in SEGMENTER_PRESETS else "small")
    else:
        config = PRESETS[preset]()
    gmm = _peek(arguments, "--gmm.preset")
    if gmm in GMM_PRESETS:
        config = replace(config, gmm=GMM_PRESETS[gmm]())
    if model == "lesion":
        lesion = LESION_PRESETS.get(preset, LesionConfig)()
        rates = lesion_preset()
        config = replace(config, model="lesion", lr_g=rates.lr_g, beta1=rates.beta1, beta2=rates.beta2, lesion=lesion)
        return replace(config, batch_size=4, num_epochs=30) if preset == "demo" else config
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


def set_by_preset(message: str, arguments: Sequence[str]) -> str:
    """`` (set by --preset demo)`` where a message begins with an option that the user has not given but a preset sets."""
    preset, found = _peek(list(arguments), "--preset"), re.match(r"--([a-zA-Z_.]+)", message)
    if preset not in PRESETS or found is None:
        return ""
    if any(argument.partition("=")[0].replace("-", "_") == f"__{found[1]}" for argument in arguments):
        return ""
    values: list[Any] = [PRESETS[preset](), oasis_preset()]
    for name in found[1].split("."):
        values = [getattr(value, name, None) for value in values]
    return f" (set by --preset {preset})" if values[0] != values[1] else ""


def _checked(config: _AnyConfig, check: Callable[[Any], None], arguments: Sequence[str] = ()) -> _AnyConfig:
    try:
        check(config)
    except ValueError as error:
        print(f"error: {error}{set_by_preset(str(error), arguments)}", file=sys.stderr)
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
        check_at_least(flag, value, low)
    for flag, value in {"lr_g": config.lr_g, "lr_d": config.lr_d}.items():
        check_positive(flag, value)
    for flag, value in {"beta1": config.beta1, "beta2": config.beta2}.items():
        check_fraction(flag, value)
    check_gan("oasis", config.oasis)
    check_gan("spade", config.spade)
    check_oasis(config.oasis)
    check_gmm(config.gmm, "gmm.")
    check_segmenter(config.segmenter)
    if config.model == "segmenter" and config.gmm.priors == "fit":
        raise ValueError("--gmm.priors fit: a segmenter has nothing to fit them to; give random, or a file of priors")
    check_lesion(config.lesion)
    if config.model == "gmm" and config.gmm.target_res:
        raise ValueError(
            f"--gmm.target_res {words(config.gmm.target_res)}: images must keep the size of their label maps"
        )
    check_at_least("spade.num_D", config.spade.num_D, 1)
    from_dict(to_dict(config))  # what could not be read back from a checkpoint (infinity) is refused now
    if config.which_iter != "latest" and not config.which_iter.isdigit():
        raise ValueError(f"--which_iter {config.which_iter}: must be latest or a number of images seen")
    _check_gpu_ids(config.gpu_ids)


def check_test(config: TestConfig) -> None:
    """Raise ValueError naming flag, value and allowed range for the first option out of range."""
    _check_source(config)
    if config.batch_size < 1:
        raise ValueError(f"--batch_size {config.batch_size}: must be at least 1")
    if config.draw < 1:
        raise ValueError(f"--draw {config.draw}: must be at least 1")
    if config.ckpt_iter not in ("best", "latest") and not config.ckpt_iter.isdigit():
        raise ValueError(f"--ckpt_iter {config.ckpt_iter}: must be best, latest or a number of images seen")
    _check_gpu_ids(config.gpu_ids)


def _check_source(config: TestConfig) -> None:
    """A prepared folder or label maps, and the options of that alone."""
    if (config.dataroot is None) == (config.labels is None):
        both = "and" if config.labels else "or"
        raise ValueError(
            f"--dataroot {both} --labels: give one of them, a prepared folder or label maps (NIfTI) without images"
        )
    if config.labels is not None and config.out is None:
        raise ValueError("--labels: give --out, the folder for the volumes")
    if config.label_map is not None and config.label_ids != "auto":
        raise ValueError("--label_map and --label_ids: a table says by name what ids mean; give one of them")
    foreign, other = ["out", "label_map", "label_ids", "unknown_labels", "shard"], "--labels"
    if config.labels is not None:
        foreign, other = (
            ["patient_regex", "phase", "inputs", "volumes", "metrics", "weights", "results_dir"],
            "--dataroot",
        )
    for option in fields(config):
        given = getattr(config, option.name)
        if option.name in foreign and given != option.default and (option.name, given) != ("metrics", "none"):
            raise ValueError(f"--{'no-' * (given is False)}{option.name}: goes with {other}")


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


def without_paths(options: Any) -> dict[str, Any]:
    """Plain values of options without paths, which may name people and projects, for what is given away.

    Left out is every option whose type holds a path; of a file that stands in the place of a word, its name is left.
    """
    hints = get_type_hints(type(options))
    kept: dict[str, Any] = {}
    for item in fields(options):
        value = getattr(options, item.name)
        if is_dataclass(value):
            kept[item.name] = without_paths(value)
        elif not _holds_path(hints[item.name]):
            is_file = isinstance(value, str) and ("/" in value or "\\" in value)
            kept[item.name] = re.split(r"[/\\]", value)[-1] if is_file else _plain(value)
    return kept


def _holds_path(hint: Any) -> bool:
    return hint is Path or any(_holds_path(part) for part in get_args(hint))


def from_dict(data: dict[str, Any]) -> Config:
    """Config of a checkpoint; options that this version does not know are refused, those it added get defaults."""
    unknown = set(data) - {f.name for f in fields(Config)}
    if unknown:
        raise ValueError(f"the checkpoint has options that this version does not know: {sorted(map(repr, unknown))}")
    return cast(Config, decode(Config, data, "options"))


def segmenter_sources(config: Config) -> dict[str, Path]:
    """Flag -> folder or file of what a segmenter learns from beside --dataroot; seeds go with their label maps."""
    if config.model != "segmenter":
        return {}
    o = config.segmenter
    sources = {"--segmenter.label_maps": o.label_maps, "--segmenter.lesions": o.lesions}
    for path in o.results:  # results/a/best and results/b/best are two
        flag = f"--segmenter.results {path.name}"
        sources[f"{flag} ({len(sources) - 1})" if flag in sources else flag] = path
    return {flag: path for flag, path in sources.items() if path is not None}


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
