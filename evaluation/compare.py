"""Several results folders side by side: load, refuse what is not comparable, find who is best on which metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from config import METHODS
from dataloaders.io.files import naming, read_json
from dataloaders.io.manifest import FILE_NAME, SYNTHESIS, Case, Manifest, Slice
from dataloaders.io.png import read_png
from dataloaders.io.schema import decode
from dataloaders.io.spec import DataSpec
from dataloaders.overview import counted
from evaluation.catalog import SCHEMA
from evaluation.evaluate import evaluate_results
from evaluation.pairs import paired_slices, spacing_of
from evaluation.records import Metrics, check_provenance
from evaluation.statistics import PairedDifference, paired_difference

SAME = {"extractor": "another extractor", "weights_sha256": "other weights", "n": "another n", "n_patients": "other n"}
NOT_NAMED = "whole slices with their padding, by an earlier version"


@dataclass(frozen=True)
class Entrant:
    """One method's results: display name, folder, manifest and metrics."""

    name: str
    folder: Path
    manifest: Manifest
    metrics: dict[str, Any]

    @property
    def spec(self) -> DataSpec:
        """Labels, channels and size of the data."""
        return self.manifest.spec

    @property
    def provenance(self) -> dict[str, Any]:
        """What the results folder says of how it was made."""
        return self.manifest.provenance

    @property
    def method(self) -> str:
        """What --model was called, empty where nothing is known."""
        return str(self.provenance.get("method") or "")

    @property
    def fitted(self) -> bool:
        """In one pass over the data, without steps."""
        return self.method in METHODS and METHODS[self.method].fitted

    def part(self, name: str) -> dict[str, Any]:
        """A group of the provenance, empty where there is none."""
        found: dict[str, Any] | None = self.provenance.get(name)
        return found or {}

    @cached_property
    def slices(self) -> dict[tuple[str, int], tuple[Case, Slice]]:
        """(case id, slice index) -> case and slice, for the slices that were scored."""
        return {(case.id, item.index): (case, item) for case in self.manifest.cases for item in paired_slices(case)}

    def spacing(self, case: Case) -> tuple[float, float, float]:
        """(between slices, rows, columns) in mm of a case."""
        return spacing_of(case, self.spec.axis, (self.spec.slice_spacing, *self.spec.spacing))

    def slice(self, case_id: str, index: int) -> Slice:
        """One slice."""
        return self.slices[case_id, index][1]


def find_results(path: Path) -> Path:
    """`path` itself if it is a results folder, else its newest subfolder that is one."""
    if (path / FILE_NAME).is_file():
        return path
    inside = [p.parent for p in path.glob(f"*/{FILE_NAME}")] if path.is_dir() else []
    if not inside and (path / "metrics.json").is_file():
        raise ValueError(
            f"{path}: numbers of scripts/evaluate.py about two folders, without the images; only results folders of "
            f"test.py and generate.py, which have a {FILE_NAME}, can be compared"
        )
    if (path / SYNTHESIS).is_file():
        raise ValueError(
            f"{path}: volumes of test.py --labels, without real images to compare with; scripts/evaluate.py scores those "
            "that have real ones of the same file name"
        )
    if not inside:
        raise ValueError(f"{path}: no results here; test.py writes results/<name>/<which>/{FILE_NAME}")
    return max(inside, key=lambda p: (p / FILE_NAME).stat().st_mtime)


def load_entrants(paths: list[Path], weights: Path | None = None) -> list[Entrant]:
    """Results folders in the given order; metrics are computed where they are missing. ValueError unless comparable."""
    entrants: list[Entrant] = []
    for path in paths:
        folder = find_results(path)
        manifest = Manifest.load(folder)
        file = folder / "metrics.json"
        metrics = read_json(file) if file.is_file() else evaluate_results(folder, "auto", weights, progress=True)
        if not isinstance(metrics, dict) or "schema" not in metrics:
            raise ValueError(f"{file}: not the numbers of an evaluation")
        if metrics.get("schema") != SCHEMA:
            raise ValueError(
                f"{file}: schema {metrics.get('schema')!r}, this version reads {SCHEMA!r}; score the folder again with "
                f"scripts/evaluate.py --results {folder}"
            )
        with naming(folder / FILE_NAME, "damaged"):
            check_provenance(manifest.provenance)
        with naming(file, "damaged"):
            decode(Metrics, metrics, "metrics.json")
        if not any(paired_slices(case) for case in manifest.cases):
            raise ValueError(f"{folder / FILE_NAME}: no slice has both a real and a generated image")
        name = str(manifest.provenance.get("name") or folder.name)
        taken = [entrant.name for entrant in entrants]
        for other in (f"{name} ({folder.name})", f"{name} ({len(taken) + 1})"):
            name = other if name in taken else name
        entrants.append(Entrant(name, folder, manifest, metrics))
    for entrant in entrants[1:]:
        refuse_different(entrants[0], entrant)
    return entrants


def refuse_different(a: Entrant, b: Entrant) -> None:
    """ValueError unless numbers are comparable, on the same slices: same ids, labels, windows and real images."""
    pair = f"{a.folder} and {b.folder} cannot be compared"
    regions = [(entrant.metrics.get("settings") or {}).get("region", NOT_NAMED) for entrant in (a, b)]
    if regions[0] != regions[1]:
        raise ValueError(
            f"{pair}: scored over {regions[0]} and over {regions[1]}; score both again with scripts/evaluate.py --results"
        )
    for what in ("labels", "channels"):
        names = [[entry.name for entry in getattr(entrant.spec, what)] for entrant in (a, b)]
        if names[0] != names[1]:
            raise ValueError(f"{pair}: {what} {names[0]} and {names[1]}")
    for one, other in ((a, b), (b, a)):
        missing = sorted(one.slices.keys() - other.slices.keys())
        if missing:
            listed = ", ".join(f"{case} z{index}" for case, index in missing[:5]) + (", …" if len(missing) > 5 else "")
            raise ValueError(f"{pair}: {other.folder} lacks {counted(len(missing), 'slice')} of the other ({listed})")
    for key, (case, item) in a.slices.items():
        other_case, other_item = b.slices[key]
        where = f"{pair}: {case.id} z{item.index}"
        if case.windows != other_case.windows:
            raise ValueError(f"{where} has another intensity window")
        files = zip((item.label, *item.images), (other_item.label, *other_item.images), strict=True)
        if not all(_same_image(a.folder / one, b.folder / other) for one, other in files):
            raise ValueError(f"{where} has another label map or real image")


def _same_image(a: Path, b: Path) -> bool:
    return a.read_bytes() == b.read_bytes() or np.array_equal(read_png(a), read_png(b))


@dataclass(frozen=True)
class Row:
    """One metric in all methods: its entry in each metrics.json (None where absent), and who is best (None for ties).

    better: ``higher``, ``lower``, or None where neither is; then nobody is best either.
    differences: best minus each method over the patients, with interval and p-value (`paired_difference`); None for the
    best itself, where there are too few patients, and where the metric has no value per patient.
    incomparable: why nobody is called best although the values differ, e.g. features of different networks; else empty.
    """

    key: str
    entries: tuple[dict[str, Any] | None, ...]
    better: str | None
    unit: str
    channel: str | None
    best: int | None
    runner_up: int | None
    differences: tuple[PairedDifference | None, ...]
    incomparable: str = ""

    @property
    def metric(self) -> str:
        """Name without the channel."""
        return self.key.partition("/")[0]

    @property
    def values(self) -> tuple[float | None, ...]:
        """Value of each method, None where missing."""
        return tuple(None if entry is None else entry.get("value") for entry in self.entries)

    @property
    def measured(self) -> bool:
        """Whether any method has a value."""
        return any(value is not None for value in self.values)

    @property
    def difference(self) -> PairedDifference | None:
        """Best minus runner-up."""
        return None if self.runner_up is None else self.differences[self.runner_up]

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference to the runner-up leaves out zero."""
        interval = None if self.difference is None else self.difference.interval
        return interval is not None and (interval[0] > 0 or interval[1] < 0)

    def reason(self, i: int) -> str:
        """Why method i has no value."""
        entry = self.entries[i]
        return "not measured" if entry is None else str(entry.get("reason") or "no reason was written down")

    def reference(self, i: int, what: str) -> float | None:
        """``floor`` or ``ceiling`` of method i's entry: what real images get; None where there is none."""
        found = (self.entries[i] or {}).get(what)
        found = found.get("value") if isinstance(found, dict) else found
        return None if found is None else float(found)

    def matched(self, i: int) -> float | None:
        """Method i's value at as many images as the floor has, of a metric of sets; None where there is none."""
        floor = (self.entries[i] or {}).get("floor")
        return floor.get("matched") if isinstance(floor, dict) else None

    def passed(self, i: int) -> bool:
        """Whether method i is as good as its floor, so that the metric can no longer tell it from real images."""
        return bool((self.entries[i] or {}).get("floor_passed"))

    def references(self, what: str) -> set[float]:
        """All of them."""
        return {found for i in range(len(self.entries)) if (found := self.reference(i, what)) is not None}


def metric_rows(entrants: Sequence[Entrant]) -> list[Row]:
    """One row per metric, in the order of metrics.json but grouped by channel, what covers all channels first."""
    keys = dict.fromkeys(key for entrant in entrants for key in entrant.metrics["metrics"])
    channels = [None, *(channel.name for channel in entrants[0].spec.channels)]
    rows = [_row(key, entrants) for key in keys]
    return sorted(rows, key=lambda row: channels.index(row.channel) if row.channel in channels else len(channels))


def _row(key: str, entrants: Sequence[Entrant]) -> Row:
    entries = tuple(entrant.metrics["metrics"].get(key) for entrant in entrants)
    present = next(entry for entry in entries if entry is not None)
    better = present.get("better")
    known = [(e["value"], i) for i, e in enumerate(entries) if e is not None and e.get("value") is not None]
    ordered = sorted(known, key=lambda pair: pair[0], reverse=better == "higher")
    apart = _incomparable([entries[i] or {} for _, i in known])
    best = second = None
    if better is not None and len(ordered) > 1 and ordered[0][0] != ordered[1][0] and not apart:
        best, second = ordered[0][1], ordered[1][1]
    differences = tuple(
        None if best is None or i == best else _paired_difference(key, entrants[best], other)
        for i, other in enumerate(entrants)
    )
    unit, channel = present.get("unit") or "", present.get("channel")
    return Row(key, entries, better, unit, channel, best, second, differences, apart)


def _incomparable(entries: Sequence[dict[str, Any]]) -> str:
    """What keeps values apart: they were computed by other networks or from other numbers of samples."""
    found = [what for name, what in SAME.items() if len({str(entry.get(name)) for entry in entries}) > 1]
    return f"not compared: {', '.join(dict.fromkeys(found))}" if found else ""


def _paired_difference(key: str, best: Entrant, other: Entrant) -> PairedDifference | None:
    """Best minus other over the patients, who are the same, so their differences count; None for too few of them."""
    ours, theirs = best.metrics["per_patient"], other.metrics["per_patient"]
    found = paired_difference([ours[p].get(key) for p in ours], [theirs.get(p, {}).get(key) for p in ours])
    return found if found.interval is not None else None
