"""From rows of slices, labels and cases to metrics.json: values over patients with intervals, or the reason for none."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.catalog import (
    BY_CASE,
    BY_LABEL,
    DIVERSITY,
    EXTRA_SETTINGS,
    FAITHFULNESS,
    HIGHER_IS_BETTER,
    LABEL_SPREAD,
    LESION_CHANGE,
    LESION_VOLUMES,
    LESIONS,
    LPIPS,
    NETWORK,
    NO_DIRECTION,
    PAIRED,
    REASONS,
    SCHEMA,
    SETTINGS,
    SYNTHRAD,
    UNITS,
    WINDOWED,
)
from evaluation.metrics.faithfulness import mean_of_patient, pooled
from evaluation.metrics.feature_sets import HIGHER, RADIOMICS, names
from evaluation.metrics.lesions import volume_correlation
from evaluation.pairs import PER_VOLUME, Pairs
from evaluation.request import Networks, Request, about_extractor
from evaluation.scoring import Rows, Scores
from evaluation.statistics import MIN_PATIENTS, bootstrap_interval, nan_mean

Values = list[float]  # one a patient
PROVENANCE = ("name", "method", "checkpoint", "images_seen", "split")


class Summary:
    """Collects metrics in the order in which they are reported, with the values of every patient."""

    def __init__(self, pairs: Pairs, scores: Scores, request: Request, found: Networks) -> None:
        self.pairs, self.scores, self.request, self.found = pairs, scores, request, found
        self.patients = sorted({row["patient"] for row in scores.rows})
        own = [window for window in pairs.windows.values() if window == PER_VOLUME]
        self.note = f"no --window: {PER_VOLUME} stands for it" if own else ""
        self.metrics: dict[str, dict[str, Any]] = {}
        self.per_patient: dict[str, dict[str, float | None]] = {patient: {} for patient in self.patients}

    def result(self) -> dict[str, Any]:
        """metrics.json."""
        for channel in self.pairs.spec.channels:
            self._channel(channel.name, channel.unit)
        for index, channel in enumerate(self.pairs.spec.channels):
            self._distributions(index, channel.name)
        if self.request.segmented:
            self._faithfulness()
        if self.request.segmented and self.request.lesion:
            self._lesions()
        self._put("wasserstein", None, "of window", self._relative_wasserstein())
        rows = self.scores.rows
        asked = {name: text for name, text in EXTRA_SETTINGS.items() if self.request.wants(name)}
        return {
            "schema": SCHEMA,
            "n": {
                "slices": len({(row["case"], row["slice"]) for row in rows}),
                "cases": len({row["case"] for row in rows}),
                "patients": len(self.patients),
            },
            "metrics": self.metrics,
            "counts": self.scores.counts,
            "per_patient": self.per_patient,
            "per_label": self.scores.labels,
            "per_case": [_finite_row(row) for row in self.scores.cases],
            "per_overlap": [_finite_row(row) for row in self.scores.overlap],
            "per_lesion_case": [_lesion_row(row) for row in self.scores.lesions],
            "settings": SETTINGS | asked | settings_of(self.pairs),
            "environment": environment(),
            "provenance": {key: self.pairs.provenance.get(key) for key in PROVENANCE},
        }

    # -- one family after the other ---------------------------------------------------------------------------------

    def _channel(self, channel: str, unit: str) -> None:
        """Everything that is a mean over slices, labels or cases of one channel."""
        by_slice = (*PAIRED, LPIPS, *DIVERSITY)
        of_channel = {
            name: [row for row in getattr(self.scores, name) if row["channel"] == channel]
            for name in ("rows", "labels", "cases")
        }
        by_table = {name: self._by_patient(rows) for name, rows in of_channel.items()}
        for name in (*by_slice, *BY_LABEL, *BY_CASE, *SYNTHRAD, LABEL_SPREAD, LESION_CHANGE):
            missing = name in (LPIPS, "diversity_lpips") and name not in self.found.files
            if not self.request.wants(name) or (missing and name == LPIPS):
                continue
            table = by_table["rows" if name in by_slice else "labels" if name in BY_LABEL else "cases"]
            level = _mean_over_labels if name in BY_LABEL else _mean_over_rows
            values = [level(table[patient], name) for patient in self.patients]
            entry = self._put(name, channel, UNITS.get(name, unit), values)
            if missing:
                entry["reason"] = self.found.reasons[name]
            if name in by_slice:
                spread = _finite_only([row.get(name, math.nan) for row in of_channel["rows"]])
                entry["slice_sd"] = float(spread.std(ddof=1)) if len(spread) > 1 else None
            if name in (*DIVERSITY, LABEL_SPREAD):
                entry["draws"] = 1 + len(self.request.draws)

    def _by_patient(self, rows: Rows) -> dict[str, Rows]:
        """The rows of every patient, in one pass."""
        groups: dict[str, Rows] = {patient: [] for patient in self.patients}
        for row in rows:
            if row["patient"] in groups:
                groups[row["patient"]].append(row)
        return groups

    def _distributions(self, index: int, channel: str) -> None:
        """Metrics of distributions, and of network metrics the extractor's hash or the reason why they are missing."""
        found: dict[str, dict[str, Any]] = {}
        wanted = self.request.wanted
        for key in (*self.found.extractors, RADIOMICS):
            entries = self.scores.features.metrics(key, index, wanted)
            if key != RADIOMICS:
                entries = {name: entry | about_extractor(key, self.found, name) for name, entry in entries.items()}
            found |= entries
        for name in NETWORK:
            if not self.request.wants(name):
                continue
            if name == LPIPS and name in self.found.files:
                found[name] = self.metrics[f"{name}/{channel}"] | about_extractor(LPIPS, self.found, LPIPS)
            elif name not in self.found.files:
                better = "higher" if name in HIGHER else "lower"
                missing = {"value": None, "ci95": None, "unit": "", "better": better}
                found[name] = missing | {"reason": self.found.reasons[name]}
        order = [name for key in (*self.found.extractors, RADIOMICS) for name in names(key)] + list(NETWORK)
        for name in dict.fromkeys(order):
            if name in found:
                if self.note and name != LPIPS:
                    found[name]["note"] = "; ".join(filter(None, (found[name].get("note"), self.note)))
                self.metrics[f"{name}/{channel}"] = found[name] | {"channel": channel}

    def _faithfulness(self) -> None:
        kinds = {kind: [row for row in self.scores.overlap if row["of"] == kind] for kind in ("generated", "real")}
        by_patient = {kind: self._by_patient(rows) for kind, rows in kinds.items()}
        for name in FAITHFULNESS:
            if not self.request.wants(name):
                continue
            metric = name.removeprefix("faithfulness_")
            values = {
                kind: [mean_of_patient(rows[patient], metric) for patient in self.patients]
                for kind, rows in by_patient.items()
            }
            missed = {kind: sum(math.isinf(row[metric]) for row in rows) for kind, rows in kinds.items()}
            unit = "pixels" if metric == "hd95" and not self.pairs.spacing_known else UNITS[name]
            entry = self._put(name, None, unit, values["generated"])
            if metric == "hd95":
                entry["missed"] = missed["generated"]
            if self.request.segmented_real:
                entry["ceiling"] = _finite(nan_mean(values["real"]))
                if metric == "hd95":
                    entry["ceiling_missed"] = missed["real"]

    def _lesions(self) -> None:
        rows = self.scores.lesions
        every, by_patient = pooled(rows), self._by_patient(rows)
        for name in LESIONS:
            if self.request.wants(name):
                metric = name.removeprefix("lesion_")
                values = [getattr(pooled(by_patient[patient]), metric) for patient in self.patients]
                entry = self._put(name, None, "", values)
                entry["pooled"] = _finite(getattr(every, metric))
                entry["lesions"] = {"condition": every.truth, "segmented": every.pred}
        if self.request.wants(LESION_VOLUMES):
            unit = "ml" if self.pairs.spacing_known else "pixels"
            volumes = [[row[key] for row in rows] for key in (f"volume_{unit}", f"segmented_volume_{unit}")]
            value = volume_correlation(*volumes)
            entry = {
                "value": _finite(value),
                "ci95": None,
                "unit": "",
                "better": "higher",
                "channel": None,
                "n": len(rows),
            }
            self.metrics[LESION_VOLUMES] = entry | ({} if math.isfinite(value) else {"reason": REASONS[LESION_VOLUMES]})

    # -- entries ----------------------------------------------------------------------------------------------------

    def _put(self, name: str, channel: str | None, unit: str, values: Values) -> dict[str, Any]:
        """A metric over patients: value, interval, unit, direction (None where neither is better)."""
        known = _finite_only(values)
        interval = bootstrap_interval(known)
        entry: dict[str, Any] = {
            "value": _finite(float(known.mean())) if len(known) else None,
            "ci95": list(interval) if interval else None,
            "unit": unit,
            "better": None if name in NO_DIRECTION else "higher" if name in HIGHER_IS_BETTER else "lower",
            "channel": channel,
            "n_patients": len(known),
        }
        if interval is None:
            entry["ci_note"] = f"no interval: {len(known)} patient(s), at least {MIN_PATIENTS} are needed"
        if entry["value"] is None:
            entry["reason"] = REASONS.get(name, "no pixels to measure")
        if self.note and name in WINDOWED:
            entry["note"] = self.note
        key = f"{name}/{channel}" if channel else name
        self.metrics[key] = entry
        for patient, value in zip(self.patients, values, strict=True):
            self.per_patient[patient][key] = _finite(value)
        return entry

    def _relative_wasserstein(self) -> Values:
        """Mean over labels, then channels, of the distance as a share of the window. It always exists."""
        by_channel = [
            self._by_patient([row for row in self.scores.labels if row["channel"] == channel.name])
            for channel in self.pairs.spec.channels
        ]
        return [
            nan_mean([_mean_over_labels(rows[patient], "wasserstein_relative") for rows in by_channel])
            for patient in self.patients
        ]


def settings_of(pairs: Pairs) -> dict[str, str]:
    """How the images were read."""
    units = [channel.unit for channel in pairs.spec.channels]
    named = [
        f"{window} {unit}" if isinstance(window, str) else f"{window[0]:g} to {window[1]:g} {unit}"
        for window, unit in zip(pairs.windows.values(), units, strict=True)
    ]
    return {
        "window": ", ".join(named),
        "unit": ", ".join(units),
        "axis": pairs.spec.axis or "slices as they are",
        "labels": "label maps" if pairs.labelled else "none",
        "spacing": "in mm" if pairs.spacing_known else "unknown, so distances are in pixels",
        "patients": pairs.patients,
        "region": pairs.region,
    }


def _mean_over_rows(rows: Rows, name: str) -> float:
    """Mean of one patient's slices, or of its cases where a row is a case."""
    return nan_mean([row.get(name, math.nan) for row in rows])


def _mean_over_labels(rows: Rows, name: str) -> float:
    """One patient: mean over cases of each label, then over labels, so that each label weighs the same."""
    by_label: dict[int, list[float]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row[name])
    return nan_mean([nan_mean(values) for values in by_label.values()])


def environment() -> dict[str, str]:
    """Versions of what computed the numbers."""
    packages = ("numpy", "scikit-image", "torch", "pytorch-fid", "lpips")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _lesion_row(row: dict[str, Any]) -> dict[str, Any]:
    counts = row["counts"]
    numbers = {"lesions": counts.truth, "segmented": counts.pred, "found": counts.found, "right": counts.right}
    return {key: value for key, value in row.items() if key != "counts"} | numbers


def _finite_row(row: dict[str, Any]) -> dict[str, Any]:
    return {key: _finite(value) if isinstance(value, float) else value for key, value in row.items()}


def _finite_only(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    return array[np.isfinite(array)]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
