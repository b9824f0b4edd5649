"""Axial slices of brains: which are used, the window that shows them, and those of real scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.geometry import plane_spacing
from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Geometry, Manifest, Slice, Split, affine_rows, slice_name
from dataloaders.io.nifti import Volume
from dataloaders.io.spec import Channel, DataSpec, Label
from dataloaders.slice_files import Frame, choose_slices, write_slice
from pipeline.context import Context, Excluded, Made
from pipeline.study import SliceOptions
from pipeline.tissue import HIGH_PERCENTILE

FLOOR = 0.02  # of a picture's range: brain is never 0, so dark CSF at the rim is not taken for what was stripped off
BRAIN = (Label(0, "background"), Label(1, "brain"))


def stripped(image: NDArray, brain: NDArray[np.bool_], high: float) -> tuple[NDArray, Window]:
    """A scan with nothing around its brain, and the window that makes this 0, an intensity of 0 FLOOR, and `high` 1."""
    window = Window(-FLOOR / (1 - FLOOR) * high, high)
    return np.where(brain, np.maximum(image, 0.0), window.low), window


def chosen_slices(area: NDArray[np.int64], o: SliceOptions) -> list[int]:
    """Slices with at least `min_area` of the largest one's brain; of these `count`, evenly spread (-1: the central one)."""
    good = np.flatnonzero(area >= max(1.0, o.min_area * area.max()))
    if o.count == -1:
        return [int(good[len(good) // 2])]
    if o.count == 0 or o.count >= len(good):
        return good.tolist()
    return [int(good[i]) for i in np.linspace(0, len(good) - 1, o.count).round().astype(int)]


def brain_frame(brain: NDArray[np.bool_], size: int, cut: float = 0.01) -> Frame:
    """The window of `size` pixels centred on the brain in axial slices; Excluded where it cuts off a larger share."""
    _, crop, lost = choose_slices(brain, "axial", (size, size))
    if lost > cut:
        raise Excluded(f"{100 * lost:.1f} % of the brain lie outside {size} x {size} pixels: raise harmonise.spacing")
    return Frame("axial", crop, (size, size))


def slice_files(split: Split, case: str, index: int) -> Slice:
    """A slice with the names of its files."""
    return Slice(index, f"{split}/labels/{slice_name(case, index)}", (f"{split}/images/{slice_name(case, index, 0)}",))


def write_case(
    context: Context, case: str, split: Split, scan: Volume, labels: NDArray, high: float, cut: float
) -> Case:
    """The PNGs of a scan, stripped, in its own window up to `high`: all slices with enough brain (labels above 0)."""
    brain = labels > 0
    o = context.study.slices
    frame = brain_frame(brain, o.size, cut)
    image, window = stripped(scan.data, brain, high)
    chosen = chosen_slices(brain.sum((0, 1)), replace(o, count=0))
    items = [write_slice(context.folder, slice_files(split, case, z), labels, [image], [window], frame) for z in chosen]
    rows, shape = affine_rows(scan.affine), scan.data.shape
    place = Geometry(rows, shape, rows, shape, frame.crop)
    return Case(case, context.cases[case].patient, split, (window,), tuple(items), place)


def data_spec(context: Context, labels: tuple[Label, ...], affine: NDArray) -> DataSpec:
    """Of axial slices of a grid."""
    size, mm = context.study.slices.size, plane_spacing(affine, "axial")
    return DataSpec(labels, (Channel("T1w"),), (size, size), (mm[1], mm[2]), mm[0], "axial")


def save_manifest(context: Context, spec: DataSpec, cases: Sequence[Case]) -> dict[str, str]:
    """Write manifest.json; the unit's outputs: it, and all files that it names."""
    about = {"kind": "data", "split": "patients", "unit": context.unit.id, "settings": context.unit.settings}
    Manifest(spec, tuple(cases), about).save(context.folder)
    files = [file for case in cases for item in case.slices for file in (item.label, *item.images)]
    return {file: file for file in files} | {"manifest": "manifest.json"}


def real_slices(context: Context) -> Made:
    """Real slices of a test case, stripped, in the case's own window; labels are the brain mask."""
    scan = context.volume(context.needed("harmonise"), "image")
    mask = context.volume(context.needed("strip"), "mask").data > 0
    high = float(np.percentile(scan.data[mask], HIGH_PERCENTILE))
    case = write_case(context, context.case.id, "test", scan, mask.astype(np.uint8), high, 0.01)
    outputs = save_manifest(context, data_spec(context, BRAIN, scan.affine), [case])
    return Made(outputs, {"slices": [item.index for item in case.slices]})
