"""What the ids of label maps from elsewhere mean to a trained run: by their names, or by the ids of its training.

Ids that fit prove nothing: 3 may be a kidney in one table and cortex in another. So a table that comes with a map counts
more than its numbers, and numbers are never taken for the run's class ids unless the user says that they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import nibabel as nib

from dataloaders.io.files import read_json
from dataloaders.io.manifest import FILE_NAME, Manifest
from dataloaders.io.nifti import NIFTI_SUFFIXES, stem
from dataloaders.io.spec import BACKGROUND, DataSpec, Label
from dataloaders.labelmaps.classes import plain
from dataloaders.labelmaps.labels import LabelTable, header_names, read_label_map, table_rows
from dataloaders.labelmaps.schemes import fitting_tables

LabelIds = Literal["auto", "source", "class"]
_SHOWN = 10  # ids listed in a message


@dataclass(frozen=True)
class Reading:
    """How the ids of a map become classes of the run. how: in words. table: the run's classes with the map's ids as sources.

    notes: what else the user should know, one line each.
    """

    how: str
    table: LabelTable
    notes: tuple[str, ...] = ()


def read_ids(
    path: Path,
    counts: Mapping[int, int],
    spec: DataSpec,
    given: Sequence[Label] | None = None,
    label_ids: LabelIds = "auto",
    lenient: bool = False,
) -> Reading:
    """Classes for the ids of the map `path`, with their voxels in `counts`.

    By name where a table is given (--label_map) or comes with the map (`names_beside`, `names_within`), else, and with
    ``source``, by the ids of the training's label maps; with ``class`` the ids are the run's own. ValueError naming ids
    that are no class, unless `lenient`, and where none is one.
    """
    names: dict[int, str] = {}
    if given is not None:
        names, how = names_of(given), "by name, with --label_map"
    elif label_ids == "auto" and (own := names_beside(path) or names_within(path)) is not None:
        names, how = own[0], f"by name, with {own[1]}"
    elif label_ids == "class":
        how = "as the run's class ids"
    else:
        how = "as ids of the training's label maps"
    labels = spec.labels
    if names:
        labels, unnamed = _by_name(names, spec)
        how += " (classes without names by id)" * bool(counts.keys() & unnamed)
    elif label_ids == "class":
        labels = tuple(replace(label, source=(label.id,)) for label in labels)
    table = LabelTable(labels, lenient)
    unknown, notes = table.unknown(counts), []
    if unknown:
        if not lenient or not counts.keys() - unknown.keys() - {BACKGROUND}:
            raise ValueError(f"{path}: {_advice(unknown, counts, names, spec, lenient, label_ids)}")
        notes.append(f"dropped to background, being no class of the run: {_listing(unknown, names)}")
    if not counts.keys() - {BACKGROUND}:
        raise ValueError(f"{path}: holds background only")
    if not names and label_ids == "auto" and _fits_classes(counts, spec) and any(_moved(i, table) for i in counts):
        notes.append(
            f"ids read {how}; --label_ids class would read them as the run's class ids 0 to {spec.num_labels - 1}"
        )
    if not names:  # fitting ids may mean something else: what they were taken for is to be seen
        taken = [f"{i} {label.name}" for label in labels[1:] for i in label.source if i in counts]
        how += ": " + ", ".join(taken[:_SHOWN]) + (f", … ({len(taken)} in all)" if len(taken) > _SHOWN else "")
    return Reading(how, table, tuple(notes))


def names_of(labels: Sequence[Label]) -> dict[int, str]:
    """Source id -> name."""
    return {i: label.name for label in labels for i in label.source}


def _by_name(names: Mapping[int, str], spec: DataSpec) -> tuple[tuple[Label, ...], set[int]]:
    """The run's classes with the ids of a table that bear their names.

    Classes that had no name in training (``label_55``) keep their ids, which are returned too.
    """
    ids = {plain(label.name): label.id for label in spec.labels}
    sources: dict[int, list[int]] = {label.id: [] for label in spec.labels}
    for number, name in names.items():
        if (found := ids.get(plain(name))) is not None:
            sources[found].append(number)
    named = {i for numbers in sources.values() for i in numbers}
    nameless = {i: label.id for label in spec.labels for i in label.source if label.name == f"label_{i}"}
    unnamed = nameless.keys() - named
    for number in unnamed:
        sources[nameless[number]].append(number)
    return tuple(replace(label, source=tuple(sources[label.id])) for label in spec.labels), unnamed


def _fits_classes(counts: Mapping[int, int], spec: DataSpec) -> bool:
    return max(counts) < spec.num_labels


def _moved(number: int, table: LabelTable) -> bool:
    return number != BACKGROUND and number not in table.labels[number].source


def _listing(unknown: Mapping[int, int], names: Mapping[int, str]) -> str:
    return _some([f"{i}{f' {names[i]}' if i in names else ''} ({n} voxels)" for i, n in sorted(unknown.items())])


def _some(parts: list[str]) -> str:
    return ", ".join(parts[:_SHOWN] + [f"… {len(parts) - _SHOWN} more"] * (len(parts) > _SHOWN))


def _advice(
    unknown: Mapping[int, int],
    counts: Mapping[int, int],
    names: Mapping[int, str],
    spec: DataSpec,
    lenient: bool,
    label_ids: LabelIds,
) -> str:
    listing, there = _listing(unknown, names), _some([label.name for label in spec.labels[1:]])
    what = "names" if names else "class ids" if label_ids == "class" else "source ids"
    text = f"no class of the run has the {what} {listing}; "
    text += "nothing else is in the map. " if lenient else "--unknown_labels background drops them, "
    text += f"--label_map FILE says which ids are its classes ({there})"
    if names and label_ids == "auto" and unknown.keys() <= {i for label in spec.labels for i in label.source}:
        text += "; if they are numbered as in the training's label maps, give --label_ids source without a table"
    known = {plain(label.name) for label in spec.labels}
    rows = {table: table_rows(table) for table in ([] if names else fitting_tables(counts))}
    fitting = [table for table in rows if all(plain(name) in known for i, name in rows[table] if i in counts)]
    if fitting:
        text += f"; all are classes in the table {' or '.join(fitting)}"
    if not names and label_ids != "class" and _fits_classes(counts, spec):
        text += f"; if they are the run's own class ids 0 to {spec.num_labels - 1}, give --label_ids class"
    return text


def names_within(path: Path) -> tuple[dict[int, str], str] | None:
    """Names by id in the header of a NIfTI file that can be read, as TotalSegmentator writes them; None without."""
    try:
        names = header_names(nib.load(path).header) if path.name.endswith(NIFTI_SUFFIXES) else {}
    except nib.spatialimages.HeaderDataError:  # damaged extensions, which cost nothing but the names
        names = {}
    return (names, "its header") if names else None


def names_beside(path: Path) -> tuple[dict[int, str], str] | None:
    """Names by id that lie beside a label map, and the name of their file; None where there are none.

    That is ``LabelMap`` of the .json file beside it (scripts/segment.py), ``dseg.tsv`` or ``*_dseg.tsv`` of BIDS beside it
    or above it up to the folder of the subjects or of the data set, or the manifest of the results folder that it is in.
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
    return None


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
    found = [table for table in folder.glob("*dseg.tsv") if table.name[0] != "." and _parts(table) <= entities]
    return sorted(found, key=lambda table: (-len(_parts(table)), table.name))


def _parts(table: Path) -> set[str]:
    return set(table.name.removesuffix(".tsv").split("_")) - {"dseg"}


@lru_cache(maxsize=16)
def _read_table(path: Path) -> tuple[Label, ...]:
    return read_label_map(path, flag="labels")


@lru_cache(maxsize=16)
def _classes_of(results: Path) -> tuple[Label, ...]:
    return Manifest.load(results, histograms=False).spec.labels
