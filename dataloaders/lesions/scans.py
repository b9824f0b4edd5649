"""Scans that lesions come from or go to: files as they are stored, and heads with tissue in the units of white matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloaders.io import geometry
from dataloaders.io.files import naming
from dataloaders.io.find import files_below
from dataloaders.io.intensity import Window
from dataloaders.io.nifti import (
    NIFTI_SUFFIXES,
    SUFFIXES,
    VolumeError,
    read_ids,
    read_unscaled,
    read_volume,
    stem,
    write_volume,
)
from dataloaders.io.spec import level_channel
from dataloaders.lesions.placing import allowed_zone
from dataloaders.lesions.preparing import Tissue, grey_statistics, white_window
from dataloaders.prepare import tissue
from dataloaders.prepare.atlas import atlas_tissue

SAME_SPACING = 0.1  # voxel sizes that differ by less than this share count as those of the training


@dataclass(frozen=True)
class Stored:
    """A NIfTI file as it is on disk: raw values (I, J, K) of the file's own type, and value = slope · raw + inter."""

    path: Path
    raw: NDArray
    affine: NDArray[np.float64]
    slope: float = 1.0
    inter: float = 0.0
    codes: tuple[int, int] | None = None
    missing: NDArray[np.bool_] | None = None

    @property
    def name(self) -> str:
        """Of the file that is written, which is always NIfTI."""
        return self.path.name if self.path.name.endswith(NIFTI_SUFFIXES) else f"{stem(self.path)}.nii.gz"

    @property
    def values(self) -> NDArray[np.float32]:
        """Physical values; 0 where the file has no number."""
        values = (self.raw * np.float64(self.slope) + self.inter).astype(np.float32)
        if self.missing is not None:
            values[self.missing] = 0
        return values

    def changed(self, zone: NDArray[np.bool_], values: NDArray) -> NDArray:
        """Raw values with those of `zone` (I, J, K) replaced by physical `values` (one per voxel of the zone).

        Everything else is the same bit for bit; integers are rounded and kept in the range of their type.
        """
        raw = self.raw.copy()
        new = (np.asarray(values, np.float64) - self.inter) / self.slope
        if raw.dtype.kind in "iu":
            limits = np.iinfo(raw.dtype)
            new = np.clip(np.rint(new), limits.min, limits.max)
        raw[zone] = new.astype(raw.dtype)
        return raw

    def write(self, path: Path, raw: NDArray) -> None:
        """Write raw values with this file's type, scale and affine, under a fresh header, atomically."""
        write_volume(path, raw, self.affine, codes=self.codes, scale=(self.slope, self.inter))


def read_stored(path: Path | str) -> Stored:
    """Read a file with all checks of `read_volume`."""
    path = Path(path)
    volume = read_volume(path)
    raw, slope, inter = read_unscaled(path)
    return Stored(path, raw.data, volume.affine, slope, inter, volume.codes, volume.missing)


def read_channels(paths: Sequence[Path], names: Sequence[str], flag: str) -> list[Stored]:
    """One file per channel, in order. ValueError for a missing modality, one in the place of another, and other grids."""
    if len(paths) != len(names):
        raise ValueError(
            f"{flag}: {len(paths)} files for {len(names)} modalities; the run needs {' '.join(names)}, in this order"
        )
    for path, name in zip(paths, names, strict=True):
        said = stem(Path(path)).rpartition("_")[2]
        if said in names and said != name:
            raise ValueError(f"{flag} {path}: its name says {said}, but {name} is expected here ({' '.join(names)})")
    scans = [read_stored(path) for path in paths]
    first = scans[0]
    for scan in scans[1:]:
        if fault := geometry.off_grid(scan.raw.shape, scan.affine, first.raw.shape, first.affine, first.path):
            raise ValueError(f"{scan.path}: {fault}")
    return scans


def read_like(path: Path | str, reference: Stored) -> NDArray[np.int32]:
    """Label ids on the reference's grid and in its axes; VolumeError or ValueError for anything else."""
    volume = read_ids(path)
    with naming(path):
        return geometry.onto_grid(volume.data, volume.affine, reference.raw.shape, reference.affine, reference.path)


def read_mask(path: Path | str, reference: Stored) -> NDArray[np.bool_]:
    """A mask of 0 and 1 on the reference's grid; VolumeError or ValueError for anything else."""
    ids = read_like(path, reference)
    if ids.max() > 1:
        raise VolumeError(f"{path}: a lesion mask holds 0 and 1, found {ids.max()}")
    return ids > 0


def find_patient(folder: Path, names: Sequence[str], mask: Path | None) -> tuple[list[Path], Path]:
    """Files of a patient: *_<modality>.nii.gz for each name, and its mask (*lesion*), in a folder and those below it.

    In BIDS the mask may lie in derivatives beside the subject's folder. ValueError where there is none or several.
    """
    if not folder.is_dir():
        raise ValueError(f"--from_patient {folder}: no such folder")
    files = files_below(folder, SUFFIXES)
    images = []
    for name in names:
        there = [path for path in files if stem(path).endswith(f"_{name}") or stem(path) == name]
        images.append(_only(there, f"--from_patient {folder}: {len(there)} files *_{name}.nii.gz, one is needed"))
    if mask is None:
        subject = stem(images[0]).partition("_")[0]
        beside = folder.parent / "derivatives"
        masks = [path for path in files if "lesion" in path.name.lower()]
        if not masks and beside.is_dir():
            own = [path for path in files_below(beside, SUFFIXES) if path.name.startswith(f"{subject}_")]
            masks = [path for path in own if "lesion" in path.name.lower()]
        mask = _only(masks, f"--from_patient {folder}: {len(masks)} lesion masks (*lesion*.nii.gz); name one by --mask")
    return images, mask


def _only(paths: Sequence[Path], message: str) -> Path:
    if len(paths) != 1:
        raise ValueError(message)
    return paths[0]


@dataclass
class Head:
    """A brain on a RAS grid of the wanted voxel size: physical images, tissue 1 CSF, 2 grey, 3 white, lesion mask.

    Lesions count as no tissue. `grid` (4, 4) is the affine. filled: images without the lesions, of the last seed asked for.
    """

    channels: tuple[str, ...]
    images: list[NDArray[np.float32]]
    grid: NDArray[np.float64]
    ids: NDArray[np.uint8]
    lesion: NDArray[np.bool_]
    filled: dict[int, list[NDArray[np.float32]]] = field(default_factory=dict)

    @cached_property
    def brain(self) -> NDArray[np.bool_]:
        """Voxels of any tissue, and lesions."""
        return (self.ids > 0) | self.lesion

    @cached_property
    def tissue(self) -> Tissue:
        """Masks without the lesions."""
        csf, grey, white = ((self.ids == i) & ~self.lesion for i in tissue.BRAIN_TISSUE)
        return Tissue(white, grey, csf)

    @cached_property
    def room(self) -> NDArray[np.bool_]:
        """Voxels that lesions may take; its own are filled with white matter first."""
        return allowed_zone(self.tissue, self.brain, self.spacing) | self.lesion

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """0 to 2.5 times white matter, per channel."""
        return tuple(white_window(image, self.tissue.white) for image in self.images)

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm per voxel."""
        return tuple(geometry.spacing(self.grid).tolist())

    def model(self, channel: int, image: NDArray | None = None) -> NDArray[np.float32]:
        """A channel (or other values in its units) in the model's range: 0 is -1, white matter -0.2; not clipped."""
        window = self.windows[channel]
        values = self.images[channel] if image is None else image
        return ((values - window.low) * (2 / window.width) - 1).astype(np.float32)

    def physical(self, channel: int, values: NDArray) -> NDArray[np.float32]:
        """Inverse of `model`."""
        window = self.windows[channel]
        return ((values + 1) * (window.width / 2) + window.low).astype(np.float32)

    @property
    def level(self) -> NDArray[np.float32]:
        """Intensities of the channel that shows lesions best, in the model's range."""
        return self.model(level_channel(self.channels))

    @cached_property
    def grey(self) -> tuple[float, float]:
        """Mean and deviation of grey matter in `level`."""
        return grey_statistics(self.level, self.tissue.grey)


def load_head(
    scans: Sequence[Stored],
    channels: Sequence[str],
    lesion: NDArray[np.bool_] | None,
    tissue_file: Path | None,
    brain_file: Path | None,
    spacing: Sequence[float] = (),
    flag: str = "--tissue",
) -> Head:
    """Scans of one grid as a Head; tissue from a file (1 CSF, 2 grey matter, 3 white matter) or from the T1w scan.

    spacing: voxel size to work at, three lengths in RAS order; the scan's own where it is about the same. ValueError
    where tissue can neither be read nor made.
    """
    first = scans[0]
    native = np.zeros(first.raw.shape, bool) if lesion is None else lesion
    if tissue_file is not None:
        ids: NDArray = read_like(tissue_file, first)
        if ids.max() > 3:
            raise ValueError(f"{flag} {tissue_file}: holds 0, 1 CSF, 2 grey and 3 white matter, found {ids.max()}")
    else:
        if "T1w" not in channels:
            raise ValueError(f"without a T1w scan tissue cannot be found; give {flag} FILE")
        t1 = scans[list(channels).index("T1w")].values
        size = geometry.spacing(first.affine)
        brain = tissue.brain_mask(t1, size) if brain_file is None else read_mask(brain_file, first)
        ids = atlas_tissue(t1, first.affine, brain, native)
    shape, grid = geometry.to_ras(first.raw, first.affine)[0].shape, geometry.to_ras(first.raw, first.affine)[1]
    wanted = np.asarray(spacing, float)
    if wanted.size and (np.abs(wanted / geometry.spacing(grid) - 1) > SAME_SPACING).any():
        shape, grid = geometry.regrid(shape, grid, wanted.tolist())

    def moved(data: NDArray, labels: bool) -> NDArray:
        data, affine = geometry.to_ras(data, first.affine)
        return geometry.resample(data, affine, shape, grid, labels)

    return Head(
        tuple(channels),
        [moved(scan.values, False).astype(np.float32) for scan in scans],
        grid,
        moved(ids, True).astype(np.uint8),
        moved(native.astype(np.uint8), True) > 0,
    )
