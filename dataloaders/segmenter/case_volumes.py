"""Whole scans with labels for the segmenter: from prepared folders, results folders and folders of scripts/generate.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.files import naming, read_json
from dataloaders.io.geometry import regrid, resample, stack_slices, to_ras
from dataloaders.io.intensity import LEVELS, robust_unit
from dataloaders.io.manifest import FILE_NAME, Case, Manifest
from dataloaders.io.nifti import read_ids, read_volume
from dataloaders.io.png import as_16_bit, read_slice
from dataloaders.io.spec import DataSpec
from dataloaders.labelmaps.classes import Classes, ras_spacing
from dataloaders.labelmaps.generated_files import INDEX

Images = Literal["images", "generated"]


@dataclass(frozen=True)
class LabelledScan:
    """One scan in RAS axes. image (C, X, Y, Z) float32 in [0, 1] (`robust_unit`); label (X, Y, Z) class ids, uint8 or 16.

    affine (4, 4): of the grid. Slices that a prepared folder leaves out are 0.
    """

    case: str
    patient: str
    image: NDArray[np.float32]
    label: NDArray
    affine: NDArray[np.float64]

    def nbytes(self) -> int:
        """Memory of image and label."""
        return self.image.nbytes + self.label.nbytes


@dataclass(frozen=True)
class CaseFile:
    """A scan that is read when it is needed."""

    case: str
    patient: str
    read: partial[LabelledScan]


def channel_numbers(spec: DataSpec, inputs: Sequence[str], count: int, flag: str) -> tuple[int, ...]:
    """Channels of a folder that become the network's: those named, else all if they are `count`; else ValueError."""
    names = [channel.name for channel in spec.channels]
    if unknown := [name for name in inputs if name not in names]:
        raise ValueError(f"{flag} {' '.join(unknown)}: no such channel; there are {', '.join(names)}")
    numbers = tuple(names.index(name) for name in inputs) or tuple(range(len(names)))
    if len(numbers) != count:
        raise ValueError(f"{flag}: the network has {count} input channels; name as many of {', '.join(names)}")
    return numbers


def manifest_cases(
    root: Path,
    manifest: Manifest,
    cases: Sequence[Case],
    classes: Classes,
    channels: Sequence[int],
    spacing: Sequence[float],
    use: Images = "images",
) -> list[CaseFile]:
    """Scans of a folder with a manifest on the grid of `spacing` (mm, RAS; empty: their own); those without images left out.

    ValueError for labels without a class.
    """
    classes.of_labels(manifest.spec.labels)  # now, not with the first scan
    return [
        CaseFile(
            case.id,
            case.patient,
            partial(read_case, root, case, manifest.spec, classes, tuple(channels), tuple(spacing), use),
        )
        for case in cases
        if any(getattr(item, use) for item in case.slices)
    ]


def read_case(
    root: Path,
    case: Case,
    spec: DataSpec,
    classes: Classes,
    channels: Sequence[int],
    spacing: Sequence[float],
    use: Images = "images",
) -> LabelledScan:
    """One case of a manifest; see `manifest_cases`."""
    label, affine = case_labels(root, case, spec)
    planes = {item.index: item for item in case.slices if getattr(item, use)}
    image = np.zeros((len(channels), *label.shape), np.float32)
    for c, channel in enumerate(channels):
        slices = {
            i: as_16_bit(read_slice(root / getattr(item, use)[channel], spec, image_only=True))
            for i, item in planes.items()
        }
        for index in {item.index for item in case.slices} - slices.keys():
            slices[index] = np.zeros(spec.size, np.uint16)
        stacked, _ = stack_slices(case.geometry, spec.axis or "axial", slices, ras_spacing(spec))
        image[c] = robust_unit(stacked.astype(np.float32) / LEVELS)
    return on_grid(
        LabelledScan(case.id, case.patient, image, classes.placed(classes.of_labels(spec.labels)[label]), affine),
        spacing,
    )


def case_labels(root: Path, case: Case, spec: DataSpec) -> tuple[NDArray, NDArray[np.float64]]:
    """The label ids of a case as a RAS volume (X, Y, Z), and its affine. ValueError naming a file with unknown ids."""
    slices = {item.index: read_slice(root / item.label, spec) for item in case.slices}
    return stack_slices(case.geometry, spec.axis or "axial", slices, ras_spacing(spec))


def on_grid(volume: LabelledScan, spacing: Sequence[float]) -> LabelledScan:
    """The scan on a grid of `spacing` mm: images linearly, labels nearest; unchanged for an empty spacing."""
    if not spacing:
        return volume
    mm = tuple(spacing) * 3 if len(spacing) == 1 else tuple(spacing)
    shape, affine = regrid(volume.label.shape, volume.affine, mm)
    image = np.stack([resample(channel, volume.affine, shape, affine) for channel in volume.image])
    label = resample(volume.label, volume.affine, shape, affine, labels=True)
    return replace(volume, image=image.astype(np.float32), label=label, affine=affine)


def folder_cases(
    root: Path, classes: Classes, inputs: Sequence[str], count: int, spacing: Sequence[float]
) -> list[CaseFile]:
    """Synthetic scans of a folder of test.py or scripts/generate.py, slices or volumes, whatever their split.

    ValueError for folders that are neither, that hold no images, or whose channels are not as many as `count`.
    """
    flag = f"--segmenter.results {root}"
    if (root / FILE_NAME).is_file():
        manifest = Manifest.load(root)
        names = {channel.name for channel in manifest.spec.channels}
        wanted = inputs if set(inputs) <= names else ()
        channels = channel_numbers(manifest.spec, wanted, count, flag)
        found = manifest_cases(root, manifest, manifest.cases, classes, channels, spacing, "generated")
    elif (root / INDEX).is_file():
        samples = read_json(root / INDEX)["samples"]
        if wrong := next((len(item["images"]) for item in samples if len(item["images"]) != count), 0):
            raise ValueError(f"{flag}: samples have {wrong} channels, the network has {count} inputs")
        found = [
            CaseFile(item["case"], item["case"], partial(_read_sample, root, item, classes, tuple(spacing)))
            for item in samples
        ]
    else:
        raise ValueError(f"{flag}: neither {FILE_NAME} (of test.py) nor {INDEX} (of scripts/generate.py)")
    if not found:
        raise ValueError(f"{flag}: no generated images")
    return found


def _read_sample(root: Path, item: dict, classes: Classes, spacing: tuple[float, ...]) -> LabelledScan:
    """A volume of scripts/generate.py."""
    path = root / item["labels"][0]
    volume = read_ids(path)
    with naming(path):
        ids, affine = to_ras(classes.of_values(volume.data), volume.affine)
    images = [to_ras(read_volume(root / file).data, volume.affine)[0] for file in item["images"]]
    image = np.stack([robust_unit(channel) for channel in images])
    return on_grid(LabelledScan(item["case"], item["case"], image, ids, affine), spacing)
