"""Lesions into a scan, on the page: the canvas is a mask on the scan's own grid, the images are add_lesions.py's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.geometry import PLANES, plane_spacing, to_ras, voxel_volume
from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Slice
from dataloaders.io.nifti import read_volume, stem, write_volume
from dataloaders.io.spec import LESION, DataSpec, Label
from dataloaders.lesions.scans import read_mask
from dataloaders.prepare.slicing import mr_window
from engine.add_lesions import MASK_NAME, Added, AddLesionsOptions, Host, LesionRun, lesions_in, paint_in, write_added
from engine.paint.canvas import Start, View
from engine.paint.studio import MAX_VOXELS, OKABE_ITO, ImagePanel, Studio

ABOVE = 1.2  # of what scans show, so that lesions are not all white
BEFORE = "before"  # panel of the scan as it is


class LesionStudio(Studio):
    """A scan, and runs that paint lesions into it. o: what scripts/add_lesions.py would be called with, mask apart.

    places: (S, H, W) index into the files' flat voxels of each pixel. ValueError where runs and scan do not go together.
    """

    def __init__(self, runs: Sequence[LesionRun], o: AddLesionsOptions) -> None:
        first = runs[0].run.spec
        for run in runs:
            spec, name = run.run.spec, run.run.folder.name
            grids = [(one.channels, one.axis, one.spacing, one.slice_spacing) for one in (spec, first)]
            if grids[0] != grids[1]:
                raise ValueError(f"--name {runs[0].run.folder.name} {name}: are of other modalities or voxel sizes")
            if name == BEFORE:
                raise ValueError(f"--name {name}: is what the page calls the scan as it is; rename the run's folder")
        self.options, self.runs = o, {run.run.folder.name: run for run in runs}
        self.host = host = Host(o, first)
        host.head  # now, not at the first stroke  # noqa: B018
        file, axis = host.scans[0], first.axis or "axial"
        voxels = np.arange(file.raw.size, dtype=np.uint32).reshape(file.raw.shape)
        numbered, grid = to_ras(voxels, file.affine)
        self.places = numbered.transpose(PLANES[axis])[:, ::-1, ::-1]
        between, *pixel = plane_spacing(grid, axis)
        labels = (Label(0, "background", color="#000000"), Label(1, LESION, color=OKABE_ITO[5]))
        rows, columns = self.places.shape[1:]
        self.spec = DataSpec(labels, first.channels, (rows, columns), (pixel[0], pixel[1]), between, axis)
        shown = [mr_window(scan.values) for scan in host.scans]
        self.windows = tuple(Window(w.low, w.low + ABOVE * w.width) for w in shown)
        whole = hashlib.sha256(b"".join(np.ascontiguousarray(scan.raw).tobytes() for scan in host.scans))
        self.over, self.voxel_ml = self.spec.level_channel, voxel_volume(file.affine) / 1000
        # By run: the mask and the seed that lesions were made of last, and what came of it.
        self._made: dict[str, tuple[NDArray, int, Added | ValueError]] = {}
        self.sha256 = {BEFORE: whole.hexdigest()} | {name: run.run.sha256 for name, run in self.runs.items()}

    def empty(self) -> Start:
        """No lesion."""
        return self._start(np.zeros(self.places.shape, self.id_type))

    def of_file(self, path: Path) -> Start:
        """A mask on the scan's grid, as add_lesions.py --mask reads it."""
        read_volume(path, MAX_VOXELS)  # before anything else reads it
        return self._start(read_mask(path, self.host.scans[0]).ravel()[self.places].astype(self.id_type))

    def of_saved(self, data: object) -> Start:
        """As ever; ValueError for a session of a scan of another size."""
        start = super().of_saved(data)
        if start.ids.shape != self.places.shape:
            raise ValueError(f"the session's scan has {len(start.ids)} slices, this one {len(self.places)}")
        return start

    def _start(self, ids: NDArray) -> Start:
        name = stem(self.host.scans[0].path)
        ending = f"_{self.host.channels[0]}"
        name = re.sub(r"[^A-Za-z0-9-]+", "_", name.removesuffix(ending)).strip("_-") or "scan"
        return Start(Case(name, name, "test", self.windows, tuple(Slice(i, "") for i in range(len(ids)))), ids)

    def levels(self, raws: Sequence[NDArray], position: int) -> NDArray[np.uint16]:
        """(C, H, W) of a slice of raw values of each file."""
        scans = zip(self.host.scans, raws, self.windows, strict=True)
        where = self.places[position]
        return np.stack(
            [w.encode(np.nan_to_num(raw.ravel()[where] * scan.slope + scan.inter)) for scan, raw, w in scans]
        )

    def panels(self, case: Case) -> list[ImagePanel]:
        """The scan as it is, and with the lesions by each run."""
        what = self.spec.channels, self.windows
        return [ImagePanel(BEFORE, *what, live=False), *(ImagePanel(name, *what) for name in self.runs)]

    def has_volumes(self, case: Case) -> bool:
        """Always: those of the scan."""
        return True

    def image(self, name: str, position: int, view: View) -> NDArray[np.uint16]:
        """(C, H, W) levels of a slice: the scan's where no lesion fits."""
        added = None if name == BEFORE else self._added(name, view)
        raws = added.raws if isinstance(added, Added) else [scan.raw for scan in self.host.scans]
        return self.levels(raws, position)

    def note(self, name: str, view: View) -> str:
        """How much of the mask is in the scan, and why not more."""
        added = None if name == BEFORE else self._added(name, view)
        if isinstance(added, ValueError):
            return str(added).removeprefix("--mask: ").partition(";")[0]
        if added is None or added.placed is None:
            return ""
        placed = added.placed
        return f"{int(added.mask.sum()) * self.voxel_ml:.3g} ml in {len(placed.lesions)} lesions{placed.shortfall()}"

    def backdrops(self, case: Case) -> list[str]:
        """The scan's channels."""
        return self.host.channels

    def backdrop(self, case: Case, position: int) -> NDArray[np.uint16]:
        """(C, H, W) levels of the scan."""
        return self.levels([scan.raw for scan in self.host.scans], position)

    def save_volumes(self, folder: Path, view: View) -> list[Path]:
        """The mask, and what add_lesions.py writes of it by each run, into a folder of that name."""
        mask = folder / f"{view.case.id}_painted_mask.nii.gz"
        write_volume(mask, self._mask(view).astype(np.uint8), self.host.scans[0].affine)
        written = [mask]
        for name in self.runs:
            added = self._added(name, view)
            if isinstance(added, ValueError):
                raise added
            o = replace(self._options(name, view), output=folder / name, mask=mask)
            write_added(o, self.host, added)
            written += [o.output / file for file in (*(scan.name for scan in self.host.scans), MASK_NAME)]
        return written

    def _mask(self, view: View) -> NDArray[np.bool_]:
        """What is painted, on the files' grid."""
        mask = np.zeros(self.host.scans[0].raw.shape, bool)
        mask.reshape(-1)[self.places[view.ids > 0]] = True
        return mask

    def _options(self, name: str, view: View) -> AddLesionsOptions:
        return replace(self.options, name=name, seed=view.settings.seed)

    def _added(self, name: str, view: View) -> Added | ValueError:
        before = self._made.get(name)
        if before is None or before[1] != view.settings.seed or not np.array_equal(before[0], view.ids):
            o, host, run = self._options(name, view), self.host, self.runs[name]
            try:
                added: Added | ValueError = paint_in(o, host, run, lesions_in(o, host, run, self._mask(view)))
            except ValueError as error:
                added = error
            self._made[name] = view.ids, view.settings.seed, added
        return self._made[name][2]
