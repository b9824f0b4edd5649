"""The labels of a generator: which values a map can hold, their names, sides, intensity classes and outputs.

Legend: N labels, K intensity classes, S any number of spatial axes. "Label index" is the place of a value in
`LabelScheme.values`; every table here is indexed by it.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataloaders.io.spec import BACKGROUND, DataSpec, mirrored_name, plain_name
from models.gmm import freesurfer

Integers: TypeAlias = Sequence[int] | NDArray[Any] | Tensor
Role = Literal["cortex", "white_matter", "csf", "brain", "lesion"]

MAX_VALUE = 2**20  # tables have one entry per possible value
UNTIED_SEED = 40  # seed codes from here on are outside the brain, where clusters share no tissue
_SEED_TISSUES = {1: "csf", 2: "grey matter", 3: "white matter"}
_FETA = "background,external csf,cortical grey matter,white matter,ventricles,cerebellum,deep grey matter,brainstem"
# Cerebral cortex and white matter; those of the cerebellum look and sicken differently.
_ROLES = {
    "cortex": re.compile(
        r"^(?!.*cerebell).*(\bcortex\b|\bcortical gr[ea]y|(?<!deep )(?<!subcortical )\bgr[ea]y matter\b)"
    ),
    "white_matter": re.compile(r"^(?!.*cerebell).*\bwhite matter\b"),
    "csf": re.compile(r"\bcsf\b|cerebrospinal|\bventricles\b|\b(lateral|3rd|third|4th|fourth|5th|fifth) ventricle\b"),
    "lesion": re.compile(r"\blesions?\b|^(?!.*\bnon wm\b).*hypointensit|hyperintensit|\bwmsa\b"),
}


@dataclass(frozen=True)
class LabelScheme:
    """What a generator has to know of its label maps.

    values: every value that can occur in a map, in the order of the label indices.
    names: one per label, e.g. ``left cerebral cortex``.
    classes: intensity class of each label; the classes are 0..K-1 without gaps.
    outputs: value of each label in the output map; 0 drops it, equal values fuse labels.
    partners: label index of the same structure on the other side, the own index where a label has no side. None where
        the sides are unknown: such maps must never be flipped.
    ties: tissue of each class; the means of classes of one tissue lie near each other. None: classes are independent.
    colors: ``#rrggbb`` of each label for pictures, empty where there is none.

    ValueError, in one line, where these do not fit together.
    """

    values: tuple[int, ...]
    names: tuple[str, ...]
    classes: tuple[int, ...]
    outputs: tuple[int, ...]
    partners: tuple[int, ...] | None
    ties: tuple[int, ...] | None = None
    colors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("generation_labels is empty")
        double = [value for value, n in Counter(self.values).items() if n > 1]
        if double:
            raise ValueError(f"generation_labels lists {_join(double)} more than once")
        if min(self.values) < 0 or max(self.values) > MAX_VALUE:
            outside = [value for value in self.values if not 0 <= value <= MAX_VALUE]
            raise ValueError(f"generation_labels must lie in 0..{MAX_VALUE}, found {_join(outside)}")
        for what, entries in (
            ("names", self.names),
            ("generation_classes", self.classes),
            ("output_labels", self.outputs),
            ("colors", self.colors or self.values),
        ):
            if len(entries) != len(self.values):
                raise ValueError(f"{what} has {len(entries)} entries for {len(self.values)} generation_labels")
        if min(self.outputs) < 0:
            raise ValueError(f"output_labels must not be negative, found {min(self.outputs)}")
        missing = set(range(max(self.classes) + 1)) - set(self.classes)
        if missing or min(self.classes) < 0:
            fault = f"{_join(sorted(missing))} missing" if missing else f"found {min(self.classes)}"
            raise ValueError(f"generation_classes must be complete from 0 to K-1: {fault}")
        if self.partners is not None and (
            sorted(self.partners) != list(range(len(self.values)))
            or any(self.partners[other] != i for i, other in enumerate(self.partners))
        ):
            raise ValueError("partners must pair labels mutually: partners[partners[i]] == i for every label index i")
        if self.ties is not None and len(self.ties) != self.num_classes:
            raise ValueError(f"ties has {len(self.ties)} entries for {self.num_classes} classes")

    @property
    def num_labels(self) -> int:
        """Number of labels N."""
        return len(self.values)

    @property
    def num_classes(self) -> int:
        """Number of intensity classes K."""
        return max(self.classes) + 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class: that of its first label, (K)."""
        return tuple(self.names[self.classes.index(k)] for k in range(self.num_classes))

    @property
    def background(self) -> int | None:
        """Label index of value 0; None where no map holds it."""
        return self.values.index(BACKGROUND) if BACKGROUND in self.values else None

    @property
    def index_dtype(self) -> torch.dtype:
        """Smallest integer type that holds every label index and N, the mark of unknown values."""
        return next(t for t in (torch.uint8, torch.int16, torch.int32) if self.num_labels <= torch.iinfo(t).max)

    @classmethod
    def from_lists(
        cls,
        generation_labels: Integers,
        generation_classes: Integers | None = None,
        output_labels: Integers | None = None,
        n_neutral_labels: int | None = None,
        names: Sequence[str] | None = None,
    ) -> LabelScheme:
        """The aligned lists of lab2im and SynthSeg, with their meaning.

        generation_labels (N): in the order background, others without a side, all left, all right in the same order.
            Ids that FreeSurfer's table lacks among its own (`freesurfer.strangers`) have no side, with a warning.
        generation_classes (N): default one class per label. output_labels (N): default the labels themselves.
        n_neutral_labels: how many come before the first left label. Default: sides are found in `names` with left and
            right in them, without names in FreeSurfer's table where that applies, otherwise they stay unknown, and the maps
            will not be flipped (the predecessor flipped them without exchanging left and right). N, SynthSeg's default, is
            as good as none for FreeSurfer's ids.
        names (N): default FreeSurfer's where that table applies, otherwise "label 7".

        FreeSurfer ids with the left or right ones absent throughout, but 2 (cerebral white matter) present, are taken
        for maps in which both sides were fused: these may be flipped, and nothing is exchanged.
        ValueError: see the class; lists of fractional numbers; an odd number of labels with sides; n_neutral_labels that
        pairs labels which FreeSurfer's table, or `names`, know to be no pair.
        """
        values = _integers(generation_labels, "generation_labels")
        strange = freesurfer.strangers(values)
        known = strange is not None
        table_names = [freesurfer.NAMES.get(value) if known or value == BACKGROUND else None for value in values]
        default_names = (name or f"label {i}" for i, name in zip(values, table_names, strict=True))
        shown = tuple(default_names if names is None else names)
        if strange and names is None:
            warnings.warn(
                f"label maps: {_join(strange)} are no ids of FreeSurfer, as the others are; taken to have no side "
                "(a table of names tells: scheme)",
                stacklevel=2,
            )
        known_partners = named_partners(names) if names is not None else _table_partners(values) if known else None
        partners = known_partners
        if n_neutral_labels is not None:
            partners = _halves(len(values), n_neutral_labels)
            if known_partners is not None and names is None and n_neutral_labels == len(values):
                partners = known_partners
            elif known_partners is not None or (known and names is None and freesurfer.CEREBRUM & {*values}):
                _check_pairs(values, shown, partners, known_partners, n_neutral_labels)
        return cls(
            values=values,
            names=shown,
            classes=tuple(range(len(values)))
            if generation_classes is None
            else _integers(generation_classes, "generation_classes"),
            outputs=values if output_labels is None else _integers(output_labels, "output_labels"),
            partners=partners,
        )

    @classmethod
    def from_values(cls, values: Iterable[int]) -> LabelScheme:
        """Scheme of the values found in a set of maps: one class each, output as they are.

        FreeSurfer ids are put in the order of `from_lists`. Where only some of them lack their partner on the other
        side (a lesion on the left in every map), that partner is added, so that maps can still be flipped.
        """
        found = sorted(set(_integers(tuple(values), "values")))
        if freesurfer.strangers(found) is not None:
            others = {freesurfer.PARTNERS.get(value, value) for value in found}
            if any(other in found and freesurfer.PARTNERS.get(other, other) != other for other in others):
                found = sorted({*found, *others})
            return cls.from_lists(freesurfer.in_order(found))
        return cls.from_lists(found)

    @classmethod
    def from_spec(cls, spec: DataSpec) -> LabelScheme:
        """Scheme of prepared data: values are the label ids; names with left and right (lh, rh) are partners.

        Names that say no side at all are taken to have none; names made from a number (``label_7``) say nothing, so
        sides are unknown then, as they are where a left or a right name stands alone.
        """
        names = [label.name for label in spec.labels]
        ids = tuple(label.id for label in spec.labels)
        return cls(ids, tuple(names), tuple(range(len(ids))), ids, named_partners(names))

    @classmethod
    def feta(cls) -> LabelScheme:
        """The eight labels of the FeTA fetal brain challenge, 0 to 7; none has a side."""
        return cls.from_lists(range(8), n_neutral_labels=8, names=_FETA.split(","))

    @classmethod
    def seeds(cls, values: Iterable[int]) -> LabelScheme:
        """Scheme of fetal seed maps: codes 10·tissue + cluster, and 0, which is always listed.

        Each code is its own class, 0 is class 0. Tissues 1 CSF, 2 grey matter, 3 white matter tie the means of their
        clusters; codes from 40 on lie outside the brain and are untied. Output: the tissue, 0 outside the brain.
        Clusters have no sides. Source: FetalSynthSeg (Zalevskyi et al., MICCAI 2024) and fetalsyngen.
        """
        codes = sorted({BACKGROUND, *_integers(tuple(values), "seed codes")})
        wrong = [code for code in codes if 0 < code < 10]
        if wrong:
            raise ValueError(f"seed codes are 10·tissue + cluster or 0, found {_join(wrong)}")
        tissues = [code // 10 if code < UNTIED_SEED else code for code in codes]
        names = [f"{_SEED_TISSUES.get(code // 10, f'non-brain {code // 10}')} cluster {code % 10}" for code in codes]
        outputs = [tissue if tissue in _SEED_TISSUES else BACKGROUND for tissue in tissues]
        scheme = cls.from_lists(
            codes, output_labels=outputs, n_neutral_labels=len(codes), names=["background", *names[1:]]
        )
        return replace(scheme, ties=tuple(tissues))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; colours where there are any."""
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in fields.items() if key != "colors" or value}

    def index_table(self) -> Tensor:
        """Label index of every value 0..max(values), N where a value is not listed: (max + 1,) of `index_dtype`."""
        table = torch.full((max(self.values) + 1,), self.num_labels, dtype=self.index_dtype)
        table[list(self.values)] = torch.arange(self.num_labels).to(self.index_dtype)
        return table

    def output_table(self) -> Tensor:
        """Output value of each label, (N,) int32."""
        return torch.tensor(self.outputs, dtype=torch.int32)

    def to_index(self, label: Tensor) -> Tensor:
        """Label indices of a map of values: (*S) of an integer type -> (*S) of `index_dtype`, on the same device.

        ValueError naming the values that the scheme does not list, with their voxel counts. (The predecessors turn unknown
        values into background, without a word.)
        """
        if label.dtype not in (torch.int32, torch.int64):  # torch has no minimum of the others
            label = label.to(torch.int32 if label.dtype.itemsize <= 2 else torch.int64)
        table = self.index_table().to(label.device)
        lowest, highest = (int(value) for value in label.aminmax())
        if lowest >= 0 and highest < len(table):
            index = table.index_select(0, label.flatten().int()).view(label.shape)
            if int(index.max()) < self.num_labels:
                return index
        values, counts = label.unique(return_counts=True)  # slow, on the way to an error
        unknown = {v: n for v, n in zip(values.tolist(), counts.tolist(), strict=True) if v not in self.values}
        shown = [f"{value} ({n:,} voxels)" for value, n in unknown.items()]
        raise ValueError(f"label map has values that generation_labels does not list: {_join(shown)}")

    def role(self, name: Role) -> tuple[int, ...]:
        """Label indices that play a part, from their names; empty where no name fits.

        cortex and white_matter: those of the cerebrum. csf: fluid with the ventricles. lesion: lesions and white-matter
        hypointensities. brain: every label that is kept in the output.
        """
        if name == "brain":
            return tuple(i for i, output in enumerate(self.outputs) if output != BACKGROUND)
        return tuple(i for i, text in enumerate(self.names) if _ROLES[name].search(plain_name(text)))

    def add_lesion(self, value: int | None = None, output: int | None = None, name: str = "lesion") -> LabelScheme:
        """A new scheme with one more label, of its own class, without a side, as the last label index.

        value: default one above the highest. output: default the value. ValueError where the value is taken.
        """
        value = max(self.values) + 1 if value is None else value
        return LabelScheme(
            values=(*self.values, value),
            names=(*self.names, name),
            classes=(*self.classes, self.num_classes),
            outputs=(*self.outputs, value if output is None else output),
            partners=None if self.partners is None else (*self.partners, self.num_labels),
            ties=None if self.ties is None else (*self.ties, max(self.ties) + 1),
            colors=(*self.colors, "") if self.colors else (),
        )


def _integers(values: Integers, what: str) -> tuple[int, ...]:
    array = np.asarray(values)
    if array.ndim != 1 or not np.array_equal(array, np.round(array)):
        raise ValueError(f"{what} must be a flat list of whole numbers")
    return tuple(int(value) for value in array)


def _halves(n: int, neutral: int) -> tuple[int, ...]:
    """Partners of n labels of which the first have no side, and the second half of the rest mirrors the first."""
    if not 0 <= neutral <= n:
        raise ValueError(f"n_neutral_labels must lie in 0..{n}, the number of labels, found {neutral}")
    half, odd = divmod(n - neutral, 2)
    if odd:
        raise ValueError(
            f"{n} generation_labels less n_neutral_labels={neutral} leave {n - neutral}, an odd number: "
            "every left label needs its right one"
        )
    left, right = range(neutral, neutral + half), range(neutral + half, n)
    return (*range(neutral), *right, *left)


def _check_pairs(
    values: Sequence[int],
    names: Sequence[str],
    partners: Sequence[int],
    known_partners: Sequence[int] | None,
    neutral: int,
) -> None:
    """ValueError naming the first label whose partner by the order of a list is not the one by its name or id.

    known_partners: all partners by names or ids; None where some are absent, and single ids tell.
    """
    if known_partners is None:
        mirrored = [freesurfer.PARTNERS.get(value) for value in values]
        right = [values.index(m) if m in values else i for i, m in enumerate(mirrored)]
        known_partners = [k if m is not None else other for k, m, other in zip(right, mirrored, partners, strict=True)]
    for i, (other, right_one) in enumerate(zip(partners, known_partners, strict=True)):
        if other != right_one:
            one, two, known = (f"{values[k]} ({names[k]})" for k in (i, other, right_one))
            raise ValueError(
                f"n_neutral_labels {neutral}: pairs {one} with {two}, not with {known}; generation_labels must be those "
                "without a side, then left, then right in the order of the left ones; or leave n_neutral_labels out, as "
                "sides are known"
            )


def _table_partners(values: tuple[int, ...]) -> tuple[int, ...] | None:
    """Partners of FreeSurfer ids; identity where both sides were fused; None where some partners are absent."""
    other = {value: freesurfer.PARTNERS.get(value, value) for value in values}
    sided = [value for value in values if other[value] != value]
    present = [value for value in sided if other[value] in values]
    if len(present) == len(sided):
        return tuple(values.index(other[value]) for value in values)
    return tuple(range(len(values))) if not present and 2 in values else None


def named_partners(names: Sequence[str]) -> tuple[int, ...] | None:
    """Partners by the sides in names (`mirrored_name`); None where a name is only a number or its mirror image is absent."""
    plain = [plain_name(name) for name in names]
    if len(set(plain)) < len(plain) or any(re.fullmatch(r"((label|class) ?)?\d*", name) for name in plain):
        return None
    mirrored = [mirrored_name(name) for name in names]
    place = {name: i for i, name in enumerate(plain)}
    return tuple(place[name] for name in mirrored) if place.keys() >= set(mirrored) else None


def _join(items: Iterable[object], limit: int = 10) -> str:
    texts = [str(item) for item in items]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more
