"""Label maps without images to volumes: one after the other, resumable, a fault of one costs that one only.

What test.py --labels does. <out>/synthesis.json says with which weights and options; records/ has a file for each map,
written last, so it says that all volumes of that map are whole.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from config import TestConfig
from dataloaders.io.bids import bids_place, describe_bids
from dataloaders.io.console import tracked
from dataloaders.io.files import file_sha256
from dataloaders.io.find import files_below
from dataloaders.io.intensity import model_to_levels
from dataloaders.io.ledger import Ledger, WorkReport
from dataloaders.io.manifest import SYNTHESIS
from dataloaders.io.nifti import SUFFIXES, stem
from dataloaders.io.spec import DataSpec
from dataloaders.io.workers import parse_shard
from dataloaders.labelmaps.ids import Reading, classes_of_ids
from dataloaders.labelmaps.labels import count_labels, read_label_table
from dataloaders.labelmaps.map_slices import slice_map
from dataloaders.labelmaps.maps import LabelMaps, read_label_map_file
from engine.methods.base import workflow_of
from engine.methods.synthesis import SynthesisWorkflow
from engine.results import Synthesis, write_volumes
from engine.split_synthesis import drawing
from engine.trained import TrainedRun

SCHEMA = "medsis-synthesis/1"


@dataclass(frozen=True)
class MapFile:
    """A label map and where its volumes go. file: its path below that of all maps; place: folder and beginning of the names
    of its volumes; case: what seeds its noise, the id that prepare_data.py gives to a map of that name.
    """

    path: Path
    file: str
    place: str
    case: str


@dataclass(frozen=True)
class MapLedger(Ledger):
    """How the volumes of each map were made. map: its file, case and SHA-256; images: paths below the output folder; voxels
    and classes of each of its ids; read: how these were read; absent: classes of the run that it does not have.
    """

    schema: str = SCHEMA
    sources: str = "map"
    outputs: tuple[str, ...] = ("images",)
    facts: tuple[tuple[str, Any], ...] = (("voxels", dict[int, int]),)


@dataclass
class MapReport(WorkReport):
    """Also what there is to know, with the number of maps it is about."""

    notes: Counter[str] = field(default_factory=Counter)
    lacking: Counter[str] = field(default_factory=Counter)  # classes of the run that maps do not have

    def lines(self, spec: DataSpec) -> list[str]:
        """The notes as text."""
        total = self.made
        lines = [f"{note} ({count} of {total} maps)" if total > 1 else note for note, count in self.notes.items()]
        absent = [label for label in spec.labels[1:] if self.lacking[label.name] == total > 0]
        if absent:
            lines.append(f"classes of the run that no map has: {', '.join(label.name for label in absent)}")
        if made := [label.name for label in absent if not label.source]:
            lines.append(
                f"{', '.join(made)}: made from images when the training data were prepared, not from label maps; what "
                "these maps leave unlabelled becomes background"
            )
        return lines


def find_maps(labels: Path) -> tuple[list[MapFile], bool]:
    """Label maps in the order of their paths, and whether all lie as in BIDS. ValueError where there is none, and where two
    would have volumes of one name.
    """
    if labels.suffix.lower() == ".png" or (labels.is_dir() and _only_png(labels)):
        raise ValueError(
            f"--labels {labels}: takes volumes; PNG label images go with --dataroot, as DIR/test/labels/X.png"
        )
    try:
        paths: list[Path] = list(dict.fromkeys(LabelMaps(labels).sources))
    except ValueError as error:
        raise ValueError(f"--labels {error}") from None
    root = labels if labels.is_dir() else Path(os.path.commonpath([path.absolute().parent for path in paths]))
    files = [Path(os.path.relpath(path, root)) for path in paths]
    places = [_bids(path, stem(path)) for path in paths]
    bids = None not in places and len(set(places)) == len(places)
    if not bids:
        places = [(file.parent / stem(file)).as_posix() for file in files]
    found: dict[str, MapFile] = {}
    for path, file, place in zip(paths, files, places, strict=True):
        assert place is not None
        case = stem(path) if bids else place
        item = MapFile(path, file.as_posix(), place, case.removesuffix("_dseg"))
        if (other := found.setdefault(place, item)) is not item:
            raise ValueError(f"--labels: {other.path} and {path} would both become {place}")
    return list(found.values()), bids


def _only_png(folder: Path) -> bool:
    return not files_below(folder, SUFFIXES) and bool(files_below(folder, (".png",)))


def _bids(path: Path, name: str) -> str | None:
    place = bids_place(path, name)
    described = re.search(r"_desc-([A-Za-z0-9]+)", name)
    return place and f"{place[0]}/{place[1]}_desc-{described[1] if described else ''}synth"


class MapSynthesis:
    """All that the maps share: a trained run, the options, and the folder of the volumes with its records."""

    def __init__(self, config: TestConfig, run: TrainedRun) -> None:
        """ValueError where the run makes no images of label maps, or does not say how."""
        workflow = workflow_of(run.config)
        if not isinstance(workflow, SynthesisWorkflow) or not workflow.paints_labels:
            raise ValueError(f"--labels: the run {config.name!r} {workflow.instead_of_labels.format(name=config.name)}")
        assert config.labels is not None
        assert config.out is not None
        self.config, self.run, self.out, self.spec = config, run, config.out, run.spec
        self.windows, self.neighbours = run.windows(), workflow.neighbours
        self.given = read_label_table(config.label_map) if config.label_map is not None else None
        self.maps, self.bids = find_maps(config.labels)
        self.method, self.device, self.draws, self.drawn = drawing(config, run)
        self.report = MapReport()

    def write(self) -> MapReport:
        """Volumes of all maps of the shard that are not there yet, each with the map's own shape and affine.

        ValueError, with nothing written, where the folder holds volumes of other weights or options, or anything else.
        """
        o = self.config
        if self.spec.axis is None:
            raise ValueError(
                f"--labels {o.labels}: the run was trained on PNG slices whose direction and pixel size nobody knows, so "
                "volumes cannot be sliced as they were; train on data of prepare_data.py, or give --dataroot with labels "
                "as PNG"
            )
        self._refuse_inputs()
        windows = [[window.low, window.high] for window in self.windows]
        settings = {"weights_sha256": self.run.sha256, **self.drawn, "windows": windows}
        about = {**self.run.about(), "channels": [asdict(channel) for channel in self.spec.channels]}
        self.ledger = MapLedger.claim(self.out, settings, file=SYNTHESIS, about=about, overwrite=o.overwrite)
        if self.bids:
            describe_bids(self.out, "Synthetic images", (f"{self.ledger.records}/", SYNTHESIS))
        first, step = parse_shard(o.shard)
        for item in tracked(self.maps[first::step], "label maps"):
            with self.report.piece(item.path):
                self._make_or_keep(item)
        return self.report

    def _paths(self, item: MapFile) -> list[str]:
        """Files of a map's volumes below the output folder, one per channel."""
        names = [channel.name for channel in self.spec.channels]
        plain = [re.sub("[^A-Za-z0-9]", "", name) for name in names]  # as BIDS wants its suffixes
        names = plain if self.bids and all(plain) and len(set(plain)) == len(names) else names
        return [f"{item.place}_{name}.nii.gz" for name in names]

    def _refuse_inputs(self) -> None:
        """ValueError where images would come to lie among label maps, of which the next call would read them as such."""
        out, labels = self.out.resolve(), self.config.labels
        if labels is not None and labels.is_dir() and out.is_relative_to(labels.resolve()):
            raise ValueError(f"--out {self.out}: lies in --labels {labels}, where images would be taken for label maps")
        outputs = {out / path for item in self.maps for path in self._paths(item)}
        if taken := [item.path for item in self.maps if item.path.resolve() in outputs]:
            raise ValueError(
                f"--out {self.out}: the volumes would replace the label map {taken[0]}; choose another folder"
            )

    def _make_or_keep(self, item: MapFile) -> None:
        if not item.path.is_file():
            raise ValueError(f"{item.path}: no such file")
        made_from = {"file": item.file, "case": item.case, "sha256": file_sha256(item.path)}
        images = self._paths(item)
        if (record := self.ledger.done(item.place, made_from, images)) is not None:
            voxels = {int(i): n for i, n in record["voxels"].items()}
            if {str(i): name for i, name in self._read(item, voxels)[1].items()} == record["classes"]:
                self.report.kept += 1
                return
            if not self.ledger.renew:
                raise ValueError(f"{item.path}: its ids were other classes in {self.out}; give --overwrite")
        self.ledger.start(item.place)
        self.ledger.record(item.place, made_from, **self._make(item, images))
        self.report.made += 1

    def _read(self, item: MapFile, voxels: Mapping[int, int]) -> tuple[Reading, dict[int, str]]:
        """How the map with these ids is read, and the class of each of them."""
        lenient = self.config.unknown_labels == "background"
        reading = classes_of_ids(item.path, voxels, self.spec, self.given, self.config.label_ids, lenient)
        names = {i: label.name for label in reading.table.labels for i in label.source}
        return reading, {i: names.get(i, self.spec.labels[0].name) for i in voxels}

    def _make(self, item: MapFile, images: Sequence[str]) -> dict[str, Any]:
        """Write the volumes of one map; returns what there is to say about it."""
        label_map = read_label_map_file(item.path)
        voxels = count_labels(label_map.values.numpy())
        reading, classes = self._read(item, voxels)
        sliced = slice_map(label_map, reading.table, self.spec, item.case, self.windows)
        start = time.perf_counter()
        batches, total = sliced.batches(self.config.batch_size, self.neighbours), len(sliced.case.slices)
        made = Synthesis(self.method, batches, self.device, self.draws, total)
        levels = {index: model_to_levels(image) for _, index, image in made}
        seconds = round(time.perf_counter() - start, 3)
        write_volumes(sliced.case, self.spec, levels, [self.out / path for path in images])
        there = set(np.unique(sliced.ids).tolist())
        absent = tuple(label.name for label in self.spec.labels[1:] if label.id not in there)
        notes = sliced.notes + reading.notes
        self.report.notes.update([f"labels read {reading.how}", *(f"{item.file}: {note}" for note in notes)])
        self.report.lacking.update(absent)
        return {
            "images": images,
            "voxels": voxels,
            "classes": classes,
            "read": reading.how,
            "absent": absent,
            "notes": notes,
            "slices": total,
            "seconds": seconds,
        }
