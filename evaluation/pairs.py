"""Pairs of a real and a generated slice, streamed case by case from a results folder or any folder of PNG files."""

from __future__ import annotations

import functools
import glob
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.console import warn_once
from dataloaders.io.files import naming
from dataloaders.io.geometry import field_of_view, plane, plane_spacing, resample, to_ras, window_plane
from dataloaders.io.intensity import LEVELS, Window
from dataloaders.io.manifest import Case, Manifest, Slice
from dataloaders.io.nifti import SUFFIXES, read_ids, stem
from dataloaders.io.png import as_16_bit, read_png, read_slice
from dataloaders.io.spec import Axis, Channel, DataSpec

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
    """What can be scored: how images are read, provenance for the report, and the slices one after the other.

    names: of labels by id, {} where label maps have ids alone. all_named: whether there are no others. mm: between slices,
    rows and columns, where a case does not say (see `spacing`); 1 where unknown.
    windows: channel -> [low, high], words where images differ, or None where only reading will tell. labelled: whether
    label maps say what is where. spacing_known: whether millimetres are. patients: how they were found. region: what of
    the images is compared, in words.
    """

    channels: Sequence[Channel]
    axis: Axis | None
    names: dict[int, str]
    all_named = False
    mm: tuple[float, float, float]
    provenance: dict[str, object]
    windows: dict[str, list[float] | str | None]
    labelled: bool
    spacing_known: bool
    patients: str
    region: str
    _held: threading.local

    @abstractmethod
    def groups(self) -> list[list[str]]:
        """Ids of cases that share batches of the networks and a shard, in order; the same in every process."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What the images are and how they are read, as plain values that change with any of it; before they are read."""

    @abstractmethod
    def items(self, cases: Sequence[str]) -> Iterator[Item]:
        """The named cases one after the other, slices by index, then channels; what lacks an image is left out.

        Each file is opened once. ValueError naming the file where something does not fit.
        """

    def spacing(self, case: Case) -> tuple[float, float, float]:
        """(between slices, rows, columns) in mm; 1 where unknown."""
        return self.mm

    @abstractmethod
    def companion(self, folder: Path, item: Item, labels: bool) -> NDArray:
        """The slice of `item` in another folder: a label map (ids), else an image in physical units.

        Images are as exact as the generated one of `Item.physical`, so that equal files are equal. ValueError naming the
        file that is missing or of another shape.
        """

    @abstractmethod
    def beside(self, folder: Path) -> Pairs:
        """The second scans that scripts/repeats.py laid onto the same kind of images; ValueError where they are others.

        What both read is opened once where a group of one is scored right after the group of the same number of the other.
        """

    def outdated(self, cases: Sequence[str]) -> bool:
        """Whether files that were read later have changed the window in which these cases were scored."""
        return False

    def seen(self) -> dict[str, Any]:
        """What only reading tells, as plain values for `see` of another process."""
        return {}

    def see(self, seen: dict[str, Any]) -> None:  # noqa: B027 (most pairs learn nothing)
        """Take what another process has `seen`; ValueError where it contradicts what was seen here."""

    def tell(self) -> None:  # noqa: B027
        """Warn, once all is read, of what it showed."""

    @property
    def about(self) -> dict[str, Any]:
        """How the images are read: what numbers of another evaluation have to share to be comparable."""
        units = {channel.name: channel.unit for channel in self.channels}
        return {"windows": self.windows, "units": units, "axis": self.axis, "labels": self.labelled}

    def _of_case(self, folder: Path, labels: bool, case: str, read: Callable[[], NDArray]) -> NDArray:
        """The volume of a case in a folder, as `read`, kept until the thread asks for another case."""
        held = self._held.__dict__
        if held.get("case") != case:
            held.update(case=case, volumes={})
        volumes: dict[tuple[Path, bool], NDArray] = held["volumes"]
        if (folder, labels) not in volumes:
            volumes[folder, labels] = read()
        return volumes[folder, labels]

    def name_of(self, label: int) -> str:
        """Name of a label, also of one that only a segmentation has."""
        return self.names.get(label, f"label_{label}" if label else "background")

    def label_named(self, text: str) -> int:
        """Label that a user names by its name or its id; ValueError lists what there is, as far as it is known."""
        for label, name in self.names.items():
            if text in (str(label), name):
                return label
        number = text.removeprefix("label_")
        if number.isdecimal() and not self.all_named:
            return int(number)
        raise ValueError(no_label(text, self.names))


def no_label(text: object, names: Mapping[int, str]) -> str:
    """What is said of a lesion label that is not there."""
    there = ", ".join(f"{i} {name}" for i, name in sorted(names.items())) or "ids without names"
    return f"--lesion {text}: no such label; there are {there}"


class PngPairs(Pairs):
    """Cases of PNG slices; paths are relative to `folder`."""

    folder: Path
    cases: Sequence[Case]
    size: tuple[int, int] | None = None  # of slices, where all have one

    def groups(self) -> list[list[str]]:
        """Cases in order, put together until there are `GROUP` slices."""
        groups: list[list[str]] = []
        slices = GROUP
        for case in self.cases:
            if slices >= GROUP:
                groups.append([])
                slices = 0
            groups[-1].append(case.id)
            slices += len(paired_slices(case))
        return groups

    def spacing(self, case: Case) -> tuple[float, float, float]:
        """See `Pairs.spacing`; each scan's own where its grid is known, since not all data are resampled to one."""
        return spacing_of(case, self.axis, self.mm)

    def fingerprint(self) -> dict[str, Any]:
        """How images are read, labels, cases, provenance, and size and time of every file."""
        slices = [item for case in self.cases for item in case.slices]
        files = {path for item in slices for path in (item.label, *item.images, *item.generated) if path}
        cases = [asdict(case) for case in self.cases]
        about = self.about | {"mm": self.mm, "names": self.names, "cases": cases, "provenance": self.provenance}
        return about | {"files": file_states(self.folder / path for path in sorted(files))}

    def items(self, cases: Sequence[str]) -> Iterator[Item]:
        """See `Pairs.items`."""
        opened, read = self._opened([case for case in self.cases if case.id in cases])
        for case in opened:
            # By index, because neighbours are found by looking at the slice before.
            for place in sorted(paired_slices(case), key=lambda item: item.index):
                label = self._label(self.folder / place.label) if place.label else None
                for channel, paths in enumerate(zip(place.images, place.generated, strict=True)):
                    real, fake = self._levels_of([self.folder / path for path in paths], read)
                    there = np.zeros(real.shape, np.uint8) if label is None else label
                    if real.shape != fake.shape or there.shape != real.shape:
                        file = self.folder / paths[1]
                        raise ValueError(f"{file}: {fake.shape}, real {real.shape}, label {there.shape}")
                    view = view_of(self.axis, case, there.shape)
                    yield Item(case, place, channel, there, real, fake, view=view)

    def _opened(self, cases: list[Case]) -> tuple[list[Case], Callable[[Path], NDArray]]:
        """The cases as they are scored, before any of them is, and what reads their images."""
        return cases, functools.partial(read_png, image_only=True)

    @abstractmethod
    def _label(self, path: Path) -> NDArray:
        """Ids of a label map."""

    def _levels(self) -> int | None:
        """Highest level that 16-bit files can hold, where that is known to be less than 65535."""
        return None

    def _levels_of(self, paths: Sequence[Path], read: Callable[[Path], NDArray]) -> list[NDArray[np.uint16]]:
        stored = {path: read(path) for path in dict.fromkeys(paths)}
        if len({image.dtype for image in stored.values()}) > 1:
            told = (f"{path.parent} holds {8 * image.dtype.itemsize}-bit PNG files" for path, image in stored.items())
            warn_once(", ".join(told))
        return [as_16_bit(stored[path], self._levels()) for path in paths]

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
        return image if labels else item.window.decode(as_16_bit(image, self._levels()))

    def beside(self, folder: Path) -> ManifestPairs:
        """A results folder with the same classes and channels, in which cases of both are prepared alike."""
        other = ManifestPairs(folder, Manifest.load(folder))
        here, there = ((of.names, of.channels, of.mm, of.axis, of.size) for of in (self, other))
        if here != there:
            raise ValueError(
                f"--repeats {folder}: classes, channels, axis, slice size or pixel size are not those of {self.folder}"
            )
        own = {case.id: case for case in self.cases}
        shared = [(own[case.id], case) for case in other.cases if case.id in own]
        if not shared:
            raise ValueError(f"--repeats {folder}: has none of the cases of {self.folder}")
        for one, again in shared:
            if (one.geometry, one.windows) != (again.geometry, again.windows):
                raise ValueError(f"--repeats {folder}: the grid or windows of {one.id} are not those of {self.folder}")
        return other

    def _from_volume(self, folder: Path, item: Item, wanted: Path) -> NDArray:
        """Of the volume named as the case, or of the only one whose name goes on with ``_``."""
        geometry, axis, case = item.case.geometry, self.axis, item.case.id
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

        full = plane(self._of_case(folder, True, case, on_grid), axis, item.slice.index)
        return window_plane(full, geometry.crop, item.real.shape, fill=0)


class ManifestPairs(PngPairs):
    """A results folder of test.py."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        spec = self.spec = manifest.spec
        self.size = spec.size
        self.folder, self.cases, self.provenance = folder, manifest.cases, manifest.provenance
        self.channels, self.axis, self.mm = spec.channels, spec.axis, (spec.slice_spacing, *spec.spacing)
        self.names, self.all_named = {label.id: label.name for label in spec.labels}, True
        self.patients = "as in the manifest"
        self.labelled = any(item.label for case in manifest.cases for item in case.slices)
        self.spacing_known = self.axis is not None or self.mm != (1, 1, 1)  # prepared PNG files have neither
        self.windows = {}
        for i, channel in enumerate(spec.channels):
            found = {(case.windows[i].low, case.windows[i].high) for case in manifest.cases}
            self.windows[channel.name] = list(found.pop()) if len(found) == 1 else "of each case"
        self.region = region_of(manifest.cases, spec)
        self._held = threading.local()

    def _label(self, path: Path) -> NDArray:
        return read_slice(path, self.spec)


def spacing_of(case: Case, axis: Axis | None, mm: tuple[float, float, float]) -> tuple[float, float, float]:
    """(between slices, rows, columns) in mm of a case's grid; `mm` where that is not known."""
    if case.geometry is None or axis is None:
        return mm
    return plane_spacing(np.array(case.geometry.grid_affine), axis)


def view_of(axis: Axis | None, case: Case, shape: tuple[int, ...]) -> View:
    """Rows and columns of the slices of a case that its scan covers; see `field_of_view`."""
    with naming(f"case {case.id}"):
        return field_of_view(case.geometry, axis, (shape[0], shape[1]))


def region_of(cases: Iterable[Case], spec: DataSpec) -> str:
    """What of the slices of a results folder is compared, in words."""
    size = spec.size
    views = [view_of(spec.axis, case, size) for case in cases]
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
