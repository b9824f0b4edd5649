"""Folders of NIfTI volumes as pairs of slices: real, generated and, where there are any, label maps on one grid."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from dataloaders.io.console import warn_once
from dataloaders.io.find import files_in, without_twins
from dataloaders.io.geometry import ACROSS, off_grid, plane, plane_shape, plane_spacing, stitch, to_ras
from dataloaders.io.intensity import Window
from dataloaders.io.manifest import FILE_NAME, Case, Manifest, Slice
from dataloaders.io.nifti import SUFFIXES, read_ids, read_volume, stem
from dataloaders.io.spec import Axis, Channel
from evaluation.pairs import PER_VOLUME, Item, Pairs, file_states


@dataclass(frozen=True)
class Files:
    """The volumes of one case; all have the same grid. label is None where nobody said what the tissues are."""

    id: str
    patient: str
    real: Path
    generated: Path
    label: Path | None


class VolumePairs(Pairs):
    """Cases of NIfTI files, with all their slices; one without a label and with a constant real image is not scored.

    Of volumes that test.py stacked, only what was synthesised counts: elsewhere they hold a filling, not an image.

    window: physical values that count as 0 and 1; without it those of the case's real volume from lowest to highest.
    names: see `Pairs`.
    """

    axis: Axis

    def __init__(
        self,
        cases: Sequence[Files],
        window: Window | None,
        axis: Axis,
        unit: str,
        patients: str,
        names: dict[int, str],
    ) -> None:
        self.cases, self.window, self.axis, self.patients = cases, window, axis, patients
        self.channels, self.names, self.mm = (Channel("image", unit),), names, (1, 1, 1)
        self.labelled = all(files.label is not None for files in cases)
        self.spacing_known = True
        self.windows = {"image": PER_VOLUME if window is None else [window.low, window.high]}
        self._known: dict[str, tuple[NDArray[np.bool_], ...]] = {}  # case -> `synthesised`
        missing, every = self._tell_missing()
        left_out = f"what was synthesised ({every - missing} of {every} slices, inside their window)"
        self.region = left_out if self._known else "whole volumes"
        self.provenance = {"name": cases[0].generated.parent.name}
        self._order = [files.id for files in cases]
        self._grids: dict[str, tuple[tuple[int, ...], NDArray]] = {}  # case -> shape and affine of its volumes
        self._held = threading.local()

    def _tell_missing(self) -> tuple[int, int]:
        """Say what was never synthesised; number of such slices, and of all, in the volumes of which it is known."""
        missing = every = 0
        for files in self.cases:
            known = synthesised(files.generated)
            if known is None:
                continue
            self._known[files.id] = known
            slices = known[ACROSS[self.axis]]
            missing, every = missing + int((~slices).sum()), every + len(slices)
            if not all(profile.all() for profile in known):
                window = "×".join(str(int(profile.sum())) for profile in known)
                warn_once(
                    f"{files.generated.name}: {(~slices).sum()} of {len(slices)} {self.axis} slices were never "
                    f"synthesised; only the {window} voxels that were are compared, of "
                    f"{'×'.join(str(len(profile)) for profile in known)}"
                )
        return missing, every

    def spacing(self, case: Case) -> tuple[float, float, float]:
        """(between slices, rows, columns) in mm of a case that `items` has reached."""
        return plane_spacing(self._grids[case.id][1], self.axis)

    def groups(self) -> list[list[str]]:
        """Each volume is a group; empty where there is no second scan."""
        there = {files.id for files in self.cases}
        return [[case] if case in there else [] for case in self._order]

    def fingerprint(self) -> dict[str, Any]:
        """How images are read, labels, patients, and size and time of every file."""
        paths = [path for files in self.cases for path in (files.real, files.generated, files.label) if path]
        patients = [(files.id, files.patient, files.label is not None) for files in self.cases]
        return self.about | {"names": self.names, "patients": patients, "files": file_states(paths)}

    def items(self, cases: Sequence[str]) -> Iterator[Item]:
        """One case in memory at a time."""
        for files in self.cases:
            if files.id in cases:
                yield from self._items(files)

    def _items(self, files: Files) -> Iterator[Item]:
        real = self._volume(files, files.real)
        fake = self._volume(files, files.generated)
        label = np.zeros(real.shape, np.uint8)
        if files.label is not None:
            label = self._volume(files, files.label, labels=True)
        window = self.window or _range(real)
        case = Case(files.id, files.patient, "test", (window,), ())
        known = self._voxels(files, real, fake)
        for index in range(plane_shape(real.shape, self.axis)[0]):
            there = plane(known, self.axis, index)
            if not there.any():
                continue
            view = (_longest_run(there.any(axis=1)), _longest_run(there.any(axis=0)))
            ids, pair = plane(label, self.axis, index), [plane(image, self.axis, index) for image in (real, fake)]
            scored = bool(ids[view].any() or pair[0][view].min() < pair[0][view].max())
            levels = [window.encode(image) for image in pair]
            place = Slice(index, str(files.label or ""), (str(files.real),), (str(files.generated),))
            yield Item(case, place, 0, ids, levels[0], levels[1], (pair[0], pair[1]), scored, view)

    def _volume(self, files: Files, path: Path, labels: bool = False) -> NDArray:
        return self._of_case(path.parent, labels, files.id, lambda: self._read(path, labels, files.id, files.real))

    def _read(self, path: Path, labels: bool, case: str, real: Path) -> NDArray:
        """A volume in RAS order, float32 or ids, on the grid of the case's real one, which is read first."""
        volume = read_ids(path) if labels else read_volume(path)
        data, affine = to_ras(volume.data if labels else volume.data.astype(np.float32), volume.affine)
        if path == real:
            self._grids[case] = data.shape, affine
        if fault := off_grid(data.shape, affine, *self._grids[case], real.name):
            raise ValueError(f"{path}: in RAS axes: {fault}")
        return data

    def _voxels(self, files: Files, real: NDArray, fake: NDArray) -> NDArray[np.bool_]:
        """Which voxels count: those that were synthesised, where that is known."""
        if files.id not in self._known:
            constant = [
                index
                for index in range(plane_shape(real.shape, self.axis)[0])
                if np.ptp(plane(fake, self.axis, index)) == 0 < np.ptp(plane(real, self.axis, index))
            ]
            if constant:
                warn_once(
                    f"{files.generated}: {len(constant)} of its {self.axis} slices have a single value where the real "
                    f"ones have not, and count; if they were never synthesised, cut them off in all folders"
                )
            return np.broadcast_to(np.True_, real.shape)
        x, y, z = self._known[files.id]
        if real.shape != (len(x), len(y), len(z)):
            raise ValueError(
                f"{files.generated}: {real.shape}, its results' {FILE_NAME} says {(len(x), len(y), len(z))}"
            )
        return x[:, None, None] & y[:, None] & z

    def beside(self, folder: Path) -> VolumePairs:
        """Those volumes whose names are in `folder`, with what lies there in place of the generated ones."""
        found = {stem(path): path for path in without_twins(files_in(folder, SUFFIXES, "--repeats"))}
        cases = [replace(files, generated=found[files.id]) for files in self.cases if files.id in found]
        if not cases:
            raise ValueError(f"--repeats {folder}: has no volume of a name that is scored")
        other = VolumePairs(cases, self.window, self.axis, self.channels[0].unit, self.patients, self.names)
        other._order, other._grids, other._held = self._order, self._grids, self._held
        return other

    def companion(self, folder: Path, item: Item, labels: bool) -> NDArray:
        """The slice of the equally named volume."""

        def read() -> NDArray:
            flag = "--segmented" if labels else "--draws"
            found = {stem(path): path for path in without_twins(files_in(folder, SUFFIXES, flag))}
            names = [stem(Path(path)) for path in (item.slice.generated[0], item.slice.label) if path]
            path = next((found[name] for name in names if name in found), None)
            if path is None:
                raise ValueError(f"{folder} has no {' or '.join(f'{name}.nii.gz' for name in dict.fromkeys(names))}")
            return self._read(path, labels, item.case.id, Path(item.slice.images[0]))

        return plane(self._of_case(folder, labels, item.case.id, read), self.axis, item.slice.index)


def synthesised(path: Path) -> tuple[NDArray[np.bool_], ...] | None:
    """Of a volume that test.py stacked, which planes along each RAS axis hold synthesised voxels.

    None for any other volume. All three have to be True at a voxel: slices have one window and one axis.
    """
    found = _stacked(path.resolve().parent.parent).get(stem(path))
    if found is None:
        return None
    manifest, case = found
    assert case.geometry is not None
    assert manifest.spec.axis is not None
    ones = np.ones(manifest.spec.size, np.float32)
    volume, affine = stitch(case.geometry, manifest.spec.axis, {item.index: ones for item in case.slices}, fill=0)
    known = to_ras(volume, affine)[0] > 1 - 1e-6  # less: mixed with the filling where the grid was resampled
    return tuple(np.asarray(known.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))


@functools.lru_cache(maxsize=2)
def _stacked(folder: Path) -> dict[str, tuple[Manifest, Case]]:
    """Name of a stacked volume -> its case, where `folder` is a results folder of test.py."""
    if not (folder / FILE_NAME).is_file():
        return {}
    manifest = Manifest.load(folder)
    return {
        f"{case.id}_{channel.name}": (manifest, case)
        for case in manifest.cases
        for channel in manifest.spec.channels
        if case.geometry is not None and manifest.spec.axis is not None and any(item.generated for item in case.slices)
    }


def _longest_run(known: ArrayLike) -> slice:
    """The longest part of a row without a gap."""
    runs = [run for (run,) in ndimage.find_objects(ndimage.label(known)[0])]
    return max(runs, key=lambda run: run.stop - run.start)


def _range(real: NDArray) -> Window:
    low, high = float(real.min()), float(real.max())
    return Window(low, high if high > low else low + 1.0)
