"""metrics.json as CSV files and as a table for the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataloaders.io.files import csv_text
from dataloaders.overview import counted

SUMMARY_FIELDS = (
    *("metric", "channel", "value", "ci95_low", "ci95_high", "unit", "better", "n", "floor", "floor_n"),
    *("floor_low", "floor_high", "floor_passed", "ceiling"),
    *("slice_sd", "extractor", "weights_sha256", "reason"),
)


def rows_csv(rows: Sequence[Mapping[str, Any]], fields: Sequence[str] = ()) -> str:
    """One line a row; fields: all of them in the order in which they appear, else. Empty where there is no number.

    PSNR of identical images is ``inf``.
    """
    fields = fields or list(dict.fromkeys(key for row in rows for key in row))
    found = ([row.get(field) for field in fields] for row in rows)
    return csv_text(fields, ([None if value != value else value for value in cells] for cells in found))


def summary_csv(result: dict[str, Any]) -> str:
    """One row a metric: value, interval, n, floor, or the reason why it is missing."""
    return rows_csv([_summary_row(key, entry) for key, entry in result["metrics"].items()], SUMMARY_FIELDS)


def _summary_row(key: str, entry: dict[str, Any]) -> dict[str, Any]:
    low, high = entry.get("ci95") or (None, None)
    floor = entry.get("floor") or {}
    floor_low, floor_high = floor.get("range") or floor.get("ci95") or (None, None)
    row = {
        "metric": key.partition("/")[0],
        "channel": entry.get("channel"),
        "ci95_low": low,
        "ci95_high": high,
        "n": entry.get("n", entry.get("n_patients")),
        "floor": floor.get("value"),
        "floor_low": floor_low,
        "floor_high": floor_high,
        "floor_n": min(floor["n"]) if "n" in floor else floor.get("n_patients"),
    }
    return entry | row


def format_table(result: dict[str, Any]) -> str:
    """Table for the console."""
    n = result["n"]
    by = result.get("settings", {}).get("patients")
    sizes = ", ".join(counted(n[f"{noun}s"], noun) for noun in ("slice", "case", "patient"))
    lines = [sizes + (f" (patients: {by})" if by else "")]
    width = max(len(key) for key in result["metrics"])
    for key, entry in result["metrics"].items():
        lines.append(f"  {key:<{width}}  {_value(key.partition('/')[0], entry)}")
    constant = result["counts"]["constant_images"]
    if constant:
        lines.append(f"  warning: {constant} generated images are constant")
    return "\n".join(lines)


def _value(name: str, entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return f"n/a  ({entry['reason']})"
    interval = f"  [{entry['ci95'][0]:.4g}, {entry['ci95'][1]:.4g}]" if entry.get("ci95") else ""
    floor = entry.get("floor") or {}
    beside = f"  n {entry['n']}" if "n_real" in entry else ""
    beside += f"  {_floor(entry, floor)}" if floor.get("value") is not None else ""
    beside += f"  ceiling {entry['ceiling']:.4g}" if entry.get("ceiling") is not None else ""
    unbiased = ", biased by n: trust the kernel distance" if entry.get("note", "").count("trust KID") else ""
    neither = "1 is as in the real images" if name.endswith("_ratio") else "neither high nor low is best"
    arrow = f"{entry['better']} is better" if entry["better"] else neither
    return f"{entry['value']:.4g} {entry['unit']}{interval}{beside}  ({arrow}{unbiased})"


def _floor(entry: dict[str, Any], floor: dict[str, Any]) -> str:
    matched = floor.get("matched")
    beside = "" if matched is None else f", there {matched:.4g}"
    spread = " [{:.4g}, {:.4g}]".format(*floor["range"]) if floor.get("splits", 1) > 1 else ""
    return f"floor {floor['value']:.4g}{spread}{beside}" + (", passed" if entry.get("floor_passed") else "")
