"""What the data are: labels, channels, size and spacing. Imported by every folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.schema import COLOR, NAME, TEXT, decode

Axis = Literal["axial", "coronal", "sagittal"]

# Label 0 always means "nothing of the body here": air in CT, background in MR.
BACKGROUND = 0
LESION = "lesion"  # name of the class of lesions
LEVEL_CHANNELS = ("FLAIR", "T2w", "PDw")  # scans on which MS lesions are bright, the clearest first
# Organs that one side alone has, or that its tables list of one side alone: they keep their label in a mirror.
_ONE_SIDED = re.compile(r"\bmiddle lobe\b|\batrial appendage\b")
# left kidney, LeftKidney, KidneyLeft; ctx-lh-cuneus (FreeSurfer); Hippocampus_L, L_V1_ROI (AAL, HCP)
_SIDE = re.compile(
    r"(?<![^\W_])(?i:left|right|[lr]h(?![^\W_]))|(?<=[a-z])(?:Left|Right)(?![a-z])|^[LlRr](?=[\W_])|(?<=[\W_])[LlRr]$"
)
_OTHER_SIDE = {"left": "right", "right": "left", "lh": "rh", "rh": "lh", "l": "r", "r": "l"}


@dataclass(frozen=True)
class Label:
    """One class of the label maps.

    id: contiguous id in the prepared label images, 0 is background.
    name: the name shown in reports, e.g. ``white_matter``.
    source: ids of the original label maps that became this class (empty where the class was made by us).
    color: ``#rrggbb`` of the table that names it, for pictures; empty where there is none.
    """

    id: int
    name: str
    source: tuple[int, ...] = ()
    color: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        TEXT.of(self.name, "label name")
        COLOR.of(self.color, f"colour of label {self.name!r}:")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the colour where there is one, so that data without are what they were."""
        return {key: value for key, value in asdict(self).items() if key != "color" or value}


SYNTHETIC = "synthetic"  # name of the channel of images that are painted from label maps: of any contrast


@dataclass(frozen=True)
class Channel:
    """One image channel: its name (``T1w``, ``CT``) and the physical unit of its intensities (``HU`` or ``a.u.``).

    The name becomes part of file names. ValueError for one that could not.
    """

    name: str
    unit: str = "a.u."

    def __post_init__(self) -> None:
        NAME.of(self.name, "channel name")
        TEXT.of(self.unit, "unit")


@dataclass(frozen=True)
class DataSpec:
    """The facts of a data set that shape a model.

    labels: classes, ``labels[i].id == i``; empty for images without label maps.
    channels: image channels in file order; empty for label maps without images.
    size: pixels (H, W) of a prepared slice.
    spacing: mm per pixel (row, column); (1, 1) where unknown.
    slice_spacing: mm between slices; 1 where unknown.
    axis: direction of slicing, None where unknown (a folder of PNG files).
    """

    labels: tuple[Label, ...]
    channels: tuple[Channel, ...]
    size: tuple[int, int]
    spacing: tuple[float, float] = (1.0, 1.0)
    slice_spacing: float = 1.0
    axis: Axis | None = None

    def __post_init__(self) -> None:
        ids = [label.id for label in self.labels]
        if ids != list(range(len(ids))) or len(ids) == 1:
            raise ValueError(f"labels need contiguous ids 0..N-1 with N >= 2, or none, got {ids}")
        if not self.channels and not self.labels:
            raise ValueError("a data set needs label maps or at least one image channel")
        if min(self.size) < 1 or min(*self.spacing, self.slice_spacing) <= 0:
            raise ValueError(f"size {self.size} and spacing {(*self.spacing, self.slice_spacing)} must be above 0")

    @property
    def num_labels(self) -> int:
        """Number of classes N, background included."""
        return len(self.labels)

    @property
    def num_channels(self) -> int:
        """Number of image channels C."""
        return len(self.channels)

    @property
    def level_channel(self) -> int:
        """The channel that tells how bright a lesion is: the first of `LEVEL_CHANNELS` there is, else channel 0."""
        return level_channel([channel.name for channel in self.channels])

    def label_id(self, name: str) -> int:
        """Id of the class of that name; ValueError listing what there is."""
        for label in self.labels:
            if label.name == name:
                return label.id
        raise ValueError(f"the data have no class named {name!r}: {', '.join(label.name for label in self.labels)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"labels": [label.to_dict() for label in self.labels]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DataSpec:
        """Inverse of `to_dict`; ValueError where something is missing, unknown or of another type."""
        return cast(DataSpec, decode(cls, data, "spec"))


def plain_name(name: str) -> str:
    """A name in lower case and single spaces, so that ``Label_1`` and ``label 1`` are the same."""
    return " ".join(re.split(r"[\W_]+", name.lower())).strip()


def mirrored_name(name: str) -> str:
    """The plain name of the same structure on the other side; of one that has no other, its own."""
    if _ONE_SIDED.search(plain_name(name)):
        return plain_name(name)
    return plain_name(_SIDE.sub(lambda found: _OTHER_SIDE[found[0].lower()], name))


def sideless(name: str) -> str:
    """The plain name without its side: ``Left-Thalamus``, ``Thalamus_L`` and ``lh.thalamus`` -> ``thalamus``."""
    return plain_name(name if _ONE_SIDED.search(plain_name(name)) else _SIDE.sub(" ", name))


def side_of(name: str) -> str:
    """``left``, ``right``, or nothing where the name has no side."""
    found = None if _ONE_SIDED.search(plain_name(name)) else _SIDE.search(name)
    return "" if found is None else {"l": "left", "r": "right"}[found[0][0].lower()]


def level_channel(names: Sequence[str]) -> int:
    """See `DataSpec.level_channel`."""
    return next((list(names).index(name) for name in LEVEL_CHANNELS if name in names), 0)


def flip_table(spec: DataSpec) -> NDArray[np.int64] | None:
    """Label ids after a left-right mirror: names of the two sides change places (`mirrored_name`). (N,) int64.

    None where columns are not left-right (sagittal slices): mirroring would turn patients face down.
    """
    if spec.axis == "sagittal":
        return None
    sided = {
        plain_name(label.name): label.id for label in spec.labels if mirrored_name(label.name) != plain_name(label.name)
    }
    return np.array([sided.get(mirrored_name(label.name), label.id) for label in spec.labels], np.int64)
