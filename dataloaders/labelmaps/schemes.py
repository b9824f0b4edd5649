"""What the labels of maps are: schemes by name, from tables, prepared data or the values themselves; names of outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dataloaders.io.files import read_json
from dataloaders.io.manifest import FILE_NAME, Manifest
from dataloaders.io.spec import BACKGROUND, Label, mirrored_name, plain_name
from dataloaders.labelmaps.lab2im import list_scheme
from dataloaders.labelmaps.label_tables import BUILT_IN, FREESURFER, READERS
from dataloaders.labelmaps.labels import common_labels, named_labels, read_label_table
from models.gmm import freesurfer
from models.gmm.scheme import LabelScheme, named_partners

_FIELDS = {f.name for f in fields(LabelScheme)} | {"n_neutral_labels"}


def read_scheme(
    text: str, values: Iterable[int], preset: str = "", flag: str = "--scheme", sources: Sequence[object] = ()
) -> LabelScheme:
    """The scheme that a --scheme option names, for maps with these values.

    auto: for the fetal preset FeTA's tissues or seeds, else FreeSurfer's, else labels by the names that come with all of
    `sources`, paths among other things (`labels.labels_with`), else plain ones. freesurfer, feta, seeds: that, or an error.
    Another name or file of `labels.read_label_table`: a table of names, where ids of one name share their class and output.
    X.json with `values`: fields of `LabelScheme`; n_neutral_labels may stand for partners. A folder with a manifest: values
    are the ids of its source maps, which become its labels. ValueError, which names the flag, for everything else.
    """
    found = tuple(sorted(set(values)))
    fetal = text == "auto" and preset == "fetal"
    if text == "feta" or (fetal and {*found} <= {*LabelScheme.feta().values}):
        return LabelScheme.feta()
    if text == "seeds" or (fetal and all(value == 0 or 10 <= value < 50 for value in found)):
        return LabelScheme.seeds(found)
    if text == "auto":
        paths = [source for source in sources if isinstance(source, Path)]
        if paths and freesurfer.strangers(found) is None and (labels := common_labels(paths)):
            return _scheme_of_names(labels, found, f"{paths[0]}: the table beside it or its header")
        return LabelScheme.from_values(found)
    if text in FREESURFER:
        unknown = [value for value in found if freesurfer.NAMES.get(value) is None]
        if unknown or not freesurfer.recognised(found):
            shown = ", ".join(map(str, unknown[:10])) or "1 (cerebral exterior)"
            raise ValueError(f"{flag} {text}: the maps hold {shown}, which FreeSurfer's segmentations do not")
        return LabelScheme.from_values(found)
    path = Path(text)
    if (path / FILE_NAME).is_file():
        labels = Manifest.load(path).spec.labels
        if not labels:
            raise ValueError(f"{flag} {text}: holds images without label maps; give a folder with label maps")
        return _scheme_of_labels(labels)
    if path.suffix == ".json" and path.is_file() and _is_scheme(read_json(path)):
        return _scheme_of_table(path, flag)
    if text in BUILT_IN or (path.is_file() and path.suffix in READERS):
        return _scheme_of_names(read_label_table(text, flag=flag), found, f"{flag} {text}")
    raise ValueError(
        f"{flag} {text}: must be auto, seeds, {', '.join(BUILT_IN)}, an existing table "
        f"({', '.join(READERS)}), or a prepared data folder"
    )


def scheme_of_options(
    o: Any,
    values: Callable[[], Iterable[int]],
    preset: str = "",
    sources: Sequence[object] = (),
    flag: str = "--",
) -> LabelScheme:
    """The scheme that a command's options say: --scheme, or SynthSeg's lists (`list_scheme`), --generation_labels first.

    values: gives those of the maps. flag: what the options' names begin with. ValueError, which names one, for options
    that do not fit, or not each other.
    """
    names = ("generation_labels", "generation_classes", "output_labels", "neutral_labels")
    lists = {name: getattr(o, name, None) for name in names}
    given = [name for name, value in lists.items() if value is not None]
    if not given:
        return read_scheme(o.scheme, values(), preset, f"{flag}scheme", sources)
    if lists["generation_labels"] is None:
        raise ValueError(f"{flag}{given[0]} needs {flag}generation_labels, whose order it follows")
    if o.scheme != "auto":
        raise ValueError(f"{flag}generation_labels and {flag}scheme {o.scheme} cannot both be given")
    try:
        return list_scheme(*lists.values())
    except ValueError as error:
        raise ValueError(f"{flag}{str(error).replace('n_neutral_labels', 'neutral_labels')}") from None


def fitting_tables(values: Iterable[int], among: Iterable[str] = ()) -> list[str]:
    """Built-in tables (`among` these, else all) that name every one of the values."""
    found = set(values) - {BACKGROUND}
    return [
        name
        for name in among or BUILT_IN
        if found <= {number for label in read_label_table(name) for number in label.source}
    ]


def _scheme_of_names(labels: Sequence[Label], found: Sequence[int], where: str) -> LabelScheme:
    """Of a table's classes; found: values of the maps, none of which the table may lack. () for all of the table."""
    ids = {number for label in labels for number in label.source}
    if unknown := [value for value in found if value not in ids]:
        fitting = fitting_tables(found)
        hint = f"; all are in {', '.join(fitting)}" if fitting else ""
        raise ValueError(f"{where}: does not name {', '.join(map(str, unknown[:10]))} of the maps{hint}")
    return _named_scheme(labels, found or sorted(ids))


def _named_scheme(labels: Sequence[Label], found: Sequence[int]) -> LabelScheme:
    """Of maps with the values `found`, by the names of labels that have them as sources; equal names are one class.

    The other side of what was found is listed too, so that maps can be mirrored.
    """
    seen = {plain_name(label.name) for label in labels if {*label.source} & {*found}}
    others = {
        i for label in labels if mirrored_name(label.name) in seen - {plain_name(label.name)} for i in label.source
    }
    wanted = {*found, BACKGROUND} | others
    kept = [label for label in labels if wanted & {*label.source}]
    kept = [replace(label, id=i, source=tuple(sorted(wanted & {*label.source}))) for i, label in enumerate(kept)]
    scheme = _scheme_of_labels(kept)
    return replace(scheme, outputs=tuple(kept[output].source[0] for output in scheme.outputs))


def _is_scheme(data: object) -> bool:
    """Whether the content of a .json file is the fields of a scheme rather than names of ids."""
    return not isinstance(data, dict) or not data or bool(set(data) & _FIELDS)


def _scheme_of_table(path: Path, flag: str) -> LabelScheme:
    data = read_json(path)
    if not isinstance(data, dict) or "values" not in data or not set(data) <= _FIELDS:
        raise ValueError(f"{flag} {path}: must hold values, and may hold {', '.join(sorted(_FIELDS - {'values'}))}")
    try:
        neutral = data.get("n_neutral_labels")
        lists = (data.get("classes"), data.get("outputs"), neutral, data.get("names"))
        scheme = LabelScheme.from_lists(data["values"], *lists)
        rest = {key: tuple(data[key]) for key in ("partners", "ties", "colors") if data.get(key) is not None}
        return replace(scheme, **rest)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{flag} {path}: {error}") from None


def _scheme_of_labels(labels: Sequence[Label]) -> LabelScheme:
    """Of prepared data's labels: values are the ids of the source maps, intensity classes and outputs are the labels."""
    rows = [(value, label) for label in labels for value in label.source or (label.id,)]
    ids = tuple(label.id for _, label in rows)
    members: list[list[int]] = [[] for _ in labels]
    for row, (_, label) in enumerate(rows):
        members[label.id].append(row)
    sides, partners = named_partners([label.name for label in labels]), None
    # Ids of one class are alike to a generator: in their order they pair with those of the other side
    if sides is not None and all(len(members[i]) == len(members[other]) for i, other in enumerate(sides)):
        pairs = {row: other for i, j in enumerate(sides) for row, other in zip(members[i], members[j], strict=True)}
        partners = tuple(pairs[row] for row in range(len(rows)))
    colors = tuple(label.color for _, label in rows)
    names = tuple(label.name for _, label in rows)
    return LabelScheme(
        tuple(value for value, _ in rows), names, ids, ids, partners, colors=colors if any(colors) else ()
    )


def output_labels(scheme: LabelScheme) -> tuple[Label, ...]:
    """Contiguous labels of the scheme's output values, background first; `source` is the output value."""
    names = {BACKGROUND: "background"}
    for value in sorted({*scheme.outputs} - {BACKGROUND}):
        name = re.sub(r"\W+", "_", _output_name(scheme, value)).strip("_")
        names[value] = f"{name}_{value}" if name in names.values() else name
    if len(names) < 2:
        raise ValueError("output_labels are all 0: there is nothing but background to write")
    colors: dict[int, str] = {}
    for value, color in zip(scheme.outputs, scheme.colors, strict=False):
        colors[value] = colors.get(value) or color
    return named_labels((value, name, colors.get(value, "")) for value, name in names.items())


def _output_name(scheme: LabelScheme, value: int) -> str:
    """Of the label of that value, or of all that become it where they agree."""
    if value in scheme.values and scheme.outputs[scheme.values.index(value)] == value:
        return scheme.names[scheme.values.index(value)]
    names = {
        re.sub(r" cluster \d+$", "", name)
        for name, output in zip(scheme.names, scheme.outputs, strict=True)
        if output == value
    }
    known = freesurfer.NAMES.get(value) if freesurfer.recognised(scheme.values) else None
    return names.pop() if len(names) == 1 else known or f"label {value}"
