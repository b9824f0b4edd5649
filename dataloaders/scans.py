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

OUTPUTS = ("dseg", "probseg", "resampled")  # endings of scripts/segment.py's own files
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
    (``sub-01_T1w``, ``sub-01_FLAIR``). ValueError where there is nothing, and where two outputs would have one name.
    """
    given_roots: list[tuple[Path | None, Path]] = []
    bids = True
    for given in inputs:
        root, files = _expand(given, suffixes)
        bids = bids and root is not None and is_bids(root)
        given_roots += [(root, file) for file in files]
    if not given_roots:
        endings = f" ending in {', '.join(suffixes)}" if suffixes else ""
        raise ValueError(f"--input {' '.join(map(str, inputs))}: no scans{endings}")
    loose = {file for root, file in given_roots if root is None}
    alike = len({stem(file) for file in loose}) < len(loose)  # one folder a patient: the folders make the names
    common = Path(os.path.commonpath([file.parent for file in loose])) if alike else None
    found = [(root or common or file.parent, file) for root, file in given_roots]
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


def _expand(given: Path, suffixes: Sequence[str]) -> tuple[Path | None, list[Path]]:
    """Root, None for single files, and files."""
    files = find_files(given, below=True)
    if not given.is_dir():
        return None, files or [given]  # a file that is missing is a fault of its own when it is read
    if is_bids(given):
        images = [file for file in anatomical(files, given) if suffix(file) not in NO_IMAGES]
        files = [file for file in images if suffix(file) in suffixes or not suffixes]
    elif suffixes:
        files = [file for file in files if stem(file).endswith(tuple(suffixes))]
    return given, [file for file in files if suffix(file) not in OUTPUTS]


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
