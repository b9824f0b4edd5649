"""Label maps to images, on the page: runs side by side, what a map may start from, and what is saved of it."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from config import TestConfig
from dataloaders.folder import load_manifest
from dataloaders.io.files import atomic_path, write_text
from dataloaders.io.geometry import PLANES, stitch
from dataloaders.io.intensity import Window, model_to_levels
from dataloaders.io.manifest import SPLITS, Case, Geometry, Manifest, Slice, affine_rows, case_from_dict
from dataloaders.io.nifti import read_volume, write_volume
from dataloaders.io.pictures import hex_color, label_colors, label_table
from dataloaders.io.png import as_16_bit, read_png, write_png
from dataloaders.io.spec import DataSpec, Label
from dataloaders.labelmaps.classes import ras_spacing
from dataloaders.labelmaps.ids import read_ids
from dataloaders.labelmaps.labels import count_labels, id_type
from dataloaders.labelmaps.map_slices import slice_map
from dataloaders.labelmaps.maps import read_label_map_file
from dataloaders.slices import SliceDataset, SliceSample, collate, neighbour_entries, slice_positions
from dataloaders.unpaired import as_label_source
from engine.methods.base import workflow_of
from engine.methods.synthesis import SynthesisWorkflow
from engine.paint.canvas import SLIDERS, Canvas, View
from engine.results import Draws, write_volumes
from engine.split_synthesis import check_same_spec, run_classes
from engine.trained import TrainedRun
from evaluation.report.pictures import HU_WINDOWS
from models.gmm.labels import plain_name
from models.gmm.method import Gmm

MAX_VOXELS = 2**27  # of files that are sent to the page: 512³
MAX_SLICES = 2048
OKABE_ITO = "#e69f00 #56b4e9 #009e73 #f0e442 #0072b2 #d55e00 #cc79a7".split()  # Okabe and Ito, 2008: for all eyes
EMPTY = "painted"  # id of the case of an empty map


class PaintedRun:
    """A trained run that paints label maps, whatever it is. ValueError for runs that do not."""

    def __init__(self, run: TrainedRun, gpu_ids: str) -> None:
        workflow = workflow_of(run.config)
        self.run, self.name = run, run.folder.name
        if not isinstance(workflow, SynthesisWorkflow) or not workflow.paints_labels:
            raise ValueError(
                f"--name {self.name}: makes no images of label maps; lesions go into scans by scripts/add_lesions.py"
            )
        self.neighbours = workflow.neighbours
        self.method, self.device = run.method(gpu_ids)
        self.classes: NDArray[np.int64] | None = None  # of the page's labels, None where they are the run's

    def describe(self) -> dict[str, Any]:
        """For the page."""
        sliders = [[name, *what] for name, what in SLIDERS.items()] if isinstance(self.method, Gmm) else []
        return {
            "name": self.name,
            "method": self.run.config.model,
            "channels": [[channel.name, channel.unit] for channel in self.run.spec.channels],
            "resamples": self.method.resamples,
            "sliders": sliders,
        }

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


@dataclass(frozen=True)
class Start:
    """What painting begins with. ids (S, H, W) classes of the page; case: their place and the windows of their images.

    notes: what the user should know of the file that it was read from.
    """

    case: Case
    ids: NDArray
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: everything that is needed to begin again, without paths and pictures."""
        bare = tuple(Slice(item.index, "") for item in self.case.slices)
        packed = base64.b64encode(zlib.compress(self.ids.tobytes(), 9)).decode()
        return {"case": asdict(replace(self.case, slices=bare, sources={})), "ids": packed}


class Studio:
    """Runs and data that all pages share. `spec`: labels and grid of the first run, which the others must know.

    ValueError where they do not, and where the data do not fit.
    """

    def __init__(self, runs: Sequence[PaintedRun], dataroot: Path | None) -> None:
        self.runs = {run.name: run for run in runs}
        first = runs[0].run
        self.spec = replace(first.spec, labels=coloured(first.spec.labels))
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
        reading = read_ids(path, count_labels(label_map.values.numpy()), self.spec)
        first = next(iter(self.windows.values()))
        sliced = slice_map(label_map, reading.table, self.spec, name, first)
        planes = [sliced.frame.cut(sliced.ids, item.index) for item in sliced.case.slices]
        notes = (f"labels read {reading.how}", *reading.notes, *sliced.notes)
        return Start(sliced.case, np.stack(planes).astype(self.id_type), notes)

    def of_saved(self, data: Any) -> Start:
        """Inverse of `Start.to_dict`; ValueError for what it cannot have written."""
        if not isinstance(data, dict) or set(data) != {"case", "ids"} or not isinstance(data["ids"], str):
            raise ValueError("the session says not what it begins with")
        case = case_from_dict(data["case"])
        if not 1 <= len(case.slices) <= MAX_SLICES:
            raise ValueError(f"the session has {len(case.slices)} slices, allowed are 1..{MAX_SLICES}")
        shape = (len(case.slices), *self.spec.size)
        wanted = int(np.prod(shape)) * np.dtype(self.id_type).itemsize
        try:
            unpacked = zlib.decompressobj().decompress(base64.b64decode(data["ids"], validate=True), wanted + 1)
        except (ValueError, zlib.error):
            unpacked = b""
        ids = np.frombuffer(unpacked, self.id_type)
        if len(unpacked) != wanted or ids.max() >= self.spec.num_labels:
            raise ValueError(f"the session's label map is damaged, or not one of {shape[1]} x {shape[2]} pixels")
        return Start(case, ids.reshape(shape))

    @property
    def id_type(self) -> Any:
        """Pixel type of labels."""
        return id_type(self.spec.num_labels)

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


def _refuse_others(spec: DataSpec, page: DataSpec, name: str, first: str) -> None:
    """ValueError where a run beside the first one has slices of another size or lacks one of its classes."""
    names = {plain_name(label.name) for label in spec.labels}
    lacking = [label.name for label in page.labels if plain_name(label.name) not in names]
    if spec.size != page.size or lacking:
        why = f"does not know {', '.join(lacking)}" if lacking else f"has slices of {spec.size}, not {page.size} pixels"
        raise ValueError(f"--name {first} {name}: do not go together, {name} {why}")


def coloured(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Labels with the colours that they are painted in: their own, else those that all eyes tell apart while they last."""
    few = len(labels) <= len(OKABE_ITO) + 1
    other = ["#000000", *OKABE_ITO] if few else [hex_color(color) for color in label_colors(labels)]
    return tuple(replace(label, color=label.color or other[label.id]) for label in labels)


class MapScene:
    """A label map under the brush, and the images that the runs make of it."""

    def __init__(self, studio: Studio, start: Start) -> None:
        self.studio, self.start = studio, start
        self.canvas = Canvas(start.ids, studio.spec.num_labels)
        self.panels = tuple(studio.runs)
        self._positions = slice_positions([start.case])

    def describe(self) -> dict[str, Any]:
        """What the page shows beside pixels."""
        spec, data, case = self.studio.spec, self.studio.data, self.start.case
        return {
            "case": case.id,
            "slices": len(self.start.ids),
            "size": spec.size,
            "aspect": spec.spacing[0] / spec.spacing[1],
            "labels": [[label.name, label.color] for label in spec.labels],
            "panels": [run.describe() | {"windows": self._window_pairs(run)} for run in self.studio.runs.values()],
            "backdrops": [c.name for c in data.spec.channels] if data and self.backdrop(0) is not None else [],
            "volumes": case.geometry is not None,
            "hu": HU_WINDOWS,
            "notes": list(self.start.notes),
        }

    def _windows(self, run: PaintedRun) -> tuple[Window, ...]:
        """Units of the run's images: the case's own where it has scans of these channels, else typical ones."""
        data = self.studio.data
        same = data is not None and data.spec.channels == run.run.spec.channels
        return self.start.case.windows if same else self.studio.windows[run.name]

    def _window_pairs(self, run: PaintedRun) -> list[tuple[float, float]]:
        return [(window.low, window.high) for window in self._windows(run)]

    def image(self, name: str, position: int, view: View) -> NDArray[np.uint16]:
        """(C, H, W) levels of a slice by the run of that name."""
        run, settings = self.studio.runs[name], view.settings
        item = self.start.case.slices[position]
        around = None
        if run.neighbours:
            others = neighbour_entries([self.start.case], run.neighbours)[position]
            around = np.stack([run.labels(view.ids[i]) for i in others])
        labels = run.labels(view.ids[position])
        sample = SliceSample(labels, None, self.start.case, item, around, self._positions[position])
        return run.draw(sample, settings.seed, settings.draws, settings.sliders.get(name, {}))

    def backdrop(self, position: int) -> NDArray[np.uint16] | None:
        """(C, H, W) levels of the real scan; None where there is none."""
        files = self.start.case.slices[position].images
        if not files or self.studio.root is None:
            return None
        return np.stack([as_16_bit(read_png(self.studio.root / file, image_only=True)) for file in files])

    def save_slice(self, folder: Path, position: int, view: View) -> list[Path]:
        """PNG files of a slice: class ids in their colours, and 16-bit images."""
        case = self.start.case
        place = f"{case.id}_z{case.slices[position].index:04d}"
        written = [folder / f"{place}_label.png"]
        colours = np.zeros((256, 3), np.uint8)
        own = label_colors(self.studio.spec.labels)[:256]
        colours[: len(own)] = own
        if self.studio.spec.num_labels <= len(colours):
            picture = Image.fromarray(view.ids[position])
            picture.putpalette(colours.tobytes())
            with atomic_path(written[0]) as temporary:
                picture.save(temporary, format="PNG")
        else:
            write_png(written[0], view.ids[position])
        for run in self.studio.runs.values():
            for channel, levels in zip(run.run.spec.channels, self.image(run.name, position, view), strict=True):
                written.append(folder / f"{place}_{run.name}_{channel.name}.png")
                write_png(written[-1], levels)
        return written

    def save_volumes(self, folder: Path, view: View) -> list[Path]:
        """NIfTI files in the case's geometry and units: labels with their table, and an image of each run and channel."""
        case, spec = self.start.case, self.studio.spec
        if case.geometry is None or spec.axis is None:
            raise ValueError("slices of a PNG folder have no place in a volume; save them as PNG")
        planes = {item.index: plane for item, plane in zip(case.slices, view.ids, strict=True)}
        volume, affine = stitch(case.geometry, spec.axis, planes, fill=0, labels=True)
        written = [folder / f"{case.id}_dseg.nii.gz", folder / f"{case.id}_dseg.tsv"]
        write_volume(written[0], volume, affine, self.studio.id_type, case.geometry.source_codes)
        write_text(written[1], label_table(spec.labels))
        for run in self.studio.runs.values():
            stack = {item.index: self.image(run.name, i, view) for i, item in enumerate(case.slices)}
            paths = [folder / f"{case.id}_{run.name}_{channel.name}.nii.gz" for channel in run.run.spec.channels]
            write_volumes(replace(case, windows=self._windows(run)), run.run.spec, stack, paths)
            written += paths
        return written
