"""What a results folder says about itself, checked when it is read: the types of everything that a report prints.

Keys that are not listed are those of other versions, and are let through.
"""

from __future__ import annotations

from typing import (
    Any,
    Literal,
    Required,  # pydantic's own; that of Python 3.11 says too little
)

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from dataloaders.io.schema import Text, decode

Number = float | None
Cell = str | bool | int | float | None
Object = dict[str, Any]
OPEN = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


@with_config(OPEN)
class Counts(TypedDict):
    """Of what was scored."""

    slices: int
    cases: int
    patients: int


@with_config(OPEN)
class Floor(TypedDict, total=False):
    """What real images reach: a second scan of the same head, or other people."""

    of: Text
    value: Number
    ci95: tuple[float, float] | None
    n_patients: int
    n: list[int]
    range: tuple[float, float] | None
    splits: int
    matched: Number


@with_config(OPEN)
class Entry(TypedDict, total=False):
    """One metric."""

    value: Required[Number]
    ci95: tuple[float, float] | None
    unit: Text
    better: Literal["higher", "lower"] | None
    channel: Text | None
    n_patients: int
    n: int
    slice_sd: Number
    floor: Floor | float | None
    floor_passed: bool
    ceiling: Number
    reason: Text
    note: Text
    extractor: Text


@with_config(OPEN)
class Metrics(TypedDict, total=False):
    """metrics.json."""

    n: Required[Counts]
    metrics: Required[dict[Text, Entry]]
    per_patient: Required[dict[Text, dict[str, Number]]]
    counts: dict[str, int]
    per_label: list[dict[str, Cell]]
    per_case: list[dict[str, Cell]]
    settings: dict[str, str]


@with_config(OPEN)
class RunConfig(TypedDict, total=False):
    """Options of the training; those of the method have its name."""

    seed: int | None


@with_config(OPEN)
class DataProvenance(TypedDict, total=False):
    """How the data were prepared."""

    options: Object | None


@with_config(OPEN)
class Provenance(TypedDict, total=False):
    """Of a results folder's manifest."""

    name: Text | None
    method: Text | None
    checkpoint: str | int | None
    images_seen: int | None
    split: Text | None
    seconds_per_slice: Number
    config: RunConfig | None
    made_from: Object | None
    data_provenance: DataProvenance | None
    environment: dict[str, Cell] | None


@with_config(OPEN)
class MemoryRow(TypedDict):
    """One number of privacy.json."""

    measure: Text
    value: float
    low: Number
    high: Number
    p: Number
    without: float
    people: Text
    slices: Text


@with_config(OPEN)
class Memory(TypedDict):
    """privacy.json."""

    weights_sha256: str
    verdict: Text
    limits: list[Text]
    measures: list[MemoryRow]


def check_provenance(provenance: Object) -> None:
    """ValueError where something that reports use has another type; what they do not know may be anything."""
    decode(Provenance, provenance, "provenance")
    method = str(provenance.get("method"))
    decode(Object | None, (provenance.get("config") or {}).get(method), f"provenance.config.{method}")
