"""Synthetic images from label maps: ``python scripts/generate.py --labels DIR --out DIR --n 100 --preset synthseg``.

Resumable, in shards, and the same for any number of workers.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

import numpy as np
import torch
import tyro

from dataloaders.io.bids import bids_place, describe_bids
from dataloaders.io.console import tracked
from dataloaders.io.files import file_sha256, listed, with_path, write_json
from dataloaders.io.geometry import plane_shape, plane_spacing, to_ras
from dataloaders.io.intensity import Window
from dataloaders.io.ledger import SETTINGS, Ledger, WorkReport
from dataloaders.io.manifest import Case, Geometry, Manifest, Slice, affine_rows, slice_name
from dataloaders.io.nifti import write_volume
from dataloaders.io.schema import AtLeast0, AtLeast1, Shape, Shard, check, decode, options_of
from dataloaders.io.spec import SYNTHETIC, Axis, Channel, DataSpec
from dataloaders.io.workers import in_order, parse_shard, shared
from dataloaders.labelmaps.anatomies import VERSION, Anatomies
from dataloaders.labelmaps.generated_files import INDEX, PARAMS, SCHEMA, SampleLedger
from dataloaders.labelmaps.image_generator import ImageGenerator, SyntheticImage, check_exclusive, map_weights
from dataloaders.labelmaps.labels import ClassTable, count_labels, id_type
from dataloaders.labelmaps.lesion_maps import find_masks, masks_of_maps
from dataloaders.labelmaps.maps import LabelMap, LabelMaps, as_indices, read_label_map_file
from dataloaders.labelmaps.schemes import output_labels, scheme_of_options
from dataloaders.labelmaps.seed_maps import SeedMaps, seeded
from dataloaders.labelmaps.seeds import INDEX as SEED_INDEX
from dataloaders.labelmaps.seeds import draw_subclasses
from dataloaders.slice_files import Frame, write_slice
from engine.command import exit_code
from models.base import seeded_generator
from models.gmm.options import GMM_PRESETS, GmmConfig
from models.gmm.params import Params
from models.gmm.priors import FittedPrior
from models.gmm.sampling import Priors
from models.gmm.scheme import LabelScheme

WINDOW = Window(0.0, 1.0)  # of slices: the generator's range
SERIAL_SCAN = 16  # so many maps are read sooner than workers are started


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Synthetic images from label maps. The same command again goes on where it stopped."""

    labels: Path
    """Label maps: a folder (searched with its subfolders), one file (.nii, .nii.gz, .mgz), or a .txt list of files."""
    out: Path
    """Folder to write."""
    n: AtLeast0 = 100
    """Number of samples in all shards; raise it later to make more of the same. 0: with --anatomies the maps alone."""
    anatomies: AtLeast0 = 0
    """Make so many new label maps, between and around the given ones, in OUT/anatomies, and paint these instead."""
    seed: AtLeast0 = 0
    """Seed: sample k of a seed is always the same."""
    size: Shape = ()
    """Random crop to this many voxels, one number or one per axis; the same as --output_shape."""
    slices: Literal["none", "axial", "coronal", "sagittal"] = "none"
    """Write PNG slices and a manifest, as test.py does, instead of NIfTI volumes."""
    channels: AtLeast1 = 1
    """Images per sample: contrasts of one anatomy."""
    shard: Shard = "0/1"
    """Make only samples k with k % n == i of shard i/n, i from 0 to n-1; shards may run at the same time."""
    num_workers: AtLeast0 = 0
    """Processes, one sample each at a time; 0 works in this one. Does not change the images."""

    scheme: str = "auto"
    """What the labels are: auto, seeds, a table by name or file as --label_map of prepare_data.py, or a prepared folder."""
    seeds: Path | None = None
    """Folder of scripts/make_seeds.py: split the tissues by intensity, anew for each sample; maps without are left out."""
    subclasses: tuple[int, int] | None = None
    """With --seeds: least and most clusters of each tissue, drawn for each sample; by default 1 and what there is."""
    lesions: Path | None = None
    """Folder or file of lesion masks (0 and 1), one more label in the maps of the same name or subject."""
    subjects_prob: tuple[str, ...] = ()
    """How often each label map is drawn: a number for each in the order of their paths, or a .npy or .txt file of them."""
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
    gmm: GmmConfig = field(default_factory=GMM_PRESETS["synthseg"])

    @property
    def numbers(self) -> range:
        """Samples of this shard."""
        start, step = parse_shard(self.shard)
        return range(start, self.n, step)

    def check_together(self) -> None:
        """ValueError for options that do not go together."""
        if self.n == 0 and not self.anatomies:
            raise ValueError("--n 0: only with --anatomies, which makes label maps")
        if parse_shard(self.shard)[1] > max(self.n, self.anatomies):
            raise ValueError(f"--shard {self.shard}: there are only --n {self.n} samples")
        if self.subclasses is not None and self.seeds is None:
            raise ValueError(f"--subclasses {self.subclasses[0]} {self.subclasses[1]} needs --seeds")
        if self.size and self.gmm.output_shape:
            raise ValueError("--size and --output_shape are the same; give one of them")
        if self.gmm.priors == "fit":
            raise ValueError(
                "--preset fitted has no training images to fit priors from here; "
                "give --priors FILE of scripts/estimate_priors.py, or --priors random"
            )
        names = ("seeds", "lesions", "subjects_prob", "anatomies", "prior_means_file", "prior_stds_file")
        there = [name for name in names if getattr(self, name)] + ["priors"] * (self.gmm.priors != "random")
        check_exclusive({name.removesuffix("_file"): f"--{name}" for name in there})
        if self.labels.is_dir() and self.out.resolve().is_relative_to(self.labels.resolve()):
            raise ValueError(
                f"--out {self.out} lies in --labels {self.labels}, where its maps would count as input next time"
            )


def weights_of(given: tuple[str, ...], count: int) -> tuple[float, ...]:
    """Numbers of --subjects_prob for so many label maps, () for none; ValueError where they do not fit."""
    if not given:
        return ()
    file = given[0] if len(given) == 1 else ""
    try:
        if file.endswith(".npy"):
            numbers = np.load(file, allow_pickle=False)
        else:
            numbers = np.loadtxt(file if file.endswith(".txt") else given, ndmin=1)
        return tuple(map_weights(numbers.astype(float).ravel(), count).tolist())
    except (ValueError, OSError) as error:
        raise ValueError(f"--subjects_prob {' '.join(given)}: {error}") from None


def parse(arguments: Sequence[str] | None = None) -> GenerateOptions:
    """Command line -> options. --preset sets the defaults of the others, so it is looked up first."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--preset", default="synthseg")
    preset = peek.parse_known_args(arguments)[0].preset  # an unknown one is refused by tyro, which lists the allowed
    gmm = GMM_PRESETS.get(preset, GMM_PRESETS["synthseg"])()
    return options_of(
        GenerateOptions,
        arguments,
        default=GenerateOptions(labels=tyro.MISSING, out=tyro.MISSING, gmm=gmm),
        config=(tyro.conf.OmitArgPrefixes,),
    )


# -- what to make -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputMap:
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

    @property
    def sources(self) -> dict[str, str]:
        """What the record of a sample says of its map."""
        return {"file": self.file, "sha256": self.sha256}


@dataclass(frozen=True)
class SamplePlan:
    """All that a worker needs. source: of the samples, of all maps. spec: of the slices; None writes volumes. bids: name
    files as BIDS derivatives.
    """

    options: GenerateOptions
    maps: tuple[InputMap, ...]
    source: ImageGenerator
    bids: bool
    spec: DataSpec | None

    def case(self, item: InputMap, number: int) -> str:
        """Name of a sample."""
        if self.bids and (place := bids_place(item.path, item.name)):
            return f"{place[1]}_desc-synth{number:05d}"
        return f"{safe_name(item.name)}_s{number:05d}"


def safe_name(name: str) -> str:
    """The name as a part of a file name; numbers keep samples apart where two become equal."""
    return re.sub(r"\.{2,}|[^A-Za-z0-9._-]", "_", name).lstrip("._-")[:80] or "map"


def make_plan(o: GenerateOptions) -> SamplePlan:
    """What to do. ValueError where the options do not fit the maps."""
    o = replace(o, gmm=replace(o.gmm, output_shape=o.size)) if o.size else o
    maps = find_input(LabelMaps(o.labels), o.num_workers)
    weights = weights_of(o.subjects_prob, len(maps))
    if o.seeds is not None:
        names = seeded([item.path for item in maps], o.seeds)
        weights = tuple(p for p, item in zip(weights, maps, strict=False) if item.path in names)
        maps = tuple(item for item in maps if item.path in names)
        if weights and sum(weights) <= 0:
            raise ValueError(f"--subjects_prob {' '.join(o.subjects_prob)}: is 0 for all {len(maps)} maps with seeds")
    good = _usable(maps)
    values = {value for item in good for value in item.values}
    scheme = scheme_of_options(o, lambda: values, o.gmm.preset, [item.path for item in good])
    source = _source(o, maps, scheme, weights)
    maps = tuple(_known_values(item, scheme) for item in maps)
    good = _usable(maps)
    bids = o.slices == "none" and all(bids_place(item.path, item.name) is not None for item in maps)
    _try_shapes(o, good, source)
    return SamplePlan(o, maps, source, bids, None if o.slices == "none" else _spec(o.slices, good, source))


def find_input(maps: LabelMaps, workers: int = 0) -> tuple[InputMap, ...]:
    """Read every map once; faults are kept with their maps."""
    paths = [Path(source) for source in maps.sources]
    common = Path(os.path.commonpath([path.parent for path in paths])) if len(paths) > 1 else paths[0].parent
    items = [InputMap(path, path.relative_to(common).as_posix(), maps.name(i)) for i, path in enumerate(paths)]
    workers = workers if len(items) > SERIAL_SCAN else 0
    return tuple(in_order(_read_input, [(item,) for item in items], workers, "read label maps"))


def _read_input(item: InputMap) -> InputMap:
    try:
        found = read_label_map_file(item.path)
        return replace(
            item,
            sha256=file_sha256(item.path),
            values=tuple(count_labels(found.values.numpy())),
            shape=tuple(found.values.shape),
            spacing=found.spacing,
            plane=found.plane,
        )
    except (ValueError, OSError) as error:
        return replace(item, fault=with_path(item.path, error))


def _known_values(item: InputMap, scheme: LabelScheme) -> InputMap:
    """The map, with a fault where it has values that the scheme does not list."""
    if item.fault or set(item.values) <= set(scheme.values):
        return item
    try:
        as_indices(read_label_map_file(item.path), scheme)
    except ValueError as error:
        return replace(item, fault=str(error))
    return item


def _usable(maps: Sequence[InputMap]) -> list[InputMap]:
    good = [item for item in maps if not item.fault]
    if not good:
        raise ValueError(maps[0].fault)
    return good


def _source(
    o: GenerateOptions, maps: Sequence[InputMap], scheme: LabelScheme, weights: tuple[float, ...] = ()
) -> ImageGenerator:
    try:
        return ImageGenerator(
            [item.path for item in maps],
            scheme=scheme,
            prior_means=o.prior_means_file,
            prior_stds=o.prior_stds_file,
            priors=None if o.gmm.priors == "random" else Path(o.gmm.priors),
            seeds=o.seeds,
            subclasses=o.subclasses or (1, None),
            lesions=o.lesions,
            subjects_prob=weights or None,
            n_channels=o.channels,
            options=o.gmm,
            seed=o.seed,
            cache_gb=1 / max(o.num_workers, 1),
        )
    except ValueError as error:
        raise ValueError(f"{'--' if str(error).startswith('lesions ') else ''}{error}") from None


def _try_shapes(o: GenerateOptions, maps: list[InputMap], generator: ImageGenerator) -> None:
    """ValueError now, not a hundred times later, for options that do not fit the maps; names the flag and the map."""
    for item in {(item.shape, item.spacing): item for item in maps}.values():
        try:
            _draw(item, generator)
        except ValueError as error:
            text = str(error).replace("output_shape", "--size" if o.size else "--output_shape")
            text = text.replace("target_res ", "--target_res ")
            raise ValueError(f"{item.path}: {text}" if "--" in text else text) from None
    if isinstance(generator.maps, SeedMaps):
        for case in generator.maps.cases:
            draw_subclasses(case, seeded_generator(0), *generator.maps.subclasses)


def _draw(item: InputMap, generator: ImageGenerator) -> Params:
    return generator.draw(torch.empty(item.shape, device="meta"), item.spacing, seeded_generator(0))


def _spec(axis: Axis, maps: list[InputMap], generator: ImageGenerator) -> DataSpec:
    """Spec of the slices: as large as the largest plane, and with the first map's voxel size."""
    sizes, spacings = [], []
    for item in maps:
        params = _draw(item, generator)
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
    names = [SYNTHETIC] if generator.n_channels == 1 else [f"{SYNTHETIC}_{c}" for c in range(generator.n_channels)]
    height, width = (int(n) for n in np.max(sizes, axis=0))
    labels = output_labels(generator.scheme)
    return DataSpec(labels, tuple(map(Channel, names)), (height, width), (rows, columns), between, axis)


# -- what the samples depend on -----------------------------------------------------------------------------------


def settings_of(plan: SamplePlan) -> dict[str, Any]:
    """Everything that shapes the samples but the content of their maps, under the names of the flags."""
    o, paths = plan.options, [item.path for item in plan.maps]
    settings = {
        **{key: value for key, value in asdict(o.gmm).items() if key not in ("preset", "priors")},
        "seed": o.seed,
        "channels": o.channels,
        "slices": None if plan.spec is None else plan.spec.axis,
        "labels": [item.file for item in plan.maps],
        "priors": _priors_digest(plan.source.priors),
        "scheme": plan.source.base_scheme.to_dict(),
        "seeds": None if o.seeds is None else _seeds_digest(o.seeds, paths),
        "slice_spec": None if plan.spec is None else plan.spec.to_dict(),
    }
    given: dict[str, Any] = {"subclasses": o.subclasses, "subjects_prob": plan.source.given["subjects_prob"]}
    if o.anatomies:
        given["anatomies"] = {"count": o.anatomies, "maps": {item.file: item.sha256 for item in plan.maps}}
    if o.lesions is not None:
        masks = masks_of_maps(paths, find_masks(o.lesions, paths))
        given["lesions"] = {item.file: file_sha256(masks[item.path]) for item in plan.maps if item.path in masks}
    return settings | {
        name: value for name, value in given.items() if value not in (None, ())
    }  # folders of versions without them go on


def _seeds_digest(seeds: Path, maps: Sequence[Path]) -> str:
    """Of the index and of the records of the maps' cases, which hold the hashes of all their files."""
    records = [f"{case.key} {file_sha256(case.record)}\n" for case in seeded(maps, seeds).values()]
    return hashlib.sha256("".join([file_sha256(seeds / SEED_INDEX), *records]).encode()).hexdigest()


def _priors_digest(priors: Priors | None) -> str:
    if priors is None:
        return "random"
    if isinstance(priors, FittedPrior):
        tables = [getattr(priors, f.name) for f in fields(priors)]
    else:
        tables = [priors.means.first, priors.means.second, priors.stds.first, priors.stds.second]
    content = [repr(tuple(table.shape)).encode() + table.float().numpy().tobytes() for table in tables]
    return hashlib.sha256(b"".join(content)).hexdigest()


# -- the work -----------------------------------------------------------------------------------------------------


@dataclass
class GenerateReport(WorkReport):
    """Also how many whole samples the folder has now."""

    total: int = 0


def generate(o: GenerateOptions) -> GenerateReport:
    """Make the samples of the options' shard that are not there yet, and list all of the folder.

    A map that cannot be used costs its own samples only, and is a fault of the report. ValueError for options that do
    not fit, for folders that hold other samples, and where no map can be used.
    """
    check(o.gmm)  # its flags have no prefix here
    check(o)
    plan = make_plan(o)
    ledger = SampleLedger.claim(o.out, settings_of(plan), overwrite=o.overwrite, ending=f".{o.save_params}")
    if o.anatomies:
        plan = with_anatomies(plan, overwrite=o.overwrite)
    if plan.bids:
        describe_bids(o.out, "Synthetic images", (f"{PARAMS}/", SETTINGS, INDEX))
    report = GenerateReport(faults=[item.fault for item in plan.maps if item.fault])
    wanted = []
    for number in o.numbers:
        item = plan.maps[plan.source.map_index(number)]
        if not item.fault and ledger.done(plan.case(item, number), item.sources) is not None:
            report.kept += 1
        elif not item.fault:
            wanted.append(number)
    try:
        count, jobs = min(o.num_workers, len(wanted)), ((number,) for number in wanted)
        made = shared(_make_or_fault, jobs, count, _one_thread if count else None, (plan, ledger))
        for fault in tracked(made, "generate", len(wanted)):
            report.made += not fault
            if fault and fault not in report.faults:
                report.faults.append(fault)
    finally:
        report.total = write_index(plan, ledger)
    return report


# -- new anatomies ------------------------------------------------------------------------------------------------


def with_anatomies(plan: SamplePlan, overwrite: bool = False) -> SamplePlan:
    """The plan with new maps in the place of the given ones, which are made where they are not there yet.

    Shards begin at different ones; what two make at the same time is the same. ValueError where the maps have a fault.
    """
    o = plan.options
    if faults := [item.fault for item in plan.maps if item.fault]:
        raise ValueError(faults[0])
    settings = {name: settings_of(plan)[name] for name in ("anatomies", "seed", "scheme")}
    settings["anatomies"] = settings["anatomies"]["maps"]  # their number may grow
    folder, names = o.out / "anatomies", [f"anatomy{k:05d}.nii.gz" for k in range(o.anatomies)]
    ledger = Ledger.claim(folder, {**settings, "version": VERSION}, overwrite=overwrite)
    part, parts = parse_shard(o.shard)
    first = part * o.anatomies // parts
    order = [*range(first, o.anatomies), *range(first)]
    missing = [(k, names[k]) for k in order if ledger.done(names[k]) is None]
    count = min(o.num_workers, len(missing))
    scheme = plan.source.base_scheme
    start = (ledger, [item.path for item in plan.maps], scheme, o.anatomies, o.seed)
    if count:
        _open_anatomies(*start)  # registers what the workers will read
    made = shared(_write_anatomy, missing, count, _open_anatomies, start) if missing else ()
    for _ in tracked(made, "anatomies", len(missing)):
        pass
    maps = find_input(LabelMaps([folder / name for name in names]), o.num_workers)
    return replace(plan, maps=maps, source=_source(o, maps, scheme), bids=False)


def _open_anatomies(
    ledger: Ledger, maps: list[Path], scheme: LabelScheme, count: int, seed: int
) -> tuple[Ledger, Anatomies]:
    torch.set_num_threads(1)
    return ledger, Anatomies(maps, scheme, count, seed, ledger.folder / "fields")


def _write_anatomy(ledger: Ledger, maps: Anatomies, k: int, name: str) -> None:
    """Unless another shard has written it meanwhile."""
    if ledger.done(name) is None:
        write_map(ledger.folder / name, maps.anatomy(k), maps.drawn)
        ledger.record(name, outputs=[name])


# -- samples ------------------------------------------------------------------------------------------------------


def _one_thread(*first: Any) -> tuple[Any, ...]:
    """What a worker begins with: the others have the other cores."""
    torch.set_num_threads(1)
    return first


def _make_or_fault(plan: SamplePlan, ledger: SampleLedger, number: int) -> str:
    """One line, "" or why the sample could not be made: a fault of one map must not stop the others; a full disk must."""
    try:
        make_sample(plan, ledger, number)
    except ValueError as error:
        return with_path(plan.maps[plan.source.map_index(number)].path, error)
    return ""


def make_sample(plan: SamplePlan, ledger: SampleLedger, number: int) -> None:
    """Make one sample and write its files, its record last; where that fails, nothing of it stays."""
    generator = plan.source
    index = generator.map_index(number)
    source = plan.maps[index]
    case = plan.case(source, number)
    sample = generator.sample(number)
    about: dict[str, Any] = {"number": number, "case": case}
    if sample.source.subclasses:
        assert isinstance(generator.maps, SeedMaps)
        seeds = generator.maps.cases[index]
        about["subclasses"] = list(sample.source.subclasses)
        about["seeds"] = {"case": seeds.key, "sha256": file_sha256(seeds.record)}
    files: dict[str, list[str]] = {"images": [], "labels": []}
    ledger.forget(case)
    try:
        if plan.spec is None:
            place = bids_place(source.path, source.name) if plan.bids else None
            write_volumes(ledger.folder, sample, case, place[0] if place else None, files)
        else:
            about["slices"] = asdict(write_slices(ledger.folder, plan.spec, sample, case, source.sha256, files))
        ledger.record(case, source.sources, **about, **files, params=sample.params)
    except BaseException:
        for file in files["images"] + files["labels"]:
            (ledger.folder / file).unlink(missing_ok=True)
        raise


def write_map(path: Path, label_map: LabelMap, scheme: LabelScheme) -> None:
    """A map of label indices as a file of values, in the axes of its source."""
    values = np.array(scheme.values, np.int32)[label_map.values.numpy()]
    n = values.ndim
    (data,), affine = label_map.to_source_axes([values], (0,) * n, (1,) * n)
    write_volume(path, data, affine, np.int32, label_map.codes)


def write_volumes(
    out: Path, sample: SyntheticImage, case: str, folder: str | None, files: dict[str, list[str]]
) -> None:
    """NIfTI files in the axes of the map; names go to `files` before their files are written."""
    channels, label = sample.volumes()
    for c, channel in enumerate(channels):
        numbered = f"ch{c}image" if len(channels) > 1 else "image"
        files["images"].append(f"{folder}/{case}_{numbered}.nii.gz" if folder else f"images/{case}_{c:04d}.nii.gz")
        write_volume(out / files["images"][-1], channel, sample.affine, np.float32, sample.source.codes)
    files["labels"].append(f"{folder}/{case}_dseg.nii.gz" if folder else f"labels/{case}.nii.gz")
    write_volume(out / files["labels"][0], label, sample.affine, np.int32, sample.source.codes)


def write_slices(
    out: Path, spec: DataSpec, sample: SyntheticImage, case: str, sha256: str, files: dict[str, list[str]]
) -> Case:
    """Slices with any foreground, as displayed, in the middle of the spec's size; names go to `files` first.

    sha256: of the sample's map.
    """
    assert spec.axis is not None
    assert sample.source.path is not None
    channels, label = sample.volumes()
    ids, grid = to_ras(ClassTable(spec.labels).apply(label).astype(id_type(spec.num_labels)), sample.affine)
    images = [to_ras(channel, sample.affine)[0] for channel in channels]
    count, *full = plane_shape(ids.shape, spec.axis)
    crop = ((full[0] - spec.size[0]) // 2, (full[1] - spec.size[1]) // 2)  # negative: the plane is padded
    frame, windows = Frame(spec.axis, crop, spec.size), (WINDOW,) * len(images)
    slices = []
    for index in range(count):
        if not frame.cut(ids, index).any():
            continue
        generated = tuple(f"generated/{slice_name(case, index, c)}" for c in range(len(images)))
        item = Slice(index, f"label/{slice_name(case, index)}", (), generated)
        files["labels"].append(item.label)
        files["images"] += generated
        slices.append(write_slice(out, item, ids, images, windows, frame))
    geometry = Geometry(
        affine_rows(sample.affine), label.shape, affine_rows(grid), ids.shape, crop, sample.source.codes
    )
    name = sample.source.name
    patient = re.match(r"sub-[A-Za-z0-9]+", name)
    origin = {"label": {"file": sample.source.path.name, "sha256": sha256}}
    return Case(case, patient.group() if patient else safe_name(name), "test", windows, tuple(slices), geometry, origin)


def write_index(plan: SamplePlan, ledger: SampleLedger) -> int:
    """List every whole sample of the folder; returns their number. Of several shards the last lists all."""
    with ledger.held():
        whole = sorted(ledger.all(), key=lambda item: item[1]["number"])
        listing = ("number", "case", "map", "images", "labels")
        samples = [
            {name: record[name] for name in listing} | {"params": f"{ledger.records}/{ledger.path(key).name}"}
            for key, record in whole
        ]
        write_json(ledger.folder / INDEX, {"schema": SCHEMA, "settings": ledger.digest, "samples": samples})
        if plan.spec is not None:
            gmm = {key: value for key, value in asdict(plan.options.gmm).items() if key != "priors"}
            provenance = {
                "kind": "results",
                "name": ledger.folder.name,
                "method": "gmm",
                "split": "test",
                "made_from": {"settings": ledger.digest},
                "config": {"seed": plan.options.seed, "gmm": gmm},
            }
            cases = decode(tuple[Case, ...], [r["slices"] for _, r in whole if r["slices"]["slices"]], "cases")
            Manifest(plan.spec, cases, provenance).save(ledger.folder)
    return len(whole)


def main() -> int:
    """Exit codes: 0 fine, 1 some samples could not be made, 2 bad options."""
    options = parse()
    report = generate(options)
    for line in listed(report.faults):
        print(f"error: {line}", file=sys.stderr)
    missing = len(options.numbers) - report.made - report.kept
    counts = f"{report.made} made, {report.kept} kept, {missing} missing"
    print(f"{options.out}: {counts}; {report.total} whole samples in all")
    return 1 if missing or report.faults else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
