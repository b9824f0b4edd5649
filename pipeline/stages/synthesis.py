"""Stage 6: priors, synthetic slices of a case, and the real slices that are tested on."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataloaders.io import geometry
from dataloaders.io.files import write_json
from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case as ManifestCase
from dataloaders.io.manifest import Manifest, Slice, slice_name
from dataloaders.io.nifti import Volume
from dataloaders.io.png import write_png
from dataloaders.io.spec import Channel, DataSpec
from dataloaders.labelmaps.image_generator import ImageGenerator, read_priors
from dataloaders.labelmaps.labels import count_labels
from models.gmm.priors import pool_subjects, subject_statistics
from pipeline.context import Context, Excluded, Made
from pipeline.generator import gmm_options
from pipeline.slices import FLOOR, brain_frame, chosen_slices
from pipeline.subclasses import divide, scheme
from pipeline.tissue import LABELS

RANGE = Window(0.0, 1.0)  # of the generator


def priors(context: Context) -> Made:
    """Means and spreads of the tissues' subclasses over the training scans, in each scan's own window."""
    parts = scheme(context.unit.settings["subclasses"])
    used = [name for name in context.done(context.unit.gathers) if name.startswith("tissue/")]
    subjects = []
    for name in used:
        scan = f"harmonise/{name.rpartition('/')[2]}"
        low, high = context.facts(name)["window"]
        image, found = context.volume(scan, "image").data, _parts(context, scan, name).data
        index = parts.to_index(torch.from_numpy(np.ascontiguousarray(found)))
        channel = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None]
        subjects.append(subject_statistics(channel, index, parts, window=(low, high)))
    if not subjects:
        raise Excluded("no training case has a usable tissue map")
    centers, spreads = (torch.stack(tables) for tables in zip(*subjects, strict=True))
    prior = pool_subjects(centers, spreads, parts.names)
    write_json(context.folder / "priors.json", prior.to_dict(("T1w",), parts.class_names))
    return Made({"priors": "priors.json"}, {"cases": [name.rpartition("/")[2] for name in used]})


def _parts(context: Context, scan: str, tissue: str) -> Volume:
    """A tissue map with its subclasses."""
    found = context.volume(tissue, "tissue")
    image = context.volume(scan, "image").data
    count = context.unit.settings["subclasses"]
    return Volume(divide(image, found.data, count, geometry.spacing(found.affine)), found.affine)


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
    found = _parts(context, context.needed("harmonise"), maps)
    size = context.study.slices.size
    frame, lost = brain_frame(found.data > 0, size)
    if lost > 0.01:
        raise Excluded(f"{100 * lost:.1f} % of the brain lie outside {size} x {size} pixels: raise harmonise.spacing")
    chosen = chosen_slices((found.data > 0).sum((0, 1)), context.study.slices)
    planes = [np.ascontiguousarray(frame.cut(found.data, z)) for z in chosen]
    mm = geometry.plane_spacing(found.affine, "axial")
    contrast = context.unit.settings["contrast"]
    parts = scheme(context.unit.settings["subclasses"])
    generator = ImageGenerator(
        planes,
        scheme=parts,
        priors=read_priors(context.path(context.needed("priors"), "priors"), parts, 1) if contrast == "t1" else None,
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
    # Scans are stripped after they were taken: their borders with nothing are sharp, whatever blurred the image.
    write_png(context.folder / picture, RANGE.encode(np.where(ids > 0, FLOOR + (1 - FLOOR) * np.clip(image, 0, 1), 0)))
    return Slice(number, label, (picture,), (), count_labels(ids))


def _provenance(context: Context) -> dict[str, Any]:
    return {"kind": "data", "split": "patients", "unit": context.unit.id, "settings": context.unit.settings}
