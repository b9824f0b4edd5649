"""What the ids of label maps mean: tables of names of any format, beside or in a map's file, and the classes made of them.

A new format is one more function of `READERS`, from a path to rows (id, name).
"""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import DTypeLike, NDArray

from dataloaders.io.files import read_json, read_toml, with_path
from dataloaders.io.manifest import FILE_NAME, Manifest
from dataloaders.io.nifti import NIFTI_SUFFIXES, stem
from dataloaders.io.schema import decode
from dataloaders.io.spec import BACKGROUND, Label
from models.gmm import freesurfer

TABLES = Path(__file__).parent / "tables"
# Of one space of ids: aseg, aparc+aseg, a2009s (Destrieux), wmparc, SynthSeg and FastSurfer
FREESURFER = ("freesurfer", "aseg", "aparc", "destrieux", "a2009s", "wmparc", "synthseg", "fastsurfer")
BUILT_IN = dict.fromkeys(FREESURFER, freesurfer.TABLE)
BUILT_IN |= {name: TABLES / f"{name}.tsv" for name in sorted(path.stem for path in TABLES.glob("*.tsv"))}
TISSUES = ("GM", "WM", "CSF")  # sections of a table of tissues, beside none
Names = Mapping[int, str]
_HEADER_LABEL = re.compile(rb'<Label Key="(\d+)"[^>]*>\s*(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))\s*</Label>')
_COUNTED = 2**20  # ids up to which counting is cheaper than sorting


@dataclass(frozen=True)
class LabelTable:
    """Classes, and the class id of every source id. Unknown ids go to background when `lenient`."""

    labels: tuple[Label, ...]
    lenient: bool = False

    def unknown(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Source ids of `counts` that no class lists, with their voxel counts."""
        known = {i for label in self.labels for i in label.source}
        return {i: n for i, n in counts.items() if i not in known and i != 0}

    def apply(self, source: NDArray[np.integer]) -> NDArray[np.uint16]:
        """Map source ids to class ids. Ids that no class lists become 0."""
        beyond = max(max(label.source, default=0) for label in self.labels) + 1
        table = np.zeros(beyond + 1, np.uint16)
        for label in self.labels:
            table[list(label.source)] = label.id
        return table[np.minimum(source, beyond)]


def found_labels(found: Iterable[int], names: Names) -> tuple[Label, ...]:
    """Classes in the order of the source ids that were found; background first, which takes nnU-Net's ``ignore`` in."""
    ids = sorted({0, *found})
    ignored = tuple(i for i in ids if i and names.get(i) == "ignore")
    named = [(names.get(i, f"label_{i}"), (i,)) for i in ids if i and i not in ignored]
    return tuple(Label(i, *item) for i, item in enumerate([("background", (0, *ignored)), *named]))


def named_labels(rows: Iterable[tuple[int, str]], where: object = "") -> tuple[Label, ...]:
    """Classes of rows (id, name), background first: equal names are fused, 0 and the name ``background`` are background.

    ValueError, which begins with `where`, for an id of two names.
    """
    sources: dict[str, list[int]] = {"background": [BACKGROUND]}
    seen: dict[int, str] = {BACKGROUND: "background"}
    for number, name in rows:
        name = "background" if number == BACKGROUND or name.lower() == "background" else name
        if seen.setdefault(number, name) != name:
            raise ValueError(f"{where}: id {number} is both {seen[number]!r} and {name!r}")
        ids = sources.setdefault(name, [])
        if number not in ids:
            ids.append(number)
    return tuple(Label(i, name, tuple(sorted(ids))) for i, (name, ids) in enumerate(sources.items()))


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


# -- tables -----------------------------------------------------------------------------------------------------------


def table_names() -> tuple[str, ...]:
    """Names of the built-in tables."""
    return tuple(BUILT_IN)


def table_rows(table: Path | str, flag: str = "table") -> list[tuple[int, str]]:
    """(id, label name) of a built-in table (see `table_names`) or of a file, in its order.

    JSON {"name": id or [ids]} or {"id": "name"}; CSV or TSV with the columns id (in BIDS' dseg.tsv: index) and name; TOML of
    tissues (see `tissue_rows`). An id may be a colour, ``#rrggbb``. ValueError naming flag, file and row.
    """
    if str(table) in BUILT_IN:
        return [(i, name.replace(" ", "_")) for i, name in _csv_rows(BUILT_IN[str(table)])]
    path = Path(table)
    if path.suffix not in READERS or not path.is_file():
        *kinds, last = READERS
        raise ValueError(
            f"{flag} {path}: must be an existing {', '.join(kinds)} or {last} file, or one of {', '.join(table_names())}"
        )
    try:
        return READERS[path.suffix](path)
    except ValueError as error:
        raise ValueError(f"{flag} {with_path(path, error)}") from None


def read_label_map(
    table: Path | str, found: Iterable[int] | None = None, flag: str = "--label_map"
) -> tuple[Label, ...]:
    """Classes of `table_rows`, background first; see `named_labels`.

    found: of a built-in table, which lists all there is, only these ids.
    """
    rows = table_rows(table, flag)
    if str(table) in BUILT_IN and found is not None:
        wanted = set(found)
        rows = [row for row in rows if row[0] in wanted]
    return named_labels(rows, f"{flag} {table}")


def _json_rows(path: Path) -> list[tuple[int, str]]:
    data = read_json(path)
    try:
        if all(str(key).isdigit() for key in data):
            return [(int(key), str(name)) for key, name in data.items()]
        listed = {name: ids if isinstance(ids, list) else [ids] for name, ids in data.items()}
        return [(_number(i), str(name)) for name, ids in listed.items() for i in ids]
    except (TypeError, ValueError, AttributeError):
        raise ValueError(f'{path}: expected {{"name": id or [ids]}} or {{"id": "name"}}') from None


def _csv_rows(path: Path) -> list[tuple[int, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        columns = [name for name in ("index", "id") if name in (reader.fieldnames or ())]
        if not columns or "name" not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: needs the columns id (or index) and name, found {reader.fieldnames}")
        rows = []
        for row in reader:
            number, name = (row[columns[0]] or "").strip(), (row["name"] or "").strip()
            try:
                rows.append((_number(number), name))
            except ValueError:
                name = ""
            if name in ("", "n/a"):
                raise ValueError(
                    f"{path}: line {reader.line_num}: {columns[0]} {number!r}, name {(row['name'] or '').strip()!r}; must "
                    "be a whole number of 0 or more and a name"
                )
        return rows


def _number(entry: Any) -> int:
    """An id of a JSON or CSV table; a colour ``#rrggbb`` is the id that it has in colour-coded label maps."""
    if isinstance(entry, str) and re.fullmatch(r"#[0-9A-Fa-f]{6}", entry):
        return int(entry[1:], 16)
    if isinstance(entry, bool) or not (entry.isdecimal() if isinstance(entry, str) else int(entry) == entry):
        raise ValueError(f"{entry!r} is no id")
    return int(entry)


def tissue_rows(path: Path) -> list[tuple[int, str, str]]:
    """(id, section, structure) of a TOML table of tissues: GM, WM, CSF, none of ``"structure" = [ids, "first-last"]``.

    Ids of none are known, but no brain tissue. ValueError names file and entry.
    """
    rows: list[tuple[int, str, str]] = []
    names: dict[int, str] = {}
    for section, structures in read_toml(path, "label table").items():
        if section not in (*TISSUES, "none") or not isinstance(structures, dict):
            raise ValueError(f"{path}: section {section!r}: must be one of {', '.join(TISSUES)}, none")
        for name, entries in structures.items():
            for number in id_list(entries, f"{path}: {name}"):
                if number in names:
                    raise ValueError(f"{path}: id {number} is both {names[number]!r} and {name!r}")
                names[number] = name
                rows.append((number, section, name))
    return rows


def _tissue_labels(path: Path) -> list[tuple[int, str]]:
    return [(i, "background" if section == "none" else section) for i, section, _ in tissue_rows(path)]


def id_list(entries: Any, where: str, lowest: int = 1) -> list[int]:
    """Ids of a TOML entry: numbers of `lowest` or more and ``"first-last"``; ValueError, which begins with `where`."""
    numbers: list[int] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        span = re.fullmatch(r"(\d+)-(\d+)", entry) if isinstance(entry, str) else None
        if span is not None and int(span[1]) <= int(span[2]):
            numbers += range(int(span[1]), int(span[2]) + 1)
        elif isinstance(entry, int) and not isinstance(entry, bool) and entry >= lowest:
            numbers.append(entry)
        else:
            raise ValueError(f'{where} = {entries!r}: must be positive ids or "first-last"')
    return numbers


READERS: dict[str, Callable[[Path], list[tuple[int, str]]]] = {
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".toml": _tissue_labels,
}


def read_dataset_json(path: Path) -> tuple[dict[int, str], dict[int, str]]:
    """Names of channels and of labels in an nnU-Net dataset.json of either version; ({}, {}) where there is none.

    A label that several regions hold is named by the smallest of them, in nnU-Net's way to write nested regions. ValueError
    naming the file and the entry that is not what nnU-Net writes.
    """
    if not path.is_file():
        return {}, {}
    try:
        data = decode(dict[str, Any], read_json(path), "the file")
        key = "channel_names" if "channel_names" in data else "modality"
        channels = decode(dict[int, str], data.get(key, {}), key)
        entries = decode(dict[str, int | str | list[int]], data.get("labels", {}), "labels")
    except ValueError as error:
        raise ValueError(with_path(path, error)) from None
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


def names_with(path: Path) -> tuple[Names, str] | None:
    """Names by id that come with a label map, and where they are; None where there are none.

    That is ``LabelMap`` of the .json file beside it (scripts/segment.py), ``dseg.tsv`` or ``*_dseg.tsv`` of BIDS beside it
    or above it up to the folder of the subjects or of the data set, the manifest of the results folder that it is in, or
    the header of a NIfTI file, as TotalSegmentator and Connectome Workbench write it.
    """
    path = path.absolute()
    sidecar = path.with_name(f"{stem(path)}.json")
    if sidecar.is_file():
        data = read_json(sidecar)
        found = data.get("LabelMap") if isinstance(data, dict) else None
        if isinstance(found, dict) and found and all(type(number) is int for number in found.values()):
            return {number: str(name) for name, number in found.items()}, sidecar.name
    tables = [table for folder in _folders(path) for table in _tables(folder, stem(path))]
    if tables:
        return names_of(_read_table(tables[0])), tables[0].name
    results = path.parent.parent
    if path.parent.name in ("predictions", "groundtruth") and (results / FILE_NAME).is_file():
        return {label.id: label.name for label in _classes_of(results)}, FILE_NAME
    names = _header_names(path)
    return (names, "its header") if names else None


def common_names(paths: Sequence[Path]) -> Names:
    """The names that come with every one of the maps; {} where they are not the same for all."""
    first, *others = [found[0] if (found := names_with(path)) else {} for path in paths]
    return first if all(names == first for names in others) else {}


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
def _read_table(path: Path) -> tuple[Label, ...]:
    return read_label_map(path, flag="labels")


@lru_cache(maxsize=16)
def _classes_of(results: Path) -> tuple[Label, ...]:
    return Manifest.load(results, histograms=False).spec.labels


def _header_names(path: Path) -> dict[int, str]:
    if not path.name.endswith(NIFTI_SUFFIXES) or not path.is_file():
        return {}
    try:
        extensions = getattr(nib.load(path).header, "extensions", ())
    except nib.spatialimages.HeaderDataError:  # damaged extensions, which cost nothing but the names
        return {}
    names: dict[int, str] = {}
    for extension in extensions:
        for key, quoted, plain in _HEADER_LABEL.findall(extension.content):  # the bytes, of any kind of extension
            text = quoted.decode(errors="replace") if quoted else html.unescape(plain.decode(errors="replace"))
            names[int(key)] = text.strip()
    return {number: name for number, name in names.items() if name}
