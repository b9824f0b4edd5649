"""What a segmenter tells apart: classes, and the class of every label of label maps and of prepared folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from config import Config
from dataloaders.io.files import read_json, read_toml
from dataloaders.io.schema import AtLeast0, Must, decode
from dataloaders.io.spec import BACKGROUND, DataSpec, Label, plain_name, sideless
from dataloaders.labelmaps.label_tables import id_list
from dataloaders.labelmaps.labels import ClassTable
from dataloaders.labelmaps.schemes import fitting_tables
from models.gmm import freesurfer
from models.gmm.scheme import LabelScheme

Levels = Annotated[tuple[float, float], Must("low and high in 0..255", lambda v: 0 <= v[0] <= v[1] <= 255)]
TISSUE_TABLES = ("csf-gm-wm", "gm-wm-csf")  # of `label_tables.BUILT_IN`: nothing but tissues
CLASSES = ("auto", "tissue", "structures")  # --segmenter.classes by name
MR_CONTRASTS: dict[str, dict[str, Sequence[float]]] = read_toml(Path(__file__).with_name("contrasts.toml"), "table")


@dataclass(frozen=True)
class Classes:
    """labels: classes, `source` holding the values of label maps. aliases: further names of labels -> class id.

    strict: every label must have a class; otherwise what no class lists is background. tissue: `source` holds FreeSurfer's
    ids, which count only where the labels are FreeSurfer's; labels that no name or id tells are refused. sides: labels
    that lie on both sides (corpus callosum), with ids beyond those of `labels`, and their left and right class.
    """

    labels: tuple[Label, ...]
    aliases: dict[str, int] = field(default_factory=dict)
    strict: bool = False
    tissue: bool = False
    sides: tuple[tuple[Label, int, int], ...] = ()

    def of_values(self, ids: NDArray[np.int32]) -> NDArray[np.uint16]:
        """Class ids of a label map's values; unlisted ones are background. ValueError for these where strict."""
        found = np.unique(ids).tolist()
        if self.strict:
            self._refuse({value for value in found if value and value not in self._values()})
        if self.tissue and any(found) and freesurfer.strangers(found) is None:
            self._refuse({value for value in found if value})
        return self.placed(ClassTable((*self.labels, *(label for label, _, _ in self.sides))).apply(ids))

    def placed(self, label: NDArray) -> NDArray:
        """A map (*S) of class ids with every label of `sides` as the nearest of its two classes, left where neither is."""
        for both, left, right in self.sides:
            own = label == both.id
            if not own.any():
                continue
            label = np.where(own, left, label)
            either = ((label == left) & ~own) | (label == right)
            if either.any():
                nearest = ndimage.distance_transform_edt(~either, return_distances=False, return_indices=True)
                label[own] = label[tuple(axis[own] for axis in nearest)]
        return label

    def of_labels(self, labels: Sequence[Label]) -> NDArray[np.uint16]:
        """Table label id -> class id, for a manifest's labels: by name, else by the source values if these agree."""
        table = np.zeros(max(label.id for label in labels) + 1, np.uint16)
        values, names, unknown = self._values(), self.names(), set()
        if self.tissue and freesurfer.strangers(value for label in labels for value in label.source) is None:
            values = {}
        for label in labels:
            of_sources = {values.get(value, -1) for value in label.source}
            if label.id == BACKGROUND:
                continue
            if (found := names.get(plain_name(label.name))) is not None:
                table[label.id] = found
            elif len(of_sources) == 1 and -1 not in of_sources:
                table[label.id] = of_sources.pop()
            else:
                unknown.add(label.name)
        if self.strict or (self.tissue and not table.any()):
            self._refuse(unknown, {value for label in labels for value in label.source})
        return table

    def of_scheme(self, scheme: LabelScheme) -> LabelScheme:
        """The scheme with classes as its outputs; labels whose output is 0 stay dropped.

        strict: by its outputs. Otherwise by the maps' values, else by names; tissue by names alone, which FreeSurfer's ids
        have where they are.
        """
        values, names = self._values(), self.names() if self.tissue else self.aliases
        outputs, unknown = [], set()
        for value, name, output in zip(scheme.values, scheme.names, scheme.outputs, strict=True):
            found = names.get(plain_name(re.sub(r" cluster \d+$", "", name)))
            if BACKGROUND in (value, output):
                found = BACKGROUND
            elif self.strict:
                found = values.get(output)
            elif not self.tissue:
                found = values.get(value, found or BACKGROUND)
            outputs.append(found or BACKGROUND)
            if found is None:
                unknown.add(value if name == f"label {value}" else f"{value} ({name})")
        if unknown and (self.strict or self.tissue):
            self._refuse(unknown, scheme.values)
        return replace(scheme, outputs=tuple(outputs))

    def _values(self) -> dict[int, int]:
        listed = (*self.labels, *(label for label, _, _ in self.sides))
        return {BACKGROUND: BACKGROUND} | {value: label.id for label in listed for value in label.source}

    def names(self) -> dict[str, int]:
        """Class id by plain name (`plain_name`), of labels and aliases."""
        return {plain_name(label.name): label.id for label in self.labels} | self.aliases

    def _refuse(self, unknown: Iterable[int | str], values: Iterable[int] = ()) -> None:
        """ValueError for labels without a class, if there are any. values: all of the maps', which tables may name."""
        if not (unknown := set(unknown)):
            return
        shown = ", ".join(map(str, sorted(unknown, key=str)[:10]))
        shown += f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        there = f"the classes are {', '.join(label.name for label in self.labels)}"
        if not self.tissue:
            raise ValueError(
                f"labels without a class: {shown}; {there}. Give --segmenter.classes a .json file that lists them, or tissue"
            )
        table = " or ".join(fitting_tables(values, TISSUE_TABLES)) if values else ""
        table = table or "a table of their names (.tsv, .csv, .json)"
        raise ValueError(
            f"labels that are no tissue by FreeSurfer's ids or by name: {shown}; {there}. Say what they are: "
            f"--segmenter.scheme {table} for label maps, --label_map {table} in prepare_data.py; or give "
            "--segmenter.classes a .json file"
        )


def tissue_classes() -> Classes:
    """CSF, grey and white matter of FreeSurfer's ids and names, or of labels named so; lesions count as white matter.

    What FreeSurfer's table names beside the brain is background.
    """
    return _named_classes("tissue_classes.toml")


def structure_classes() -> Classes:
    """Thirty-two structures, left and right, of FreeSurfer's ids and names; the cortex and its white matter are one each."""
    return _named_classes("structure_classes.toml")


def _named_classes(file: str) -> Classes:
    labels = [Label(0, "background", (0,))]
    aliases = {plain_name(name): BACKGROUND for name in freesurfer.NAMES.values()}
    aliases |= {f"non brain {code}": BACKGROUND for code in range(4, 10)} | {"non brain": BACKGROUND}
    sides: list[tuple[Label, int, int]] = []
    for i, (name, entry) in enumerate(read_toml(Path(__file__).with_name(file), "table").items(), 1):
        values = tuple(id_list(entry["ids"], name))
        if entry.get("both_sides"):
            ids = {label.name: label.id for label in labels}
            sides.append((Label(i, name, values), ids[f"left {name}"], ids[f"right {name}"]))
        else:
            labels.append(Label(i, name, values))
        # Its own name first of all: FreeSurfer calls something outside the brain "cerebellum exterior" too.
        names = [name, *entry.get("names", ()), *(freesurfer.NAMES[value] for value in values)]
        aliases |= dict.fromkeys(map(plain_name, names), i)
    return Classes(tuple(labels), aliases, tissue=True, sides=tuple(sides))


def inlined(flag: str, text: str, names: Sequence[str]) -> str:
    """The text of an option, one of `names`, or in its file's place the content of a .json file, so that a checkpoint needs
    no file. ValueError, which names the flag, for anything else.
    """
    if text in names or text.startswith("{"):
        return text
    path = Path(text)
    if path.suffix != ".json" or not path.is_file():
        raise ValueError(f"{flag} {text}: must be {', '.join(names)} or an existing .json file")
    return json.dumps(read_json(path))


def read_classes(text: str, labels: Sequence[Label]) -> Classes:
    """What --segmenter.classes names: auto for `labels`, tissue, or the content of a .json file (`inlined`).

    That is {class name: [values of label maps and names of labels]}; what it does not list is background.
    ValueError where it is not.
    """
    if text == "auto":
        return Classes(tuple(labels), strict=True)
    if text in ("tissue", "structures"):
        return tissue_classes() if text == "tissue" else structure_classes()
    data = decode(dict[str, list[AtLeast0 | str]], json.loads(text), "--segmenter.classes")
    found = [Label(0, "background", (0,))]
    aliases: dict[str, int] = {}
    owner: dict[int | str, str] = {}
    for name, listed in data.items():
        if plain_name(name) == "background":
            continue
        values = tuple(entry for entry in listed if isinstance(entry, int))
        names = [plain_name(entry) for entry in listed if isinstance(entry, str)]
        entries: list[int | str] = [*values, *names]
        for entry in entries:
            if owner.setdefault(entry, name) != name:
                raise ValueError(f"--segmenter.classes: {entry} is in both {owner[entry]} and {name}")
        aliases |= dict.fromkeys(names, len(found))
        found.append(Label(len(found), name, values))
    if len(found) < 2:
        raise ValueError("--segmenter.classes: names no class beside background")
    return Classes(tuple(found), aliases)


def contrast_means(
    text: str, labels: Sequence[Label], scheme: LabelScheme, default: tuple[float, float]
) -> NDArray[np.float32] | None:
    """Ranges of class means of a generator, (2R, K): low and high for each of R contrasts; None for any contrast.

    scheme: its outputs are class ids. A contrast may also name structures, both sides at once, whose ranges then count
    instead of their class's. default: low and high of what a contrast does not name. ValueError for contrasts that name
    what is neither a class nor a structure, or ranges that are none.
    """
    if text == "any":
        return None
    ids = {plain_name(label.name): label.id for label in labels}
    structures = [sideless(scheme.names[scheme.classes.index(k)]) for k in range(scheme.num_classes)]
    outputs = [scheme.outputs[scheme.classes.index(k)] for k in range(scheme.num_classes)]
    rows = []
    for contrast, means in _contrasts(text).items():
        ranges = {plain_name(name): values for name, values in means.items()}
        if contrast not in MR_CONTRASTS and (unknown := sorted(set(ranges) - set(ids) - set(structures))):
            there = ", ".join(label.name for label in labels)
            raise ValueError(f"--segmenter.contrasts: {contrast}: no class {', '.join(unknown)}; there are {there}")
        of_class = {ids[name]: values for name, values in ranges.items() if name in ids}
        found = [
            ranges[name] if name in ranges and name not in ids else of_class.get(output, default)
            for name, output in zip(structures, outputs, strict=True)
        ]
        rows += [[values[end] for values in found] for end in (0, 1)]
    if not rows:
        raise ValueError("--segmenter.contrasts: names no contrast")
    return np.array(rows, np.float32)


def _contrasts(text: str) -> dict[str, dict[str, Sequence[float]]]:
    if text == "mr":
        return MR_CONTRASTS
    if text in MR_CONTRASTS:
        return {text: MR_CONTRASTS[text]}
    return decode(dict[str, dict[str, Levels]], json.loads(text), "--segmenter.contrasts")


def apart(text: str, labels: Sequence[Label]) -> set[str]:
    """Structures, without their side, that contrasts give ranges of their own beside the classes `labels`."""
    given = set() if text == "any" else {plain_name(name) for means in _contrasts(text).values() for name in means}
    return given - {plain_name(label.name) for label in labels}


def trained_classes(config: Config, spec: DataSpec) -> Classes:
    """The classes of a trained network: those of its spec, with the further names that its options gave them."""
    text = config.segmenter.classes
    return replace(read_classes(text, spec.labels), labels=spec.labels)


def ras_spacing(spec: DataSpec) -> tuple[float, float, float]:
    """mm along right-left, front-back, head-foot of a spec; without an axis its slices count as axial."""
    (rows, columns), between = spec.spacing, spec.slice_spacing
    return {
        "axial": (columns, rows, between),
        "coronal": (columns, between, rows),
        "sagittal": (between, columns, rows),
    }[spec.axis or "axial"]
