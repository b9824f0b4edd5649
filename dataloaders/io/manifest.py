"""manifest.json: what is in a prepared data folder or a results folder, and how to get back to the source scan."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from numpy.typing import NDArray

from dataloaders.io.files import json_text, listed, naming, read_json, write_text
from dataloaders.io.intensity import Window
from dataloaders.io.schema import BELOW, AtLeast0, Must, Name, PathBelow, Text, decode
from dataloaders.io.spec import DataSpec

SCHEMA = "medsis-manifest/1"
FILE_NAME = "manifest.json"
SYNTHESIS = "synthesis.json"  # of folders of test.py --labels, which have no manifest
Split = Literal["train", "val", "test"]
PathOrNone = Annotated[str, Must("empty, or a path below the folder", lambda path: not path or BELOW.test(path))]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


_ALONE = {
    "label map": "images alone are for unpaired training, as --oasis.images_from (scripts/segment.py labels scans)",
    "image": "label maps alone are for test.py, and for training with --oasis.unpaired --oasis.images_from DIR",
}


@dataclass(frozen=True)
class Geometry:
    """The way from prepared slices back to the source grid.

    source_affine: (4, 4) voxel -> mm (RAS+) of the source file; source_shape: its (I, J, K); source_codes: its qform
    and sform codes, None where they are not known.
    grid_affine, grid_shape: the RAS-oriented, possibly resampled grid that was sliced.
    crop: (row, column) of the slice image's first pixel in the full displayed plane of the grid; negative = padding.
    """

    source_affine: tuple[tuple[float, ...], ...]
    source_shape: tuple[int, int, int]
    grid_affine: tuple[tuple[float, ...], ...]
    grid_shape: tuple[int, int, int]
    crop: tuple[int, int]
    source_codes: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice; paths are relative to the manifest's folder.

    index: position along the slicing axis of the grid. label: label PNG ("" where there is none). images: real image PNGs,
    one per channel (empty where there is no ground truth). generated: synthetic PNGs, one per channel (results folders).
    filled: the real images with their lesions filled, one per channel (prepared with --fill; the images themselves where
    there is nothing to fill). histogram: pixels per label id.
    """

    index: AtLeast0
    label: PathOrNone
    images: tuple[PathBelow, ...] = ()
    generated: tuple[PathBelow, ...] = ()
    histogram: dict[int, AtLeast0] = field(default_factory=dict)
    filled: tuple[PathBelow, ...] = ()


@dataclass(frozen=True)
class Case:
    """One scan (a patient may have several). `windows` holds one intensity window per channel.

    sources: role (channel name or ``label``) -> {"file": name, "sha256": digest}. geometry is None for plain PNG folders.
    grey: mean and standard deviation of grey matter on the channel that tells lesion levels, in [-1, 1] (--fill).
    """

    id: Name
    patient: Text
    split: Split
    windows: tuple[Window, ...]
    slices: tuple[Slice, ...]
    geometry: Geometry | None = None
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    grey: tuple[float, float] | None = None


@dataclass(frozen=True)
class Manifest:
    """Spec, cases and provenance (options, versions, for results also method and checkpoint).

    sums: pixels per split and label id where the slices' histograms were left out (see `load`).
    """

    spec: DataSpec
    cases: tuple[Case, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, dict[int, int]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """ValueError where cases do not fit the spec, or two have one name."""
        ids = [case.id for case in self.cases]
        twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
        if twice:
            raise ValueError(f"case ids must be unique, these are not: {', '.join(twice[:5])}")
        channels = self.spec.num_channels
        for case in self.cases:
            if len(case.windows) != channels:
                raise ValueError(f"case {case.id} has {len(case.windows)} windows for {channels} channels")
            for item in case.slices:
                if len(item.images) not in (0, channels) or len(item.generated) not in (0, channels):
                    raise ValueError(
                        f"case {case.id}, slice {item.index}: not one image for each of {channels} channels"
                    )
            if len({item.index for item in case.slices}) < len(case.slices):
                raise ValueError(f"case {case.id}: two slices have the same index")

    def split(self, name: str) -> tuple[Case, ...]:
        """Cases of one split."""
        return tuple(case for case in self.cases if case.split == name)

    def only(self, split: str, patients: Sequence[str]) -> Manifest:
        """Without the split's other patients; all of them for no names. Histograms must be there.

        ValueError for names of nobody in the split.
        """
        if not patients:
            return self
        there = {case.patient for case in self.split(split)}
        if unknown := sorted(set(patients) - there):
            raise ValueError(
                f"--only_patients {unknown[0]}: is not in the split {split!r}, which has "
                + ", ".join(listed(sorted(there), 5))
            )
        kept = (case for case in self.cases if case.split != split or case.patient in patients)
        return replace(self, cases=tuple(kept), sums={})

    def pixels(self, split: str) -> dict[int, int]:
        """Pixels per label id of one split."""
        if self.sums:
            return self.sums.get(split, {})
        total: Counter[int] = Counter()
        for case in self.split(split):
            for item in case.slices:
                total.update(item.histogram)
        return dict(total)

    def refuse_bare(self, root: Path, split: str, what: Literal["label map", "image"]) -> None:
        """ValueError where slices of the split have none of `what`: the first of them, and what they can be used for."""
        items = [item for case in self.split(split) for item in case.slices]
        bare = [item for item in items if not (item.label if what == "label map" else item.images)]
        if bare:
            some = "" if len(bare) == len(items) else f"{len(bare)} of "
            first = (bare[0].label, *bare[0].images)[what == "label map"]
            raise ValueError(
                f"{root}: {some}{len(items)} slices of the split {split!r} have no {what}, the first is {first}; "
                + _ALONE[what]
            )

    def save(self, folder: Path | str) -> None:
        """Write `<folder>/manifest.json` atomically."""
        write_text(Path(folder) / FILE_NAME, self.text())

    def text(self) -> str:
        """What `save` writes."""
        spec = self.spec.to_dict()
        cases = [asdict(case) for case in self.cases]
        return json_text({"schema": SCHEMA, "spec": spec, "cases": cases, "provenance": self.provenance})

    @classmethod
    def load(cls, folder: Path | str, histograms: bool = True) -> Manifest:
        """Read `<folder>/manifest.json`; ValueError where it is missing, of another schema or damaged.

        histograms: False leaves those of the slices empty, and keeps their sums. They are most of a large manifest, and
        training has no use for them.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise ValueError(f"{path}: not found; is {folder} a folder written by prepare_data.py or test.py?")
        reader = _Reader(histograms)
        data = read_json(path, reader)
        with naming(path, "damaged manifest"):
            listing = isinstance(data, dict) and isinstance(data.get("cases"), list)
            head = decode(_Head, {**data, "cases": []} if listing else data, "")
            cases = tuple(case if isinstance(case, Case) else decode(Case, case, "a case") for case in data["cases"])
            manifest = cls(head.spec, cases, head.provenance, reader.sums())
            if "inferred" not in manifest.provenance:  # whoever lays out a plain folder may do so by links
                _refuse_links_out(Path(folder), manifest.cases)
        return manifest


@dataclass(frozen=True)
class _Head:
    """What a manifest's file says beside its cases."""

    schema: Literal["medsis-manifest/1"]
    spec: DataSpec
    cases: tuple[Case, ...]
    provenance: dict[str, Any]


def _refuse_links_out(root: Path, cases: Sequence[Case]) -> None:
    """ValueError where a file that the manifest names is in truth a link to one elsewhere: it would be copied to results.

    The folder itself may be a link, and git-annex keeps contents in the repository's own store.
    """
    names: dict[str, set[str]] = {}
    for item in (item for case in cases for item in case.slices):
        for path in (item.label, *item.images, *item.generated, *item.filled):
            folder, _, name = path.rpartition("/")
            names.setdefault(folder, set()).add(name)
    inside = os.path.realpath(root) + os.sep
    for folder, wanted in names.items():
        place = root / folder
        if not place.is_dir():
            continue
        with os.scandir(place) as entries:
            links = [entry.path for entry in entries if entry.is_symlink() and entry.name in wanted]
        for path in [*links, *([] if folder == "" else [str(place)])]:
            target = os.path.realpath(path)
            if not target.startswith(inside) and "/.git/annex/objects/" not in target:
                raise ValueError(
                    f"{path} is a link that leaves the folder; copy what it points to, or make the whole folder a link"
                )


class _Reader:
    """While JSON is being read: each case at once as such, which takes a fifth of the memory.

    Histograms that are left out are summed; a case's own fields are read after its slices.
    """

    def __init__(self, histograms: bool) -> None:
        self.histograms = histograms
        self._of_case: dict[str, int] = {}
        self._of_split: dict[str, Counter[str]] = {}

    def __call__(self, found: dict[str, Any]) -> Any:
        if not self.histograms and "histogram" in found:
            with contextlib.suppress(AttributeError, TypeError):  # decode says what is wrong
                for label, count in found["histogram"].items():
                    self._of_case[label] = self._of_case.get(label, 0) + count
                found["histogram"] = {}
        if not isinstance(found.get("slices"), list):  # settings in the provenance may have a key of this name too
            return found
        self._of_split.setdefault(str(found.get("split")), Counter()).update(self._of_case)
        self._of_case = {}
        return decode(Case, found, f"case {found.get('id')!r}")

    def sums(self) -> dict[str, dict[int, int]]:
        """Pixels per split and label id."""
        return {split: {int(i): n for i, n in counts.items()} for split, counts in self._of_split.items() if counts}


def affine_rows(affine: Sequence[Sequence[float]] | NDArray) -> tuple[tuple[float, ...], ...]:
    """A matrix as `Geometry` holds it."""
    return tuple(tuple(float(value) for value in row) for row in affine)


def slice_name(case_id: str, index: int, channel: int | None = None) -> str:
    """`<case>_z<slice>[_<channel>].png`, the channel as in nnU-Net: ``sub-07_z0093_0000.png``."""
    suffix = "" if channel is None else f"_{channel:04d}"
    return f"{case_id}_z{index:04d}{suffix}.png"
