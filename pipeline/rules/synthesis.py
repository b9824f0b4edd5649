"""Stage 6: priors, and the synthetic slices of a case.

Tissues are divided by intensity, so that slices are not three flat colours: deep grey matter, partial volume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.io import geometry
from dataloaders.io.files import write_json
from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Slice
from dataloaders.io.nifti import Volume
from dataloaders.io.png import write_png
from dataloaders.labelmaps.image_generator import ImageGenerator, read_priors
from dataloaders.labelmaps.labels import count_labels
from models.gmm.priors import pool_subjects, subject_statistics
from models.gmm.scheme import LabelScheme
from pipeline.context import Context, Excluded, Made
from pipeline.rules.slices import FLOOR, brain_frame, chosen_slices, data_spec, save_manifest, slice_files
from pipeline.study import gmm_options
from pipeline.tissue import LABELS, TISSUES

RANGE = Window(0.0, 1.0)  # of the generator
SMOOTHING_MM = 1.0  # so that subclasses are places, not noise


def priors(context: Context) -> Made:
    """Means and spreads of the tissues' subclasses over the training scans, in each scan's own window."""
    parts = scheme(context.unit.settings["subclasses"])
    used, subjects = context.gathered("tissue"), []
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


def share_of(total: int, cases: Sequence[str], case: str) -> int:
    """How many of `total` images a case gets: as equal as can be, the first cases one more."""
    index = sorted(cases).index(case)
    return total // len(cases) + (index < total % len(cases))


def synthesise(context: Context) -> Made:
    """Synthetic slices of one case: labels moved by nearest neighbour once, then painted; 16-bit PNGs and a manifest.

    All usable cases of the split share the study's number of images, so one that is excluded leaves it as it is.
    """
    o, case, maps = context.unit.settings, context.case, context.needed("tissue")
    peers = {name.rpartition("/")[2] for name in (maps, *context.gathered("tissue"))}
    found = _parts(context, context.needed("harmonise"), maps)
    frame = brain_frame(found.data > 0, context.study.slices.size)
    chosen = chosen_slices((found.data > 0).sum((0, 1)), context.study.slices)
    parts = scheme(o["subclasses"])
    measured = o["contrast"] == "t1"
    seed = repr((context.study.seed, context.unit.name, case.id))  # on these and on nothing else it depends
    generator = ImageGenerator(
        [np.ascontiguousarray(frame.cut(found.data, z)) for z in chosen],
        scheme=parts,
        priors=read_priors(context.path(context.needed("priors"), "priors"), parts, 1) if measured else None,
        options=gmm_options(o["contrast"], o["gmm"]),
        spacing=geometry.plane_spacing(found.affine, "axial")[1:],
        seed=int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big"),
    )
    items = [_sample(context, generator, number) for number in range(share_of(o["total"], [*peers], case.id))]
    made = Case(case.id, case.patient, case.split, (RANGE,), tuple(items))
    outputs = save_manifest(context, data_spec(context, LABELS, found.affine), [made])
    return Made(outputs, {"images": len(items), "slices": chosen, "split": case.split})


def _sample(context: Context, generator: ImageGenerator, number: int) -> Slice:
    """Paint and write one."""
    item = slice_files(context.case.split, context.case.id, number)
    image, labels = generator.tensors(number)
    ids = labels.numpy().astype(np.uint8)
    # Scans are stripped after they were taken: their borders with nothing are sharp, whatever blurred the image.
    shown = np.where(ids > 0, FLOOR + (1 - FLOOR) * np.clip(image[0].numpy(), 0, 1), 0)
    write_png(context.folder / item.label, ids)
    write_png(context.folder / item.images[0], RANGE.encode(shown))
    return Slice(number, item.label, item.images, (), count_labels(ids))


def scheme(count: int) -> LabelScheme:
    """Labels of the generator: background 0, then `count` subclasses of each tissue, dark to bright; their output is the
    tissue.
    """
    tissues = [label for label in LABELS if label.id]
    names = [label.name if count == 1 else f"{label.name} {k + 1}" for label in tissues for k in range(count)]
    values = tuple(range(1 + len(names)))
    outputs = (0, *(label.id for label in tissues for _ in range(count)))
    return LabelScheme(values, (LABELS[0].name, *names), values, outputs, None)


def divide(image: NDArray, tissue: NDArray[np.uint8], count: int, mm: NDArray) -> NDArray[np.uint8]:
    """Ids of `scheme` from a tissue map: each tissue in `count` parts of one size, by its intensity smoothed within itself.

    image, tissue: (I, J, K). mm: voxel size.
    """
    if count == 1:
        return tissue
    out = np.zeros(tissue.shape, np.uint8)
    sigma = SMOOTHING_MM / np.asarray(mm, float)
    for label in TISSUES.values():
        inside = tissue == label
        weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
        smooth = ndimage.gaussian_filter(np.where(inside, image, 0).astype(np.float32), sigma)
        values = smooth[inside] / weight[inside]
        part = np.empty(len(values), np.int64)
        part[np.argsort(values, kind="stable")] = np.arange(len(values)) * count // max(1, len(values))
        out[inside] = 1 + (label - 1) * count + part
    return out
