"""manifest.json: what is in a prepared data folder or a results folder, and how to get back to the source scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from dataloaders.intensity import Window
from engine.files import check_name, read_json, write_json
from spec import DataSpec

SCHEMA = "medsis-manifest/1"
FILE_NAME = "manifest.json"
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Geometry:
    """The way from prepared slices back to the source grid.

    source_affine: (4, 4) voxel -> mm (RAS+) of the source file; source_shape: its (I, J, K).
    grid_affine, grid_shape: the RAS-oriented, possibly resampled grid that was sliced.
    crop: (row, column) of the slice image's first pixel in the full displayed plane of the grid; negative = padding.
    """

    source_affine: tuple[tuple[float, ...], ...]
    source_shape: tuple[int, int, int]
    grid_affine: tuple[tuple[float, ...], ...]
    grid_shape: tuple[int, int, int]
    crop: tuple[int, int]


@dataclass(frozen=True)
class Slice:
    """One slice; paths are relative to the manifest's folder.

    index: position along the slicing axis of the grid. label: label PNG. images: real image PNGs, one per channel
    (empty where there is no ground truth). generated: synthetic PNGs, one per channel (results folders only).
    filled: the real images with their lesions filled, one per channel (prepared with --fill; the images themselves where
    there is nothing to fill). histogram: pixels per label id.
    """

    index: int
    label: str
    images: tuple[str, ...] = ()
    generated: tuple[str, ...] = ()
    histogram: dict[int, int] = field(default_factory=dict)
    filled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One scan (a patient may have several). `windows` holds one intensity window per channel.

    sources: role (channel name or ``label``) -> {"file": name, "sha256": digest}. geometry is None for plain PNG folders.
    grey: mean and standard deviation of grey matter on the channel that tells lesion levels, in [-1, 1] (--fill).
    """

    id: str
    patient: str
    split: Split
    windows: tuple[Window, ...]
    slices: tuple[Slice, ...]
    geometry: Geometry | None = None
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    grey: tuple[float, float] | None = None


@dataclass(frozen=True)
class Manifest:
    """Spec, cases and provenance (options, versions, for results also method and checkpoint)."""

    spec: DataSpec
    cases: tuple[Case, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [case.id for case in self.cases]
        twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
        if twice:
            raise ValueError(f"case ids must be unique, these are not: {', '.join(twice[:5])}")

    def split(self, name: str) -> tuple[Case, ...]:
        """Cases of one split."""
        return tuple(case for case in self.cases if case.split == name)

    def save(self, folder: Path | str) -> None:
        """Write `<folder>/manifest.json` atomically."""
        spec = self.spec.to_dict()
        cases = [asdict(case) for case in self.cases]
        write_json(
            Path(folder) / FILE_NAME,
            {"schema": SCHEMA, "spec": spec, "cases": cases, "provenance": self.provenance},
        )

    @classmethod
    def load(cls, folder: Path | str) -> Manifest:
        """Read `<folder>/manifest.json`; ValueError where it is missing, of another schema or damaged."""
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise ValueError(f"{path}: not found; is {folder} a folder written by prepare_data.py or test.py?")
        data = read_json(path)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"{path}: schema {found!r}, this version reads {SCHEMA!r}")
        try:
            cases = tuple(case_from_dict(case) for case in data["cases"])
            return cls(DataSpec.from_dict(data["spec"]), cases, data["provenance"])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path}: damaged manifest ({type(error).__name__}: {error})") from None


def case_from_dict(data: dict[str, Any]) -> Case:
    """Inverse of `dataclasses.asdict` for one case."""
    geometry = data["geometry"]
    return Case(
        id=check_name(data["id"], "case id"),
        patient=data["patient"],
        split=data["split"],
        windows=tuple(Window(**window) for window in data["windows"]),
        slices=tuple(_slice_from_dict(item) for item in data["slices"]),
        geometry=None if geometry is None else _geometry_from_dict(geometry),
        sources=data["sources"],
        grey=(float(data["grey"][0]), float(data["grey"][1])) if data.get("grey") else None,
    )


def _slice_from_dict(data: dict[str, Any]) -> Slice:
    paths = [data["label"], *data["images"], *data["generated"], *data.get("filled", ())]
    for path in paths:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"manifest path {path!r} leaves the folder")
    return Slice(
        index=int(data["index"]),
        label=data["label"],
        images=tuple(data["images"]),
        generated=tuple(data["generated"]),
        histogram={int(key): int(value) for key, value in data["histogram"].items()},
        filled=tuple(data.get("filled", ())),
    )


def _geometry_from_dict(data: dict[str, Any]) -> Geometry:
    return Geometry(
        source_affine=affine_rows(data["source_affine"]),
        source_shape=tuple(int(v) for v in data["source_shape"]),  # type: ignore[arg-type]
        grid_affine=affine_rows(data["grid_affine"]),
        grid_shape=tuple(int(v) for v in data["grid_shape"]),  # type: ignore[arg-type]
        crop=(int(data["crop"][0]), int(data["crop"][1])),
    )


def affine_rows(affine: Sequence[Sequence[float]] | NDArray) -> tuple[tuple[float, ...], ...]:
    """A matrix as `Geometry` holds it."""
    return tuple(tuple(float(value) for value in row) for row in affine)


def slice_name(case_id: str, index: int, channel: int | None = None) -> str:
    """`<case>_z<slice>[_<channel>].png`, the channel as in nnU-Net: ``sub-07_z0093_0000.png``."""
    suffix = "" if channel is None else f"_{channel:04d}"
    return f"{case_id}_z{index:04d}{suffix}.png"
