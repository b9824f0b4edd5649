"""What the labels of maps are: schemes by name, from tables, prepared data or the values themselves; names of outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from dataloaders.labels import found_labels
from dataloaders.manifest import FILE_NAME, Manifest
from engine.files import read_json
from models.gmm import freesurfer
from models.gmm.labels import LabelScheme
from spec import BACKGROUND, DataSpec, Label


def scheme_of(values: Sequence[int], preset: str = "") -> LabelScheme:
    """What the values of the maps are: for the fetal preset FeTA's tissues or seeds, else FreeSurfer's or plain labels."""
    if preset == "fetal" and set(values) <= set(LabelScheme.feta().values):
        return LabelScheme.feta()
    if preset == "fetal" and all(value == 0 or 10 <= value < 50 for value in values):
        return LabelScheme.seeds(values)
    return LabelScheme.from_values(values)


def read_scheme(text: str, values: Iterable[int], preset: str = "") -> LabelScheme:
    """The scheme that a --scheme option names, for maps with these values.

    auto: see `scheme_of`. freesurfer, feta, seeds: that, or an error. X.json: fields of `LabelScheme`, of which only
    `values` must be there; n_neutral_labels may stand for partners. A folder with a manifest: values are the ids of its
    source maps, which become its labels. ValueError for everything else.
    """
    found = tuple(sorted(set(values)))
    if text == "auto":
        return scheme_of(found, preset)
    if text == "feta":
        return LabelScheme.feta()
    if text == "seeds":
        return LabelScheme.seeds(found)
    if text == "freesurfer":
        unknown = [value for value in found if freesurfer.name(value) is None]
        if unknown or not freesurfer.recognised(found):
            shown = ", ".join(map(str, unknown[:10])) or "1 (cerebral exterior)"
            raise ValueError(f"--scheme freesurfer: the maps hold {shown}, which FreeSurfer's segmentations do not")
        return LabelScheme.from_values(found)
    path = Path(text)
    if (path / FILE_NAME).is_file():
        return _scheme_of_spec(Manifest.load(path).spec)
    if path.suffix == ".json" and path.is_file():
        return _scheme_of_table(path)
    raise ValueError(
        f"--scheme {text}: must be auto, freesurfer, feta, seeds, an existing .json file or a prepared data folder"
    )


def _scheme_of_table(path: Path) -> LabelScheme:
    data = read_json(path)
    known = {f.name for f in fields(LabelScheme)} | {"n_neutral_labels"}
    if not isinstance(data, dict) or "values" not in data or not set(data) <= known:
        raise ValueError(f"--scheme {path}: must hold values, and may hold {', '.join(sorted(known - {'values'}))}")
    try:
        neutral = data.get("n_neutral_labels")
        lists = (data.get("classes"), data.get("outputs"), neutral, data.get("names"))
        scheme = LabelScheme.from_lists(data["values"], *lists)
        rest = {key: tuple(data[key]) for key in ("partners", "ties") if data.get(key) is not None}
        return replace(scheme, **rest)
    except (ValueError, TypeError) as error:
        raise ValueError(f"--scheme {path}: {error}") from None


def _scheme_of_spec(spec: DataSpec) -> LabelScheme:
    """Values are the ids of the source maps; intensity classes and outputs are the prepared labels."""
    rows = [(value, label) for label in spec.labels for value in label.source or (label.id,)]
    values, ids = [value for value, _ in rows], [label.id for _, label in rows]
    whole = LabelScheme.from_spec(spec)
    one_each = len(rows) == spec.num_labels
    return LabelScheme(
        tuple(values),
        tuple(label.name for _, label in rows),
        tuple(ids),
        tuple(ids),
        whole.partners if one_each else None,
    )


def output_labels(scheme: LabelScheme) -> tuple[Label, ...]:
    """Contiguous labels of the scheme's output values, background first; `source` is the output value."""
    names = {BACKGROUND: "background"}
    for value in sorted({*scheme.outputs} - {BACKGROUND}):
        name = re.sub(r"\W+", "_", _output_name(scheme, value)).strip("_")
        names[value] = f"{name}_{value}" if name in names.values() else name
    if len(names) < 2:
        raise ValueError("output_labels are all 0: there is nothing but background to write")
    return found_labels(names, names)


def _output_name(scheme: LabelScheme, value: int) -> str:
    """Of the label of that value, or of all that become it where they agree."""
    if value in scheme.values and scheme.outputs[scheme.values.index(value)] == value:
        return scheme.names[scheme.values.index(value)]
    names = {
        re.sub(r" cluster \d+$", "", name)
        for name, output in zip(scheme.names, scheme.outputs, strict=True)
        if output == value
    }
    known = freesurfer.name(value) if freesurfer.recognised(scheme.values) else None
    return names.pop() if len(names) == 1 else known or f"label {value}"
