"""What the ids of label maps from elsewhere mean to a trained run: by their names, or by the ids of its training.

Ids that fit prove nothing: 3 may be a kidney in one table and cortex in another. So a table that comes with a map counts
more than its numbers, and numbers are never taken for the run's class ids unless the user says that they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dataloaders.io.spec import BACKGROUND, DataSpec, Label, plain_name
from dataloaders.labelmaps.label_tables import table_rows
from dataloaders.labelmaps.labels import ClassTable, Names, labels_with, names_of
from dataloaders.labelmaps.schemes import fitting_tables

LabelIds = Literal["auto", "source", "class"]
_SHOWN = 10  # ids listed in a message


@dataclass(frozen=True)
class Reading:
    """How the ids of a map become classes of the run. how: in words. table: the run's classes with the map's ids as sources.

    notes: what else the user should know, one line each.
    """

    how: str
    table: ClassTable
    notes: tuple[str, ...] = ()


def classes_of_ids(
    path: Path,
    counts: Mapping[int, int],
    spec: DataSpec,
    given: Sequence[Label] | None = None,
    label_ids: LabelIds = "auto",
    lenient: bool = False,
) -> Reading:
    """Classes for the ids of the map `path`, with their voxels in `counts`.

    By name where a table is given (--label_map) or comes with the map (`labels_with`), else, and with ``source``, by the ids
    of the training's label maps; with ``class`` the ids are the run's own. ValueError naming ids that are no class, unless
    `lenient`, and where none is one.
    """
    names, how = _meaning(path, given, label_ids)
    labels = spec.labels
    if names:
        labels, unnamed = _by_name(names, spec)
        how += " (classes without names by id)" * bool(counts.keys() & unnamed)
    elif label_ids == "class":
        labels = tuple(replace(label, source=(label.id,)) for label in labels)
    table = ClassTable(labels, lenient)
    unknown, notes = table.unknown(counts), []
    # Where nobody says, they may as well be the run's own
    either = not names and label_ids != "class" and max(counts) < spec.num_labels
    if unknown:
        if not lenient or not counts.keys() - unknown.keys() - {BACKGROUND}:
            kind = "names" if names else "class ids" if label_ids == "class" else "source ids"
            only = ", and nothing else is in the map" if lenient else ""
            hints = [] if lenient else ["--unknown_labels background drops them"]
            hints.append(
                f"--label_map FILE says which ids are its classes ({_some([label.name for label in spec.labels[1:]])})"
            )
            if names and label_ids == "auto" and unknown.keys() <= names_of(spec.labels).keys():
                hints.append("--label_ids source, without a table, reads them as in the training's label maps")
            if not names and (fitting := _fitting(counts, spec)):
                hints.append(f"all are classes in the table {' or '.join(fitting)}")
            if either:
                hints.append(f"--label_ids class reads them as the run's own class ids 0 to {spec.num_labels - 1}")
            raise ValueError(
                f"{path}: no class of the run has the {kind} {_listing(unknown, names)}{only}; {'; '.join(hints)}"
            )
        notes.append(f"dropped to background, being no class of the run: {_listing(unknown, names)}")
    if not counts.keys() - {BACKGROUND}:
        raise ValueError(f"{path}: holds background only")
    if either and label_ids == "auto" and any(i != BACKGROUND and i not in labels[i].source for i in counts):
        notes.append(
            f"ids read {how}; --label_ids class would read them as the run's class ids 0 to {spec.num_labels - 1}"
        )
    if not names:  # fitting ids may mean something else: what they were taken for is to be seen
        taken = [f"{i} {label.name}" for label in labels[1:] for i in label.source if i in counts]
        how += ": " + ", ".join(taken[:_SHOWN]) + (f", … ({len(taken)} in all)" if len(taken) > _SHOWN else "")
    return Reading(how, table, tuple(notes))


def _meaning(path: Path, given: Sequence[Label] | None, label_ids: LabelIds) -> tuple[Names, str]:
    """Names of the map's ids, {} where the numbers count; and how its ids are read, in words."""
    if given is not None:
        return names_of(given), "by name, with --label_map"
    if label_ids == "auto" and (own := labels_with(path)) is not None:
        return names_of(own[0]), f"by name, with {own[1]}"
    return {}, "as the run's class ids" if label_ids == "class" else "as ids of the training's label maps"


def _by_name(names: Names, spec: DataSpec) -> tuple[tuple[Label, ...], set[int]]:
    """The run's classes with the ids of a table that bear their names.

    Classes that had no name in training (``label_55``) keep their ids, which are returned too.
    """
    ids = {plain_name(label.name): label.id for label in spec.labels}
    found = {i: ids[plain_name(name)] for i, name in names.items() if plain_name(name) in ids}
    nameless = {i: label.id for label in spec.labels for i in label.source if label.name == f"label_{i}"}
    unnamed = nameless.keys() - found.keys()
    found |= {i: nameless[i] for i in unnamed}
    labels = (replace(label, source=tuple(i for i in found if found[i] == label.id)) for label in spec.labels)
    return tuple(labels), unnamed


def _listing(unknown: Mapping[int, int], names: Names) -> str:
    return _some([f"{i}{f' {names[i]}' if i in names else ''} ({n} voxels)" for i, n in sorted(unknown.items())])


def _some(parts: list[str]) -> str:
    return ", ".join(parts[:_SHOWN] + [f"… {len(parts) - _SHOWN} more"] * (len(parts) > _SHOWN))


def _fitting(counts: Mapping[int, int], spec: DataSpec) -> list[str]:
    """The built-in tables in which all ids of a map are classes of the run."""
    known = {plain_name(label.name) for label in spec.labels}
    rows = {table: table_rows(table) for table in fitting_tables(counts)}
    return [table for table in rows if all(plain_name(row.name) in known for row in rows[table] if row.id in counts)]
