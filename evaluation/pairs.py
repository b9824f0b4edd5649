"""Pairs of a real and a generated slice, streamed case by case from a results folder or any folder of PNG files."""

from __future__ import annotations

import functools
import glob
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.console import warn_once
from dataloaders.io.files import naming
from dataloaders.io.geometry import field_of_view, plane, resample, to_ras, window_plane
from dataloaders.io.intensity import LEVELS, Window
from dataloaders.io.manifest import Case, Manifest, Slice
from dataloaders.io.nifti import SUFFIXES, read_ids, stem
from dataloaders.io.png import as_16_bit, read_png
from dataloaders.io.spec import DataSpec
from evaluation.source_ids import SourceIds

FOLDERS = "folders"  # kind of a manifest made of folders: labels' sources are the ids in the label files
View = tuple[slice, slice]  # rows and columns
EVERYTHING: View = (slice(None), slice(None))
PER_VOLUME = "range of each real volume"  # in place of a window
WHOLE = "whole slices"
GROUP = 32  # slices of small cases that are worth a batch of the networks


@dataclass
class Item:
    """One slice and channel as read from disk.

    label: ids (H, W). real, fake: 16-bit levels (H, W) within the channel's window. values: real and generated in physical
    units where they are more exact than the levels (NIfTI). scored: False for a slice of nothing but air, which counts
    only where a volume is measured as a whole. view: the part that the scan covers and that was synthesised: padding,
    which is equal in both images and easy to hit, would raise every mean. draws: all draws of the label map in physical
    units, the generated image first, where there are others.
    """

    case: Case
    slice: Slice
    channel: int
    label: NDArray
    real: NDArray[np.uint16]
    fake: NDArray[np.uint16]
    values: tuple[NDArray, NDArray] | None = None
    scored: bool = True
    view: View = EVERYTHING
    draws: tuple[NDArray, ...] = ()

    @functools.cached_property
    def seen(self) -> Item:
        """The same slice cut to `view`: what every metric of a pair is computed on."""
        values = None if self.values is None else (self.values[0][self.view], self.values[1][self.view])
        label, real, fake = (image[self.view] for image in (self.label, self.real, self.fake))
        draws = tuple(draw[self.view] for draw in self.draws)
        return replace(self, label=label, real=real, fake=fake, values=values, view=EVERYTHING, draws=draws)

    @functools.cached_property
    def body(self) -> NDArray[np.bool_]:
        """Pixels with a label other than 0."""
        return np.asarray(self.label > 0)

    @property
    def window(self) -> Window:
        """The channel's intensity window."""
        return self.case.windows[self.channel]

    @functools.cached_property
    def physical(self) -> tuple[NDArray, NDArray]:
        """Real and generated image in physical units."""
        return self.values or (self.window.decode(self.real), self.window.decode(self.fake))

    @property
    def unit(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Real and generated image as shares of the window, in [0, 1], for networks."""
        real, fake = (levels.astype(np.float32) / np.float32(LEVELS) for levels in (self.real, self.fake))
        return real, fake


class Pairs(ABC):
    """What can be scored: a spec, provenance for the report, and the slices one after the other.

    windows: channel -> [low, high], or words where images differ. labelled: whether label maps say what is where.
    spacing_known: whether millimetres are. patients: how they were found. ids: of label files whose ids are not the spec's.
    region: what of the images is compared, in words.
    """

    spec: DataSpec
    provenance: dict[str, object]
    windows: dict[str, list[float] | str]
    labelled: bool
    spacing_known: bool
    patients: str
    region: str
    ids: SourceIds | None = None
    _held: threading.local

    @abstractmethod
    def groups(self) -> list[list[str]]:
        """Ids of cases that share batches of the networks and a shard, in order; the same in every process."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What the images are and how they are read, as plain values that change with any of it."""

    @abstractmethod
    def items(self, cases: Sequence[str]) -> Iterator[Item]:
        """The named cases one after the other, slices by index, then channels; what lacks an image is left out.

        ValueError naming the file where something does not fit.
        """

    def spacing(self, case: Case) -> tuple[float, float, float]:
        """(between slices, rows, columns) in mm; 1 where unknown."""
        return (self.spec.slice_spacing, *self.spec.spacing)

    @abstractmethod
    def companion(self, folder: Path, item: Item, labels: bool) -> NDArray:
        """The slice of `item` in another folder: a label map (ids), else an image in physical units.

        Images are as exact as the generated one of `Item.physical`, so that equal files are equal. ValueError naming the
        file that is missing or of another shape.
        """

    @abstractmethod
    def beside(self, folder: Path) -> Pairs:
        """The second scans that scripts/repeats.py laid onto the same kind of images; ValueError where they are others."""

    @property
    def about(self) -> dict[str, Any]:
        """How the images are read: what numbers of another evaluation have to share to be comparable."""
        units = {channel.name: channel.unit for channel in self.spec.channels}
        return {"windows": self.windows, "units": units, "axis": self.spec.axis, "labels": self.labelled}

    def _of_case(self, folder: Path, case: str, read: Callable[[], NDArray]) -> NDArray:
        """The volume of a case in a folder, as `read`, kept until the thread asks for another case there."""
        held: dict[Path, tuple[str, NDArray]] = self._held.__dict__.setdefault("volumes", {})
        if held.get(folder, ("",))[0] != case:
            held[folder] = (case, read())
        return held[folder][1]

    def _ids(self, map_: NDArray) -> NDArray:
        """Ids of a label file as the spec's."""
        return map_ if self.ids is None else self.ids.apply(map_)

    def source_of(self, label: int) -> int:
        """Id in the label files."""
        return label if self.ids is None else self.ids.source(label)

    def name_of(self, label: int) -> str:
        """Name of a label, also of one that only a segmentation has."""
        known = label < self.spec.num_labels
        return self.spec.labels[label].name if known else f"label_{self.source_of(label)}"

    def label_named(self, text: str) -> int:
        """Label that a user names by its name or its id in the files; ValueError lists what there is."""
        there = {label.id: (str(self.source_of(label.id)), label.name) for label in self.spec.labels}
        for label, names in there.items():
            if text in names:
                return label
        raise ValueError(
            f"--lesion {text}: no such label; there are " + ", ".join(f"{i} {name}" for i, name in there.values())
        )


class ManifestPairs(Pairs):
    """A results folder of test.py, or a manifest made of two PNG folders; paths are relative to `folder`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.spec, self.provenance = manifest.spec, manifest.provenance
        if manifest.provenance.get("kind") == FOLDERS:
            self.ids = SourceIds(source for label in manifest.spec.labels for source in label.source)
        self.patients = str(manifest.provenance.get("patients", "as in the manifest"))
        self.labelled = any(item.label for case in manifest.cases for item in case.slices)
        # A folder of PNG files has neither.
        self.spacing_known = self.spec.axis is not None or (*self.spec.spacing, self.spec.slice_spacing) != (1, 1, 1)
        self.windows = {}
        for i, channel in enumerate(self.spec.channels):
            found = {(case.windows[i].low, case.windows[i].high) for case in manifest.cases}
            self.windows[channel.name] = list(found.pop()) if len(found) == 1 else "of each case"
        self.region = _region(manifest)
        self._held = threading.local()

    def groups(self) -> list[list[str]]:
        """Cases in order, put together until there are `GROUP` slices."""
        groups: list[list[str]] = []
        slices = GROUP
        for case in self.manifest.cases:
            if slices >= GROUP:
                groups.append([])
                slices = 0
            groups[-1].append(case.id)
            slices += len(paired_slices(case))
        return groups

    def fingerprint(self) -> dict[str, Any]:
        """Spec, cases and provenance of the manifest, and size and time of every file."""
        slices = [item for case in self.manifest.cases for item in case.slices]
        files = {path for item in slices for path in (item.label, *item.images, *item.generated) if path}
        cases = [asdict(case) for case in self.manifest.cases]
        about = {"spec": self.spec.to_dict(), "cases": cases, "provenance": self.provenance}
        return about | {"files": file_states(self.folder / path for path in sorted(files))}

    def items(self, cases: Sequence[str]) -> Iterator[Item]:
        """See `Pairs.items`."""
        for case in self.manifest.cases:
            # By index, because neighbours are found by looking at the slice before.
            for place in sorted(paired_slices(case), key=lambda item: item.index) if case.id in cases else ():
                label = self._label(place)
                for channel, paths in enumerate(zip(place.images, place.generated, strict=True)):
                    real, fake = self._images(*(self.folder / path for path in paths))
                    there = np.zeros(real.shape, np.uint8) if label is None else label
                    if real.shape != fake.shape or there.shape != real.shape:
                        file = self.folder / paths[1]
                        raise ValueError(f"{file}: {fake.shape}, real {real.shape}, label {there.shape}")
                    view = view_of(self.manifest, case, there.shape)
                    yield Item(case, place, channel, there, real, fake, view=view)

    def _label(self, place: Slice) -> NDArray | None:
        if not place.label:
            return None
        ids = self._ids(read_png(self.folder / place.label))
        check_label(self.folder / place.label, ids, self.spec)
        return ids

    def _images(self, *paths: Path) -> list[NDArray[np.uint16]]:
        stored = [read_png(path, image_only=True) for path in paths]
        if stored[0].dtype != stored[1].dtype:
            told = (
                f"{path.parent} holds {8 * image.dtype.itemsize}-bit PNG files"
                for path, image in zip(paths, stored, strict=True)
            )
            warn_once(", ".join(told))
        return [as_16_bit(image, self.manifest.provenance.get("levels")) for image in stored]

    def companion(self, folder: Path, item: Item, labels: bool) -> NDArray:
        """From the equally named PNG file, or for label maps from a volume ``<case>*.nii.gz`` in source geometry."""
        own = item.slice.generated[item.channel]
        names = [Path(path).name for path in ((item.slice.label, own) if labels else (own,)) if path]
        path = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
        if labels and not path.is_file():
            image = self._from_volume(folder, item, path)
        else:
            image = read_png(path, image_only=not labels)
        if image.shape != item.real.shape:
            raise ValueError(f"{path}: {image.shape}, the generated image has {item.real.shape}")
        if labels:
            return self._ids(image)
        return item.window.decode(as_16_bit(image, self.manifest.provenance.get("levels")))

    def beside(self, folder: Path) -> ManifestPairs:
        """A results folder with the same classes and channels."""
        other = ManifestPairs(folder, Manifest.load(folder))
        here, there = ((pairs.spec.labels, pairs.spec.channels, pairs.spec.spacing) for pairs in (self, other))
        if here != there:
            raise ValueError(f"--repeats {folder}: classes, channels or pixel size are not those of {self.folder}")
        return other

    def _from_volume(self, folder: Path, item: Item, wanted: Path) -> NDArray:
        """Of the volume named as the case, or of the only one whose name goes on with ``_``."""
        geometry, axis, case = item.case.geometry, self.spec.axis, item.case.id
        every = [path for suffix in SUFFIXES for path in sorted(folder.glob(f"{glob.escape(case)}*{suffix}"))]
        files = [path for path in every if stem(path) == case]
        files = files or [path for path in every if stem(path).startswith(f"{case}_")]
        if len(files) != 1 or geometry is None or axis is None:
            raise ValueError(
                f"{folder} has neither {wanted.name} nor one volume {case}.nii.gz or {case}_*.nii.gz ({len(files)})"
            )

        def on_grid() -> NDArray:
            volume = read_ids(files[0])
            data, affine = to_ras(volume.data, volume.affine)
            return resample(data, affine, geometry.grid_shape, np.array(geometry.grid_affine), labels=True)

        full = plane(self._of_case(folder, case, on_grid), axis, item.slice.index)
        return window_plane(full, geometry.crop, item.real.shape, fill=0)


def check_label(path: Path, label: NDArray, spec: DataSpec) -> None:
    """ValueError naming the file for a label map with ids that the spec does not know."""
    if label.max() >= spec.num_labels:
        raise ValueError(f"{path}: label {label.max()}, allowed 0..{spec.num_labels - 1}")


def view_of(manifest: Manifest, case: Case, shape: tuple[int, ...]) -> View:
    """Rows and columns of the slices of a case that its scan covers; see `field_of_view`."""
    with naming(f"case {case.id}"):
        return field_of_view(case.geometry, manifest.spec.axis, (shape[0], shape[1]))


def _region(manifest: Manifest) -> str:
    size = manifest.spec.size
    views = [view_of(manifest, case, size) for case in manifest.cases]
    shown = sorted({tuple(part.stop - part.start for part in view) for view in views})
    if shown in ([], [size]):
        return WHOLE
    sizes = " to ".join(f"{rows}×{columns}" for rows, columns in dict.fromkeys((shown[0], shown[-1])))
    return (
        f"the scan's field of view ({sizes} of {size[0]}×{size[1]} pixels), without the padding around it; metrics of "
        "distributions (FID and the like): whole slices with their padding"
    )


def file_states(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Resolved path, size and time of change of each file; 0, 0 for one that is not there."""
    found = []
    for path in paths:
        stat = path.stat() if path.is_file() else None
        found.append((str(path.resolve()), stat.st_size if stat else 0, stat.st_mtime_ns if stat else 0))
    return found


def paired_slices(case: Case) -> list[Slice]:
    """Slices with a real and a generated image for every channel."""
    return [item for item in case.slices if item.images and len(item.images) == len(item.generated)]
