"""From source label ids to contiguous ids with names."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dataloaders.io.files import read_json, read_toml, with_path
from dataloaders.io.schema import decode
from dataloaders.io.spec import Label
from models.gmm import freesurfer

TABLES = Path(__file__).parent / "tables"
# Of one space of ids: aseg, aparc+aseg, a2009s (Destrieux), wmparc, SynthSeg and FastSurfer
FREESURFER = ("freesurfer", "aseg", "aparc", "destrieux", "a2009s", "wmparc", "synthseg", "fastsurfer")
TISSUES = ("GM", "WM", "CSF")  # sections of a table of tissues, beside none
_HEADER_LABEL = re.compile(rb'<Label Key="(\d+)"[^>]*>\s*(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))\s*</Label>')


@dataclass(frozen=True)
class LabelTable:
    """Classes, and the class id of every source id. Unknown ids go to background when `lenient`."""

    labels: tuple[Label, ...]
    lenient: bool = False

    def unknown(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Source ids of `counts` that no class lists, with their voxel counts."""
        known = {i for label in self.labels for i in label.source}
        return {i: n for i, n in counts.items() if i not in known and i != 0}

    def apply(self, source: NDArray[np.int32]) -> NDArray[np.uint16]:
        """Map source ids to class ids. Ids that no class lists become 0."""
        beyond = max(max(label.source, default=0) for label in self.labels) + 1
        table = np.zeros(beyond + 1, np.uint16)
        for label in self.labels:
            table[list(label.source)] = label.id
        return table[np.minimum(source, beyond)]


def found_labels(found: Iterable[int], names: Mapping[int, str]) -> tuple[Label, ...]:
    """Classes in the order of the source ids that were found; background first, which takes nnU-Net's ``ignore`` in."""
    ids = sorted({0, *found})
    ignored = tuple(i for i in ids if i and names.get(i) == "ignore")
    named = [(names.get(i, f"label_{i}"), (i,)) for i in ids if i and i not in ignored]
    return tuple(Label(i, *item) for i, item in enumerate([("background", (0, *ignored)), *named]))


def count_labels(ids: NDArray) -> dict[int, int]:
    """Pixels or voxels of each id that occurs."""
    values, counts = np.unique(ids, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def id_type(num_labels: int) -> DTypeLike:
    """Pixel type of PNGs of so many classes."""
    return np.uint8 if num_labels <= 256 else np.uint16


def table_names() -> tuple[str, ...]:
    """Names of the built-in tables."""
    return (*FREESURFER, *sorted(path.stem for path in TABLES.glob("*.tsv")))


def table_rows(name: str) -> list[tuple[int, str]]:
    """(id, label name) of a built-in table (see `table_names`), ids ascending, without 0."""
    if name in FREESURFER:
        return [(i, text.replace(" ", "_")) for i, text in sorted(freesurfer.NAMES.items()) if i]
    return csv_rows(TABLES / f"{name}.tsv", "table")


def read_label_map(
    path: Path | str, found: Iterable[int] | None = None, flag: str = "--label_map"
) -> tuple[Label, ...]:
    """Classes from a built-in table or from a file, background first.

    path: a name of `table_names`; JSON {"name": id or [ids]} or {"id": "name"}; CSV or TSV with the columns id (in BIDS'
    dseg.tsv: index) and name; TOML of tissues (see `tissue_rows`).
    An id may be a colour, ``#rrggbb``. found: of a built-in table, which lists all there is, only these ids.
    Rows of equal name are fused. Id 0, or the name ``background``, is background. ValueError naming flag, file and row.
    """
    path, built_in = Path(path), str(path) in table_names()
    if built_in:
        wanted = None if found is None else set(found)
        rows = [(number, name) for number, name in table_rows(str(path)) if wanted is None or number in wanted]
    else:
        rows = _file_rows(path, flag)
    sources: dict[str, list[int]] = {"background": [0]}
    seen: dict[int, str] = {0: "background"}
    for number, name in rows:
        name = "background" if number == 0 or name.lower() == "background" else name
        if seen.setdefault(number, name) != name:
            raise ValueError(f"{flag} {path}: id {number} is both {seen[number]!r} and {name!r}")
        ids = sources.setdefault(name, [])
        if number not in ids:
            ids.append(number)
    return tuple(Label(i, name, tuple(sorted(ids))) for i, (name, ids) in enumerate(sources.items()))


def _file_rows(path: Path, flag: str) -> list[tuple[int, str]]:
    kinds = (".json", ".csv", ".tsv", ".toml")
    if path.suffix not in kinds or not path.is_file():
        raise ValueError(
            f"{flag} {path}: must be an existing {', '.join(kinds[:-1])} or {kinds[-1]} file, or one of "
            f"{', '.join(table_names())}"
        )
    if path.suffix == ".json":
        return _json_rows(path, flag)
    if path.suffix == ".toml":
        try:
            rows = tissue_rows(path)
        except ValueError as error:
            raise ValueError(f"{flag} {error}") from None
        return [(number, "background" if section == "none" else section) for number, section, _ in rows]
    return csv_rows(path, flag)


def _json_rows(path: Path, flag: str) -> list[tuple[int, str]]:
    data = read_json(path)
    try:
        if all(str(key).isdigit() for key in data):
            return [(int(key), str(name)) for key, name in data.items()]
        return [
            (int(_whole(i)), str(name)) for name, ids in data.items() for i in (ids if isinstance(ids, list) else [ids])
        ]
    except (TypeError, ValueError, AttributeError):
        raise ValueError(f'{flag} {path}: expected {{"name": id or [ids]}} or {{"id": "name"}}') from None


def csv_rows(path: Path, flag: str) -> list[tuple[int, str]]:
    """(id, name) of the rows of a .csv or .tsv file, columns id (or index) and name; ValueError names file and line."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        columns = [name for name in ("index", "id") if name in (reader.fieldnames or ())]
        if not columns or "name" not in (reader.fieldnames or ()):
            raise ValueError(f"{flag} {path}: needs the columns id (or index) and name, found {reader.fieldnames}")
        rows = []
        for row in reader:
            number, name = str(_whole((row[columns[0]] or "").strip())), (row["name"] or "").strip()
            if not number.isdecimal() or name in ("", "n/a"):
                raise ValueError(
                    f"{flag} {path}: line {reader.line_num}: {columns[0]} {number!r}, name {name!r}; must be a whole "
                    "number of 0 or more and a name"
                )
            rows.append((int(number), name))
        return rows


def _whole(entry: Any) -> Any:
    """A colour ``#rrggbb`` as the id that it has in colour-coded label maps, anything else as it is."""
    coded = isinstance(entry, str) and re.fullmatch(r"#[0-9A-Fa-f]{6}", entry)
    return int(entry[1:], 16) if coded else entry


def tissue_rows(path: Path) -> list[tuple[int, str, str]]:
    """(id, section, structure) of a TOML table of tissues: GM, WM, CSF, none of ``"structure" = [ids, "first-last"]``.

    Ids of none are known, but no brain tissue. ValueError names file and entry.
    """
    data = read_toml(path, "label table")
    rows: list[tuple[int, str, str]] = []
    names: dict[int, str] = {}
    for section, structures in data.items():
        if section not in (*TISSUES, "none") or not isinstance(structures, dict):
            raise ValueError(f"{path}: section {section!r}: must be one of {', '.join(TISSUES)}, none")
        for name, entries in structures.items():
            for number in _numbers(path, name, entries):
                if number in names:
                    raise ValueError(f"{path}: id {number} is both {names[number]!r} and {name!r}")
                names[number] = name
                rows.append((number, section, name))
    return rows


def _numbers(path: Path, name: str, entries: Any) -> list[int]:
    numbers: list[int] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        span = re.fullmatch(r"(\d+)-(\d+)", entry) if isinstance(entry, str) else None
        if span is not None and int(span[1]) <= int(span[2]):
            numbers += range(int(span[1]), int(span[2]) + 1)
        elif isinstance(entry, int) and not isinstance(entry, bool) and entry > 0:
            numbers.append(entry)
        else:
            raise ValueError(f'{path}: {name} = {entries!r}: must be positive ids or "first-last"')
    return numbers


def header_names(header: Any) -> dict[int, str]:
    """Label names that a NIfTI header holds, as TotalSegmentator and Connectome Workbench write them; {} for none."""
    names: dict[int, str] = {}
    for extension in getattr(header, "extensions", ()):
        for key, quoted, plain in _HEADER_LABEL.findall(extension.content):  # the bytes, of any kind of extension
            text = quoted.decode(errors="replace") if quoted else html.unescape(plain.decode(errors="replace"))
            names[int(key)] = text.strip()
    return {number: name for number, name in names.items() if name}


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
