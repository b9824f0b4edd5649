"""Segment scans: ``python scripts/segment.py --input FILE… | DIR | BIDS_DIR --output DIR --checkpoint checkpoints/exp``.

The .json file beside a segmentation says whose it is: a claim before the first output, and a record, once all are whole.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from dataloaders.io.bids import describe_bids
from dataloaders.io.console import say, tracked
from dataloaders.io.files import csv_text, file_sha256, read_json, write_text
from dataloaders.io.geometry import PLANES, plane, regrid, resample, spacing, voxel_volume
from dataloaders.io.intensity import shown
from dataloaders.io.ledger import Ledger, WorkReport
from dataloaders.io.nifti import NIFTI_SUFFIXES, VolumeError, stem, write_volume
from dataloaders.io.pictures import label_colors, label_table, resized, save_picture, tile_grid, to_grey
from dataloaders.io.schema import AtLeast0, BelowOne, Iteration, Must, Shard, check, options_of
from dataloaders.io.spec import Label
from dataloaders.io.workers import parse_shard
from dataloaders.labelmaps.classes import ras_spacing
from dataloaders.labelmaps.labels import id_type
from dataloaders.segmenter.scans import MAX_GRID, ReadScan, Scan, find_scans, read_scan
from dataloaders.segmenter.task import SHOWN
from engine.command import exit_code
from engine.segmentation import Predictor, most_probable
from engine.trained import TrainedRun
from models.segmenter.method import Segmenter

MAX_SIDE = 1024  # pixels of a plane in a picture
NO_FOLDERS = (".mgz", ".mgh", ".txt", ".csv")  # what SynthSeg would take as files, and no folder is called
FEW_ML = 10.0  # of a class, which may be absent from some scans
Expected = Mapping[str, Sequence[float]]
FACTS = (("Volumes", dict[str, float] | None), ("Probability", dict[str, float] | None), ("Implausible", str | None))

CsvPath = Annotated[Path, Must("a file ending in .csv", lambda path: path.suffix == ".csv")]


def _is_box(sizes: tuple[int, ...]) -> bool:
    return len(sizes) in (0, 1, 3) and all(size >= 1 for size in sizes)


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Segment scans with a trained network. The same command again goes on where it stopped."""

    input: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=("--i",))]
    """Scans: files (.nii, .nii.gz, .mgz), a folder, a BIDS folder, or a .txt list."""
    output: Annotated[Path, tyro.conf.arg(aliases=("--o",))]
    """Folder to write; for one scan also the name of a .nii.gz file."""
    checkpoint: Path = Path("checkpoints/segmenter")
    """Run folder of train.py --model segmenter, or one of its weight files."""
    ckpt_iter: Iteration = "best"
    """Weights of a run folder: best, latest, or a number of images seen."""
    tissue: bool = False
    """Count the classes of a network of brain structures together as CSF, grey and white matter."""
    suffix: tuple[str, ...] = ()
    """BIDS: only images whose names end so, such as T1w; by default all of anat/."""
    posteriors: Annotated[Path | None, tyro.conf.arg(aliases=("--post",))] = None
    """Folder, or for one scan a .nii.gz file, for the probabilities of all classes along a fourth axis."""
    vol: CsvPath | None = None
    """CSV file of volumes in mm³, one row for each scan."""
    resample: Path | None = None
    """Folder, or for one scan a .nii.gz file, for the image as the network sees it: on its grid, in [0, 1]."""
    qc: CsvPath | None = None
    """CSV file with the mean probability of each class where it was found, and what is implausible, scan by scan."""
    pictures: bool = True
    """Write a picture of each segmentation (--no-qc does the same as --no-pictures)."""
    ct: bool = False
    """The scan is CT: clip it to 0 to 80 HU, as SynthSeg does."""
    crop: Annotated[tuple[int, ...], Must("one or three numbers of voxels, at least 1", _is_box)] = ()
    """Only look at a box of so many voxels of the network's grid, one number or three, in the scan's centre."""
    device: str = "auto"
    """auto for GPU 0 where there is one, cpu, or a GPU number."""
    cpu: bool = False
    """The same as --device cpu."""
    threads: AtLeast0 = 0
    """Threads of the CPU; 0 for as many as there are cores."""
    overlap: BelowOne | None = None
    """Overlap of neighbouring windows as a share of the window; by default that of the training."""
    shard: Shard = "0/1"
    """Only every n-th scan, from the i-th on, of shard i/n; shards may run at the same time."""
    overwrite: bool = False
    """Segment again what was segmented with other weights or of another scan."""

    @property
    def single(self) -> Path | None:
        """The one output file, where it was named."""
        return self.output if _is_file(self.output) else None

    @property
    def gpu_ids(self) -> str:
        """The device in the words of train.py; ValueError for others."""
        if self.cpu or self.device == "cpu":
            return "-1"
        name = self.device.removeprefix("cuda:").removeprefix("cuda") or "0"
        if name != "auto" and not name.isdigit():
            raise ValueError(f"--device {self.device}: must be auto, cpu, or a GPU number")
        return name

    def check_together(self) -> None:
        """ValueError for options that do not go together."""
        if not self.input:
            raise ValueError("--input: name at least one scan or folder")
        for flag in ("output", "posteriors", "resample"):
            path = getattr(self, flag)
            if path is not None and path.suffix in NO_FOLDERS:
                raise ValueError(f"--{flag} {path}: name a folder, or for one scan a file ending in .nii.gz")
        assert self.gpu_ids


def parse(arguments: Sequence[str] | None = None) -> SegmentOptions:
    """Command line -> checked options. --no-qc, and --qc without a file, are about pictures, as they used to be."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = ["--no-pictures" if word == "--no-qc" else word for word in words]
    bare = [word == "--qc" and after[:1] == "-" for word, after in zip(words, [*words[1:], "-"], strict=True)]
    words = ["--pictures" if alone else word for word, alone in zip(words, bare, strict=True)]
    o = options_of(SegmentOptions, words)
    check(o)
    return o


def load(o: SegmentOptions) -> tuple[Predictor, dict[str, str], Expected]:
    """The network on its device, name and SHA-256 of its weights, and what its training scans were like.

    ValueError for weights of another method.
    """
    run = TrainedRun.named(str(o.checkpoint), "--checkpoint", Path("checkpoints"), o.ckpt_iter)
    method, target = run.method(o.gpu_ids, flag="--device")
    if not isinstance(method, Segmenter):
        raise ValueError(f"--checkpoint {o.checkpoint}: was trained with --model {run.config.model}, not segmenter")
    config = run.config
    if o.overlap is not None:
        config = replace(config, segmenter=replace(config.segmenter, overlap=o.overlap))
    model = {"name": config.name, "weights_sha256": run.sha256}
    if o.tissue:
        return Predictor(method, config, target, o.crop, tissue=True), model | {"classes": "tissue"}, {}
    return Predictor(method, config, target, o.crop), model, run.weights.expected


@dataclass(frozen=True)
class Segmentation:
    """What all scans share. model: name and SHA-256 of the weights. expected: of the training, see
    `engine.checkpoint.Weights`. links: BIDS data sets and their names in DatasetLinks.
    """

    options: SegmentOptions
    predictor: Predictor
    model: dict[str, Any]
    expected: Expected
    links: Mapping[Path, str] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[Label, ...]:
        """Classes of the network."""
        return self.predictor.spec.labels

    @property
    def ledger(self) -> Ledger:
        """Claims and records beside the segmentations, as BIDS has its .json files."""
        o = self.options
        where = o.output if o.single is None else o.single.parent
        return Ledger(where, "medsis-scan/1", records="", sources="made_from", renew=o.overwrite, facts=FACTS)

    def key(self, scan: Scan) -> str:
        """Of the scan's record."""
        single = self.options.single
        return scan.name("dseg") if single is None else stem(single)

    def volumes(self, scan: Scan) -> dict[str, Path]:
        """Images that are written of a scan, by the flag that asks for them."""
        o = self.options
        endings = {"output": "dseg", "posteriors": "probseg", "resample": "resampled"}
        return {
            f"--{flag}": where if _is_file(where) else where / f"{scan.name(ending)}.nii.gz"
            for flag, ending in endings.items()
            if (where := getattr(o, flag)) is not None
        }

    def picture(self, scan: Scan) -> Path:
        """File of the picture."""
        single = self.options.single
        return self.ledger.folder / f"{scan.name('qc') if single is None else f'{stem(single)}_qc'}.png"


def _is_file(path: Path) -> bool:
    return path.name.endswith(NIFTI_SUFFIXES)


def segment(
    o: SegmentOptions, predictor: Predictor, model: dict[str, Any], expected: Expected = MappingProxyType({})
) -> WorkReport:
    """Segment all scans of the options' shard that are not segmented yet. ValueError where options and scans do not fit."""
    scans, bids = find_scans(o.input, o.suffix, [channel.name for channel in predictor.spec.channels])
    if o.single is None and o.output.is_file():
        raise ValueError(f"--output {o.output}: is a file; name a folder, or a file ending in .nii.gz")
    roots = dict.fromkeys(scan.root for scan in scans if scan.root)
    work = Segmentation(o, predictor, model, expected, _links(o.output, [*roots]) if o.single is None else {})
    _refuse_outputs(work, scans)
    if bids and o.single is None:
        links = {name: _relative(root, o.output) for root, name in work.links.items()}
        describe_bids(o.output, "Segmentations", ("*_qc.png", "*_resampled.nii.gz", "*.csv"), links)
        write_text(o.output / "dseg.tsv", label_table(work.labels))
    report = WorkReport()
    start, step = parse_shard(o.shard)
    for scan in tracked(scans[start::step], "segment"):
        with report.piece(scan.files[0]):
            _segment_or_keep(work, scan, report)
    records = [(scan.name("dseg"), work.ledger.read(work.key(scan)) or {}) for scan in scans]
    found = [(name, record) for name, record in records if "made_from" in record]
    for path, table in ((o.vol, volumes_csv), (o.qc, quality_csv)):
        if path is not None:
            write_text(path, table([label.name for label in work.labels], found))
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


def _refuse_outputs(work: Segmentation, scans: Sequence[Scan]) -> None:
    """ValueError where an output would replace a scan, or that of another one."""
    given, outputs = {path.resolve() for scan in scans for path in scan.files}, [*map(work.volumes, scans)]
    for flag, path in outputs[0].items():
        if len(outputs) > 1 and outputs[1][flag] == path:
            raise ValueError(f"{flag} {path}: one file for {len(scans)} scans; name a folder")
    for flag, path in [pair for paths in outputs for pair in paths.items()]:
        if path.resolve() in given:
            raise ValueError(f"{flag} {path}: is a scan of --input, which would be replaced")


def _segment_or_keep(work: Segmentation, scan: Scan, report: WorkReport) -> None:
    if scan.fault:
        raise VolumeError(scan.fault)
    if absent := [path for path in scan.files if not path.is_file()]:
        raise VolumeError(f"{absent[0]}: no such file")
    inputs = {path.name: file_sha256(path) for path in scan.files}
    o, ledger, key = work.options, work.ledger, work.key(scan)
    made_from = {"model": work.model, "inputs": inputs, "overlap": work.predictor.o.overlap}
    made_from |= {"ct": True} if o.ct else {}
    made_from |= {"crop": list(o.crop)} if o.crop else {}
    if ledger.done(key, made_from, [*work.volumes(scan).values(), *[work.picture(scan)] * o.pictures]) is not None:
        report.kept += 1
        return
    read = read_scan(scan, o.ct)  # before the claim: a scan that cannot be read leaves nothing
    ledger.start(key)
    ledger.record(key, made_from, **_segment_one(work, scan, read))
    report.made += 1


def _segment_one(work: Segmentation, scan: Scan, read: ReadScan) -> dict[str, Any]:
    """Write all outputs of one scan; returns what its record says."""
    o, labels, paths = work.options, work.labels, work.volumes(scan)
    mm = ras_spacing(work.predictor.spec)
    shape, grid = regrid(read.image.shape[1:], read.affine, mm)
    if np.prod([float(n) for n in shape]) > MAX_GRID:
        raise ValueError(f"{scan.files[0]}: {shape} voxels of {mm} mm are more than the limit of {MAX_GRID}")
    keep = o.posteriors is not None
    label, probability, posteriors = most_probable(work.predictor, read.image, read.affine, mm, keep=keep)
    to_file = (read.affine, read.shape, read.source_affine)
    native = resample(label.astype(id_type(len(labels))), *to_file, labels=True)
    write_volume(paths["--output"], native, read.source_affine, codes=read.codes)
    if posteriors is not None:
        moved = np.stack([resample(one, *to_file, smooth=False) for one in posteriors], -1)
        write_volume(paths["--posteriors"], moved, read.source_affine, np.float32, read.codes)
    if o.resample is not None:
        seen = resample(read.image[0], read.affine, shape, grid)
        write_volume(paths["--resample"], seen, grid, np.float32, read.codes)
    if o.pictures:
        save_overlay(work.picture(scan), read.image[0], label, spacing(read.affine).tolist(), labels)
    voxel = voxel_volume(read.affine)
    volumes = {item.name: float((label == item.id).sum() * voxel) for item in labels if item.id}
    sure = {item.name: float(probability[label == item.id].mean()) for item in labels if (label == item.id).any()}
    expected = {} if o.crop else work.expected  # a box has less than a scan
    strange = implausible(volumes | {SHOWN: float(shown(read.image).sum() * voxel)}, expected)
    if strange:
        say(f"warning: {scan.files[0]}: {strange}")
    return {
        "Sources": [_source(work, scan, path) for path in scan.files],
        "SpatialReference": "orig",
        "LabelMap": {label.name: label.id for label in labels},
        "Volumes": volumes,
        "Probability": sure,
        "Implausible": strange,
    }


def save_overlay(path: Path, image: NDArray, label: NDArray, mm: Sequence[float], labels: Sequence[Label]) -> None:
    """Axial, coronal and sagittal plane through the middle of the labels: image above, the same with labels below.

    image (X, Y, Z) in [0, 1] and label (X, Y, Z) in RAS axes; mm: voxel size.
    """
    inside = np.argwhere(label > 0)
    middle = inside.mean(axis=0).astype(int) if len(inside) else np.array(label.shape) // 2
    colors, tiles = label_colors(labels), []
    for axis, (across, *within) in PLANES.items():
        grey, ids = (plane(volume, axis, middle[across]) for volume in (image, label))
        height, width = (min(MAX_SIDE, n * (mm[i] / min(mm))) for n, i in zip(grey.shape, within, strict=True))
        plain = resized(to_grey(grey, 0, 1), height, width, smooth=True)
        large = resized(ids.astype(np.int32), height, width, smooth=False)
        tiles.append((plain, np.where((large > 0)[..., None], (plain // 2 + colors[large] // 2), plain)))
    save_picture(path, tile_grid([*zip(*tiles, strict=True)]))


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


def _source(work: Segmentation, scan: Scan, path: Path) -> str:
    """BIDS URI of a file of a data set in DatasetLinks, else its name."""
    link = work.links.get(scan.root) if scan.root else None
    return f"bids:{link}:{path.relative_to(scan.root).as_posix()}" if link and scan.root else path.name


Records = Sequence[tuple[str, Mapping[str, Any]]]


def volumes_csv(names: Sequence[str], records: Records) -> str:
    """One row for each scan that is segmented, of all shards: volumes in mm³ by class, background left out."""
    volumes = [(scan, [record.get("Volumes", {}).get(name, 0.0) for name in names[1:]]) for scan, record in records]
    rows = ([scan, *(f"{volume:.1f}" for volume in (*own, sum(own)))] for scan, own in volumes)
    return csv_text(["scan", *names[1:], "total"], rows)


def quality_csv(names: Sequence[str], records: Records) -> str:
    """Likewise the mean probability of each class where it was found, empty where it was not, and what is implausible."""
    sure = [(scan, record.get("Probability", {}), record.get("Implausible", "")) for scan, record in records]
    rows = ([scan, *(f"{of[n]:.4f}" if n in of else "" for n in names), strange] for scan, of, strange in sure)
    return csv_text(["scan", *names, "implausible"], rows)


def main() -> int:
    """Exit codes: 0 fine, 1 some scans could not be segmented, 2 bad options."""
    o = parse()
    if o.threads:
        torch.set_num_threads(o.threads)
    report = segment(o, *load(o))
    print(f"{o.output}: {report.line('segmented')}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
