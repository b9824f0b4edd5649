"""Volumes to slices: inspect every source, then process the cases in parallel, then write the manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dataloaders import cleaning, geometry, tissue
from dataloaders.intensity import Window
from dataloaders.labels import LabelTable, dataset_json_names, found_labels, read_label_map
from dataloaders.manifest import FILE_NAME, Case, Geometry, Manifest, Slice, Split, case_from_dict, slice_name
from dataloaders.nifti import Volume, VolumeError, file_sha256, read_volume, whole_numbers
from dataloaders.png import write_png
from dataloaders.sources import CaseSource, Found, find_bids, find_mni152, find_nnunet, find_pairs, find_synthrad
from dataloaders.splits import read_split_file, split_patients, split_slices
from engine.files import read_json, write_json
from spec import Axis, Channel, DataSpec, Label

CT_WINDOW = Window(-1024.0, 3071.0)  # 12 bits, the range of clinical scanners
MR_PERCENTILES = (0.1, 99.9)
AFFINE_TOLERANCE = 1e-3
SIZE_STEP = 32  # the networks halve a slice up to five times
AIR_HU = -1024.0
RESUME_FOLDER = ".work"
Format = Literal["pairs", "nnunet", "synthrad2023", "bids", "mni152"]


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Turn 3-D scans and label maps into the slices that train.py and test.py read."""

    format: Format | None = None
    """Layout of the source data."""
    source: Path | None = None
    """Folder of the source data (nnunet, synthrad2023, bids)."""
    out: Path | None = None
    """Folder to write; resumes what was interrupted there."""
    check: Path | None = None
    """Only check a folder that was prepared before: every byte, all faults listed, exit code 1 if there are any."""
    dry_run: bool = False
    """Only inspect the sources."""

    images: str | None = None
    """pairs: folder or quoted glob of images."""
    labels: str | None = None
    """pairs: folder or quoted glob of label maps; synthrad2023: folder of label maps by case."""
    channel: str = "image"
    """pairs: name of the image channel, e.g. CT or T1w; CT selects the CT window."""
    case_regex: str | None = None
    """pairs: regular expression whose first group is the case id within a file's stem."""
    patient_regex: str | None = None
    """Regular expression whose first group is the patient within a case id (repeat scans of one patient)."""
    image_channels: tuple[int, ...] = ()
    """nnunet: channels to use as images; all by default."""
    label_channel: int | None = None
    """nnunet: channel of imagesTr that holds the label map (AutoPET with organ labels: 2)."""
    image: Literal["mr", "ct", "both"] = "mr"
    """synthrad2023: which scans become the image channels."""
    modalities: tuple[str, ...] = ()
    """bids: modalities in channel order; those that every subject has by default."""
    brain_masks: Path | None = None
    """bids: folder with *_desc-brain_mask.nii.gz, for tissue classification of whole heads."""
    lesions: bool = True
    """bids: a *_label-lesion_mask becomes one more class."""
    tissue: Literal["none", "hmrf", "hu"] = "none"
    """Make label maps: hmrf = CSF/GM/WM from the first channel (T1w); hu = gas, fat, soft tissue, bone from CT."""

    axis: Axis = "axial"
    """Slicing direction."""
    size: tuple[int, ...] = (256,)
    """Slice size in pixels, one number or height and width, multiples of 32; slices are padded or cropped to it."""
    spacing: tuple[float, ...] = ()
    """Resample to this voxel size in mm: one number, or three for right-left, front-back, head-foot."""
    window: tuple[str, ...] = ("auto",)
    """Intensity window per channel (or one for all): ct, mr, auto, or LOW,HIGH in source units."""
    clean: Literal["auto", "body", "none"] = "auto"
    """Remove what is not body (table, tubes), keeping lungs and gas; auto does so for CT."""
    split_background: bool = False
    """Split label 0 into background (air) and body_unlabelled."""
    label_map: Path | None = None
    """Table of source ids and class names (.json, .csv, .tsv); ids that share a name are fused."""
    unknown_labels: Literal["refuse", "background"] = "refuse"
    """What to do with ids that the table does not list."""
    min_foreground: float = 0.01
    """Keep slices of which at least this fraction of pixels is labelled."""
    affine: Literal["refuse", "warn"] = "refuse"
    """What to do when image and label map differ in their affines by more than 0.001."""

    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Fractions of patients for training, validation and test."""
    split_by: Literal["patient", "slices"] | None = None
    """patient, or slices: held-out blocks of slices within each case, for a single patient (default of mni152)."""
    guard: int = 3
    """With --split_by slices: drop this many slices around held-out blocks."""
    val_patients: tuple[str, ...] = ()
    """Patients to validate on, instead of fractions."""
    test_patients: tuple[str, ...] = ()
    """Patients to test on, instead of fractions."""
    split_file: Path | None = None
    """JSON file {"train": [...], "val": [...], "test": [...]} of patients, instead of fractions."""
    seed: int = 42
    """Seed of the split."""
    workers: int = 0
    """Processes; 0 for one per core. Does not change the result."""

    @property
    def slice_size(self) -> tuple[int, int]:
        """(H, W)."""
        return (self.size[0], self.size[-1])

    @property
    def by_slices(self) -> bool:
        """Whether blocks of slices are split rather than patients."""
        return (self.split_by or ("slices" if self.format == "mni152" else "patient")) == "slices"


def check_options(o: PrepareOptions) -> None:
    """Raise ValueError naming the flag, the value and what is allowed."""
    if o.format is None or (o.out is None and not o.dry_run):
        raise ValueError("give --format and --out (or --check DIR to check a prepared folder)")
    if o.format == "pairs" and o.images is None:
        raise ValueError("--format pairs needs --images and --labels")
    if o.format in ("nnunet", "synthrad2023", "bids"):
        if o.source is None:
            raise ValueError(f"--format {o.format} needs --source")
        if not o.source.is_dir():
            raise ValueError(f"--source {o.source}: no such folder")
    if len(o.size) > 2 or any(n < SIZE_STEP or n % SIZE_STEP for n in o.size):
        raise ValueError(f"--size {' '.join(map(str, o.size))}: one or two multiples of {SIZE_STEP}")
    if len(o.spacing) not in (0, 1, 3) or any(not 0 < mm < 100 for mm in o.spacing):
        raise ValueError(f"--spacing {' '.join(map(str, o.spacing))}: one or three lengths in mm, above 0")
    if min(o.split) < 0 or sum(o.split) <= 0:
        raise ValueError(f"--split {o.split}: three fractions, not negative, not all 0")
    if not 0 <= o.min_foreground <= 1:
        raise ValueError(f"--min_foreground {o.min_foreground}: must be in [0, 1]")
    for text in o.window:
        parse_window(text)


def parse_window(text: str) -> Window | str:
    """`ct`, `mr` and `auto` as they are; `LOW,HIGH` as a Window."""
    if text in ("ct", "mr", "auto"):
        return text
    try:
        low, high = (float(part) for part in text.split(","))
        return Window(low, high)
    except ValueError:
        raise ValueError(f"--window {text}: must be ct, mr, auto or LOW,HIGH with LOW < HIGH") from None


def find(o: PrepareOptions) -> Found:
    """Cases of the source named by the options."""
    if o.format == "pairs":
        assert o.images is not None
        return find_pairs(o.images, o.labels, o.channel, o.case_regex, o.patient_regex)
    if o.format == "mni152":
        return find_mni152()
    assert o.source is not None
    if o.format == "nnunet":
        return find_nnunet(o.source, o.image_channels, o.label_channel, o.patient_regex)
    if o.format == "synthrad2023":
        return find_synthrad(o.source, o.image, Path(o.labels) if o.labels else None, o.patient_regex)
    return find_bids(o.source, o.modalities, o.brain_masks, o.patient_regex)


# -- inspect ------------------------------------------------------------------------------------------------------


@dataclass
class Facts:
    """What inspecting one case found."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    label_counts: dict[int, int] = field(default_factory=dict)
    looks_ct: list[bool] = field(default_factory=list)


def inspect_case(source: CaseSource, channels: tuple[str, ...], o: PrepareOptions) -> Facts:
    """Read every file of a case once; all faults are collected."""
    facts = Facts()
    volumes: dict[str, Volume] = {}
    paths = source.files(channels)
    for role, path in paths.items():
        try:
            volumes[role] = read_volume(path)
            facts.hashes[role] = file_sha256(path)
            if role not in channels:
                whole_numbers(path, volumes[role].data)
            elif volumes[role].data.min() == volumes[role].data.max():
                raise VolumeError(f"{path}: constant image, every voxel is {volumes[role].data.flat[0]:g}")
        except VolumeError as error:
            facts.faults.append(str(error))
    if facts.faults:
        return facts
    if source.builtin:
        volumes = _builtin(source, channels)
    reference = volumes[channels[0]]
    for role, volume in volumes.items():
        own_grid_allowed = role in channels and o.format == "bids"
        if own_grid_allowed and not _same_grid(volume, reference):
            facts.notes.append(f"{source.id}: {role} has its own grid, resampled to that of {channels[0]}")
        elif not own_grid_allowed:
            _compare_grids(paths.get(role, Path(role)), volume, reference, o.affine, facts)
    facts.looks_ct = [_looks_ct(name, volumes[name].data) for name in channels]
    if "label" in volumes:
        ids, counts = np.unique(np.asarray(volumes["label"].data), return_counts=True)
        facts.label_counts = {int(i): int(n) for i, n in zip(ids, counts, strict=True)}
        if set(facts.label_counts) == {0}:
            facts.faults.append(f"{source.label}: the label map is empty, every voxel is 0")
    elif o.tissue == "none":
        facts.faults.append(f"case {source.id}: no label map; give one or let --tissue hmrf or hu make it")
    elif o.tissue == "hmrf" and "brain" not in volumes:
        try:
            tissue.brain_mask(reference.data, geometry.spacing(reference.affine))
        except tissue.TissueError as error:
            facts.faults.append(f"{source.images[0]}: {error}")
    return facts


def _looks_ct(channel: str, data: NDArray) -> bool:
    return channel.upper() == "CT" or (data.dtype.kind == "i" and float(data.min()) <= -900)


def _same_grid(volume: Volume, reference: Volume) -> bool:
    distance = np.abs(volume.affine - reference.affine).max()
    return volume.data.shape == reference.data.shape and bool(distance <= AFFINE_TOLERANCE)


def _compare_grids(path: Path, volume: Volume, reference: Volume, on_affine: str, facts: Facts) -> None:
    """A volume that must lie on the first channel's grid: other shapes are faults, other affines as the user says."""
    if volume.data.shape != reference.data.shape:
        facts.faults.append(f"{path}: shape {volume.data.shape}, the image has {reference.data.shape}")
    elif not _same_grid(volume, reference):
        both = [np.array2string(v.affine[:3].round(4), separator=", ").replace("\n", "") for v in (volume, reference)]
        line = f"{path}: affine differs by {np.abs(volume.affine - reference.affine).max():.4g} from the image's"
        if on_affine == "warn":
            facts.notes.append(f"warning: {line}, which is used")
        else:
            facts.faults.append(f"{line} ({both[0]} and {both[1]}); --affine warn accepts it")


def _builtin(source: CaseSource, channels: tuple[str, ...]) -> dict[str, Volume]:
    """The MNI152 template at 1 mm (0..255), with labels 1 CSF, 2 grey, 3 white matter from its tissue maps."""
    from nilearn import datasets  # slow to import, and only this format needs it

    template = datasets.load_mni152_template(resolution=1)
    grey, white = (
        f(resolution=1).get_fdata() for f in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    brain = datasets.load_mni152_brain_mask(resolution=1).get_fdata() > 0
    maps = np.stack([np.clip(1 - grey - white, 0, 1), grey, white])
    label = np.where(brain, maps.argmax(0) + 1, 0).astype(np.int32)
    image = (template.get_fdata() * 255).astype(np.float32)
    affine = np.asarray(template.affine, np.float64)
    return {channels[0]: Volume(image, affine), "label": Volume(label, affine)}


# -- process ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs to know besides its case."""

    options: PrepareOptions
    channels: tuple[str, ...]
    ct: tuple[bool, ...]
    table: LabelTable
    out: Path


def process_case(source: CaseSource, split: Split | None, hashes: dict[str, str], plan: Plan) -> list[dict[str, Any]]:
    """Write the slices of one case; returns manifest cases as plain dicts (several when slices are split)."""
    o = plan.options
    images, roles, source_grid, affine = _load(source, plan)
    label = _labels(source, images, roles, affine, plan)
    images, label = _clean(source, images, label, roles, affine, plan)
    windows = tuple(_window(c, images[c], plan) for c in range(len(images)))
    kept, crop, lost = _choose(label, o)
    if lost > 0.001:
        print(
            f"{source.id}: {100 * lost:.1f} % of the labelled voxels lie outside the {o.slice_size} window", flush=True
        )
    grid_affine = tuple(tuple(float(v) for v in row) for row in affine)
    place = Geometry(source_grid[1], source_grid[0], grid_affine, tuple(label.shape), crop)  # type: ignore[arg-type]
    files = {role: {"file": path.name, "sha256": hashes[role]} for role, path in source.files(plan.channels).items()}
    parts = {split: kept} if split is not None else _blocks(kept, o)
    cases = []
    for part, indices in parts.items():
        name = source.id if split is not None else f"{source.id}_{part}"
        slices = [_write_slice(name, part, i, images, label, windows, crop, plan) for i in indices]
        cases.append(Case(name, source.patient, part, windows, tuple(slices), place, files))
    return [asdict(case) for case in cases]


def _load(
    source: CaseSource, plan: Plan
) -> tuple[list[NDArray], dict[str, NDArray], tuple[tuple[int, ...], tuple[tuple[float, ...], ...]], NDArray]:
    """Images (float32) and integer maps on the case's final RAS grid; also the source grid and the final affine."""
    o = plan.options
    if source.builtin:
        volumes = _builtin(source, plan.channels)
    else:
        volumes = {role: read_volume(path) for role, path in source.files(plan.channels).items()}
    first = volumes[plan.channels[0]]
    source_grid = (first.data.shape, tuple(tuple(float(v) for v in row) for row in first.affine))
    data, affine = geometry.to_ras(first.data, first.affine)
    shape: tuple[int, ...] = data.shape
    if o.spacing:
        shape, affine = geometry.regrid(shape, affine, o.spacing * (3 if len(o.spacing) == 1 else 1))
    moved: dict[str, NDArray] = {}
    for role, volume in volumes.items():
        is_image = role in plan.channels
        # Masks lie on the first image's grid (inspected); with --affine warn that grid's affine is the one that holds.
        own = volume.affine if is_image else first.affine
        data, own = geometry.to_ras(volume.data, own)
        fill = AIR_HU if is_image and plan.ct[plan.channels.index(role)] else 0.0
        moved[role] = geometry.resample(data, own, shape, affine, labels=not is_image, fill=fill)
    images = [moved[name].astype(np.float32) for name in plan.channels]
    maps = {role: array.astype(np.int32) for role, array in moved.items() if role not in plan.channels}
    return images, maps, source_grid, affine


def _labels(
    source: CaseSource, images: list[NDArray], maps: dict[str, NDArray], affine: NDArray, plan: Plan
) -> NDArray:
    """Class ids (I, J, K) uint16: the mapped label map, or tissue made from the images; lesions on top."""
    o, table = plan.options, plan.table
    lesion = maps["lesion"] > 0 if o.lesions and "lesion" in maps else None
    spacing = geometry.spacing(affine)
    if "label" in maps:
        label = table.apply(maps["label"])
    elif o.tissue == "hmrf":
        brain = maps["brain"] > 0 if "brain" in maps else tissue.brain_mask(images[0], spacing)
        label = table.apply(tissue.hmrf_tissue(images[0], brain, lesion).astype(np.int32))
    else:
        body = maps["body"] > 0 if "body" in maps else cleaning.body_mask(images[0], spacing, is_ct=True)
        label = table.apply(tissue.hu_tissue(images[0], body).astype(np.int32))
    if lesion is not None:
        label[lesion] = next(item.id for item in table.labels if item.name == "lesion")
    return label


def _clean(
    source: CaseSource, images: list[NDArray], label: NDArray, maps: dict[str, NDArray], affine: NDArray, plan: Plan
) -> tuple[list[NDArray], NDArray]:
    """Air outside the body in images that are cleaned; class `body_unlabelled` inside it where asked for."""
    o = plan.options
    wanted = [o.clean == "body" or (o.clean == "auto" and is_ct) for is_ct in plan.ct]
    if not any(wanted) and not o.split_background:
        return images, label
    if "body" in maps:
        body = (maps["body"] > 0) | (label > 0)
    else:
        first = plan.ct.index(True) if any(plan.ct) else 0
        body = cleaning.body_mask(images[first], geometry.spacing(affine), plan.ct[first], label > 0)
    cleaned = [
        np.where(body, image, AIR_HU if is_ct else min(0.0, float(image.min()))) if want else image
        for image, is_ct, want in zip(images, plan.ct, wanted, strict=True)
    ]
    if o.split_background:
        unlabelled = next(item.id for item in plan.table.labels if item.name == "body_unlabelled")
        label = np.where((label == 0) & body, np.uint16(unlabelled), label)
    return [image.astype(np.float32) for image in cleaned], label


def _window(channel: int, image: NDArray, plan: Plan) -> Window:
    texts = plan.options.window
    chosen = parse_window(texts[channel] if len(texts) > 1 else texts[0])
    if isinstance(chosen, Window):
        return chosen
    if chosen == "ct" or (chosen == "auto" and plan.ct[channel]):
        return CT_WINDOW
    # The high end is taken from the foreground, so that the amount of air around the patient does not move it.
    low = float(np.percentile(image, MR_PERCENTILES[0]))
    high = float(np.percentile(image[image > image.mean()], MR_PERCENTILES[1]))
    return Window(low, high)


def _choose(label: NDArray, o: PrepareOptions) -> tuple[list[int], tuple[int, int], float]:
    """Slices worth keeping, the crop that centres the labelled bounding box, and the labelled fraction it loses."""
    count, *_ = geometry.plane_shape(label.shape, o.axis)
    planes = [geometry.plane(label, o.axis, i) for i in range(count)]
    shadow = np.any([p > 0 for p in planes], axis=0)
    if not shadow.any():
        return [], (0, 0), 0.0
    box = [np.flatnonzero(shadow.any(axis=axis)) for axis in (1, 0)]
    size = o.slice_size
    crop = tuple(round((b[0] + b[-1] + 1 - s) / 2) for b, s in zip(box, size, strict=True))
    crop = (crop[0], crop[1])
    inside = [int((geometry.window_plane(p, crop, size, 0) > 0).sum()) for p in planes]
    total = sum(int((p > 0).sum()) for p in planes)
    kept = [i for i, n in enumerate(inside) if n >= max(1, o.min_foreground * size[0] * size[1])]
    return kept, crop, 1 - sum(inside) / total


def _blocks(kept: list[int], o: PrepareOptions) -> dict[Split, list[int]]:
    split = split_slices(kept, o.split, o.guard)
    parts: dict[Split, list[int]] = {}
    for index, part in sorted(split.items()):
        parts.setdefault(part, []).append(index)
    return parts


def _write_slice(
    case: str,
    split: Split,
    index: int,
    images: list[NDArray],
    label: NDArray,
    windows: tuple[Window, ...],
    crop: tuple[int, int],
    plan: Plan,
) -> Slice:
    o = plan.options
    ids = geometry.window_plane(geometry.plane(label, o.axis, index), crop, o.slice_size, 0)
    label_path = f"{split}/labels/{slice_name(case, index)}"
    write_png(plan.out / label_path, ids.astype(np.uint8 if len(plan.table.labels) <= 256 else np.uint16))
    paths = []
    for c, (image, window) in enumerate(zip(images, windows, strict=True)):
        pixels = geometry.window_plane(geometry.plane(image, o.axis, index), crop, o.slice_size, window.low)
        paths.append(f"{split}/images/{slice_name(case, index, c)}")
        write_png(plan.out / paths[-1], window.encode(pixels))
    values, counts = np.unique(ids, return_counts=True)
    histogram = {int(v): int(n) for v, n in zip(values, counts, strict=True)}
    return Slice(index, label_path, tuple(paths), (), histogram)


# -- the whole road -----------------------------------------------------------------------------------------------

_T = TypeVar("_T")


def _in_parallel(work: Callable[..., _T], jobs: Sequence[tuple], workers: int, what: str) -> list[_T]:
    """Results in the order of `jobs`. One job runs in this process, where errors are easier to read."""
    count = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    if count <= 1:
        return [work(*job) for job in tqdm(jobs, desc=what, disable=None)]
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(work, *job) for job in jobs]
        return [future.result() for future in tqdm(futures, desc=what, disable=None)]


class DataFaults(ValueError):  # noqa: N818 (several faults, one error)
    """Faults in the source data, one line each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(faults)  # the argument as it is, so that the error survives the way back from a worker
        self.faults = faults

    def __str__(self) -> str:
        plural = "s" if len(self.faults) > 1 else ""
        return f"{len(self.faults)} fault{plural} in the source data:\n  " + "\n  ".join(self.faults)


def prepare(o: PrepareOptions) -> Manifest | None:
    """Inspect, process, write the manifest; None after a dry run.

    Raises DataFaults with all faults of all files before anything is written, and ValueError for bad options.
    """
    check_options(o)
    found = find(o)
    if not found.cases and not found.faults:
        found.faults.append(f"{o.source or o.images}: no cases found")
    jobs = [(case, found.channels, o) for case in found.cases]
    all_facts = _in_parallel(inspect_case, jobs, o.workers, "inspect")
    plan, notes = _plan(o, found, all_facts)
    for note in notes:
        print(note, flush=True)
    if o.dry_run:
        print(f"{len(found.cases)} cases are fine", flush=True)
        return None
    assert o.out is not None
    splits = _splits(o, found.cases)
    identity = _identity(o, found, all_facts, splits, plan.table)
    done = _claim_out(o.out, identity)
    if done is not None:
        print(f"{o.out}: already prepared with these options", flush=True)
        return done
    work = [(c, splits.get(c.patient), f.hashes, plan, identity) for c, f in zip(found.cases, all_facts, strict=True)]
    records = _in_parallel(_process_or_resume, work, o.workers, "prepare")
    manifest = _manifest(o, plan, [case_from_dict(case) for record in records for case in record], identity)
    manifest.save(o.out)
    shutil.rmtree(o.out / RESUME_FOLDER)
    return manifest


def _plan(o: PrepareOptions, found: Found, all_facts: list[Facts]) -> tuple[Plan, list[str]]:
    faults = found.faults + [fault for facts in all_facts for fault in facts.faults]
    notes = found.notes + [note for facts in all_facts for note in facts.notes]
    if faults:
        raise DataFaults(faults)
    counts: dict[int, int] = {}
    for facts in all_facts:
        for i, n in facts.label_counts.items():
            counts[i] = counts.get(i, 0) + n
    table = _table(o, found, counts)
    unknown = table.unknown(counts)
    if unknown:
        listing = ", ".join(f"{i} ({n} voxels)" for i, n in sorted(unknown.items()))
        if not table.lenient:
            raise DataFaults(
                [f"--label_map {o.label_map} does not list the ids {listing}; --unknown_labels background drops them"]
            )
        notes.append(f"ids dropped to background: {listing}")
    ct = tuple(any(flags) for flags in zip(*(facts.looks_ct for facts in all_facts), strict=True))
    if len(o.window) not in (1, len(found.channels)):
        raise ValueError(f"--window: {len(o.window)} windows for {len(found.channels)} channels ({found.channels})")
    return Plan(o, found.channels, ct, table, o.out or Path(".")), notes


def _table(o: PrepareOptions, found: Found, counts: dict[int, int]) -> LabelTable:
    if any(case.builtin for case in found.cases):
        labels = found_labels(counts, tissue.BRAIN_TISSUE)
    elif not counts:
        names = tissue.BRAIN_TISSUE if o.tissue == "hmrf" else tissue.CT_TISSUE
        labels = found_labels(dict.fromkeys(names, 1), names)
    elif o.label_map is not None:
        labels = read_label_map(o.label_map)
    else:
        labels = found_labels(counts, dataset_json_names(found.label_names) if found.label_names else {})
    extra = ["body_unlabelled"] if o.split_background else []
    extra += ["lesion"] if o.lesions and any(case.lesion for case in found.cases) else []
    labels += tuple(Label(len(labels) + i, name) for i, name in enumerate(extra))
    return LabelTable(labels, o.unknown_labels == "background")


def _splits(o: PrepareOptions, cases: list[CaseSource]) -> dict[str, Split]:
    """Patient -> split; empty when slices are split."""
    if o.by_slices:
        return {}
    val, test = read_split_file(o.split_file) if o.split_file else (o.val_patients, o.test_patients)
    return split_patients([case.patient for case in cases], o.split, o.seed, val, test)


def _identity(
    o: PrepareOptions, found: Found, all_facts: list[Facts], splits: dict[str, Split], table: LabelTable
) -> dict[str, Any]:
    """What the output depends on: options without paths and workers, hashes of all sources, splits and label table."""
    options = {key: value for key, value in asdict(o).items() if not isinstance(value, Path)}
    for key in ("images", "labels", "workers", "check", "dry_run"):
        options.pop(key, None)
    sources = {case.id: facts.hashes for case, facts in zip(found.cases, all_facts, strict=True)}
    digest = hashlib.sha256(json.dumps([options, sources, splits, asdict(table)], sort_keys=True).encode()).hexdigest()
    return {"options": json.loads(json.dumps(options)), "digest": digest}


def _claim_out(out: Path, identity: dict[str, Any]) -> Manifest | None:
    """Make the folder ours: a manifest of the same identity is returned, anything else that is there is refused."""
    if (out / FILE_NAME).is_file():
        manifest = Manifest.load(out)
        if manifest.provenance.get("digest") == identity["digest"]:
            return manifest
        _refuse(out, manifest.provenance.get("options", {}), identity["options"])
    marker = out / RESUME_FOLDER / "identity.json"
    if marker.is_file():
        old = read_json(marker)
        if old["digest"] != identity["digest"]:
            _refuse(out, old["options"], identity["options"])
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--out {out} is not empty and was not written by this command; choose another folder")
    write_json(marker, identity)
    return None


def _refuse(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [f"--{key}: was {old.get(key)}, now {new.get(key)}" for key in new if old.get(key) != new[key]]
    raise ValueError(
        f"--out {out} holds data prepared with other options or sources; choose another folder or delete it:\n  "
        + "\n  ".join(changed or ["the source files are not the same"])
    )


def _process_or_resume(
    source: CaseSource, split: Split | None, hashes: dict[str, str], plan: Plan, identity: dict[str, Any]
) -> list[dict[str, Any]]:
    """The case's record if an interrupted run finished it, else process it and write the record last."""
    record = plan.out / RESUME_FOLDER / f"{source.id}.json"
    if record.is_file():
        return read_json(record)
    try:
        cases = process_case(source, split, hashes, plan)
    except tissue.TissueError as error:
        raise DataFaults([f"case {source.id}: {error}"]) from None
    write_json(record, cases)
    return cases


def _manifest(o: PrepareOptions, plan: Plan, cases: list[Case], identity: dict[str, Any]) -> Manifest:
    kept = tuple(sorted((case for case in cases if case.slices), key=lambda case: case.id))
    if not kept:
        raise ValueError(f"no slice has {o.min_foreground:g} of its pixels labelled; lower --min_foreground")
    place = kept[0].geometry
    assert place is not None
    between, rows, columns = geometry.plane_spacing(np.array(place.grid_affine), o.axis)
    channels = tuple(Channel(n, "HU" if ct else "a.u.") for n, ct in zip(plan.channels, plan.ct, strict=True))
    spec = DataSpec(plan.table.labels, channels, o.slice_size, (rows, columns), between, o.axis)
    split_note = "blocks of slices of the same scan, not patients" if o.by_slices else "patients"
    return Manifest(spec, kept, {"kind": "data", "split": split_note, **identity})


def summary(manifest: Manifest) -> str:
    """Lines for the console: slices and patients per split, labels, channels."""
    lines = []
    for split in ("train", "val", "test"):
        cases = [case for case in manifest.cases if case.split == split]
        patients = len({case.patient for case in cases})
        lines.append(
            f"{split:>5}: {sum(len(c.slices) for c in cases):5d} slices, {len(cases)} cases, {patients} patients"
        )
    spec = manifest.spec
    lines.append(f"split by {manifest.provenance.get('split', 'patients')}")
    lines.append(f"labels: {', '.join(label.name for label in spec.labels)}")
    lines.append(f"channels: {', '.join(c.name for c in spec.channels)}; {spec.size[0]}x{spec.size[1]} pixels of "
                 f"{spec.spacing[0]:g} x {spec.spacing[1]:g} mm, {spec.slice_spacing:g} mm apart")  # fmt: skip
    return "\n".join(lines)
