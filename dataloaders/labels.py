"""From source label ids to contiguous ids with names."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.files import read_json
from spec import Label


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
        table = np.zeros(
            max(int(source.max()), *(max(label.source, default=0) for label in self.labels)) + 1, np.uint16
        )
        for label in self.labels:
            table[list(label.source)] = label.id
        return table[source]


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


def read_label_map(path: Path) -> tuple[Label, ...]:
    """Classes from a table: JSON {"name": id or [ids]} or {"id": "name"}, or CSV/TSV with columns id and name.

    Rows of equal name are fused. Id 0, or the name ``background``, is background. ValueError naming file and row.
    """
    if path.suffix == ".json":
        rows = _json_rows(path)
    elif path.suffix in (".csv", ".tsv"):
        rows = _csv_rows(path)
    else:
        raise ValueError(f"--label_map {path}: must end in .json, .csv or .tsv")
    sources: dict[str, list[int]] = {"background": [0]}
    seen: dict[int, str] = {0: "background"}
    for number, name in rows:
        name = "background" if number == 0 else name
        if seen.setdefault(number, name) != name:
            raise ValueError(f"--label_map {path}: id {number} is both {seen[number]!r} and {name!r}")
        ids = sources.setdefault(name, [])
        if number not in ids:
            ids.append(number)
    return tuple(Label(i, name, tuple(sorted(ids))) for i, (name, ids) in enumerate(sources.items()))


def _json_rows(path: Path) -> list[tuple[int, str]]:
    data = read_json(path)
    try:
        if all(str(key).isdigit() for key in data):
            return [(int(key), str(name)) for key, name in data.items()]
        return [(int(i), str(name)) for name, ids in data.items() for i in (ids if isinstance(ids, list) else [ids])]
    except (TypeError, ValueError, AttributeError):
        raise ValueError(f'--label_map {path}: expected {{"name": id or [ids]}} or {{"id": "name"}}') from None


def _csv_rows(path: Path) -> list[tuple[int, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        if not {"id", "name"} <= set(reader.fieldnames or ()):
            raise ValueError(f"--label_map {path}: needs the columns id and name, found {reader.fieldnames}")
        try:
            return [(int(row["id"]), row["name"].strip()) for row in reader]
        except ValueError as error:
            raise ValueError(f"--label_map {path}: {error}") from None


def dataset_json_names(path: Path) -> dict[int, str]:
    """Label names of an nnU-Net dataset.json, either direction of its mapping; empty where there is none."""
    if not path.is_file():
        return {}
    names: dict[int, str] = {}
    for key, value in read_json(path).get("labels", {}).items():
        if str(key).isdigit():
            names[int(key)] = str(value)
        elif isinstance(value, int):
            names[value] = str(key)
    return names
