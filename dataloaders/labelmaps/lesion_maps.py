"""Label maps with lesion masks drawn in as one more label, for images with lesions in the places of real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dataloaders.io.find import find_files, subject_session, without_twins
from dataloaders.io.geometry import off_grid
from dataloaders.io.nifti import SUFFIXES, stem
from dataloaders.labelmaps.maps import LabelMap, LabelMaps, Source, as_indices, read_label_map_file
from models.gmm.scheme import LabelScheme

Lesions = Path | str | Sequence[Path | str]


class LesionMaps(LabelMaps):
    """Label maps of which some have a mask (0 and 1, on the same grid), whose voxels become the label ``lesion``.

    labels: as for `LabelMaps`, files only. lesions: folder (with its subfolders), file, or list of files; see
    `masks_of_maps`. `scheme` is `base` with ``lesion`` as the last, of the highest output. Maps without a mask have none.
    """

    def __init__(self, labels: Source, lesions: Lesions, base: LabelScheme, cache_gb: float = 1.0) -> None:
        super().__init__(labels, cache_gb)
        self.base = base
        if not all(isinstance(source, Path) for source in self.sources):
            raise ValueError("lesions go with label maps in files, not with arrays")
        self.masks = masks_of_maps(self.sources, find_masks(lesions, self.sources))
        self.use(base.add_lesion(output=max(base.outputs) + 1))

    def ready(self, label_map: LabelMap, subclasses: Sequence[int] = ()) -> LabelMap:
        """A map read from its file with the lesions of that file's mask; see `LabelMaps.ready`."""
        return super().ready(label_map if label_map.indexed else self._with_lesion(label_map), subclasses)

    def _read(self, index: int) -> LabelMap:
        return self._with_lesion(super()._read(index))

    def _with_lesion(self, label_map: LabelMap) -> LabelMap:
        assert self.scheme is not None
        found = as_indices(label_map, self.base)
        values = found.values.to(self.scheme.index_dtype)
        path = self.masks.get(self.sources[self.find(label_map)])
        if path is not None:
            values = torch.where(read_mask(path, label_map), self.base.num_labels, values).to(values.dtype)
        return replace(found, values=values)


def read_mask(path: Path, label_map: LabelMap) -> torch.Tensor:
    """Mask of lesions on the grid of a map, (*S) bool. ValueError for other grids, naming both, and other values."""
    mask = read_label_map_file(path)
    target = mask.affine if label_map.path is None else label_map.affine  # arrays have no place of their own
    name = f"its label map {label_map.path or label_map.name}"
    if fault := off_grid(mask.shape, mask.affine, label_map.shape, target, name):
        raise ValueError(f"{path}: lesion mask in RAS axes: {fault}")
    low, high = (int(value) for value in mask.values.aminmax())
    if low < 0 or high > 1:
        raise ValueError(f"{path}: a lesion mask holds 0 and 1, found {low} to {high}")
    return mask.values > 0


def find_masks(lesions: Lesions, maps: Sequence[Path]) -> list[Path]:
    """Files of lesion masks (`find_files`); of folders those with lesion in their name if there are any, never the maps."""
    if not isinstance(lesions, (str, Path)):
        return [path for item in lesions for path in find_masks(item, maps)]
    known = {path.resolve() for path in maps}
    files = [path for path in find_files(lesions, below=True) if path.resolve() not in known]
    if not files:
        raise ValueError(f"lesions {lesions}: no {', '.join(SUFFIXES)} files beside the label maps")
    named = [path for path in files if "lesion" in path.name.lower()]
    return without_twins(named or files) if Path(lesions).is_dir() else files


def masks_of_maps(maps: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """The mask of each map that has one.

    A mask belongs to the map of the same name; or the longest name (with or without ``_dseg``) that its own goes on from,
    such as ``<map>_label-lesion_mask``; or the same subject and session in BIDS names. ValueError where that leaves
    several maps for a mask or several masks for a map, and where no mask belongs to any map.
    """
    found: dict[Path, Path] = {}
    for mask in masks:
        owners = _owners(mask, maps)
        if len(owners) > 1:
            raise ValueError(f"lesions {mask}: may belong to {' or '.join(map(str, owners[:4]))}; name it after one")
        for owner in owners:
            if owner in found:
                raise ValueError(f"{owner}: has the lesion masks {found[owner]} and {mask}; only one is allowed")
            found[owner] = mask
    if not found:
        names = ", ".join(path.name for path in masks[:4])
        raise ValueError(f"lesions: none of the {len(masks)} masks ({names}) belongs to one of {len(maps)} label maps")
    return found


def _owners(mask: Path, maps: Sequence[Path]) -> list[Path]:
    name, subject = stem(mask), subject_session(mask)
    same = [path for path in maps if stem(path) == name]
    near = [path for path in maps if subject_session(path) == subject]
    names = {path: (stem(path), stem(path).removesuffix("_dseg")) for path in near}
    begins = {path: max((len(n) for n in names[path] if name.startswith(f"{n}_")), default=0) for path in near}
    longest = [path for path in near if begins[path] == max(begins.values()) > 0]
    return same or longest or (near if subject else [])
