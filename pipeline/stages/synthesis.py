"""Stage 6: priors, synthetic slices of a case, and the real slices that are tested on."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataloaders import geometry
from dataloaders.image_generator import ImageGenerator, read_priors
from dataloaders.intensity import Window
from dataloaders.labels import count_labels
from dataloaders.manifest import Case as ManifestCase
from dataloaders.manifest import Geometry, Manifest, Slice, affine_rows, slice_name
from dataloaders.png import write_png
from dataloaders.prior_estimation import Scale, measure
from dataloaders.slices import Frame, write_slice
from dataloaders.sources import CaseSource
from engine.files import write_json
from models.gmm.labels import LabelScheme
from models.gmm.priors import pool_subjects
from pipeline.context import Context, Excluded, Made
from pipeline.generator import gmm_options
from pipeline.study import SliceOptions
from pipeline.tissue import LABELS
from spec import Channel, DataSpec, Label

SCHEME = LabelScheme((0, 1, 2, 3), tuple(label.name for label in LABELS), (0, 1, 2, 3), (0, 1, 2, 3), None)
RANGE = Window(0.0, 1.0)  # of the generator


def priors(context: Context) -> Made:
    """Means and spreads of the tissues over the training scans, in each scan's own window."""
    used = [name for name in context.done(context.unit.gathers) if name.startswith("tissue/")]
    subjects = []
    for name in used:
        case = name.rpartition("/")[2]
        window = context.facts(name)["window"]
        source = CaseSource(case, case, (context.path(f"harmonise/{case}", "image"),), context.path(name, "tissue"))
        subjects.append(measure(source, ("T1w",), SCHEME, robust=True, scale=Scale(window=(window[0], window[1]))))
    if not subjects:
        raise Excluded("no training case has a usable tissue map")
    prior = pool_subjects(
        torch.stack([s.centers for s in subjects]), torch.stack([s.spreads for s in subjects]), SCHEME.names
    )
    write_json(context.folder / "priors.json", prior.to_dict(("T1w",), SCHEME.class_names))
    return Made({"priors": "priors.json"}, {"cases": [s.id for s in subjects]})


def chosen_slices(area: NDArray[np.int64], o: SliceOptions) -> list[int]:
    """Slices with at least `min_area` of the largest one's brain; of these `count`, evenly spread (-1: the central one)."""
    good = np.flatnonzero(area >= max(1.0, o.min_area * area.max()))
    if o.count == -1:
        return [int(good[len(good) // 2])]
    if o.count == 0 or o.count >= len(good):
        return good.tolist()
    return [int(good[i]) for i in np.linspace(0, len(good) - 1, o.count).round().astype(int)]


def brain_frame(brain: NDArray[np.bool_], size: int) -> tuple[Frame, float]:
    """The window of `size` pixels centred on the brain in axial slices, and the share of the brain that it cuts off."""
    shadow = geometry.plane(np.asarray(brain.any(axis=2, keepdims=True)), "axial", 0)
    spans = [np.flatnonzero(shadow.any(axis=axis)) for axis in (1, 0)]
    crop = tuple(round((span[0] + span[-1] + 1 - size) / 2) for span in spans)
    frame = Frame("axial", (crop[0], crop[1]), (size, size))
    inside = sum(int(frame.cut(brain, z).sum()) for z in range(brain.shape[2]))
    return frame, 1 - inside / max(1, int(brain.sum()))


def _seed(*parts: object) -> int:
    """A seed that depends on all of the parts and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def share_of(total: int, cases: list[str], case: str) -> int:
    """How many of `total` images a case gets: as equal as can be, the first cases one more."""
    index = sorted(cases).index(case)
    return total // len(cases) + (index < total % len(cases))


def synthesise(context: Context) -> Made:
    """Synthetic slices of one case: labels moved by nearest neighbour once, then painted; 16-bit PNGs and a manifest.

    All usable cases of the split share the study's number of images, so one that is excluded leaves it as it is.
    """
    o, case = context.study.synthesise, context.case
    maps = context.needed("tissue")
    peers = [
        name.rpartition("/")[2] for name in context.done([maps, *context.unit.gathers]) if name.startswith("tissue/")
    ]
    total = o.test if case.split == "test" else o.train
    count = share_of(total, sorted({case.id, *peers}), case.id)
    found = context.volume(maps, "tissue")
    size = context.study.slices.size
    frame, lost = brain_frame(found.data > 0, size)
    if lost > 0.01:
        raise Excluded(f"{100 * lost:.1f} % of the brain lie outside {size} x {size} pixels: raise harmonise.spacing")
    chosen = chosen_slices((found.data > 0).sum((0, 1)), context.study.slices)
    planes = [np.ascontiguousarray(frame.cut(found.data, z)) for z in chosen]
    mm = geometry.plane_spacing(found.affine, "axial")
    contrast = context.unit.settings["contrast"]
    generator = ImageGenerator(
        planes,
        scheme=SCHEME,
        priors=read_priors(context.path(context.needed("priors"), "priors"), SCHEME, 1) if contrast == "t1" else None,
        options=gmm_options(contrast, context.unit.settings["gmm"]),
        spacing=mm[1:],
        seed=_seed(context.study.seed, context.unit.name, case.id),
    )
    items: list[Slice] = []
    outputs: dict[str, str] = {}
    for number in range(count):
        image, labels = generator.tensors(number)
        item = _write_sample(context, number, image[0].numpy(), labels.numpy())
        items.append(item)
        outputs |= {f"label{number}": item.label, f"image{number}": item.images[0]}
    split = case.split
    spec = DataSpec(LABELS, (Channel("T1w"),), (size, size), (mm[1], mm[2]), mm[0], "axial")
    manifest = Manifest(
        spec, (ManifestCase(case.id, case.patient, split, (RANGE,), tuple(items)),), _provenance(context)
    )
    manifest.save(context.folder)
    outputs["manifest"] = "manifest.json"
    return Made(outputs, {"images": count, "slices": chosen, "split": split})


def _write_sample(context: Context, number: int, image: NDArray, labels: NDArray) -> Slice:
    case, split = context.case.id, context.case.split
    label = f"{split}/labels/{slice_name(case, number)}"
    picture = f"{split}/images/{slice_name(case, number, 0)}"
    ids = labels.astype(np.uint8)
    write_png(context.folder / label, ids)
    write_png(context.folder / picture, RANGE.encode(np.clip(image, 0, 1)))
    return Slice(number, label, (picture,), (), count_labels(ids))


def _provenance(context: Context) -> dict[str, Any]:
    return {"kind": "data", "split": "patients", "unit": context.unit.id, "settings": context.unit.settings}


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
    window = Window(0.0, float(np.percentile(image.data[mask], 99.9)))
    case = context.case
    brain = np.where(mask, image.data, 0.0)
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
    spec = DataSpec(
        (Label(0, "background"), Label(1, "brain")), (Channel("T1w"),), (size, size), (mm[1], mm[2]), mm[0], "axial"
    )
    Manifest(
        spec, (ManifestCase(case.id, case.patient, "test", (window,), tuple(items), place),), _provenance(context)
    ).save(context.folder)
    outputs = {f"image{item.index}": item.images[0] for item in items} | {"manifest": "manifest.json"}
    return Made(outputs, {"slices": chosen})
