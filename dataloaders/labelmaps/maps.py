"""Label maps for the generator: files, folders or arrays, of any shape, spacing and orientation, brought to RAS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataloaders.io.cache import Cache
from dataloaders.io.files import naming
from dataloaders.io.find import case_names, find_files, read_list, without_twins
from dataloaders.io.geometry import spacing, to_ras
from dataloaders.io.nifti import SUFFIXES, VolumeError, read_volume, stem, whole_numbers
from dataloaders.labelmaps.labels import count_labels
from models.gmm.scheme import LabelScheme

Source = Any  # a path, an array or a tensor


@dataclass(frozen=True)
class LabelMap:
    """One map in RAS axes. values (*S) int32 label values, in 2-D or 3-D, or the indices of a scheme once `indexed`.

    affine (4, 4) of the RAS grid. orientation: nibabel's of the source's axes, None for arrays, which count as RAS.
    plane: in 2-D, the axes of the RAS grid that are kept. path: None for arrays. subclasses: of a map with seeds, the number
    of clusters of each meta-label. codes: of the source's header, as those of `Volume`.
    """

    name: str
    values: Tensor
    affine: NDArray[np.float64]
    orientation: NDArray | None = None
    plane: tuple[int, ...] = (0, 1, 2)
    path: Path | None = None
    indexed: bool = False
    subclasses: tuple[int, ...] = ()
    codes: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the RAS grid, (I, J, K), also in 2-D."""
        sizes = dict(zip(self.plane, self.values.shape, strict=True))
        return tuple(sizes.get(axis, 1) for axis in range(3))

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm per axis of `values`."""
        mm = spacing(self.affine)
        return tuple(float(mm[axis]) for axis in self.plane)

    def nbytes(self) -> int:
        """Memory of the values."""
        return self.values.nbytes

    def to_source_axes(
        self, arrays: Sequence[NDArray], start: Sequence[int], factor: Sequence[float]
    ) -> tuple[list[NDArray], NDArray[np.float64]]:
        """Arrays of a window of this map, (*out) or (*out, C), in the source's axes, and their affine.

        start: first voxel of the window; factor: map voxels per voxel of the arrays, per axis. Grids share their corner
        edges: voxel j of the arrays stands at start + (j + 1/2) · factor - 1/2.
        """
        step, shift = np.ones(3), np.zeros(3)
        step[list(self.plane)] = factor
        shift[list(self.plane)] = [s + (f - 1) / 2 for s, f in zip(start, factor, strict=True)]
        window = np.diag([*step, 1.0])
        window[:3, 3] = shift
        affine = self.affine @ window
        if self.orientation is None:
            return list(arrays), affine
        back = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), self.orientation)
        missing = [axis for axis in range(3) if axis not in self.plane]
        full = [np.expand_dims(array, tuple(missing)) for array in arrays]
        moved = [nib.orientations.apply_orientation(array, back) for array in full]
        affine = affine @ nib.orientations.inv_ornt_aff(back, full[0].shape[:3])
        return [np.ascontiguousarray(array) for array in moved], affine


class LabelMaps:
    """A sequence of label maps that are read when they are needed; the last few stay in memory.

    sources: a file (.nii, .nii.gz, .mgz), a folder (searched with its subfolders; in BIDS folders files ending in
    ``_dseg`` where there are any), a .txt list of files, an array or tensor (2-D or 3-D, RAS axes, spacing `array_spacing`),
    or a list of these. drawn: scheme of the maps that `draw` gives, once `use` has set it.

    Raises ValueError naming what was found where there is no map.
    """

    def __init__(self, sources: Source, cache_gb: float = 1.0, array_spacing: Sequence[float] | None = None) -> None:
        self.sources = expanded(sources)
        names = iter(case_names([source for source in self.sources if isinstance(source, Path)]))
        self._names = [next(names) if isinstance(s, Path) else f"map{i}" for i, s in enumerate(self.sources)]
        self.array_spacing = array_spacing
        self.scheme: LabelScheme | None = None
        self.drawn: LabelScheme
        self._cache: Cache[LabelMap] = Cache(cache_gb, LabelMap.nbytes)

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[LabelMap]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> LabelMap:
        return self._cache.get(index, lambda: self._indexed(self._read(index)))

    def _indexed(self, label_map: LabelMap) -> LabelMap:
        return label_map if self.scheme is None else as_indices(label_map, self.scheme)

    def draw(self, index: int, generator: torch.Generator) -> LabelMap:
        """Map `index` as one sample sees it; here always the same."""
        return self[index]

    def ready(self, label_map: LabelMap, subclasses: Sequence[int] = ()) -> LabelMap:
        """A map read from its file, as `draw` gave it, as indices. subclasses: of `SeedMaps` only, else ValueError."""
        if subclasses or label_map.subclasses:
            raise ValueError(
                f"subclasses {tuple(subclasses) or label_map.subclasses}: these label maps have no seeds; give seeds=FOLDER"
            )
        assert self.scheme is not None
        return as_indices(label_map, self.scheme)

    def use(self, scheme: LabelScheme) -> None:
        """From now on give maps as indices of the scheme, which take a quarter of the memory."""
        self.scheme = self.drawn = scheme
        self._cache.clear()

    def name(self, index: int) -> str:
        """File name without suffix (with one folder a patient see `case_names`), or ``map0``, ``map1``, … for arrays."""
        return self._names[index]

    def find(self, label_map: LabelMap) -> int:
        """Place of the map's file, or else of the only one of its name; ValueError where there is none, or several."""
        path = None if label_map.path is None else label_map.path.resolve()
        same = [i for i, source in enumerate(self.sources) if source.resolve() == path]
        same = same or [i for i in range(len(self)) if self.name(i) == label_map.name]
        if len(same) != 1:
            raise ValueError(f"{label_map.path or label_map.name}: {len(same)} of the label maps have this name")
        return same[0]

    def values(self) -> tuple[int, ...]:
        """Every label value of any map, ascending. Reads every file."""
        return tuple(sorted({value for label_map in self for value in count_labels(label_map.values.numpy())}))

    def _read(self, index: int) -> LabelMap:
        source = self.sources[index]
        if isinstance(source, Path):
            return replace(read_label_map_file(source), name=self.name(index))
        array = torch.as_tensor(source if isinstance(source, torch.Tensor) else np.ascontiguousarray(source)).cpu()
        if array.ndim not in (2, 3):
            raise ValueError(f"label map of shape {tuple(array.shape)}: must have two or three dimensions")
        data = np.ascontiguousarray(whole_numbers(self.name(index), array.numpy()))
        affine = np.diag([*(self.array_spacing or (1.0,) * array.ndim), *[1.0] * (4 - array.ndim)])
        return LabelMap(self.name(index), torch.from_numpy(data), affine, plane=tuple(range(array.ndim)))


def read_label_map_file(path: Path | str) -> LabelMap:
    """One file in RAS axes; volumes with an axis of length 1 are 2-D. VolumeError naming a file that is no label map."""
    path = Path(path)
    volume = read_volume(path)
    orientation = nib.orientations.io_orientation(volume.affine)
    moved, ras = to_ras(whole_numbers(path, volume.data), volume.affine)
    plane = tuple(axis for axis in range(3) if moved.shape[axis] > 1)
    if len(plane) < 2:
        raise VolumeError(f"{path}: shape {volume.data.shape} is neither a volume nor a slice")
    values = np.ascontiguousarray(moved.reshape([moved.shape[axis] for axis in plane]))
    return LabelMap(stem(path), torch.from_numpy(values), ras, orientation, plane, path, codes=volume.codes)


def expanded(sources: Source) -> list[Source]:
    """Every file, array or tensor of what `LabelMaps` takes; ValueError where there is none."""
    if isinstance(sources, (str, Path)):
        return _files_of(Path(sources))
    if isinstance(sources, (list, tuple)) and not (
        sources and np.isscalar(sources[0]) and not isinstance(sources[0], str)
    ):
        found = [item for source in sources for item in expanded(source)]
        if not found:
            raise ValueError("no label maps: the list is empty")
        return found
    return [sources]


def _files_of(path: Path) -> list[Source]:
    if path.suffix == ".txt" and path.is_file():
        # A file that is missing is a fault of its own when it is read; the others of the list are there.
        listed = [item for line in read_list(path) for item in (_files_of(line) if line.is_dir() else [line])]
        if not listed:
            raise ValueError(f"{path}: lists no file")
        return listed
    files = find_files(path, below=True)
    if not files:
        what = "files ending in " + ", ".join(SUFFIXES) if path.exists() else "such file or folder"
        raise ValueError(f"{path}: no {what}")
    labels = [file for file in files if stem(file).endswith("_dseg")]
    return list(without_twins(labels or files) if path.is_dir() else files)


def as_indices(label_map: LabelMap, scheme: LabelScheme) -> LabelMap:
    """The map with label indices; ValueError naming the map and the values that the scheme does not list."""
    if label_map.indexed:
        return label_map
    with naming(label_map.path or label_map.name):
        return replace(label_map, values=scheme.to_index(label_map.values), indexed=True)
