"""First pass over the sources: read every file once, collect every fault, write nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloaders.io import geometry
from dataloaders.io.console import collected
from dataloaders.io.files import file_sha256, listed
from dataloaders.io.intensity import AIR_BELOW, SCALE_SAMPLES, in_hu
from dataloaders.io.nifti import Volume, VolumeError
from dataloaders.io.spec import Label
from dataloaders.labelmaps.labels import labels_with
from dataloaders.prepare import tissue
from dataloaders.prepare.id_check import IdCheck
from dataloaders.prepare.options import PrepareOptions
from dataloaders.prepare.sources import CaseSource, embedded_volumes, read_role

LEAST_AIR = 0.001  # share of voxels at -900 or below that a CT of fractional values has


class DataFaults(ValueError):  # noqa: N818 (several faults, one error)
    """Faults in the source data, one line each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(faults)  # the argument as it is, so that the error survives the way back from a worker
        self.faults = faults

    def __str__(self) -> str:
        plural = "s" if len(self.faults) > 1 else ""
        return f"{len(self.faults)} fault{plural} in the source data:\n  " + "\n  ".join(listed(self.faults))


@dataclass
class Facts:
    """What inspecting one case found. is_ct, no_hu: of each channel, the latter why its values would be no HU.

    extent: pixels (H, W) that a slice needs; see `_extent`.
    labels: classes that a table beside the label map or its header names, and which of them it is.
    """

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    label_counts: dict[int, int] = field(default_factory=dict)
    is_ct: list[bool] = field(default_factory=list)
    no_hu: list[str] = field(default_factory=list)
    extent: tuple[int, int] | None = None
    labels: tuple[Label, ...] = ()
    named_by: str = ""


def inspect_case(source: CaseSource, channels: tuple[str, ...], o: PrepareOptions) -> Facts:
    """Read every file of a case once; all faults are collected."""
    with collected() as warnings:
        facts = _inspect(source, channels, o)
    facts.notes += [f"warning: {line}" for line in warnings]
    return facts


def _read(source: CaseSource, channels: tuple[str, ...], facts: Facts) -> dict[str, Volume]:
    """Role -> volume of every file that can be read; the others become faults."""
    if not (files := source.files(channels)):
        return embedded_volumes(channels)
    volumes: dict[str, Volume] = {}
    for role, path in files.items():
        try:
            volumes[role] = read_role(role, path)
            facts.hashes[role] = file_sha256(path)
            if role in channels and volumes[role].data.min() == volumes[role].data.max():
                raise VolumeError(f"{path}: constant image, every voxel is {volumes[role].data.flat[0]:g}")
        except VolumeError as error:
            facts.faults.append(str(error))
    return volumes


def _inspect(source: CaseSource, channels: tuple[str, ...], o: PrepareOptions) -> Facts:
    facts = Facts()
    volumes, paths = _read(source, channels, facts), source.files(channels)
    if facts.faults:
        return facts
    reference = volumes[channels[0] if channels else "label"]
    for role, volume in volumes.items():
        own_grid_allowed = role in channels and o.format == "bids"
        own_grid = geometry.off_grid(volume.data.shape, volume.affine, reference.data.shape, reference.affine, "")
        if own_grid_allowed and own_grid:
            facts.notes.append(f"{source.id}: {role} has its own grid, resampled to that of {channels[0]}")
        elif not own_grid_allowed:
            _compare_grids(paths.get(role, Path(role)), volume, reference, o.affine, facts)
    facts.notes += [_missing(paths[name], volumes[name], volumes.get("label")) for name in channels if name in paths]
    facts.notes = [note for note in facts.notes if note]
    facts.is_ct = [_is_ct(name, volumes[name].data) for name in channels]
    facts.no_hu = [_no_hu(paths.get(name, Path(name)), volumes[name].data) for name in channels]
    if "label" in volumes:
        ids = IdCheck()
        facts.label_counts = ids.add(volumes["label"].data)
        shown = reference.data.ravel()[:: max(1, reference.data.size // SCALE_SAMPLES)]
        if fault := ids.fault(len(np.unique(shown))):
            facts.faults.append(f"{paths.get('label')}: {fault}")
        if "label" in paths and o.label_map is None:
            facts.labels, facts.named_by = labels_with(paths["label"]) or ((), "")
        if set(facts.label_counts) == {0}:
            facts.faults.append(f"{paths['label']}: the label map is empty, every voxel is 0")
    elif o.tissue == "none":
        if o.half != "images":
            facts.faults.append(
                f"case {source.id}: no label map; give one, let --tissue atlas, hmrf or hu make it, or prepare --only images"
            )
    elif o.tissue in tissue.BRAIN_METHODS and "brain" not in volumes:
        try:
            tissue.brain_mask(reference.data, geometry.spacing(reference.affine))
        except tissue.TissueError as error:
            facts.faults.append(f"{source.images[0]}: {error}")
    if not facts.faults:
        facts.extent = _extent(reference, volumes, o)
    return facts


def _extent(reference: Volume, volumes: dict[str, Volume], o: PrepareOptions) -> tuple[int, int]:
    """Pixels (H, W) of the box that holds the labels in all slices; the whole plane where they are yet to be made."""
    data, affine = geometry.to_ras(reference.data, reference.affine)
    shape = geometry.regrid(data.shape, affine, o.voxel_size)[0] if o.spacing else data.shape
    _, *whole = geometry.plane_shape(shape, o.axis)
    if "label" not in volumes or o.split_background:
        return whole[0], whole[1]
    masks = [volumes[role] for role in ("label", "lesion") if role in volumes]
    labelled = np.any([geometry.to_ras(mask.data, mask.affine)[0] > 0 for mask in masks], axis=0)
    box = [part.stop - part.start for part in geometry.bounding_box(labelled)]
    if o.spacing:  # the nearest voxel may lie one further
        box = [int(np.ceil(n * new / old)) + 1 for n, new, old in zip(box, shape, data.shape, strict=True)]
    _, *needed = geometry.plane_shape(box, o.axis)
    return min(needed[0], whole[0]), min(needed[1], whole[1])


def _missing(path: Path, image: Volume, label: Volume | None) -> str:
    """A line where an image has no numbers within labels; elsewhere it is the background."""
    if image.missing is None or label is None:
        return ""
    labelled, _ = geometry.onto_axes(label.data > 0, label.affine, image.affine)
    within = int((image.missing & labelled).sum()) if labelled.shape == image.missing.shape else 0
    return f"warning: {path}: {within} of the NaN or infinite voxels are labelled" if within else ""


def _is_ct(channel: str, data: NDArray) -> bool:
    """Named so, or with values that only air has: in whole numbers any, in others as much as MR is never below."""
    if channel.upper() == "CT":
        return True
    return float(data.min()) <= -900 and (data.dtype.kind == "i" or float((data <= -900).mean()) >= LEAST_AIR)


def _no_hu(path: Path, ct: NDArray) -> str:
    """Why the values of a CT are not HU and what to do; '' where they can be."""
    if in_hu(ct):
        return ""
    low, high = float(ct.min()), float(ct.max())
    line = (
        f"{path}: a CT with nothing below {AIR_BELOW:g}, its values go from {low:g} to {high:g}, so they are not HU: "
    )
    if high <= 255:
        return line + (
            "greys of some window, from which HU do not come back; take the original scan, or prepare them as greys by "
            "another --channel than CT (or --hu_offset 0 if they are HU of a scan without air)"
        )
    return line + (
        "1024 (or 1000) seems to have been added; --hu_offset -1024 takes it away (--hu_offset 0: they are HU all the same)"
    )


def _compare_grids(path: Path, volume: Volume, reference: Volume, on_affine: str, facts: Facts) -> None:
    """A volume that must lie on the first channel's grid, in any order of its axes: other shapes are faults, other affines
    as the user says.
    """
    grid = reference.data.shape, reference.affine
    data, affine = geometry.onto_axes(volume.data, volume.affine, reference.affine)
    fault = geometry.off_grid(data.shape, affine, *grid, "the image")
    if not fault:
        return
    shifted = data.shape == grid[0] and geometry.same_axes(volume.affine, reference.affine)
    if shifted and on_affine == "warn":
        facts.notes.append(f"warning: {path}: {fault}; the image's is used")
    elif shifted:
        both = [np.array2string(a[:3].round(4), separator=", ").replace("\n", "") for a in (affine, reference.affine)]
        facts.faults.append(f"{path}: {fault} ({both[0]} and {both[1]}); --affine warn takes the image's")
    else:
        facts.faults.append(f"{path}: {fault}, in the image's order of axes; resample one to the other's grid")
