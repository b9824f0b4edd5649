"""What the ids of label maps mean: classes of a table, and names that come with a map, beside or in its file."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import DTypeLike, NDArray

from dataloaders.io.files import naming, read_json
from dataloaders.io.manifest import FILE_NAME, Manifest
from dataloaders.io.nifti import NIFTI_SUFFIXES, stem
from dataloaders.io.schema import decode
from dataloaders.io.spec import BACKGROUND, Label
from dataloaders.labelmaps.label_tables import BUILT_IN, COLOUR_TABLES, table_rows

Names = Mapping[int, str]
_HEADER_LABEL = re.compile(rb'<Label Key="(\d+)"[^>]*>\s*(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))\s*</Label>')
_COUNTED = 2**20  # ids up to which counting is cheaper than sorting


@dataclass(frozen=True)
class ClassTable:
    """Classes, and the class id of every source id. Unknown ids go to background when `lenient`."""

    labels: tuple[Label, ...]
    lenient: bool = False

    def unknown(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Source ids of `counts` that no class lists, with their voxel counts."""
        known = {i for label in self.labels for i in label.source}
        return {i: n for i, n in counts.items() if i not in known and i != 0}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"labels": [label.to_dict() for label in self.labels], "lenient": self.lenient}

    def apply(self, source: NDArray[np.integer]) -> NDArray[np.uint16]:
        """Map source ids to class ids. Ids that no class lists become 0."""
        beyond = max(max(label.source, default=0) for label in self.labels) + 1
        table = np.zeros(beyond + 1, np.uint16)
        for label in self.labels:
            table[list(label.source)] = label.id
        return table[np.minimum(source, beyond)]


def found_labels(found: Iterable[int], names: Mapping[int, str]) -> tuple[Label, ...]:
    """Classes in the order of the source ids that were found; background first, which takes nnU-Net's ``ignore`` in."""
    named = {i: names.get(i, f"label_{i}") for i in sorted(found)}
    return named_labels((i, "background" if name == "ignore" else name, "") for i, name in named.items())


def named_labels(rows: Iterable[tuple[int, str, str]]) -> tuple[Label, ...]:
    """Classes of rows (id, name, colour), background first: equal names are fused, in the first colour that one has.

    0 and the name ``background`` are background.
    """
    sources: dict[str, set[int]] = {"background": {BACKGROUND}}
    colors: dict[str, str] = {}
    for number, given, color in rows:
        name = "background" if number == BACKGROUND or given.lower() == "background" else given
        sources.setdefault(name, set()).add(number)
        colors[name] = colors.get(name) or color
    return tuple(
        Label(i, name, tuple(sorted(ids)), colors.get(name, "")) for i, (name, ids) in enumerate(sources.items())
    )


def names_of(labels: Sequence[Label]) -> dict[int, str]:
    """Source id -> name."""
    return {i: label.name for label in labels for i in label.source}


def count_labels(ids: NDArray) -> dict[int, int]:
    """Pixels or voxels of each id that occurs."""
    if ids.size and ids.dtype.kind in "ui" and ids.min() >= 0 and ids.max() < _COUNTED:
        found = np.bincount(ids.ravel(order="K"))
        return {int(value): int(found[value]) for value in np.flatnonzero(found)}
    values, counts = np.unique(ids, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def id_type(num_labels: int) -> DTypeLike:
    """Pixel type of PNGs of so many classes."""
    return np.uint8 if num_labels <= 256 else np.uint16


def read_label_table(
    table: Path | str, found: Iterable[int] | None = None, flag: str = "--label_map"
) -> tuple[Label, ...]:
    """Classes of `label_tables.table_rows`, background first; see `named_labels`.

    found: of tables that list all there may be, built-in ones and colour tables, only these ids.
    """
    rows = table_rows(table, flag)
    if found is not None and (str(table) in BUILT_IN or Path(table).suffix in COLOUR_TABLES):
        wanted = set(found)
        rows = [row for row in rows if row.id in wanted]
    return named_labels((row.id, row.name, row.color) for row in rows)


def read_dataset_json(path: Path) -> tuple[dict[int, str], dict[int, str]]:
    """Names of channels and of labels in an nnU-Net dataset.json of either version; ({}, {}) where there is none.

    A label that several regions hold is named by the smallest of them, in nnU-Net's way to write nested regions. ValueError
    naming the file and the entry that is not what nnU-Net writes.
    """
    if not path.is_file():
        return {}, {}
    with naming(path):
        data = decode(dict[str, Any], read_json(path), "the file")
        key = "channel_names" if "channel_names" in data else "modality"
        channels = decode(dict[int, str], data.get(key, {}), key)
        entries = decode(dict[str, int | str | list[int]], data.get("labels", {}), "labels")
    names: dict[int, str] = {}
    for name, value in sorted(entries.items(), key=lambda item: -len(item[1]) if isinstance(item[1], list) else 0):
        if isinstance(value, str):  # version 1: id -> name
            if not name.isdigit():
                raise ValueError(f"{path}: labels.{name}: found {value!r}, must be an id, or a list of them")
            names[int(name)] = value
        else:
            names |= dict.fromkeys([value] if isinstance(value, int) else value, name)
    shared = {name for name in names.values() if list(names.values()).count(name) > 1}
    return channels, {number: f"{name}_{number}" if name in shared else name for number, name in names.items()}


# -- names that come with a map ---------------------------------------------------------------------------------------


def labels_with(path: Path) -> tuple[tuple[Label, ...], str] | None:
    """Classes by the names that come with a label map, and where they are; None where there are none.

    That is ``LabelMap`` of the .json file beside it (scripts/segment.py), ``dseg.tsv`` or ``*_dseg.tsv`` of BIDS beside it
    or above it up to the folder of the subjects or of the data set, the manifest of the results folder that it is in, or
    the header of a NIfTI file, as TotalSegmentator and Connectome Workbench write it.
    """
    path = path.absolute()
    sidecar, *tables = files_with(path)
    if sidecar.is_file():
        data = read_json(sidecar)
        found = data.get("LabelMap") if isinstance(data, dict) else None
        if isinstance(found, dict) and found and all(type(number) is int for number in found.values()):
            colors = {label.name: label.color for label in read_label_table(tables[0], flag="labels")} if tables else {}
            return named_labels((i, str(name), colors.get(name, "")) for name, i in found.items()), sidecar.name
    if tables:
        return read_label_table(tables[0], flag="labels"), tables[0].name
    results = path.parent.parent
    if path.parent.name in ("predictions", "groundtruth") and (results / FILE_NAME).is_file():
        return tuple(replace(label, source=(label.id,)) for label in _classes_of(results)), FILE_NAME
    names = _header_names(path)
    return (named_labels((i, name, "") for i, name in names.items()), "its header") if names else None


def files_with(path: Path) -> list[Path]:
    """Files of names for a label map: its .json file, which there need not be, and the tables, the nearest first."""
    path = path.absolute()
    tables = [table for folder in _folders(path) for table in _tables(folder, stem(path))]
    return [path.with_name(f"{stem(path)}.json"), *tables]


def common_labels(paths: Sequence[Path]) -> tuple[Label, ...]:
    """The classes that come with every one of the maps; () where they are not the same for all, or there are no maps."""
    first, *others = [found[0] if (found := labels_with(path)) else () for path in paths] or [()]
    return first if all(labels == first for labels in others) else ()


def _folders(path: Path) -> list[Path]:
    """Where BIDS looks for a table: beside the file, above it as far as the folder of the subjects, then where
    ``derivatives`` is.
    """
    folders = list(path.parents)
    subjects = [i for i, folder in enumerate(folders) if folder.name.startswith("sub-")]
    data_set = [folder.parent for folder in folders if folder.name == "derivatives"]
    return [*folders[: subjects[-1] + 2], *data_set[:1]] if subjects else folders[:1]


def _tables(folder: Path, name: str) -> list[Path]:
    """Tables of a folder that are about the map called `name`: those whose entities it has, the most particular first."""
    entities = set(name.split("_"))
    parts = {
        table: set(table.name.removesuffix(".tsv").split("_")) - {"dseg"}
        for table in folder.glob("*dseg.tsv")
        if table.name[0] != "."
    }
    return sorted((t for t in parts if parts[t] <= entities), key=lambda table: (-len(parts[table]), table.name))


@lru_cache(maxsize=16)
def _classes_of(results: Path) -> tuple[Label, ...]:
    return Manifest.load(results, histograms=False).spec.labels


def _header_names(path: Path) -> dict[int, str]:
    if not path.name.endswith(NIFTI_SUFFIXES) or not path.is_file():
        return {}
    try:
        extensions = getattr(nib.load(path).header, "extensions", ())
    except Exception:  # nibabel raises whatever the bytes lead it to; who reads the map says what is wrong with it
        return {}
    names: dict[int, str] = {}
    for extension in extensions:
        for key, quoted, plain in _HEADER_LABEL.findall(extension.content):  # the bytes, of any kind of extension
            text = quoted.decode(errors="replace") if quoted else html.unescape(plain.decode(errors="replace"))
            names[int(key)] = text.strip()
    return {number: name for number, name in names.items() if name}
