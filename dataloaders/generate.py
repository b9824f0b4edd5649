"""Label maps to folders of synthetic images and labels: resumable, in shards, the same for any number of workers.

A sample's file in ``params/`` is written after all its other files, so it is what says that the sample is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from config import GmmConfig, check_gmm, differences, synthseg_preset
from dataloaders.geometry import plane, plane_shape, plane_spacing, to_ras, window_plane
from dataloaders.image_generator import ImageGenerator, Sample, scheme_of
from dataloaders.intensity import Window
from dataloaders.label_maps import LabelMaps, index_of, read_label_map_file
from dataloaders.manifest import FILE_NAME, Case, Geometry, Manifest, Slice, case_from_dict, slice_name
from dataloaders.nifti import file_sha256, write_volume
from dataloaders.png import write_png
from engine.files import atomic_path, lock_folder, read_json, write_json, write_text
from models.base import seeded_generator
from models.gmm import freesurfer
from models.gmm.labels import LabelScheme, find_values
from models.gmm.params import Params
from models.gmm.priors import FittedPrior
from models.gmm.sampling import Priors, sample_params
from spec import BACKGROUND, Axis, Channel, DataSpec, Label

SCHEMA = "medsis-samples/1"
SETTINGS, INDEX, PARAMS = "settings.json", "samples.json", "params"
WINDOW = Window(0.0, 1.0)  # of slices: the generator's range
_SERIAL_SCAN = 16  # so many maps are read sooner than workers are started
_LOCK_WAIT = 60.0  # seconds
_METADATA = "medsis"


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Synthetic images from label maps. The same command again goes on where it stopped."""

    labels: Path
    """Label maps: a folder (searched with its subfolders), one file (.nii, .nii.gz, .mgz), or a .txt list of files."""
    out: Path
    """Folder to write."""
    n: int = 100
    """Number of samples in all shards; raise it later to make more of the same."""
    seed: int = 0
    """Seed: sample k of a seed is always the same."""
    size: tuple[int, ...] = ()
    """Random crop to this many voxels, one number or one per axis; the same as --output_shape."""
    slices: Literal["none", "axial", "coronal", "sagittal"] = "none"
    """Write PNG slices and a manifest, as test.py does, instead of NIfTI volumes."""
    channels: int = 1
    """Images per sample: contrasts of one anatomy."""
    shard: str = "0/1"
    """Make only samples k with k % n == i of shard i/n, i from 0 to n-1; shards may run at the same time."""
    num_workers: int = 0
    """Processes, one sample each at a time; 0 works in this one. Does not change the images."""

    scheme: str = "auto"
    """What the labels are: auto, freesurfer, feta, seeds, a .json file of label fields, or a prepared data folder."""
    generation_labels: Path | None = None
    """.npy file of every label that occurs, in SynthSeg's order: without side, left, right."""
    generation_classes: Path | None = None
    """.npy file: intensity class of each of generation_labels; by default each its own."""
    output_labels: Path | None = None
    """.npy file: value of each of generation_labels in the label maps that are written; 0 drops it."""
    neutral_labels: int | None = None
    """How many of generation_labels have no side; by default found in FreeSurfer's table."""
    prior_means_file: Path | None = None
    """.npy file of priors of the class means, (2, K) or (2R, K); see --prior_distributions."""
    prior_stds_file: Path | None = None
    """.npy file of priors of the class standard deviations."""
    save_params: Literal["json", "safetensors"] = "json"
    """Format of each sample's parameters, which make the image again."""
    overwrite: bool = False
    """Replace samples in the folder that were made with other settings or of other maps."""
    gmm: GmmConfig = field(default_factory=synthseg_preset)

    @property
    def part(self) -> tuple[int, int]:
        """(i, n) of the shard; ValueError for another form."""
        match = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if match is None or not int(match[1]) < int(match[2]):
            raise ValueError(f"--shard {self.shard}: must be i/n with i from 0 to n-1, such as 0/4")
        return int(match[1]), int(match[2])

    @property
    def numbers(self) -> range:
        """Samples of this shard."""
        start, step = self.part
        return range(start, self.n, step)


@dataclass(frozen=True)
class MapFile:
    """One label map as found: `file` is its place below the common folder. fault: why it cannot be used, or ""."""

    path: Path
    file: str
    name: str
    sha256: str = ""
    values: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    plane: tuple[int, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Plan:
    """All that a worker needs. digest: of everything that shapes the samples, but for the content of their maps.

    spec: of the slices; None writes volumes. bids: name files as BIDS derivatives.
    """

    out: Path
    maps: tuple[MapFile, ...]
    scheme: LabelScheme
    options: GmmConfig
    priors: Priors | None
    channels: int
    seed: int
    bids: bool
    spec: DataSpec | None
    save_params: str
    digest: str = ""

    def generator(self, cache_gb: float = 1.0) -> ImageGenerator:
        """The source of the samples."""
        return ImageGenerator(
            [item.path for item in self.maps],
            scheme=self.scheme,
            options=self.options,
            priors=self.priors,
            n_channels=self.channels,
            seed=self.seed,
            cache_gb=cache_gb,
        )


@dataclass
class GenerateReport:
    """Counts of this call, lines about what failed, and how many whole samples the folder has now."""

    made: int = 0
    kept: int = 0
    missing: int = 0
    total: int = 0
    faults: list[str] = field(default_factory=list)


def generate(o: GenerateOptions) -> GenerateReport:
    """Make the samples of the options' shard that are not there yet, and list all of the folder.

    A map that cannot be used costs its own samples only, and is a fault of the report. ValueError for options that do
    not fit, for folders that hold other samples, and where no map can be used.
    """
    check_options(o)
    plan, settings = _plan(o)
    records = _claim(plan, settings, o.overwrite)
    report = GenerateReport(faults=[item.fault for item in plan.maps if item.fault])
    chooser = plan.generator()
    wanted = []
    for number in o.numbers:
        if plan.maps[chooser.map_index(number)].fault:
            report.missing += 1
        elif number in records:
            report.kept += 1
        else:
            wanted.append(number)
    try:
        for fault in tqdm(_make_all(plan, wanted, o.num_workers), "generate", len(wanted), disable=None, leave=False):
            report.made += not fault
            report.missing += bool(fault)
            if fault and fault not in report.faults:
                report.faults.append(fault)
    finally:
        report.total = _write_index(plan)
    return report


def check_options(o: GenerateOptions) -> None:
    """Raise ValueError naming the flag, the value and what is allowed."""
    for name, low in {"n": 1, "channels": 1, "num_workers": 0, "seed": 0}.items():
        if getattr(o, name) < low:
            raise ValueError(f"--{name} {getattr(o, name)}: must be at least {low}")
    if o.part[1] > o.n:
        raise ValueError(f"--shard {o.shard}: there are only --n {o.n} samples")
    if o.size and o.gmm.output_shape:
        raise ValueError("--size and --output_shape are the same; give one of them")
    if any(size < 1 for size in o.size) or len(o.size) > 3:
        raise ValueError(f"--size {' '.join(map(str, o.size))}: must be up to three numbers above 0")
    check_gmm(o.gmm)
    if o.gmm.priors == "fit":
        raise ValueError(
            "--preset fitted has no training images to fit priors from here; "
            "give --priors FILE of scripts/estimate_priors.py, or --priors random"
        )
    if o.gmm.priors != "random" and (o.prior_means_file or o.prior_stds_file):
        raise ValueError("--priors FILE and --prior_means_file or --prior_stds_file cannot both be given")
    if o.labels.is_dir() and o.out.resolve().is_relative_to(o.labels.resolve()):
        raise ValueError(f"--out {o.out} lies in --labels {o.labels}, where its maps would count as input next time")


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def read_scheme(text: str, values: Iterable[int], preset: str = "") -> LabelScheme:
    """The scheme that a --scheme option names, for maps with these values.

    auto: see `scheme_of`. freesurfer, feta, seeds: that, or an error. X.json: fields of `LabelScheme`, of which only
    `values` must be there; n_neutral_labels may stand for partners. A folder with a manifest: values are the ids of its
    source maps, which become its labels. ValueError for everything else.
    """
    found = tuple(sorted(set(values)))
    if text == "auto":
        return scheme_of(found, preset)
    if text == "feta":
        return LabelScheme.feta()
    if text == "seeds":
        return LabelScheme.seeds(found)
    if text == "freesurfer":
        unknown = [value for value in found if freesurfer.name(value) is None]
        if unknown or not freesurfer.recognised(found):
            shown = ", ".join(map(str, unknown[:10])) or "1 (cerebral exterior)"
            raise ValueError(f"--scheme freesurfer: the maps hold {shown}, which FreeSurfer's segmentations do not")
        return LabelScheme.from_values(found)
    path = Path(text)
    if (path / FILE_NAME).is_file():
        return _scheme_of_spec(Manifest.load(path).spec)
    if path.suffix == ".json" and path.is_file():
        return _scheme_of_table(path)
    raise ValueError(
        f"--scheme {text}: must be auto, freesurfer, feta, seeds, an existing .json file or a prepared data folder"
    )


def _scheme_of_table(path: Path) -> LabelScheme:
    data = read_json(path)
    known = {f.name for f in fields(LabelScheme)} | {"n_neutral_labels"}
    if not isinstance(data, dict) or "values" not in data or not set(data) <= known:
        raise ValueError(f"--scheme {path}: must hold values, and may hold {', '.join(sorted(known - {'values'}))}")
    try:
        neutral = data.get("n_neutral_labels")
        lists = (data.get("classes"), data.get("outputs"), neutral, data.get("names"))
        scheme = LabelScheme.from_lists(data["values"], *lists)
        rest = {key: tuple(data[key]) for key in ("partners", "ties") if data.get(key) is not None}
        return replace(scheme, **rest)
    except (ValueError, TypeError) as error:
        raise ValueError(f"--scheme {path}: {error}") from None


def _scheme_of_spec(spec: DataSpec) -> LabelScheme:
    """Values are the ids of the source maps; intensity classes and outputs are the prepared labels."""
    rows = [(value, label) for label in spec.labels for value in label.source or (label.id,)]
    values, ids = [value for value, _ in rows], [label.id for _, label in rows]
    whole = LabelScheme.from_spec(spec)
    one_each = len(rows) == spec.num_labels
    return LabelScheme(
        tuple(values),
        tuple(label.name for _, label in rows),
        tuple(ids),
        tuple(ids),
        whole.partners if one_each else None,
    )


def output_labels(scheme: LabelScheme) -> tuple[Label, ...]:
    """Contiguous labels of the scheme's output values, background first; `source` is the output value."""
    labels: list[Label] = []
    for new, value in enumerate(sorted({BACKGROUND, *scheme.outputs})):
        name = re.sub(r"\W+", "_", _output_name(scheme, value)).strip("_")
        taken = any(label.name == name for label in labels)
        labels.append(Label(new, f"{name}_{value}" if taken else name, (value,)))
    if len(labels) < 2:
        raise ValueError("output_labels are all 0: there is nothing but background to write")
    return tuple(labels)


def _output_name(scheme: LabelScheme, value: int) -> str:
    """Of the label of that value, or of all that become it where they agree."""
    if value == BACKGROUND:
        return "background"
    if value in scheme.values and scheme.outputs[scheme.values.index(value)] == value:
        return scheme.names[scheme.values.index(value)]
    names = {
        re.sub(r" cluster \d+$", "", name)
        for name, output in zip(scheme.names, scheme.outputs, strict=True)
        if output == value
    }
    known = freesurfer.name(value) if freesurfer.recognised(scheme.values) else None
    return names.pop() if len(names) == 1 else known or f"label {value}"


# ---------------------------------------------------------------------------------------------------------------------
# The plan


def _plan(o: GenerateOptions) -> tuple[Plan, dict[str, Any]]:
    """What to do, and the settings that the samples depend on."""
    o = replace(o, gmm=replace(o.gmm, output_shape=o.size)) if o.size else o
    maps = look_at_maps(LabelMaps(o.labels), o.num_workers)
    good = [item for item in maps if not item.fault]
    if not good:
        raise ValueError(maps[0].fault)
    scheme = None
    if o.generation_labels is None:
        scheme = read_scheme(o.scheme, {value for item in good for value in item.values}, o.gmm.preset)
    elif o.scheme != "auto":
        raise ValueError(f"--generation_labels and --scheme {o.scheme} cannot both be given")
    if scheme is not None and (o.generation_classes or o.output_labels or o.neutral_labels is not None):
        raise ValueError("--generation_classes, --output_labels and --neutral_labels need --generation_labels")
    ready = ImageGenerator(
        [item.path for item in good],
        generation_labels=o.generation_labels,
        generation_classes=o.generation_classes,
        output_labels=o.output_labels,
        n_neutral_labels=o.neutral_labels,
        scheme=scheme,
        prior_means=o.prior_means_file,
        prior_stds=o.prior_stds_file,
        priors=None if o.gmm.priors == "random" else Path(o.gmm.priors),
        n_channels=o.channels,
        options=o.gmm,
        seed=o.seed,
    )
    maps = tuple(_known_values(item, ready.scheme) for item in maps)
    good = [item for item in maps if not item.fault]
    if not good:
        raise ValueError(maps[0].fault)
    bids = o.slices == "none" and all(_bids_place(item) is not None for item in maps)
    for shape, mm in {(item.shape, item.spacing) for item in good}:
        _draw(shape, mm, ready)  # ValueError now, not a hundred times later, for options that do not fit the maps
    spec = None if o.slices == "none" else _spec(o.slices, good, ready)
    plan = Plan(o.out, maps, ready.scheme, o.gmm, ready.priors, o.channels, o.seed, bids, spec, o.save_params)
    settings = _settings(plan)
    return replace(plan, digest=_digest(settings)), settings


def look_at_maps(maps: LabelMaps, workers: int = 0) -> tuple[MapFile, ...]:
    """Read every map once; faults are kept with their maps."""
    paths = [Path(source) for source in maps.sources]
    common = Path(os.path.commonpath([path.parent for path in paths])) if len(paths) > 1 else paths[0].parent
    items = [
        MapFile(path, path.relative_to(common).as_posix(), maps.name(i)) for i, path in enumerate(paths)
    ]  # fmt: skip
    if workers < 1 or len(items) <= _SERIAL_SCAN:
        return tuple(_look(item) for item in tqdm(items, "read label maps", disable=None, leave=False))
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=get_context("spawn")) as pool:
        found = pool.map(_look, items, chunksize=8)
        return tuple(tqdm(found, "read label maps", len(items), disable=None, leave=False))


def _look(item: MapFile) -> MapFile:
    try:
        found = read_label_map_file(item.path)
        return replace(
            item,
            sha256=file_sha256(item.path),
            values=find_values([found.values]),
            shape=tuple(found.values.shape),
            spacing=found.spacing,
            plane=found.plane,
        )
    except (ValueError, OSError) as error:
        text = str(error)
        return replace(item, fault=text if str(item.path) in text else f"{item.path}: {text}")


def _known_values(item: MapFile, scheme: LabelScheme) -> MapFile:
    """The map, with a fault where it has values that the scheme does not list."""
    if item.fault or set(item.values) <= set(scheme.values):
        return item
    try:
        index_of(read_label_map_file(item.path), scheme)
    except ValueError as error:
        return replace(item, fault=str(error))
    return item


def _draw(shape: tuple[int, ...], mm: tuple[float, ...], generator: ImageGenerator) -> Params:
    return sample_params(
        torch.empty(shape, device="meta"),
        seeded_generator(0),
        options=generator.options,
        scheme=generator.scheme,
        priors=generator.priors,
        channels=generator.channels,
        spacing=mm,
    )


def _spec(axis: Axis, maps: list[MapFile], generator: ImageGenerator) -> DataSpec:
    """Spec of the slices: as large as the largest plane, and with the first map's voxel size."""
    sizes, spacings = [], []
    for item in maps:
        params = _draw(item.shape, item.spacing, generator)
        shape, mm = np.ones(3, int), np.ones(3)
        shape[list(item.plane)], mm[list(item.plane)] = params.out_shape, params.out_spacing
        count, *size = plane_shape(shape.tolist(), axis)
        if len(item.plane) == 2 and count > 1:
            flat = next(a for a in ("axial", "coronal", "sagittal") if plane_shape(shape.tolist(), a)[0] == 1)
            raise ValueError(f"--slices {axis}: {item.path} is one {flat} slice; give --slices {flat}")
        sizes.append(size)
        spacings.append(plane_spacing(np.diag([*mm, 1.0]), axis))
    if not np.allclose(spacings, spacings[0], rtol=1e-3):
        print(
            f"note: voxel sizes of the maps differ; the manifest says {spacings[0]} mm, that of {maps[0].file}; "
            "--target_res makes all equal",
            flush=True,
        )
    between, rows, columns = spacings[0]
    names = ["synthetic"] if generator.channels == 1 else [f"synthetic_{c}" for c in range(generator.channels)]
    height, width = (int(n) for n in np.max(sizes, axis=0))
    labels = output_labels(generator.scheme)
    return DataSpec(labels, tuple(map(Channel, names)), (height, width), (rows, columns), between, axis)


def _settings(plan: Plan) -> dict[str, Any]:
    """Everything that shapes the samples, as plain values under the names of the flags."""
    options = {key: value for key, value in asdict(plan.options).items() if key not in ("preset", "priors")}
    settings = {
        **options,
        "seed": plan.seed,
        "channels": plan.channels,
        "slices": None if plan.spec is None else plan.spec.axis,
        "labels": [item.file for item in plan.maps],
        "priors": _priors_digest(plan.priors),
        "scheme": plan.scheme.to_dict(),
        "slice_spec": None if plan.spec is None else plan.spec.to_dict(),
    }
    return json.loads(json.dumps(settings))


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _priors_digest(priors: Priors | None) -> str:
    if priors is None:
        return "random"
    tables: list[torch.Tensor]
    if isinstance(priors, FittedPrior):
        tables = [getattr(priors, f.name) for f in fields(priors)]
    else:
        tables = [priors.means.first, priors.means.second, priors.stds.first, priors.stds.second]
    digest = hashlib.sha256()
    for table in tables:
        digest.update(repr(tuple(table.shape)).encode() + table.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def _claim(plan: Plan, settings: dict[str, Any], overwrite: bool) -> dict[int, dict[str, Any]]:
    """Make the folder ours; returns the records of its whole samples by number.

    ValueError where it holds samples of other settings or maps and must not overwrite them.
    """
    out = plan.out
    old = read_json(out / SETTINGS)["settings"] if (out / SETTINGS).is_file() else None
    if old is None and out.is_dir() and any(path.name[0] != "." for path in out.iterdir()):
        raise ValueError(f"--out {out} is not empty and was not written by this command; choose another folder")
    if old is not None and old != settings and not overwrite:
        changed = [line if len(line) < 160 else f"{line[:157]}..." for line in differences(old, settings)]
        raise ValueError(
            f"--out {out} holds samples of other settings: {'; '.join(changed)}. "
            "Choose another folder, or give --overwrite to replace them"
        )
    sums = {item.file: item.sha256 for item in plan.maps if not item.fault}
    whole: dict[int, dict[str, Any]] = {}
    for path, record in _records(out):
        source = record["map"]
        same = record["settings"] == plan.digest and sums.get(source["file"], source["sha256"]) == source["sha256"]
        if same and all((out / file).is_file() for file in _files(record)):
            whole[record["number"]] = record
        elif not same and not overwrite:
            raise ValueError(
                f"--out {out}: {path.name} was made of another {source['file']} or with other settings; "
                "choose another folder, or give --overwrite to replace it"
            )
        else:
            path.unlink()  # first, so that no record ever outlives its files
            for file in _files(record):
                (out / file).unlink(missing_ok=True)
    if old != settings:
        write_json(out / SETTINGS, {"schema": SCHEMA, "settings": settings})
    if plan.bids:
        _describe_bids(out)
    return whole


def _records(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Files of params/ with their records, without parameters; damaged ones count as not written."""
    for path in sorted((out / PARAMS).glob("[!.]*")):
        try:
            record = read_record(path)
        except ValueError:
            continue
        if all(not Path(file).is_absolute() and ".." not in Path(file).parts for file in _files(record)):
            yield path, record


def _files(record: dict[str, Any]) -> list[str]:
    return [*record["images"], *record["labels"]]


def read_record(path: Path | str) -> dict[str, Any]:
    """Record of one sample: number, case, settings digest, map, files. ValueError where it is none."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                record = json.loads((file.metadata() or {}).get(_METADATA, "null"))
        else:
            record = read_json(path)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    wanted = {"schema", "number", "case", "settings", "map", "images", "labels", "params"}
    if not isinstance(record, dict) or not wanted <= set(record) or record["schema"] != SCHEMA:
        raise ValueError(f"{path}: no parameters of a synthetic image of scripts/generate.py")
    return record


def read_params(path: Path | str) -> Params:
    """Parameters of a sample from its file in params/; `ImageGenerator.replay` makes the image of them again."""
    record = read_record(path)
    if Path(path).suffix != ".safetensors":
        return Params.from_dict(record["params"])
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    return Params.from_tensors(tensors, record["params"])


def _write_record(path: Path, record: dict[str, Any], params: Params) -> None:
    if path.suffix != ".safetensors":
        write_json(path, {**record, "params": params.to_dict()})
        return
    tensors, rest = params.to_tensors()
    metadata = {_METADATA: json.dumps({**record, "params": rest}, allow_nan=False)}
    with atomic_path(path) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary, metadata)


def _describe_bids(out: Path) -> None:
    """Say that the folder is a BIDS derivative, and which of its files BIDS knows nothing about."""
    try:
        program = {"Name": "medsis", "Version": version("medsis")}
    except PackageNotFoundError:
        program = {"Name": "medsis"}
    if not (out / "dataset_description.json").is_file():
        write_json(
            out / "dataset_description.json",
            {
                "Name": "Synthetic images",
                "BIDSVersion": "1.10.0",
                "DatasetType": "derivative",
                "GeneratedBy": [program],
            },
        )
        write_text(out / ".bidsignore", f"{PARAMS}/\n{SETTINGS}\n{INDEX}\n")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder, waiting for other shards."""
    end = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            handle = lock_folder(out)
            break
        except ValueError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
    with handle:
        yield


def _write_index(plan: Plan) -> int:
    """List every whole sample of the folder; returns their number. Of several shards the last lists all."""
    with _locked(plan.out):
        found = {r["number"]: (path, r) for path, r in _records(plan.out) if r["settings"] == plan.digest}
        records = [found[number] for number in sorted(found)]
        samples = [
            {"number": r["number"], "case": r["case"], "map": r["map"]}
            | {"images": r["images"], "labels": r["labels"], "params": f"{PARAMS}/{path.name}"}
            for path, r in records
        ]
        write_json(plan.out / INDEX, {"schema": SCHEMA, "settings": plan.digest, "samples": samples})
        if plan.spec is not None:
            cases = tuple(case_from_dict(r["slices"]) for _, r in records if r["slices"]["slices"])
            options = {key: value for key, value in asdict(plan.options).items() if key != "priors"}
            provenance = {
                "kind": "results",
                "name": plan.out.name,
                "method": "gmm",
                "split": "test",
                "made_from": {"settings": plan.digest},
                "config": {"seed": plan.seed, "gmm": options},
            }
            Manifest(plan.spec, cases, provenance).save(plan.out)
    return len(records)


# ---------------------------------------------------------------------------------------------------------------------
# The samples

_worker: tuple[Plan, ImageGenerator] | None = None  # of a worker process


def _make_all(plan: Plan, numbers: list[int], workers: int) -> Iterator[str]:
    """One line for each sample, in any order: "" or why it could not be made."""
    count = min(workers, len(numbers))
    if count < 1:
        generator = plan.generator()
        for number in numbers:
            yield _make_or_fault(plan, generator, number)
        return
    pool = ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(plan, 1.0 / count)
    )
    try:
        futures = [pool.submit(_work, number) for number in numbers]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise ValueError(
            "a worker was killed, perhaps for memory; the same command with fewer --num_workers goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(plan: Plan, cache_gb: float) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; samples under way are finished
    torch.set_num_threads(1)
    _worker = (plan, plan.generator(cache_gb))


def _work(number: int) -> str:
    assert _worker is not None
    return _make_or_fault(*_worker, number)


def _make_or_fault(plan: Plan, generator: ImageGenerator, number: int) -> str:
    """A fault of one map must not stop the others; a full disk must."""
    try:
        make_sample(plan, generator, number)
    except ValueError as error:
        path = plan.maps[generator.map_index(number)].path
        return str(error) if str(path) in str(error) else f"{path}: {error}"
    return ""


def make_sample(plan: Plan, generator: ImageGenerator, number: int) -> None:
    """Make one sample and write its files, its record last; where that fails, nothing of it stays."""
    source = plan.maps[generator.map_index(number)]
    sample = generator.sample(number)
    place = _bids_place(source) if plan.bids else None
    case = f"{place[1]}_desc-synth{number:05d}" if place else f"{_safe(source.name)}_s{number:05d}"
    files: dict[str, list[str]] = {"images": [], "labels": []}
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "number": number,
        "case": case,
        "settings": plan.digest,
        "map": {"file": source.file, "sha256": source.sha256},
    }
    try:
        if plan.spec is None:
            _write_volumes(plan, sample, case, place[0] if place else None, files)
        else:
            record["slices"] = asdict(_write_slices(plan, plan.spec, sample, case, source, files))
        _write_record(plan.out / PARAMS / f"{case}.{plan.save_params}", record | files, sample.params)
    except BaseException:
        for file in files["images"] + files["labels"]:
            (plan.out / file).unlink(missing_ok=True)
        raise


def _safe(name: str) -> str:
    """The name as a part of a file name; numbers keep samples apart where two become equal."""
    return re.sub(r"\.{2,}|[^A-Za-z0-9._-]", "_", name).lstrip("._-")[:80] or "map"


def _bids_place(item: MapFile) -> tuple[str, str] | None:
    """(folder, beginning of the file names) of a map in ``sub-*/[ses-*/]anat``; None elsewhere."""
    match = re.search(r"(?:^|/)(sub-[A-Za-z0-9]+)/(?:(ses-[A-Za-z0-9]+)/)?anat/[^/]+$", item.path.absolute().as_posix())
    if match is None:
        return None
    parts = [part for part in match.groups() if part]
    kept = [
        part for part in item.name.split("_") if re.fullmatch(r"(?!sub-|ses-|desc-)[A-Za-z0-9]+-[A-Za-z0-9]+", part)
    ]
    return "/".join([*parts, "anat"]), "_".join([*parts, *kept])


def _write_volumes(plan: Plan, sample: Sample, case: str, folder: str | None, files: dict[str, list[str]]) -> None:
    """NIfTI files in the axes of the map; names go to `files` before their files are written."""
    channels, label = sample.volumes()
    for c, channel in enumerate(channels):
        numbered = f"ch{c}image" if len(channels) > 1 else "image"
        files["images"].append(f"{folder}/{case}_{numbered}.nii.gz" if folder else f"images/{case}_{c:04d}.nii.gz")
        write_volume(plan.out / files["images"][-1], channel, sample.affine, np.float32)
    files["labels"].append(f"{folder}/{case}_dseg.nii.gz" if folder else f"labels/{case}.nii.gz")
    write_volume(plan.out / files["labels"][0], label, sample.affine, np.int32)


def _write_slices(
    plan: Plan, spec: DataSpec, sample: Sample, case: str, source: MapFile, files: dict[str, list[str]]
) -> Case:
    """Slices with any foreground, as displayed, in the middle of the spec's size."""
    assert spec.axis is not None
    channels, label = sample.volumes()
    table = np.zeros(max(plan.scheme.outputs) + 1, np.uint8 if spec.num_labels <= 256 else np.uint16)
    for item in spec.labels:
        table[item.source[0]] = item.id
    ids, grid = to_ras(table[label], sample.affine)
    images = [to_ras(channel, sample.affine)[0] for channel in channels]
    count, *full = plane_shape(ids.shape, spec.axis)
    crop = ((full[0] - spec.size[0]) // 2, (full[1] - spec.size[1]) // 2)  # negative: the plane is padded
    slices = []
    for index in range(count):
        shown = window_plane(plane(ids, spec.axis, index), crop, spec.size, 0)
        if not shown.any():
            continue
        label_file = f"label/{slice_name(case, index)}"
        files["labels"].append(label_file)
        write_png(plan.out / label_file, shown)
        written = []
        for c, image in enumerate(images):
            written.append(f"generated/{slice_name(case, index, c)}")
            files["images"].append(written[-1])
            pixels = window_plane(plane(image, spec.axis, index), crop, spec.size, WINDOW.low)
            write_png(plan.out / written[-1], WINDOW.encode(pixels))
        slices.append(Slice(index, label_file, (), tuple(written), _histogram(shown)))
    geometry = Geometry(_rows(sample.affine), label.shape, _rows(grid), ids.shape, crop)
    patient = re.match(r"sub-[A-Za-z0-9]+", source.name)
    origin = {"label": {"file": source.path.name, "sha256": source.sha256}}
    name = patient.group() if patient else _safe(source.name)
    return Case(case, name, "test", (WINDOW,) * len(images), tuple(slices), geometry, origin)


def _rows(affine: NDArray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in affine)


def _histogram(ids: NDArray) -> dict[int, int]:
    values, counts = np.unique(ids, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}
