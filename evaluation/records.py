"""What a results folder says about itself, checked when it is read: the types of everything that a report prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from dataloaders.io.schema import TEXT, decode

Number = float | None
Cell = str | bool | int | float | None
Object = dict[str, Any]

COUNTS = {"slices": int, "cases": int, "patients": int}
METRICS = {
    "n": Object,
    "metrics": dict[str, Object],
    "per_patient": dict[str, dict[str, Number]],
    "counts": dict[str, int],
    "per_label": list[dict[str, Cell]],
    "per_case": list[dict[str, Cell]],
    "settings": dict[str, str],
}
ENTRY = {
    "value": Number,
    "ci95": tuple[float, float] | None,
    "unit": str,
    "better": Literal["higher", "lower"] | None,
    "channel": str | None,
    "n_patients": int,
    "n": int,
    "slice_sd": Number,
    "floor": dict[str, Any] | float | None,
    "ceiling": Number,
    "reason": str,
    "note": str,
    "extractor": str,
}
PROVENANCE = {
    "name": str | None,
    "method": str | None,
    "checkpoint": str | int | None,
    "images_seen": int | None,
    "split": str | None,
    "seconds_per_slice": Number,
    "config": Object | None,
    "made_from": Object | None,
    "data_provenance": Object | None,
    "environment": dict[str, Cell] | None,
}


def check_provenance(provenance: Object) -> None:
    """ValueError where something that reports use has another type; what they do not know may be anything."""
    _known(PROVENANCE, provenance, "provenance")
    config = provenance.get("config") or {}
    _known({"seed": int | None}, config, "provenance.config")
    method = str(provenance.get("method"))
    _known({method: Object | None}, config, "provenance.config")
    _known({"options": Object | None}, provenance.get("data_provenance") or {}, "provenance.data_provenance")
    for key in ("name", "split", "method"):
        TEXT.of(str(provenance.get(key)), f"provenance.{key}")


def check_metrics(data: Any) -> None:
    """ValueError where metrics.json lacks something that reports use, or has it as another type."""
    data = decode(Object, data, "metrics.json")
    _known(METRICS, data, "metrics.json", ("n", "metrics", "per_patient"))
    _known(COUNTS, data["n"], "n", tuple(COUNTS))
    for key, entry in data["metrics"].items():
        _known(ENTRY, entry, f"metrics.{TEXT.of(key, 'metric')}", ("value",))
        floor = entry.get("floor")
        if isinstance(floor, dict):
            _known({"value": Number}, floor, f"metrics.{key}.floor")
        for text in ("unit", "channel", "reason", "note", "extractor"):
            TEXT.of(str(entry.get(text)), f"metrics.{key}.{text}")
    for patient in data["per_patient"]:
        TEXT.of(patient, "patient")


def _known(hints: Mapping[str, Any], value: Object, where: str, required: tuple[str, ...] = ()) -> None:
    """Keys that are not listed are those of other versions, and are let through."""
    absent = [key for key in required if key not in value]
    if absent:
        raise ValueError(f"{where}: {', '.join(absent)} missing")
    for key, hint in hints.items():
        if key in value:
            decode(hint, value[key], f"{where}.{key}")
