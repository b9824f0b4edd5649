"""Label maps to folders of synthetic images and labels: resumable, in shards, the same for any number of workers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataloaders.io.files import with_path
from dataloaders.io.geometry import plane_shape, plane_spacing
from dataloaders.io.nifti import file_sha256
from dataloaders.io.progress import tracked
from dataloaders.io.spec import Axis, Channel, DataSpec
from dataloaders.io.workers import as_ready, in_order
from dataloaders.labelmaps.generate_options import GenerateOptions, check_options, map_weights
from dataloaders.labelmaps.generated_files import (
    PARAMS,
    bids_place,
    claim,
    describe_bids,
    safe_name,
    write_index,
    write_record,
    write_slices,
    write_volumes,
)
from dataloaders.labelmaps.image_generator import ImageGenerator
from dataloaders.labelmaps.lesion_maps import find_masks, match_lesions
from dataloaders.labelmaps.maps import LabelMaps, as_indices, read_label_map_file
from dataloaders.labelmaps.schemes import output_labels, read_scheme
from dataloaders.labelmaps.seed_maps import SeedMaps, seeded
from dataloaders.labelmaps.seeds import INDEX, draw_subclasses, record_file
from models.base import seeded_generator
from models.gmm.labels import LabelScheme, find_values
from models.gmm.options import GmmConfig
from models.gmm.params import Params
from models.gmm.priors import FittedPrior
from models.gmm.sampling import Priors

_SERIAL_SCAN = 16  # so many maps are read sooner than workers are started


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

    spec: of the slices; None writes volumes. bids: name files as BIDS derivatives. weights: of the maps, () for equal ones.
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
    seeds: Path | None = None
    subclasses: tuple[int, int | None] = (1, None)
    lesions: Path | None = None
    weights: tuple[float, ...] = ()
    digest: str = ""

    def generator(self, cache_gb: float = 1.0) -> ImageGenerator:
        """The source of the samples."""
        return ImageGenerator(
            [item.path for item in self.maps],
            scheme=self.scheme,
            seeds=self.seeds,
            subclasses=self.subclasses,
            lesions=self.lesions,
            subjects_prob=self.weights or None,
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
    sums = {item.file: item.sha256 for item in plan.maps if not item.fault}
    records = claim(plan.out, settings, plan.digest, sums, o.overwrite)
    if plan.bids:
        describe_bids(plan.out)
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
        for fault in tracked(_make_all(plan, wanted, o.num_workers), "generate", len(wanted)):
            report.made += not fault
            report.missing += bool(fault)
            if fault and fault not in report.faults:
                report.faults.append(fault)
    finally:
        gmm = {key: value for key, value in asdict(plan.options).items() if key != "priors"}
        report.total = write_index(plan.out, plan.digest, plan.spec, {"seed": plan.seed, "gmm": gmm})
    return report


def _plan(o: GenerateOptions) -> tuple[Plan, dict[str, Any]]:
    """What to do, and the settings that the samples depend on."""
    o = replace(o, gmm=replace(o.gmm, output_shape=o.size)) if o.size else o
    maps = look_at_maps(LabelMaps(o.labels), o.num_workers)
    chances = map_weights(o.subjects_prob, len(maps))
    if o.seeds is not None:
        names = seeded([item.path for item in maps], o.seeds)
        chances = tuple(p for p, item in zip(chances, maps, strict=False) if item.path in names)
        maps = tuple(item for item in maps if item.path in names)
        if chances and sum(chances) <= 0:
            raise ValueError(f"--subjects_prob {' '.join(o.subjects_prob)}: is 0 for all {len(maps)} maps with seeds")
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
    ready = _first_generator(o, good, scheme)
    base = ready.base_scheme
    maps = tuple(_known_values(item, base) for item in maps)
    good = [item for item in maps if not item.fault]
    if not good:
        raise ValueError(maps[0].fault)
    bids = o.slices == "none" and all(bids_place(item.path, item.name) is not None for item in maps)
    _try_shapes(o, good, ready)
    spec = None if o.slices == "none" else _spec(o.slices, good, ready)
    plan = Plan(
        o.out,
        maps,
        base,
        o.gmm,
        ready.priors,
        o.channels,
        o.seed,
        bids,
        spec,
        o.save_params,
        o.seeds,
        o.subclasses or (1, None),
        o.lesions,
        chances,
    )
    settings = _settings(plan)
    return replace(plan, digest=_digest(settings)), settings


def _first_generator(o: GenerateOptions, good: list[MapFile], scheme: LabelScheme | None) -> ImageGenerator:
    """Of the options as they were typed; it finds the scheme and the priors of the plan."""
    try:
        return ImageGenerator(
            [item.path for item in good],
            generation_labels=o.generation_labels,
            generation_classes=o.generation_classes,
            output_labels=o.output_labels,
            n_neutral_labels=o.neutral_labels,
            scheme=scheme,
            seeds=o.seeds,
            subclasses=o.subclasses or (1, None),
            lesions=o.lesions,
            prior_means=o.prior_means_file,
            prior_stds=o.prior_stds_file,
            priors=None if o.gmm.priors == "random" else Path(o.gmm.priors),
            n_channels=o.channels,
            options=o.gmm,
            seed=o.seed,
        )
    except ValueError as error:
        flags = ("generation_labels", "generation_classes", "output_labels", "neutral_labels", "lesions")
        text = str(error).replace("n_neutral_labels", "neutral_labels")
        raise ValueError(f"{'--' if text.startswith(tuple(f'{name} ' for name in flags)) else ''}{text}") from None


def _try_shapes(o: GenerateOptions, maps: list[MapFile], generator: ImageGenerator) -> None:
    """ValueError now, not a hundred times later, for options that do not fit the maps; names the flag and the map."""
    for (shape, mm), item in {(item.shape, item.spacing): item for item in maps}.items():
        try:
            _draw(shape, mm, generator)
        except ValueError as error:
            text = str(error).replace("output_shape", "--size" if o.size else "--output_shape")
            text = text.replace("target_res ", "--target_res ")
            raise ValueError(f"{item.path}: {text}" if "--" in text else text) from None
    if isinstance(generator.maps, SeedMaps):
        for case in generator.maps.cases:
            draw_subclasses(case, seeded_generator(0), *generator.maps.subclasses)


def look_at_maps(maps: LabelMaps, workers: int = 0) -> tuple[MapFile, ...]:
    """Read every map once; faults are kept with their maps."""
    paths = [Path(source) for source in maps.sources]
    common = Path(os.path.commonpath([path.parent for path in paths])) if len(paths) > 1 else paths[0].parent
    items = [
        MapFile(path, path.relative_to(common).as_posix(), maps.name(i)) for i, path in enumerate(paths)
    ]  # fmt: skip
    workers = workers if len(items) > _SERIAL_SCAN else 0
    return tuple(in_order(_look, [(item,) for item in items], workers, "read label maps"))


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
        return replace(item, fault=with_path(item.path, error))


def _known_values(item: MapFile, scheme: LabelScheme) -> MapFile:
    """The map, with a fault where it has values that the scheme does not list."""
    if item.fault or set(item.values) <= set(scheme.values):
        return item
    try:
        as_indices(read_label_map_file(item.path), scheme)
    except ValueError as error:
        return replace(item, fault=str(error))
    return item


def _draw(shape: tuple[int, ...], mm: tuple[float, ...], generator: ImageGenerator) -> Params:
    return generator.draw(torch.empty(shape, device="meta"), mm, seeded_generator(0))


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
        "seeds": None if plan.seeds is None else _seeds_digest(plan),
        "slice_spec": None if plan.spec is None else plan.spec.to_dict(),
    }
    if plan.subclasses != (1, None):  # this and the next are listed where they are given: older folders go on
        settings["subclasses"] = plan.subclasses
    if plan.weights:
        settings["subjects_prob"] = plan.weights
    if plan.lesions is not None:
        masks = match_lesions(
            [item.path for item in plan.maps], find_masks(plan.lesions, [item.path for item in plan.maps])
        )
        settings["lesions"] = {item.file: file_sha256(masks[item.path]) for item in plan.maps if item.path in masks}
    return json.loads(json.dumps(settings))


def _seeds_digest(plan: Plan) -> str:
    """Of the index and of the records of the maps' cases, which hold the hashes of all their files."""
    assert plan.seeds is not None
    digest = hashlib.sha256(file_sha256(plan.seeds / INDEX).encode())
    for case in seeded([item.path for item in plan.maps], plan.seeds).values():
        digest.update(f"{case.key} {file_sha256(record_file(case.folder, case.key))}\n".encode())
    return digest.hexdigest()


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


_worker: tuple[Plan, ImageGenerator] | None = None  # of a worker process


def _make_all(plan: Plan, numbers: list[int], workers: int) -> Iterator[str]:
    """One line for each sample, in any order: "" or why it could not be made."""
    count = min(workers, len(numbers))
    if count < 1:
        generator = plan.generator()
        for number in numbers:
            yield _make_or_fault(plan, generator, number)
        return
    yield from as_ready(_work, ((number,) for number in numbers), count, _start_worker, (plan, 1.0 / count))


def _start_worker(plan: Plan, cache_gb: float) -> None:
    global _worker
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
        return with_path(plan.maps[generator.map_index(number)].path, error)
    return ""


def make_sample(plan: Plan, generator: ImageGenerator, number: int) -> None:
    """Make one sample and write its files, its record last; where that fails, nothing of it stays."""
    source = plan.maps[generator.map_index(number)]
    sample = generator.sample(number)
    place = bids_place(source.path, source.name) if plan.bids else None
    case = f"{place[1]}_desc-synth{number:05d}" if place else f"{safe_name(source.name)}_s{number:05d}"
    files: dict[str, list[str]] = {"images": [], "labels": []}
    record: dict[str, Any] = {
        "number": number,
        "case": case,
        "settings": plan.digest,
        "map": {"file": source.file, "sha256": source.sha256},
    }
    if sample.source.subclasses:
        assert isinstance(generator.maps, SeedMaps)
        seeds = generator.maps.cases[generator.map_index(number)]
        record["subclasses"] = list(sample.source.subclasses)
        record["seeds"] = {"case": seeds.key, "sha256": file_sha256(record_file(seeds.folder, seeds.key))}
    try:
        if plan.spec is None:
            write_volumes(plan.out, sample, case, place[0] if place else None, files)
        else:
            record["slices"] = asdict(write_slices(plan.out, plan.spec, sample, case, source.sha256, files))
        write_record(plan.out / PARAMS / f"{case}.{plan.save_params}", record | files, sample.params)
    except BaseException:
        for file in files["images"] + files["labels"]:
            (plan.out / file).unlink(missing_ok=True)
        raise
