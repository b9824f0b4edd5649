"""From rows of slices, labels and cases to metrics.json: values over patients with intervals, or the reason for none."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from evaluation.catalog import METRICS, SCHEMA, SETTINGS
from evaluation.metrics.feature_sets import RADIOMICS, of_extractor, set_entries
from evaluation.metrics.metric import Level, Metric, Row, mean_over_labels
from evaluation.pairs import PER_VOLUME, Pairs
from evaluation.request import ScoringPlan
from evaluation.scoring import Scores
from evaluation.statistics import MIN_PATIENTS, finite, finite_rows, nan_mean, over_patients

PROVENANCE = ("name", "method", "checkpoint", "images_seen", "split")


class Summary:
    """Collects metrics in the order in which they are reported, with the values of every patient."""

    def __init__(self, pairs: Pairs, scores: Scores, plan: ScoringPlan) -> None:
        self.pairs, self.scores, self.plan = pairs, scores, plan
        own = [window for window in pairs.windows.values() if window == PER_VOLUME]
        self.note = f"no --window: {PER_VOLUME} stands for it" if own else ""
        self.metrics: dict[str, Row] = {}
        patients = sorted({row["patient"] for row in scores.tables["slice"]})
        self.per_patient: dict[str, dict[str, float | None]] = {patient: {} for patient in patients}

    def result(self) -> dict[str, Any]:
        """metrics.json."""
        channels = [(channel.name, channel.unit) for channel in self.pairs.channels]
        for channel, unit in channels:
            self._rows("slice", channel, unit)
            self._rows("label", channel, unit)
            self._rows("case", channel, unit)
        for index, (channel, _) in enumerate(channels):
            self._sets(index, channel)
        self._rows("overlap", None, "")
        self._rows("lesions", None, "")
        self._relative_wasserstein()
        return about(self.pairs, self.scores, self.plan, self.metrics) | {
            "per_patient": self.per_patient,
            "per_label": finite_rows(self.scores.tables["label"]),
            "per_case": finite_rows(self.scores.tables["case"]),
            "per_overlap": finite_rows(self.scores.tables["overlap"]),
            "per_lesion_case": self.scores.tables["lesions"],
            "provenance": {key: self.pairs.provenance.get(key) for key in PROVENANCE},
        }

    def _rows(self, level: Level, channel: str | None, unit: str) -> None:
        """Metrics of one level and channel: means over patients of what the rows of the level's table say of each."""
        rows = [row for row in self.scores.tables[level] if row.get("channel") == channel]
        of_real = [row for row in rows if row.get("of") == "real"]
        rows = [row for row in rows if row.get("of") != "real"]
        by_patient, real = self._by_patient(rows), self._by_patient(of_real)
        for metric in self.plan.of(level):
            if metric.key in self.plan.reasons:
                self._put_missing(metric, channel)
                continue
            if metric.every is not None:
                self._put(metric, channel, {"value": finite(metric.every(rows)), "ci95": None, "n": len(rows)}, unit)
                continue
            entry = self._put_means(metric, channel, unit, [metric.of_patient(of) for of in by_patient.values()])
            entry |= metric.more(rows) if metric.more else {}
            if level == "slice":
                known = [value for row in rows if math.isfinite(value := row.get(metric.key, math.nan))]
                entry["slice_sd"] = float(np.std(known, ddof=1)) if len(known) > 1 else None
            if "draws" in metric.asked:
                entry["draws"] = 1 + len(self.plan.request.draws)
            if level == "overlap" and self.plan.request.segmented_real:
                entry["ceiling"] = finite(nan_mean(metric.of_patient(of) for of in real.values()))
                entry |= {
                    f"ceiling_{key}": value for key, value in (metric.more(of_real) if metric.more else {}).items()
                }
            entry |= self.plan.about_network(metric)

    def _by_patient(self, rows: Sequence[Row]) -> dict[str, list[Row]]:
        """The rows of every patient, in one pass."""
        groups: dict[str, list[Row]] = {patient: [] for patient in self.per_patient}
        for row in rows:
            if row["patient"] in groups:
                groups[row["patient"]].append(row)
        return groups

    def _sets(self, index: int, channel: str) -> None:
        """Metrics of distributions, or the reason why they are missing."""
        for extractor in (*self.plan.extractors, RADIOMICS):
            if rows := self.scores.sets.get((extractor, index)):
                real, fake = (np.stack([row[side] for row in rows]) for side in (1, 2))
                entries = set_entries(extractor, real, fake, [row[0] for row in rows], {*self.plan.chosen})
                metrics = {metric.key: metric for metric in of_extractor(extractor).values()}
                for key, entry in entries.items():
                    self._put(metrics[key], channel, entry | self.plan.about_network(metrics[key], extractor))
        for metric in self.plan.of("set"):
            if metric.key in self.plan.reasons:
                self._put_missing(metric, channel)

    def _relative_wasserstein(self) -> None:
        """Mean over labels, then channels, of the distance as a share of the window. It always exists."""
        values: dict[str, list[float]] = {patient: [] for patient in self.per_patient}
        for channel in self.pairs.channels:
            rows = [row for row in self.scores.tables["label"] if row["channel"] == channel.name]
            for patient, of_patient in self._by_patient(rows).items():
                values[patient].append(mean_over_labels(of_patient, "wasserstein_relative"))
        self._put_means(METRICS["wasserstein"], None, "of window", [nan_mean(found) for found in values.values()])

    # -- entries ----------------------------------------------------------------------------------------------------

    def _put_means(self, metric: Metric, channel: str | None, unit: str, values: Sequence[float]) -> Row:
        """A metric over patients: value, interval, unit, direction (None where neither is better)."""
        entry = self._put(metric, channel, over_patients(values), unit)
        if entry["ci95"] is None:
            entry["ci_note"] = f"no interval: {entry['n_patients']} patient(s), at least {MIN_PATIENTS} are needed"
        key = _key(metric, channel)
        for patient, value in zip(self.per_patient, values, strict=True) if key in self.metrics else ():
            self.per_patient[patient][key] = finite(value)
        return entry

    def _put_missing(self, metric: Metric, channel: str | None) -> None:
        self._put(metric, channel, {"value": None, "ci95": None, "reason": self.plan.reasons[metric.key]})

    def _put(self, metric: Metric, channel: str | None, entry: Row, unit: str = "") -> Row:
        """What every entry has, beside what is known of its value."""
        unit = unit if metric.unit is None else metric.unit
        unit = "pixels" if unit == "mm" and not self.pairs.spacing_known else unit
        entry = entry | {"unit": unit, "better": metric.better, "channel": channel}
        if entry["value"] is None:
            entry.setdefault("reason", metric.reason)
        if self.note and metric.windowed:
            entry["note"] = "; ".join(filter(None, (entry.get("note"), self.note)))
        if entry["value"] is not None or not metric.quiet or self.plan.request.metrics != "auto":
            self.metrics[_key(metric, channel)] = entry
        return entry


def _key(metric: Metric, channel: str | None) -> str:
    return f"{metric.key}/{channel}" if channel else metric.key


def about(pairs: Pairs, scores: Scores, plan: ScoringPlan, metrics: dict[str, Row]) -> dict[str, Any]:
    """What metrics.json says whether or not there are real images: of how many, how they were read, by what."""
    rows, units = scores.tables["slice"], [channel.unit for channel in pairs.channels]
    named = [
        f"{window[0]:g} to {window[1]:g} {unit}" if isinstance(window, list) else f"{window} {unit}"
        for window, unit in zip(pairs.windows.values(), units, strict=True)
    ]
    return {
        "schema": SCHEMA,
        "n": {
            "slices": len({(row["case"], row["slice"]) for row in rows}),
            "cases": len({row["case"] for row in rows}),
            "patients": len({row["patient"] for row in rows}),
        },
        "metrics": metrics,
        "counts": scores.counts,
        "settings": SETTINGS
        | {metric.key: metric.setting for metric in plan.chosen.values() if metric.setting}
        | {
            "window": ", ".join(named),
            "unit": ", ".join(units),
            "axis": pairs.axis or "slices as they are",
            "labels": "label maps" if pairs.labelled else "none",
            "spacing": "in mm" if pairs.spacing_known else "unknown, so distances are in pixels",
            "patients": pairs.patients,
            "region": pairs.region,
        },
        "environment": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "scikit-image", "torch", "pytorch-fid", "lpips")},
        },
    }
