"""Second pass, one case at a time: volumes onto one grid, labels, cleaning, windows, slices on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io import geometry
from dataloaders.io.console import collected
from dataloaders.io.intensity import Window, in_hu
from dataloaders.io.manifest import Case, Geometry, Slice, Split, affine_rows, slice_name
from dataloaders.io.nifti import Volume
from dataloaders.io.spec import LESION, level_channel
from dataloaders.labelmaps.labels import id_type
from dataloaders.lesions.preparing import (
    Tissue,
    find_lesions,
    grey_statistics,
    n4_field,
    white_window,
    without_lesions,
)
from dataloaders.prepare import tissue
from dataloaders.prepare.atlas import atlas_tissue
from dataloaders.prepare.notes import CaseNotes, clipped, value_ranges
from dataloaders.prepare.options import PrepareOptions, parse_window
from dataloaders.prepare.planning import PreparePlan
from dataloaders.prepare.sources import CaseSource, embedded_volumes, read_role
from dataloaders.prepare.splits import refuse_empty, split_slices
from dataloaders.slice_files import Frame, choose_slices, write_filled, write_slice

CT_WINDOW = Window(-1024.0, 3071.0)  # 12 bits, the range of clinical scanners
MR_PERCENTILES = (0.1, 99.9)
AIR_HU = -1024.0


def process_case(
    source: CaseSource, split: Split | None, hashes: dict[str, str], plan: PreparePlan
) -> tuple[list[dict[str, Any]], CaseNotes]:
    """Write the slices of one case; returns manifest cases as plain dicts (several when slices are split), and notes."""
    o, out = plan.options, plan.options.out
    assert out is not None
    with collected():  # said when the files were inspected
        images, roles, first, affine = _load(source, plan)
    label, values = _labels(source, images, roles, affine, plan), value_ranges(images)
    images, label, body = _clean(images, label, roles, affine, plan)
    foreground = body if o.half == "images" else label > 0
    assert foreground is not None
    unlabelled = 0.0
    if o.half is None and not o.split_background:
        unlabelled = float(np.mean(label[tissue.no_air(images[0], plan.ct[0]) | foreground] == 0))
    if o.n4:
        images = [i if ct else i / n4_field(i, foreground) for i, ct in zip(images, plan.ct, strict=True)]
    label, windows, filled, grey = _without_lesions(images, label, plan)
    seen = foreground if o.half == "images" else label
    kept, crop, lost = choose_slices(seen, o.axis, o.slice_size, o.min_foreground)
    grid = affine_rows(first.affine), first.data.shape, affine_rows(affine), tuple(label.shape)
    place = Geometry(*grid, crop, first.codes)
    files = {role: {"file": path.name, "sha256": hashes[role]} for role, path in source.files(plan.channels).items()}
    frame, ids = Frame(o.axis, crop, o.slice_size), label.astype(id_type(len(plan.table.labels)))
    parts = {split: kept} if split is not None else _blocks(kept, o)
    cases = []
    for part, indices in parts.items():
        name = source.id if split is not None else f"{source.id}_{part}"
        items = [_slice(name, part, i, plan) for i in indices]
        slices = [write_slice(out, item, ids, images, windows, frame) for item in items]
        if filled is not None:
            slices = [write_filled(out, item, images, filled, windows, frame) for item in slices]
        cases.append(Case(name, source.patient, part, windows, tuple(slices), place, files, grey))
    count, rows, columns = geometry.plane_shape(label.shape, o.axis)
    outside = clipped(images, windows)
    written = sum(len(indices) for indices in parts.values())
    shape, guard = (rows, columns, count), len(kept) - written
    notes = CaseNotes(source.id, shape, written, guard, max(lost, 0.0), values, outside, unlabelled)
    return [asdict(case) for case in cases], notes


def _load(source: CaseSource, plan: PreparePlan) -> tuple[list[NDArray], dict[str, NDArray], Volume, NDArray]:
    """Images (float32) and integer maps on the case's final RAS grid; also the first channel and the final affine."""
    o = plan.options
    files = source.files(plan.channels)
    volumes = {role: read_role(role, path) for role, path in files.items()} or embedded_volumes(plan.channels)
    first = volumes[plan.channels[0] if plan.channels else "label"]
    data, affine = geometry.to_ras(first.data, first.affine)
    shape: tuple[int, ...] = data.shape
    if o.spacing:
        shape, affine = geometry.regrid(shape, affine, o.voxel_size)
    moved: dict[str, NDArray] = {}
    for role, volume in volumes.items():
        is_image = role in plan.channels
        data, own = volume.data, volume.affine
        if not is_image:
            # Masks lie on the first image's grid (inspected); with --affine warn that grid's affine is the one that holds.
            data, own = geometry.onto_axes(data, own, first.affine)[0], first.affine
        data, own = geometry.to_ras(data, own)
        is_ct = is_image and plan.ct[plan.channels.index(role)]
        if is_ct:
            data = in_units(data, o.hu_offset)
        fill = AIR_HU if is_ct else 0.0
        moved[role] = geometry.resample(data, own, shape, affine, labels=not is_image, fill=fill)
    images = [moved[name].astype(np.float32) for name in plan.channels]
    maps = {role: np.asarray(array, np.int32) for role, array in moved.items() if role not in plan.channels}
    return images, maps, first, affine


def in_units(ct: NDArray, offset: float | None) -> NDArray:
    """A CT with --hu_offset added where its values cannot be HU; as it is where they can, or nothing was given."""
    return ct if not offset or in_hu(ct) else ct.astype(np.float32) + np.float32(offset)


def _labels(
    source: CaseSource, images: list[NDArray], maps: dict[str, NDArray], affine: NDArray, plan: PreparePlan
) -> NDArray:
    """Class ids (I, J, K) uint16: the mapped label map, or tissue made from the images; lesions on top.

    All 0 for images alone.
    """
    o, table = plan.options, plan.table
    lesion = maps["lesion"] > 0 if o.lesions and "lesion" in maps else None
    spacing = geometry.spacing(affine)
    if o.half == "images":
        return np.zeros(images[0].shape, np.uint16)
    if "label" in maps:
        label = table.apply(maps["label"])
    elif o.tissue in tissue.BRAIN_METHODS:
        brain = maps["brain"] > 0 if "brain" in maps else tissue.brain_mask(images[0], spacing)
        if o.tissue == "hmrf":
            found = tissue.hmrf_tissue(images[0], brain, lesion)
        else:
            found = atlas_tissue(images[0], affine, brain, lesion)
        label = table.apply(found.astype(np.int32))
    else:
        ct = images[plan.ct.index(True)]
        body = maps["body"] > 0 if "body" in maps else tissue.body_mask(ct, spacing, is_ct=True)
        label = table.apply(tissue.hu_tissue(ct, body).astype(np.int32))
    if lesion is not None:
        label[lesion] = next(item.id for item in table.labels if item.name == "lesion")
    return label


def _clean(
    images: list[NDArray], label: NDArray, maps: dict[str, NDArray], affine: NDArray, plan: PreparePlan
) -> tuple[list[NDArray], NDArray, NDArray[np.bool_] | None]:
    """Air outside the body in images that are cleaned; class `body_unlabelled` inside it where asked for.

    The third is the body's mask, None where nothing asks for it.
    """
    o = plan.options
    if not is_cleaned(o.clean, plan.ct) and not o.split_background and o.half != "images":
        return images, label, None
    labelled = label > 0
    body = (maps["body"] > 0) | labelled if "body" in maps else body_of(images, affine, plan.ct, labelled)
    if o.split_background:
        unlabelled = next(item.id for item in plan.table.labels if item.name == "body_unlabelled")
        label = np.where((label == 0) & body, np.uint16(unlabelled), label)
    return without_table(images, body, plan.ct, o.clean), label, body


def is_cleaned(clean: str, ct: Sequence[bool]) -> bool:
    """Whether --clean changes any of the channels."""
    return any(clean == "body" or (clean == "auto" and is_ct) for is_ct in ct)


def body_of(
    images: Sequence[NDArray], affine: NDArray, ct: Sequence[bool], labelled: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """The body as the first CT shows it, or the first image where there is none."""
    first = ct.index(True) if any(ct) else 0
    return tissue.body_mask(images[first], geometry.spacing(affine), ct[first], labelled)


def without_table(images: Sequence[NDArray], body: NDArray[np.bool_], ct: Sequence[bool], clean: str) -> list[NDArray]:
    """The images with air outside of the body in those that --clean names, float32."""
    cleaned = [
        np.where(body, image, AIR_HU if is_ct else min(0.0, float(image.min())))
        if is_cleaned(clean, [is_ct])
        else image
        for image, is_ct in zip(images, ct, strict=True)
    ]
    return [image.astype(np.float32) for image in cleaned]


def _without_lesions(
    images: list[NDArray], label: NDArray, plan: PreparePlan
) -> tuple[NDArray, tuple[Window, ...], list[NDArray[np.float32]] | None, tuple[float, float] | None]:
    """Label map with lesions (found here where it has none), windows, and with --fill the images without lesions and
    mean and deviation of grey matter in [-1, 1].
    """
    o, level = plan.options, level_channel(plan.channels)
    found = None
    if o.fill != "none" or "wm" in o.window:
        found = Tissue.of(label, plan.table.labels)
    windows = tuple(_window(c, images[c], plan, found) for c in range(len(images)))
    if found is None or o.fill == "none":
        return label, windows, None, None
    lesion_id = next(entry.id for entry in plan.table.labels if entry.name == LESION)
    lesion = label == lesion_id
    if not lesion.any():
        lesion = find_lesions(images[level], found)
        label = np.where(lesion, np.uint16(lesion_id), label)
        found = Tissue.of(label, plan.table.labels)
    filled = without_lesions(images, lesion, found, level, o.fill)
    mean, deviation = grey_statistics(images[level], found.grey)
    window = windows[level]
    return label, windows, filled, (2 * (mean - window.low) / window.width - 1, 2 * deviation / window.width)


def _window(channel: int, image: NDArray, plan: PreparePlan, tissue_of: Tissue | None) -> Window:
    texts = plan.options.window
    chosen = parse_window(texts[channel] if len(texts) > 1 else texts[0])
    if isinstance(chosen, Window):
        return chosen
    if chosen == "ct" or (chosen == "auto" and plan.ct[channel]):
        return CT_WINDOW
    if chosen == "wm" or (chosen == "auto" and plan.options.fill != "none"):
        assert tissue_of is not None
        return white_window(image, tissue_of.white)
    if image.min() == image.max():
        raise ValueError(
            f"{plan.channels[channel]} is constant on the grid of {plan.channels[0]}; do the scans overlap?"
        )
    return mr_window(image)


def mr_window(image: NDArray) -> Window:
    """The window of an MR volume that is not constant.

    The high end is taken from the foreground, so that the amount of air around the patient does not move it.
    """
    low = float(np.percentile(image, MR_PERCENTILES[0]))
    high = float(np.percentile(image[image > image.mean()], MR_PERCENTILES[1]))
    return Window(low, high)


def _blocks(kept: list[int], o: PrepareOptions) -> dict[Split, list[int]]:
    split = split_slices(kept, o.split, o.guard)
    cause = f"{len(kept)} slices, --guard {o.guard} around held-out blocks; hold out less or lower --guard"
    refuse_empty(split.values(), o.split, cause)
    parts: dict[Split, list[int]] = {}
    for index, part in sorted(split.items()):
        parts.setdefault(part, []).append(index)
    return parts


def _slice(case: str, split: Split, index: int, plan: PreparePlan) -> Slice:
    """A slice with the names of its files."""
    images = tuple(f"{split}/images/{slice_name(case, index, c)}" for c in range(len(plan.channels)))
    return Slice(index, f"{split}/labels/{slice_name(case, index)}" if plan.table.labels else "", images)
