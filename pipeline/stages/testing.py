"""The real slices that networks are tested on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dataloaders.io import geometry
from dataloaders.io.manifest import Case as ManifestCase
from dataloaders.io.manifest import Geometry, Manifest, Slice, affine_rows, slice_name
from dataloaders.io.spec import Channel, DataSpec, Label
from dataloaders.slice_files import write_slice
from pipeline.context import Context, Excluded, Made
from pipeline.slices import brain_frame, chosen_slices, stripped


def slices(context: Context) -> Made:
    """Real slices of a test case, stripped, in the case's own window; labels are the brain mask."""
    image = context.volume(context.needed("harmonise"), "image")
    mask = context.volume(context.needed("strip"), "mask").data > 0
    size = context.study.slices.size
    frame, lost = brain_frame(mask, size)
    if lost > 0.01:
        raise Excluded(f"{100 * lost:.1f} % of the brain lie outside {size} x {size} pixels: raise harmonise.spacing")
    area = mask.sum((0, 1))
    chosen = chosen_slices(area, replace(context.study.slices, count=0))
    case = context.case
    brain, window = stripped(image.data, mask, float(np.percentile(image.data[mask], 99.9)))
    items = [
        write_slice(
            context.folder,
            Slice(z, f"test/labels/{slice_name(case.id, z)}", (f"test/images/{slice_name(case.id, z, 0)}",)),
            mask.astype(np.uint8),
            [brain],
            [window],
            frame,
        )
        for z in chosen
    ]
    rows = affine_rows(image.affine)
    shape = image.data.shape
    place = Geometry(rows, shape, rows, shape, frame.crop)
    mm = geometry.plane_spacing(image.affine, "axial")
    labels = (Label(0, "background"), Label(1, "brain"))
    spec = DataSpec(labels, (Channel("T1w"),), (size, size), (mm[1], mm[2]), mm[0], "axial")
    found = ManifestCase(case.id, case.patient, "test", (window,), tuple(items), place)
    Manifest(spec, (found,), {"kind": "data", "split": "patients", "unit": context.unit.id}).save(context.folder)
    outputs = {f"image{item.index}": item.images[0] for item in items} | {"manifest": "manifest.json"}
    return Made(outputs, {"slices": chosen})
