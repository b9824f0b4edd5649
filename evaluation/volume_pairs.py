"""Folders of NIfTI volumes as pairs of slices: real, generated and, where there are any, label maps on one grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.file_names import visible
from dataloaders.geometry import AFFINE_TOLERANCE, plane, plane_shape, plane_spacing, to_ras
from dataloaders.intensity import Window
from dataloaders.manifest import Case, Slice
from dataloaders.nifti import SUFFIXES, read_volume, stem, whole_numbers
from evaluation.pairs import FOLDERS, PER_VOLUME, Item, Pairs, file_states
from evaluation.source_ids import SourceIds, occurring
from spec import Axis, Channel, DataSpec


@dataclass(frozen=True)
class Files:
    """The volumes of one case; all have the same grid. label is None where nobody said what the tissues are."""

    id: str
    patient: str
    real: Path
    generated: Path
    label: Path | None


def volume_files(folder: Path, flag: str) -> dict[str, Path]:
    """Name without ending -> NIfTI file, sorted; ValueError for a name that is there twice, and without a folder."""
    files: dict[str, Path] = {}
    for path in visible(folder, flag, SUFFIXES):
        if stem(path) in files:
            raise ValueError(f"{folder}: both {files[stem(path)].name} and {path.name}; remove one")
        files[stem(path)] = path
    return files


SLICED: dict[Axis, int] = {"axial": 2, "coronal": 1, "sagittal": 0}  # array axis of a RAS volume


class VolumePairs(Pairs):
    """Cases of NIfTI files, with all their slices; one without a label and with a constant real image is not scored.

    window: physical values that count as 0 and 1; without it those of the case's real volume from lowest to highest.
    """

    def __init__(
        self, cases: Sequence[Files], window: Window | None, axis: Axis, unit: str, patients: str = "as named"
    ) -> None:
        self.cases, self.window, self.axis, self.patients = cases, window, axis, patients
        self.labelled = all(files.label is not None for files in cases)
        self.spacing_known = True
        self.windows = {"image": PER_VOLUME if window is None else [window.low, window.high]}
        found: set[int] = set()
        slices = 0
        for path in (files.label for files in cases if files.label is not None):
            label, _ = _read(path, labels=True)
            found.update(occurring(label))
            slices += label.shape[SLICED[axis]]
        self._slices = slices if self.labelled else None
        self.ids = SourceIds(found)
        first = plane_shape(_read(cases[0].real)[0].shape, axis)
        self.spec = DataSpec(self.ids.labels, (Channel("image", unit),), (first[1], first[2]), axis=axis)
        self.provenance = {"kind": FOLDERS, "name": cases[0].generated.parent.name}
        self._grids: dict[str, tuple[tuple[int, ...], NDArray]] = {}  # case -> shape and affine of its volumes
        self._others: dict[Path, tuple[str, NDArray]] = {}  # folder -> (case, volume)

    @property
    def total(self) -> int | None:
        """Number of slices, known where there are labels."""
        return self._slices

    def spacing(self, case: Case) -> tuple[float, float, float]:
        """(between slices, rows, columns) in mm of a case that `items` has reached."""
        return plane_spacing(self._grids[case.id][1], self.axis)

    def groups(self) -> list[list[str]]:
        """Each volume is a group."""
        return [[files.id] for files in self.cases]

    def fingerprint(self) -> dict[str, Any]:
        """Window, axis, unit, patients, and size and time of every file."""
        window = None if self.window is None else (self.window.low, self.window.high)
        paths = [path for files in self.cases for path in (files.real, files.generated, files.label) if path]
        patients = [(files.id, files.patient, files.label is not None) for files in self.cases]
        return {"spec": asdict(self.spec), "window": window, "patients": patients, "files": file_states(paths)}

    def items(self, cases: Sequence[str] | None = None) -> Iterator[Item]:
        """One case in memory at a time."""
        for files in self.cases:
            if cases is None or files.id in cases:
                yield from self._items(files)

    def _items(self, files: Files) -> Iterator[Item]:
        real, affine = _read(files.real)
        grid = self._grids[files.id] = real.shape, affine
        fake = _on_grid(files.generated, grid, files.real)
        label = np.zeros(real.shape, np.uint8)
        if files.label is not None:
            label = self._ids(_on_grid(files.label, grid, files.real, labels=True))
        window = self.window or _range(real)
        case = Case(files.id, files.patient, "test", (window,), ())
        for index in range(plane_shape(real.shape, self.axis)[0]):
            ids, pair = plane(label, self.axis, index), [plane(image, self.axis, index) for image in (real, fake)]
            scored = bool(ids.any() or pair[0].min() < pair[0].max())
            levels = [window.encode(image) for image in pair]
            place = Slice(index, str(files.label or ""), (str(files.real),), (str(files.generated),))
            yield Item(case, place, 0, ids, levels[0], levels[1], (pair[0], pair[1]), scored)

    def companion(self, folder: Path, item: Item, labels: bool) -> NDArray:
        """The slice of the equally named volume."""
        if self._others.get(folder, ("",))[0] != item.case.id:
            found = volume_files(folder, "segmented" if labels else "draws")
            names = [stem(Path(path)) for path in (item.slice.generated[0], item.slice.label) if path]
            path = next((found[name] for name in names if name in found), None)
            if path is None:
                raise ValueError(f"{folder} has no {' or '.join(f'{name}.nii.gz' for name in dict.fromkeys(names))}")
            volume = _on_grid(path, self._grids[item.case.id], Path(item.slice.images[0]), labels)
            self._others[folder] = (item.case.id, self._ids(volume) if labels else volume)
        return plane(self._others[folder][1], self.axis, item.slice.index)

    def _ids(self, volume: NDArray) -> NDArray:
        return volume if self.ids is None else self.ids.apply(volume)


def _on_grid(path: Path, grid: tuple[tuple[int, ...], NDArray], reference: Path, labels: bool = False) -> NDArray:
    data, own = _read(path, labels)
    if data.shape != grid[0] or not np.allclose(own, grid[1], atol=AFFINE_TOLERANCE):
        raise ValueError(f"{path}: {data.shape}, {reference.name} has {grid[0]}, or the affine differs")
    return data


def _read(path: Path, labels: bool = False) -> tuple[NDArray, NDArray[np.float64]]:
    """A volume in RAS order, float32 or label ids, and its affine."""
    volume = read_volume(path)
    return to_ras(whole_numbers(path, volume.data) if labels else volume.data.astype(np.float32), volume.affine)


def _range(real: NDArray) -> Window:
    low, high = float(real.min()), float(real.max())
    return Window(low, high if high > low else low + 1.0)
