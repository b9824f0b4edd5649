"""Scans to segment: finding them, reading them, and where their segmentations go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.find import NO_IMAGES, anatomical, entities, find_files, is_bids, suffix
from dataloaders.io.geometry import resample, to_ras
from dataloaders.io.intensity import robust_unit
from dataloaders.io.nifti import Volume, VolumeError, read_volume, stem

NO_SCANS = (*NO_IMAGES, "resampled")  # endings of label maps, and of what scripts/segment.py writes
CT_WINDOW = (0.0, 80.0)  # HU, SynthSeg's
MAX_GRID = 2**29  # voxels that a scan may have on the network's grid


@dataclass(frozen=True)
class Scan:
    """One case: its files, one per input of the network, and where its outputs go.

    place: folder and beginning of the names below the output folder. desc: what comes between that and the ending.
    root: of the BIDS data set. fault: why it cannot be segmented, found before anything is read.
    """

    files: tuple[Path, ...]
    place: str
    desc: str = ""
    root: Path | None = None
    fault: str = ""

    def name(self, ending: str) -> str:
        """Path of an output below the output folder, such as ``sub-01/anat/sub-01_desc-T1w_dseg.nii.gz``."""
        return f"{self.place}{self.desc}_{ending}"


def find_scans(inputs: Sequence[Path], suffixes: Sequence[str], channels: Sequence[str]) -> tuple[list[Scan], bool]:
    """Scans in the order of their paths, and whether all are of a BIDS data set.

    channels: of the network. With several, files belong together whose names differ in the last part only
    (``sub-01_T1w``, ``sub-01_FLAIR``). Label maps and resampled images are only taken where they are all that is named.
    ValueError where there is nothing, and where two outputs would have one name.
    """
    given = [(path if path.is_dir() else None, file) for path in inputs for file in _files(path, suffixes)]
    given = [(root, file) for root, file in given if suffix(file) not in NO_SCANS] or [
        (root, file) for root, file in given if root is None
    ]
    what = f"--input {' '.join(map(str, inputs))}"
    if not given:
        raise ValueError(f"{what}: no scans" + f" ending in {', '.join(suffixes)}" * bool(suffixes))
    if not any(file.exists() for _, file in given):  # of several, a missing one is that scan's fault
        raise ValueError(f"{what}: no scan and no folder")
    bids = all(map(is_bids, inputs))
    loose = {file for root, file in given if root is None}
    alike = len({stem(file) for file in loose}) < len(loose)  # one folder a patient: the folders make the names
    common = Path(os.path.commonpath([file.parent for file in loose])) if alike else None
    found = [(root or common or file.parent, file) for root, file in given]
    scans = (
        _grouped(found, channels, bids) if len(channels) > 1 else [_scan(root, (file,), bids) for root, file in found]
    )
    names: dict[str, Scan] = {}
    for scan in scans:
        other = names.setdefault(scan.name("dseg"), scan)
        if other is not scan:
            raise ValueError(
                f"--input: {other.files[0]} and {scan.files[0]} would both become {scan.name('dseg')}.nii.gz"
            )
    return scans, bids


def _files(given: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files of a folder, of the anatomy in a BIDS data set; or those that a pattern, list or name means."""
    files = find_files(given, below=True)
    if not given.is_dir():
        return files or [given]
    if is_bids(given):
        return [file for file in anatomical(files, given) if suffix(file) in suffixes or not suffixes]
    return [file for file in files if stem(file).endswith(tuple(suffixes))] if suffixes else files


def _scan(root: Path, files: tuple[Path, ...], bids: bool) -> Scan:
    folder = files[0].parent.relative_to(root).as_posix()
    prefix = "" if folder == "." else f"{folder}/"
    name = stem(files[0])
    if not bids:
        return Scan(files, prefix + name)
    # the suffix goes to desc-, so that contrasts of one session do not overwrite each other
    kept = [part for part in name.split("_")[:-1] if not part.startswith("desc-")]
    desc = entities(files[0]).get("desc", "") + "".join(suffix(file) for file in files)
    return Scan(files, prefix + "_".join(kept), f"_desc-{desc}", root)


def _grouped(found: Sequence[tuple[Path, Path]], channels: Sequence[str], bids: bool) -> list[Scan]:
    groups: dict[Path, dict[str, tuple[Path, Path]]] = {}
    for root, file in found:
        case, _, ending = stem(file).rpartition("_")
        if ending in channels:
            groups.setdefault(file.parent / case, {})[ending] = (root, file)
    scans = []
    for common, members in sorted(groups.items()):
        there = [members[name] for name in channels if name in members]
        scan = _scan(there[0][0], tuple(file for _, file in there), bids)
        if missing := [name for name in channels if name not in members]:
            fault = f"{common}: the network wants {', '.join(channels)}; {', '.join(missing)} missing"
            scan = replace(scan, fault=fault)
        scans.append(scan)
    if scans and all(scan.fault for scan in scans):
        raise ValueError(f"--input {scans[0].fault}")
    if not scans:
        raise ValueError(f"--input: no files end in _{', _'.join(channels)}, which the network wants together")
    return scans


@dataclass(frozen=True)
class ReadScan:
    """image (C, X, Y, Z) float32 in [0, 1] in RAS axes with `affine`; shape, source_affine, codes are of the first file."""

    image: NDArray[np.float32]
    affine: NDArray[np.float64]
    shape: tuple[int, ...]
    source_affine: NDArray[np.float64]
    codes: tuple[int, int] | None = None


def read_scan(scan: Scan, ct: bool = False) -> ReadScan:
    """All files of a scan on the grid of the first; NaN counts as 0. VolumeError naming a file that cannot be used.

    ct: clip to CT_WINDOW first, in which the brain has contrast.
    """
    channels = []
    first: Volume | None = None
    for path in scan.files:
        volume = read_volume(path)
        data, affine = to_ras(volume.data, volume.affine)
        if first is None:
            first, grid, shape = volume, affine, data.shape
        data = resample(np.asarray(data, np.float32), affine, shape, grid)
        data = np.clip(data, *CT_WINDOW) if ct else data
        channels.append(robust_unit(data))
        if not channels[-1].any():
            raise VolumeError(f"{path}: a constant image, there is nothing to segment")
    assert first is not None
    return ReadScan(np.stack(channels), grid, first.data.shape, first.affine, first.codes)
