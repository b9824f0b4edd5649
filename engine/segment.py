"""Segment many scans: one after the other, resumable, a fault of one costs that one only. What scripts/segment.py does.

The .json file beside a segmentation says whose it is: a claim before the first output, and a record, once all are whole.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.files import csv_text, read_json, with_path, write_json, write_text
from dataloaders.io.geometry import back_to_source, regrid, resample, spacing
from dataloaders.io.intensity import shown
from dataloaders.io.nifti import NIFTI_SUFFIXES, VolumeError, file_sha256, write_volume
from dataloaders.io.progress import say, tracked
from dataloaders.io.schema import decode
from dataloaders.io.spec import Label
from dataloaders.labelmaps.classes import ras_spacing
from dataloaders.labelmaps.generated_files import describe_bids
from dataloaders.labelmaps.labels import id_type
from dataloaders.scans import MAX_GRID, ReadScan, Scan, find_scans, read_scan
from dataloaders.segment_options import SegmentOptions
from dataloaders.segmentation_task import SHOWN
from engine.preview import save_overlay
from engine.segmentation import Predictor, most_probable

SCHEMA = "medsis-scan/1"
SHOWN_FAULTS = 20  # that are printed; all are counted in the end
FEW_ML = 10.0  # of a class, which may be absent from some scans
Expected = Mapping[str, Sequence[float]]


@dataclass
class SegmentReport:
    """What this call did, and one line for each scan that failed."""

    made: int = 0
    kept: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """What all scans share. model: name and SHA-256 of the weights."""

    options: SegmentOptions
    predictor: Predictor
    model: dict[str, Any]
    expected: Expected
    single: Path | None = None  # the one output file, where it was named
    links: Mapping[Path, str] = field(default_factory=dict)  # BIDS data sets and their names in DatasetLinks

    @property
    def labels(self) -> tuple[Label, ...]:
        """Classes of the network."""
        return self.predictor.method.spec.labels

    def path(self, scan: Scan, ending: str) -> Path:
        """Output file of a scan; ending such as ``dseg.nii.gz``."""
        if self.single is not None:
            if ending == "dseg.nii.gz":
                return self.single
            name = _without_suffix(self.single)
            return name.with_name(name.name + (".json" if ending == "dseg.json" else f"_{ending}"))
        return self.options.output / scan.name(ending)

    def volumes(self, scan: Scan) -> dict[str, Path]:
        """Images that are written of a scan, by the flag that asks for them."""
        found = {"--output": self.path(scan, "dseg.nii.gz")}
        asides = {
            "--posteriors": (self.options.posteriors, "probseg"),
            "--resample": (self.options.resample, "resampled"),
        }
        return found | {flag: _aside(where, scan, ending) for flag, (where, ending) in asides.items() if where}


def segment(
    o: SegmentOptions, predictor: Predictor, model: dict[str, Any], expected: Expected = MappingProxyType({})
) -> SegmentReport:
    """Segment all scans of the options' shard that are not segmented yet. ValueError where options and scans do not fit.

    expected: of the training, see `engine.checkpoint.Weights`; what a scan differs in is a warning.
    """
    scans, bids = find_scans(o.input, o.suffix, [channel.name for channel in predictor.method.spec.channels])
    single = o.output if o.output.name.endswith(NIFTI_SUFFIXES) else None
    if single is not None and len(scans) > 1:
        raise ValueError(f"--output {o.output}: one file for {len(scans)} scans; name a folder")
    aside = {"--posteriors": o.posteriors, "--resample": o.resample}
    for flag, path in aside.items():
        if path is not None and path.name.endswith(NIFTI_SUFFIXES) and len(scans) > 1:
            raise ValueError(f"{flag} {path}: one file for {len(scans)} scans; name a folder")
    if single is None and o.output.is_file():
        raise ValueError(f"--output {o.output}: is a file; name a folder, or a file ending in .nii.gz")
    start, step = o.part
    roots = list(dict.fromkeys(scan.root for scan in scans if scan.root)) if single is None else []
    job = Job(o, predictor, model, expected, single, _links(o.output, roots))
    _refuse_inputs(job, scans)
    if bids and single is None:
        links = {name: _relative(root, o.output) for root, name in job.links.items()}
        describe_bids(o.output, "Segmentations", ("*_qc.png", "*_resampled.nii.gz", "*.csv"), links)
        rows = "".join(f"{label.id}\t{label.name}\n" for label in job.labels)
        write_text(o.output / "dseg.tsv", f"index\tname\n{rows}")
    report = SegmentReport()
    for scan in tracked(scans[start::step], "segment"):
        try:
            _segment_or_keep(job, scan, report)
        except Exception as error:
            if isinstance(error, OSError) and error.filename is None:
                raise  # a full disk, not a fault of the scan
            if not isinstance(error, (ValueError, MemoryError, OSError)):  # a defect of ours; the other scans go on
                traceback.print_exc()
            report.faults.append(with_path(scan.files[0], error))
            if len(report.faults) <= SHOWN_FAULTS:
                say(f"error: {report.faults[-1]}")
    if o.vol is not None:
        write_text(o.vol, volumes_csv(job, scans))
    if o.qc is not None:
        write_text(o.qc, quality_csv(job, scans))
    return report


def _relative(root: Path, output: Path) -> str:
    return Path(os.path.relpath(root, output)).as_posix()


def _links(output: Path, roots: Sequence[Path]) -> dict[Path, str]:
    """Names of BIDS data sets: those that the output folder knows already, and new ones for others."""
    path = output / "dataset_description.json"
    old = read_json(path).get("DatasetLinks", {}) if path.is_file() else {}
    names = {where: name for name, where in old.items()}
    found = {}
    for root in roots:
        free = next(name for i in range(len(old) + len(roots)) if (name := f"raw{i or ''}") not in names.values())
        found[root] = names.setdefault(_relative(root, output), free)
    return found


def _refuse_inputs(job: Job, scans: Sequence[Scan]) -> None:
    """ValueError where an output would replace a scan."""
    given = {path.resolve() for scan in scans for path in scan.files}
    for scan in scans:
        for flag, path in job.volumes(scan).items():
            if path.resolve() in given:
                raise ValueError(f"{flag} {path}: is a scan of --input, which would be replaced")


def _segment_or_keep(job: Job, scan: Scan, report: SegmentReport) -> None:
    if scan.fault:
        raise VolumeError(scan.fault)
    inputs = {}
    for path in scan.files:
        if not path.is_file():
            raise VolumeError(f"{path}: no such file")
        inputs[path.name] = file_sha256(path)
    made_from = {"model": job.model, "inputs": inputs, "overlap": job.predictor.o.overlap}
    made_from |= {"ct": True} if job.options.ct else {}
    made_from |= {"crop": list(job.options.crop)} if job.options.crop else {}
    place = job.path(scan, "dseg.json")
    record = _record(job, scan)
    outputs = [*job.volumes(scan).values(), *[job.path(scan, "qc.png")] * job.options.pictures]
    if record is not None and record.get("made_from") == made_from and all(path.is_file() for path in outputs):
        report.kept += 1
        return
    if not job.options.overwrite:
        if record is None and (there := next((path for path in (place, *outputs) if path.exists()), None)):
            raise ValueError(f"{there}: no record of segment.py is beside it; move it away, or give --overwrite")
        if record is not None and record.get("made_from", made_from) != made_from:
            raise ValueError(f"{outputs[0]}: was made of another scan or with other weights; give --overwrite")
    read = read_scan(scan, job.options.ct)  # before the claim: a scan that cannot be read leaves nothing
    write_json(place, {"schema": SCHEMA})
    write_json(place, _segment_one(job, scan, read) | {"made_from": made_from})
    report.made += 1


def _record(job: Job, scan: Scan) -> dict[str, Any] | None:
    """The .json file of a scan, without `made_from` where its outputs are not whole; None where there is none of ours."""
    path = job.path(scan, "dseg.json")
    try:
        data = decode(dict[str, Any], read_json(path), str(path)) if path.is_file() else {}
        for key in ("Volumes", "Probability") if data else ():
            decode(dict[str, float], data.get(key, {}), key)
        decode(str, data.get("Implausible", ""), "Implausible")
    except ValueError:
        return None
    return data if data.get("schema") == SCHEMA else None


def _aside(where: Path, scan: Scan, ending: str) -> Path:
    """Where an output goes that has a folder, or a file, of its own."""
    return where if where.name.endswith(NIFTI_SUFFIXES) else where / f"{scan.name(ending)}.nii.gz"


def _segment_one(job: Job, scan: Scan, read: ReadScan) -> dict[str, Any]:
    """Write all outputs of one scan; returns its record."""
    mm = ras_spacing(job.predictor.method.spec)
    shape, grid = regrid(read.image.shape[1:], read.affine, mm)
    if np.prod([float(n) for n in shape]) > MAX_GRID:
        raise ValueError(f"{scan.files[0]}: {shape} voxels of {mm} mm are more than the limit of {MAX_GRID}")
    label, probability, posteriors = most_probable(
        job.predictor, read.image, read.affine, mm, keep=job.options.posteriors is not None
    )
    dtype = id_type(len(job.labels))
    native = _native(label.astype(dtype), read, labels=True)
    write_volume(job.path(scan, "dseg.nii.gz"), native, read.source_affine, codes=read.codes)
    if job.options.posteriors is not None:
        assert posteriors is not None
        moved = np.stack([_native(one, read) for one in posteriors], -1)
        write_volume(_aside(job.options.posteriors, scan, "probseg"), moved, read.source_affine, np.float32, read.codes)
    if job.options.resample is not None:
        seen = resample(read.image[0], read.affine, shape, grid)
        write_volume(_aside(job.options.resample, scan, "resampled"), seen, grid, np.float32, read.codes)
    if job.options.pictures:
        save_overlay(job.path(scan, "qc.png"), read.image[0], label, spacing(read.affine).tolist(), len(job.labels))
    voxel = float(abs(np.linalg.det(read.affine[:3, :3])))
    volumes = {item.name: float((label == item.id).sum() * voxel) for item in job.labels if item.id}
    sure = {item.name: float(probability[label == item.id].mean()) for item in job.labels if (label == item.id).any()}
    expected = {} if job.options.crop else job.expected  # a box has less than a scan
    strange = implausible(volumes | {SHOWN: float(shown(read.image).sum() * voxel)}, expected)
    if strange:
        say(f"warning: {scan.files[0]}: {strange}")
    return {
        "schema": SCHEMA,
        "Sources": [_source(job, scan, path) for path in scan.files],
        "SpatialReference": "orig",
        "LabelMap": {label.name: label.id for label in job.labels},
        "Volumes": volumes,
        "Probability": sure,
        "Implausible": strange,
    }


def implausible(volumes: Mapping[str, float], expected: Expected) -> str:
    """What is far from the training scans, as a question; "" for nothing. volumes: mm³ by name; expected: ml.

    Far is more than half as much again of all that is shown, or less than half of it; of a class more than double, or
    less than half, and more than FEW_ML away: people differ, and so do labels.
    """
    found = []
    for name, (low, high) in expected.items():
        ml = volumes[name] / 1000
        most, least = (1.5 * high, low / 2) if name == SHOWN else (2 * high + FEW_ML, low / 2 - FEW_ML)
        if not least <= ml <= most:
            found.append(f"{name} {ml:,.0f} ml (in training {low:,.0f} to {high:,.0f})")
    if not found:
        return ""
    return (
        f"{'; '.join(found)}: is it the body part, contrast and preparation (skull stripped or not) that the network was "
        "trained for?"
    )


def _source(job: Job, scan: Scan, path: Path) -> str:
    """BIDS URI of a file of a data set in DatasetLinks, else its name."""
    link = job.links.get(scan.root) if scan.root else None
    return f"bids:{link}:{path.relative_to(scan.root).as_posix()}" if link and scan.root else path.name


def _native(volume: NDArray, read: ReadScan, labels: bool = False) -> NDArray:
    return back_to_source(volume, read.affine, read.shape, read.source_affine, labels=labels)


def volumes_csv(job: Job, scans: Sequence[Scan]) -> str:
    """One row for each scan that is segmented, of all shards: volumes in mm³ by class."""
    names = [label.name for label in job.labels if label.id]

    def row(record: Mapping[str, Any]) -> list[str]:
        volumes = [record.get("Volumes", {}).get(name, 0.0) for name in names]
        return [*(f"{v:.1f}" for v in volumes), f"{sum(volumes):.1f}"]

    return _csv(job, scans, [*names, "total"], row)


def quality_csv(job: Job, scans: Sequence[Scan]) -> str:
    """Likewise the mean probability of each class where it was found, empty where it was not, and what is implausible."""
    names = [label.name for label in job.labels]

    def row(record: Mapping[str, Any]) -> list[str]:
        sure = record.get("Probability", {})
        return [*(f"{sure[name]:.4f}" if name in sure else "" for name in names), record.get("Implausible", "")]

    return _csv(job, scans, [*names, "implausible"], row)


def _csv(job: Job, scans: Sequence[Scan], head: Sequence[str], row: Callable[[Mapping[str, Any]], list[str]]) -> str:
    found = ((scan, _record(job, scan)) for scan in scans)
    return csv_text(
        ["scan", *head],
        ([scan.name("dseg"), *row(record)] for scan, record in found if record and "made_from" in record),
    )


def _without_suffix(path: Path) -> Path:
    for suffix in NIFTI_SUFFIXES:
        if path.name.endswith(suffix):
            return path.with_name(path.name.removesuffix(suffix))
    return path
