"""Label maps of any grid as slices of a trained run's grid, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.geometry import plane_shape, regrid, resample, spacing
from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Geometry, Slice, affine_rows
from dataloaders.io.spec import DataSpec
from dataloaders.labelmaps.classes import ras_spacing
from dataloaders.labelmaps.labels import ClassTable, id_type
from dataloaders.labelmaps.maps import LabelMap
from dataloaders.segmenter.scans import MAX_GRID
from dataloaders.slice_files import Frame, choose_slices
from dataloaders.slices import SliceSample, collate, neighbour_entries, slice_positions
from models.base import Batch


@dataclass(frozen=True)
class MapSlices:
    """A label map on a run's grid.

    case: its geometry, windows and slices, those with labels. ids (I, J, K) class ids on the RAS grid that is sliced.
    notes: what of the map is not in the slices, one line each.
    """

    case: Case
    ids: NDArray
    frame: Frame
    notes: tuple[str, ...] = ()

    def batches(self, batch_size: int, neighbours: int = 0) -> Iterator[Batch]:
        """Batches without images, as a BatchLoader gives them of a prepared case of these slices."""
        others = neighbour_entries([self.case], neighbours)
        positions = slice_positions([self.case])

        def sample(i: int) -> SliceSample:
            around = np.stack([self._plane(j) for j in others[i]]) if neighbours else None
            return SliceSample(self._plane(i), None, self.case, self.case.slices[i], around, positions[i])

        numbers = range(len(self.case.slices))
        for start in numbers[::batch_size]:
            yield collate([sample(i) for i in numbers[start : start + batch_size]])

    def _plane(self, i: int) -> NDArray[np.int64]:
        return self.frame.cut(self.ids, self.case.slices[i].index).astype(np.int64)


def slice_map(
    label_map: LabelMap, table: ClassTable, spec: DataSpec, name: str, windows: tuple[Window, ...]
) -> MapSlices:
    """The map as classes of `table` in slices of the spec: RAS, its voxel size (nearest), its size around the labels.

    name: case id, which seeds the noise. windows: units of the images to come, one per channel. ValueError for a single
    slice in another direction than the spec's, and for grids beyond all measure.
    """
    assert spec.axis is not None
    flat = [axis for axis in range(3) if axis not in label_map.plane]
    ids = table.apply(label_map.values.numpy()).astype(id_type(spec.num_labels))
    ids = np.expand_dims(ids, tuple(flat))
    mm = np.array(ras_spacing(spec))
    if flat:
        if plane_shape(ids.shape, spec.axis)[0] > 1:
            raise ValueError(f"{label_map.path}: shape {ids.shape} (RAS) is one slice, but not an {spec.axis} one")
        mm[flat] = spacing(label_map.affine)[flat]
    (source,), affine = label_map.to_source_axes(
        [ids.squeeze(tuple(flat))], (0,) * (3 - len(flat)), (1,) * (3 - len(flat))
    )
    shape, grid = regrid(ids.shape, label_map.affine, mm.tolist())
    if np.prod([float(n) for n in shape]) > MAX_GRID:
        raise ValueError(f"{label_map.path}: {shape} voxels of {mm} mm are more than the limit of {MAX_GRID}")
    moved = resample(ids, label_map.affine, shape, grid, labels=True)
    kept, crop, lost = choose_slices(moved, spec.axis, spec.size)
    notes = []
    if gone := sorted(set(np.unique(ids).tolist()) - set(np.unique(moved).tolist())):
        names = ", ".join(spec.labels[i].name for i in gone)
        notes.append(f"too small for voxels of {' x '.join(f'{n:.3g}' for n in mm)} mm, so not in the image: {names}")
    if lost > 0:
        notes.append(
            f"{100 * lost:.2g} % of the labelled voxels lie outside the run's {spec.size[0]} x {spec.size[1]} pixels, so "
            "are background in the image"
        )
    if not kept:
        raise ValueError(f"{label_map.path}: {'; '.join(notes) or 'no labels'}")
    grids = affine_rows(affine), source.shape, affine_rows(grid), shape
    geometry = Geometry(*grids, crop, label_map.codes)  # type: ignore[arg-type]
    slices = tuple(Slice(index, "") for index in kept)
    case = Case(name, name, "test", windows, slices, geometry)
    return MapSlices(case, moved, Frame(spec.axis, crop, spec.size), tuple(notes))
