"""Label maps to images, on the page: runs side by side, what a map may start from, and what is saved of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from config import TestConfig
from dataloaders.io.files import write_text
from dataloaders.io.geometry import PLANES, stitch
from dataloaders.io.intensity import Window, model_to_levels
from dataloaders.io.manifest import SPLITS, Case, Geometry, Manifest, Slice, affine_rows
from dataloaders.io.nifti import read_volume, write_volume
from dataloaders.io.pictures import label_table
from dataloaders.io.png import as_16_bit, read_png
from dataloaders.io.spec import DataSpec
from dataloaders.labelmaps.classes import ras_spacing
from dataloaders.labelmaps.ids import classes_of_ids
from dataloaders.labelmaps.labels import count_labels
from dataloaders.labelmaps.map_slices import slice_map
from dataloaders.labelmaps.maps import read_label_map_file
from dataloaders.plain_folder import load_manifest
from dataloaders.slices import SliceDataset, SliceSample, collate, neighbour_entries, slice_positions
from dataloaders.unpaired import as_label_source
from engine.methods.base import workflow_of
from engine.methods.synthesis import SynthesisWorkflow
from engine.paint.canvas import SLIDERS, Start, View
from engine.paint.studio import MAX_VOXELS, ImagePanel, Studio, coloured
from engine.results import Draws, write_volumes
from engine.split_synthesis import check_same_spec, run_classes
from engine.trained import TrainedRun
from models.gmm.method import Gmm
from models.gmm.scheme import plain_name

EMPTY = "painted"  # id of the case of an empty map


class PaintedRun:
    """A trained run that paints label maps, whatever it is. ValueError for runs that do not."""

    def __init__(self, run: TrainedRun, gpu_ids: str) -> None:
        workflow = workflow_of(run.config)
        self.run, self.name = run, run.folder.name
        if not isinstance(workflow, SynthesisWorkflow) or not workflow.paints_labels:
            raise ValueError(
                f"--name {self.name}: makes no images of label maps; with --input T1w FLAIR it paints lesions into a scan"
            )
        self.neighbours = workflow.neighbours
        self.method, self.device = run.method(gpu_ids)
        self.classes: NDArray[np.int64] | None = None  # of the page's labels, None where they are the run's

    def panel(self, windows: Sequence[Window]) -> ImagePanel:
        """Its images on the page."""
        sliders = [[name, *what] for name, what in SLIDERS.items()] if isinstance(self.method, Gmm) else []
        return ImagePanel(self.name, self.run.spec.channels, windows, self.method.resamples, sliders)

    def draw(self, sample: SliceSample, seed: int, draws: Mapping[int, int], sliders: Mapping[str, float]) -> NDArray:
        """(C, H, W) 16-bit levels of one slice, those of test.py with this seed and these draws."""
        known = {self._own(label): draw for label, draw in draws.items() if draw}
        random = Draws(seed, "case", known if self.method.resamples else {}).of(sample.case.id, sample.slice.index)
        batch = collate([sample]).to(self.device)
        if not isinstance(self.method, Gmm):
            return model_to_levels(self.method.synthesize(batch, [random])[0].cpu().numpy())
        whole = self.method.config
        self.method.config, self.method.fixed = _slid(whole, sliders, self.run.spec)
        try:
            return model_to_levels(self.method.synthesize(batch, [random])[0].cpu().numpy())
        finally:
            self.method.config, self.method.fixed = whole, {}

    def _own(self, label: int) -> int:
        return label if self.classes is None else int(self.classes[label])

    def labels(self, ids: NDArray) -> NDArray[np.int64]:
        """Labels of the page as the run's classes."""
        return ids.astype(np.int64) if self.classes is None else self.classes[ids]


def _slid(config: Any, sliders: Mapping[str, float], spec: DataSpec) -> tuple[Any, dict[str, Any]]:
    """Options of a GMM with the page's sliders, and what they fix of its parameters."""
    changes: dict[str, Any] = {}
    if (bias := sliders.get("bias")) is not None:
        changes |= {"bias_field_std": (bias, bias), "bias_prob": 1.0}
    if (noise := sliders.get("noise")) is not None:
        changes |= {"noise_std": (noise, noise), "noise_prob": 1.0}
    if (mm := sliders.get("resolution")) is not None:
        changes |= {"data_res": (mm,), "thickness": ()}
    gamma = sliders.get("contrast")
    fixed = {} if gamma is None else {"gamma": torch.full((spec.num_channels,), gamma)}
    return replace(config, **changes), fixed


class MapStudio(Studio):
    """Runs and data that all pages share. `spec`: labels and grid of the first run, which the others must know.

    ValueError where they do not, and where the data do not fit.
    """

    def __init__(self, runs: Sequence[PaintedRun], dataroot: Path | None) -> None:
        self.runs = {run.name: run for run in runs}
        first = runs[0].run
        self.spec = replace(first.spec, labels=coloured(first.spec.labels))
        self.sha256 = {run.name: run.run.sha256 for run in runs}
        for run in runs:
            _refuse_others(run.run.spec, self.spec, run.name, first.folder.name)
            run.classes = run_classes(run.run.spec, self.spec)
        self.root, self.data = dataroot, None
        if dataroot is not None:
            self.data = self._read(dataroot, first)
        self.windows = {name: self._windows(run.run) for name, run in self.runs.items()}

    def _read(self, root: Path, first: TrainedRun) -> Manifest:
        data = load_manifest(root)
        check_same_spec(
            first.spec, as_label_source(data, first.spec, ()).spec, TestConfig(name=first.folder.name, dataroot=root)
        )
        return data

    def _windows(self, run: TrainedRun) -> tuple[Window, ...]:
        try:
            return run.windows()
        except ValueError:
            return tuple(Window(0, 1) for _ in run.spec.channels)

    def cases(self) -> list[list[Any]]:
        """[id, split, slices] of each case with label maps."""
        found = [] if self.data is None else [case for case in self.data.cases if case.slices and case.slices[0].label]
        unseen = sorted(found, key=lambda case: SPLITS[::-1].index(case.split))  # what the run was not trained on first
        return [[case.id, case.split, len(case.slices)] for case in unseen]

    def of_case(self, name: str) -> Start:
        """All slices of a case of the data; ValueError where there is none of that name."""
        case = next((case for case in self.data.cases if case.id == name), None) if self.data else None
        if case is None or self.data is None or self.root is None:
            raise ValueError(f"no case {name[:80]!r} in the data")
        classes = run_classes(self.spec, self.data.spec)
        slices = SliceDataset(self.root, replace(self.data, cases=(case,)), case.split, read="labels", classes=classes)
        return Start(case, np.stack([slices[i].label for i in range(len(slices))]).astype(self.id_type))

    def empty(self) -> Start:
        """One slice of background."""
        return Start(self._flat_case(EMPTY), np.zeros((1, *self.spec.size), self.id_type))

    def of_file(self, path: Path) -> Start:
        """A label map that was sent: a NIfTI volume, read as test.py --labels does, or a PNG of class ids as in a prepared
        folder. ValueError for anything else.
        """
        name = path.name.partition(".")[0]
        if path.suffix == ".png":
            ids = read_png(path)
            if ids.shape != tuple(self.spec.size) or ids.max() >= self.spec.num_labels:
                h, w = self.spec.size
                raise ValueError(
                    f"{path.name}: {ids.shape[0]} x {ids.shape[1]} pixels with ids to {ids.max()}; a label PNG for these "
                    f"runs has {h} x {w} with class ids 0..{self.spec.num_labels - 1}"
                )
            return Start(self._flat_case(name), ids[None].astype(self.id_type))
        if self.spec.axis is None:
            raise ValueError(f"{path.name}: the run was trained on PNG slices, whose place in a volume nobody knows")
        read_volume(path, MAX_VOXELS)  # before anything else reads it
        label_map = read_label_map_file(path)
        reading = classes_of_ids(path, count_labels(label_map.values.numpy()), self.spec)
        first = next(iter(self.windows.values()))
        sliced = slice_map(label_map, reading.table, self.spec, name, first)
        planes = [sliced.frame.cut(sliced.ids, item.index) for item in sliced.case.slices]
        notes = (f"labels read {reading.how}", *reading.notes, *sliced.notes)
        return Start(sliced.case, np.stack(planes).astype(self.id_type), notes)

    def _flat_case(self, name: str) -> Case:
        """A single slice in a place of its own."""
        geometry = None
        if self.spec.axis is not None:
            shape = [1, 1, 1]
            for axis, n in zip(PLANES[self.spec.axis][1:], self.spec.size, strict=True):
                shape[axis] = n
            affine = affine_rows(np.diag([*ras_spacing(self.spec), 1.0]))
            whole = (shape[0], shape[1], shape[2])
            geometry = Geometry(affine, whole, affine, whole, (0, 0))
        return Case(name, name, "test", next(iter(self.windows.values())), (Slice(0, ""),), geometry)

    def panels(self, case: Case) -> list[ImagePanel]:
        """One of each run, in the case's own units where it has scans of the run's channels, else in typical ones."""
        own = None if self.data is None else self.data.spec.channels
        return [
            run.panel(case.windows if own == run.run.spec.channels else self.windows[run.name])
            for run in self.runs.values()
        ]

    def image(self, name: str, position: int, view: View) -> NDArray[np.uint16]:
        """(C, H, W) levels of a slice by the run of that name."""
        run, settings, case = self.runs[name], view.settings, view.case
        around = None
        if run.neighbours:
            others = neighbour_entries([case], run.neighbours)[position]
            around = np.stack([run.labels(view.ids[i]) for i in others])
        labels, place = run.labels(view.ids[position]), slice_positions([case])[position]
        sample = SliceSample(labels, None, case, case.slices[position], around, place)
        return run.draw(sample, settings.seed, settings.draws, settings.sliders.get(name, {}))

    def backdrops(self, case: Case) -> list[str]:
        """The channels of its scans."""
        return [channel.name for channel in self.data.spec.channels] if self.data and case.slices[0].images else []

    def backdrop(self, case: Case, position: int) -> NDArray[np.uint16] | None:
        """(C, H, W) levels of the real scan; None where there is none."""
        files = case.slices[position].images
        if not files or self.root is None:
            return None
        return np.stack([as_16_bit(read_png(self.root / file, image_only=True)) for file in files])

    def save_volumes(self, folder: Path, view: View) -> list[Path]:
        """NIfTI files in the case's geometry and units: labels with their table, and an image of each run and channel."""
        case, spec = view.case, self.spec
        if case.geometry is None or spec.axis is None:
            raise ValueError("slices of a PNG folder have no place in a volume; save them as PNG")
        planes = {item.index: plane for item, plane in zip(case.slices, view.ids, strict=True)}
        volume, affine = stitch(case.geometry, spec.axis, planes, fill=0, labels=True)
        written = [folder / f"{case.id}_dseg.nii.gz", folder / f"{case.id}_dseg.tsv"]
        write_volume(written[0], volume, affine, self.id_type, case.geometry.source_codes)
        write_text(written[1], label_table(spec.labels))
        for panel in self.panels(case):
            stack = {item.index: self.image(panel.name, i, view) for i, item in enumerate(case.slices)}
            paths = [folder / f"{case.id}_{panel.name}_{channel.name}.nii.gz" for channel in panel.channels]
            write_volumes(replace(case, windows=tuple(panel.windows)), self.runs[panel.name].run.spec, stack, paths)
            written += paths
        return written


def _refuse_others(spec: DataSpec, page: DataSpec, name: str, first: str) -> None:
    """ValueError where a run beside the first one has slices of another size or lacks one of its classes."""
    names = {plain_name(label.name) for label in spec.labels}
    lacking = [label.name for label in page.labels if plain_name(label.name) not in names]
    if spec.size != page.size or lacking:
        why = f"does not know {', '.join(lacking)}" if lacking else f"has slices of {spec.size}, not {page.size} pixels"
        raise ValueError(f"--name {first} {name}: do not go together, {name} {why}")
