"""Several results folders side by side: load, refuse what is not comparable, decide who is better on what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.manifest import FILE_NAME, Case, Manifest, Slice
from dataloaders.png import read_png
from engine.files import read_json
from evaluation.results import BY_LABEL, LPIPS, PAIRED, SCHEMA, evaluate_results, paired_slices
from evaluation.statistics import MIN_PATIENTS, PairedDifference, paired_difference
from spec import DataSpec

SCHEMA_COMPARE = "medsis-compare/1"


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

    @cached_property
    def slices(self) -> dict[tuple[str, int], tuple[Case, Slice]]:
        """(case id, slice index) -> case and slice, for the slices that were scored."""
        return {(case.id, item.index): (case, item) for case in self.manifest.cases for item in paired_slices(case)}

    def slice(self, case_id: str, index: int) -> Slice:
        """One slice."""
        return self.slices[case_id, index][1]


def find_results(path: Path) -> Path:
    """`path` itself if it is a results folder, else its newest subfolder that is one."""
    if (path / FILE_NAME).is_file():
        return path
    inside = [p.parent for p in path.glob(f"*/{FILE_NAME}")] if path.is_dir() else []
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
        if metrics.get("schema") != SCHEMA:
            raise ValueError(f"{file}: schema {metrics.get('schema')!r}, this version reads {SCHEMA!r}")
        name = str(manifest.provenance.get("name") or folder.name)
        taken = [entrant.name for entrant in entrants]
        for other in (f"{name} ({folder.name})", f"{name} ({len(taken) + 1})"):
            name = other if name in taken else name
        entrants.append(Entrant(name, folder, manifest, metrics))
    for entrant in entrants[1:]:
        _refuse_different(entrants[0], entrant)
    return entrants


def _refuse_different(a: Entrant, b: Entrant) -> None:
    """Numbers are comparable only on the same slices: same ids, labels, windows and real images."""
    pair = f"{a.folder} and {b.folder} cannot be compared"
    for what in ("labels", "channels"):
        names = [[entry.name for entry in getattr(entrant.spec, what)] for entrant in (a, b)]
        if names[0] != names[1]:
            raise ValueError(f"{pair}: {what} {names[0]} and {names[1]}")
    for one, other in ((a, b), (b, a)):
        missing = sorted(one.slices.keys() - other.slices.keys())
        if missing:
            listed = ", ".join(f"{case} z{index}" for case, index in missing[:5]) + (", …" if len(missing) > 5 else "")
            raise ValueError(f"{pair}: {other.folder} lacks {count(len(missing), 'slice')} of the other ({listed})")
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
    difference: best minus runner-up over the patients, with interval and p-value (`paired_difference`); None where
    there are too few patients or the metric has no value per patient.
    """

    key: str
    entries: tuple[dict[str, Any] | None, ...]
    better: str | None
    unit: str
    channel: str | None
    best: int | None
    runner_up: int | None
    difference: PairedDifference | None

    @property
    def metric(self) -> str:
        """Name without the channel."""
        return self.key.partition("/")[0]

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference to the runner-up leaves out zero."""
        interval = None if self.difference is None else self.difference.interval
        return interval is not None and (interval[0] > 0 or interval[1] < 0)


def metric_rows(entrants: Sequence[Entrant]) -> list[Row]:
    """One row per metric, in the order of metrics.json but grouped by channel, what covers all channels first."""
    keys = dict.fromkeys(key for entrant in entrants for key in entrant.metrics["metrics"])
    channels = [None, *(channel.name for channel in entrants[0].spec.channels)]
    rows = [_row(key, entrants) for key in keys]
    return sorted(rows, key=lambda row: channels.index(row.channel))


def _row(key: str, entrants: Sequence[Entrant]) -> Row:
    entries = tuple(entrant.metrics["metrics"].get(key) for entrant in entrants)
    present = next(entry for entry in entries if entry is not None)
    known = [(entry["value"], i) for i, entry in enumerate(entries) if entry is not None and entry["value"] is not None]
    ordered = sorted(known, key=lambda pair: pair[0], reverse=present["better"] == "higher")
    best = second = None
    if present["better"] is not None and len(ordered) > 1 and ordered[0][0] != ordered[1][0]:
        best, second = ordered[0][1], ordered[1][1]
    difference = None if best is None or second is None else _paired_difference(key, entrants[best], entrants[second])
    return Row(key, entries, present["better"], present["unit"], present["channel"], best, second, difference)


def _paired_difference(key: str, best: Entrant, other: Entrant) -> PairedDifference | None:
    """Best minus other over the patients, who are the same, so their differences count; None for too few of them."""
    ours, theirs = best.metrics["per_patient"], other.metrics["per_patient"]
    found = paired_difference([ours[p].get(key) for p in ours], [theirs.get(p, {}).get(key) for p in ours])
    return found if found.interval is not None else None


NAMES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "mae_body": "MAE in the body",
    "rmse_body": "RMSE in the body",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "label_mean_error": "Label mean error",
    "label_std_error": "Label spread error",
    "wasserstein": "Label Wasserstein",
    "slice_jump_ratio": "Slice jump relative to real",
    "slice_difference_mae": "Slice jump error",
    "spectrum_distance": "Spectrum distance",
    "edge_sharpness_ratio": "Edge sharpness relative to real",
    "fid": "FID",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "radiomics_frechet": "Radiomics Fréchet distance",
    "radiomics_kid": "Radiomics kernel distance",
    "radiomics_precision": "Radiomics precision",
    "radiomics_recall": "Radiomics recall",
    "radiomics_density": "Radiomics density",
    "radiomics_coverage": "Radiomics coverage",
    LPIPS: "LPIPS",
}
GROUPS = {
    "agreement with the real image": PAIRED,
    "intensities within the labels": BY_LABEL,
    "continuity from slice to slice": ("slice_difference_mae",),  # the ratio has no better direction
    "texture (spectrum, radiomics)": ("spectrum_distance", "radiomics_frechet", "radiomics_kid"),
    "look of the images (FID, KID, LPIPS)": ("fid", "kid", LPIPS),
}


def metric_name(row: Row) -> str:
    """Name for people, with the channel where there is one."""
    return NAMES.get(row.metric, row.metric) + (f" ({row.channel})" if row.channel else "")


def count(n: int, noun: str) -> str:
    """``1 slice``, ``2 slices``."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def verdict(entrants: Sequence[Entrant], rows: Sequence[Row]) -> list[str]:
    """Sentences on who is better on what, and on how much that means."""
    n = entrants[0].metrics["n"]
    split = str(entrants[0].manifest.provenance.get("split") or "given")
    sentences = [f"{count(n['slices'], f'{split} slice')} of {count(n['patients'], 'patient')}."]
    if len(entrants) > 1:
        sentences += [_group_sentence(entrants, rows, what, names) for what, names in GROUPS.items()]
        sentences.append(_certainty(rows, n["patients"]))
    return sentences


def _group_sentence(entrants: Sequence[Entrant], rows: Sequence[Row], what: str, metrics: Sequence[str]) -> str:
    """Who is best on one kind of metric."""
    group = [row for row in rows if row.metric in metrics]
    judged = [row for row in group if row.best is not None]
    subject = what[0].upper() + what[1:]
    if not judged:
        measured = any(entry and entry["value"] is not None for row in group for entry in row.entries)
        return f"{subject}: {'no difference' if measured else 'not measured here'}."
    won = {entrant.name: [row for row in judged if row.best == i] for i, entrant in enumerate(entrants)}
    parts = [(name, of_method) for name, of_method in won.items() if of_method]
    if len(parts) == 1:
        return (
            f"{subject}: {parts[0][0]} is best on {'all ' if len(judged) > 1 else ''}{count(len(judged), 'measure')}."
        )
    parts.sort(key=lambda part: -len(part[1]))
    told = "; ".join(f"{name} on {', '.join(metric_name(row) for row in of_method)}" for name, of_method in parts[1:])
    return f"{subject}: {parts[0][0]} is best on {len(parts[0][1])} of {count(len(judged), 'measure')}; {told}."


def _certainty(rows: Sequence[Row], patients: int) -> str:
    """What the number of patients allows to say."""
    if patients < MIN_PATIENTS:
        return (
            f"With {count(patients, 'patient')} no interval over patients can be given: "
            "the numbers describe these slices and prove nothing about other patients."
        )
    judged = [row for row in rows if row.difference is not None]
    open_ = [metric_name(row) for row in judged if not row.clear]
    clear = len(judged) - len(open_)
    text = (
        f"Over the patients, the 95 % intervals of the differences leave out zero for {clear} of {len(judged)} measures"
    )
    text += f"; {', '.join(open_)} may be chance." if open_ else "."
    p_values = [row.difference.p_value for row in judged if row.difference is not None]
    small = sum(p is not None and p < 0.05 for p in p_values)
    test = f"A sign-flip test over patients gives p < 0.05 for {small} of {len(judged)}, uncorrected for their number."
    return f"{text} {test}"


def limits(entrants: Sequence[Entrant], rows: Sequence[Row]) -> list[str]:
    """What the report does not show, from n, the kind of split and the missing metrics."""
    n = entrants[0].metrics["n"]
    lines = []
    data = entrants[0].manifest.provenance.get("data_provenance") or {}
    if "slices" in str(data.get("split", "")):
        lines.append(
            "Training and test slices come from the same scan (held-out blocks with guard slices between). "
            "That tests interpolation within one anatomy, not generalisation to new patients."
        )
    if n["patients"] < 5:
        lines.append(f"{count(n['patients'], 'patient')}: too few for intervals or for any claim about a population.")
    missing = dict.fromkeys(
        NAMES.get(row.metric, row.metric) for row in rows if any(e and e["value"] is None for e in row.entries)
    )
    if missing:
        lines.append(f"Not computed here: {', '.join(missing)} (reasons below the table).")
    lines.append(
        "Pixelwise metrics (MAE, RMSE, PSNR, SSIM) ask for the one real image; several images may fit a label map. "
        "They say nothing about whether the images are useful to train a segmenter."
    )
    if n["slices"] < 2048:
        lines.append("FID depends on the number of slices; with so few it compares methods on these slices at best.")
    return lines


def to_json(entrants: Sequence[Entrant], rows: Sequence[Row]) -> dict[str, Any]:
    """compare.json: methods, numbers, verdict."""
    return {
        "schema": SCHEMA_COMPARE,
        "methods": [
            {"name": e.name, "provenance": _public(e.manifest.provenance), "n": e.metrics["n"]} for e in entrants
        ],
        "metrics": {row.key: _row_json(row, [entrant.name for entrant in entrants]) for row in rows},
        "verdict": verdict(entrants, rows),
        "limits": limits(entrants, rows),
    }


def _row_json(row: Row, names: Sequence[str]) -> dict[str, Any]:
    difference = None
    if row.difference is not None and row.runner_up is not None:
        of = row.difference
        assert of.interval is not None
        difference = {"to": names[row.runner_up], "mean": of.mean, "ci95": list(of.interval), "p": of.p_value}
        difference |= {"patients": of.patients, "clear": row.clear}
    return {
        "better": row.better,
        "unit": row.unit,
        "best": None if row.best is None else names[row.best],
        "values": dict(zip(names, row.entries, strict=True)),
        "difference": difference,
    }


def _public(provenance: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in provenance.items() if key != "made_from"}
