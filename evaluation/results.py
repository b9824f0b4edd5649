"""Score a results folder: real against generated slices of the same label maps.

Levels: slice (or case) -> mean over those of a patient -> mean over patients. Slices of one patient are not
independent, so intervals come from patients.
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
import math
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dataloaders.intensity import LEVELS, Window
from dataloaders.manifest import Case, Manifest, Slice
from dataloaders.png import as_16_bit, read_png
from engine.files import write_json, write_text
from engine.weights import MissingWeights, resolve, sha256
from evaluation import networks, paired
from evaluation.continuity import CaseContinuity
from evaluation.feature_sets import HIGHER, INCEPTION, RADIOMICS, FeatureSets, names
from evaluation.intensity import LabelHistograms, wasserstein
from evaluation.msssim import LARGEST_REFUSED, ssim_and_ms_ssim
from evaluation.radiomics import slice_features
from evaluation.sharpness import Edges, label_edges
from evaluation.spectrum import CaseSpectrum
from evaluation.statistics import DRAWS, MIN_PATIENTS, bootstrap_interval, nan_mean

SCHEMA = "medsis-metrics/1"
PAIRED = ("mae", "rmse", "mae_body", "rmse_body", "psnr", "ssim", "ms_ssim")
BY_LABEL = ("label_mean_error", "label_std_error", "wasserstein")
BY_CASE = ("slice_jump_ratio", "slice_difference_mae", "spectrum_distance", "edge_sharpness_ratio")
LPIPS = "lpips_alex_v0.1"
NETWORK = dict.fromkeys(names(INCEPTION), "inception") | {LPIPS: "alexnet"}  # metric -> weights
ALL = (*PAIRED, *BY_LABEL, *BY_CASE, *names(RADIOMICS), *NETWORK)
HIGHER_IS_BETTER = {"psnr", "ssim", "ms_ssim"}
NO_DIRECTION = {"slice_jump_ratio", "edge_sharpness_ratio"}  # neither higher nor lower is better
UNITLESS = {"ssim", "ms_ssim", LPIPS, "slice_jump_ratio", "spectrum_distance", "edge_sharpness_ratio"}
REASONS = {  # why a metric may have no value
    "psnr": "identical images everywhere",
    "ms_ssim": f"slices need sides of more than {LARGEST_REFUSED} pixels",
    "edge_sharpness_ratio": "no borders between labels, or the real images are flat there",
    "slice_jump_ratio": "no adjacent slices that share body pixels, or the real ones do not change",
    "slice_difference_mae": "no adjacent slices that share body pixels",
}
BATCH = 32
SETTINGS = {
    "levels": "mean over a patient's slices, then over patients; by label: over a patient's cases, labels, patients; "
    "by case: over a patient's cases, patients",
    "interval": f"95 % percentile bootstrap over patients, {DRAWS} draws, seed 0, from {MIN_PATIENTS} patients on",
    "body": "pixels with a label other than 0",
    "psnr": "data range = window width; per image, then mean; identical images counted, not averaged",
    "ssim": "2-D, on intensity minus window low, data range = window width, Gaussian 11x11 sigma 1.5, K1 0.01, K2 0.03",
    "ms_ssim": "2-D, five scales, weights of Wang et al. 2003, as ssim otherwise",
    "spectrum_distance": "radial power of slices under a Hann window, mean |log10 ratio| over 64 bins to Nyquist, by case",
    "edge_sharpness_ratio": "mean gradient at borders between labels, generated over real, sums over a case",
    "slice_jump_ratio": "pairs of slices whose indices differ by 1, pixels that are body in both, sums over a case",
    "slice_difference_mae": "the same pairs and pixels, mean over a case's pixels",
    "fid": "pytorch-fid's Inception, 2048 features, window to [0, 1], three equal channels, its own resize to 299; "
    "kid, precision, recall, density and coverage on the same features",
    "kid": "kernel (x·y/d + 1)³, unbiased, mean over 100 subsets of min(1000, n), seed 0",
    "precision, recall": "3 neighbours; density, coverage: 5",
    "floor": "the same metric between two halves of the real slices, split by patient",
    "radiomics": "53 weight-free features of each slice within the body, standardised by the real set; not FRD",
    LPIPS: "lpips 0.1 heads, torchvision's AlexNet, window to [-1, 1], three equal channels",
}


@dataclass
class Item:
    """One slice and channel as read from disk."""

    case: Case
    slice: Slice
    channel: int
    label: NDArray
    real: NDArray[np.uint16]
    fake: NDArray[np.uint16]

    @property
    def window(self) -> Window:
        """The channel's intensity window."""
        return self.case.windows[self.channel]

    @functools.cached_property
    def physical(self) -> tuple[NDArray, NDArray]:
        """Real and generated image in physical units."""
        return self.window.decode(self.real), self.window.decode(self.fake)


class CaseLook:
    """What is gathered over the slices of one case and channel: continuity, spectrum, edges."""

    def __init__(self, spacing: tuple[float, float]) -> None:
        self.spacing = spacing
        self.continuity, self.spectrum, self.edges = CaseContinuity(), CaseSpectrum(spacing), Edges()

    def add(self, item: Item) -> None:
        """One slice; slices come by index."""
        real, fake = item.physical
        self.continuity.add(item.slice.index, real, fake, item.label > 0)
        self.spectrum.add(real, fake)
        self.edges += label_edges(item.label, real, fake, self.spacing)


@dataclass
class Scores:
    """What is gathered while streaming over the slices."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)
    features: FeatureSets = field(default_factory=FeatureSets)
    constant_images: int = 0
    identical: int = 0


def parse_metrics(metrics: str | Sequence[str]) -> tuple[str, ...] | None:
    """Names of a comma-separated list (``lpips`` for its full name); None for auto. ValueError lists what there is."""
    if metrics == "auto":
        return None
    names = metrics.split(",") if isinstance(metrics, str) else list(metrics)
    names = [LPIPS if name.strip() == "lpips" else name.strip() for name in names]
    unknown = [name for name in names if name not in ALL]
    if unknown:
        raise ValueError(f"--metrics {','.join(unknown)}: unknown; there are auto, {', '.join(ALL)}")
    return tuple(names)


def find_networks(wanted: tuple[str, ...] | None, weights: Path | None) -> tuple[dict[str, Path], dict[str, str]]:
    """(metric -> weight file, metric -> reason why there is none). MissingWeights if a metric was asked for by name."""
    files: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    for key in dict.fromkeys(NETWORK.values()):
        of_key = [name for name, needs in NETWORK.items() if needs == key and (wanted is None or name in wanted)]
        if not of_key:
            continue
        try:
            files |= dict.fromkeys(of_key, resolve(key, weights))
        except MissingWeights as error:
            if wanted is not None:
                raise
            _warn_once(f"warning: {', '.join(of_key)} left out: {error}")
            reasons |= dict.fromkeys(of_key, error.reason)
    return files, reasons


@functools.cache
def _warn_once(line: str) -> None:
    """A training run evaluates many times; the same warning is worth one line."""
    print(line, file=sys.stderr)


def check_metrics(metrics: str | Sequence[str], weights: Path | None = None) -> None:
    """Raise what `evaluate_results` would raise for these names: ValueError for unknown ones, MissingWeights.

    For the first second of a long command, before it has anything to evaluate.
    """
    find_networks(parse_metrics(metrics), weights)


def evaluate_results(
    folder: Path,
    metrics: str | Sequence[str] = "auto",
    weights: Path | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Score `folder` (written by test.py) and write metrics.json and metrics.csv there; returns the former.

    metrics: ``auto`` for all that can be computed, else names. Raises MissingWeights for a named metric without
    weights, ValueError for folders without real images or with damaged files.
    """
    return evaluate_manifest(Manifest.load(folder), folder, metrics, weights, device, progress)


def evaluate_manifest(
    manifest: Manifest,
    folder: Path,
    metrics: str | Sequence[str] = "auto",
    weights: Path | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """As `evaluate_results`, for a manifest that need not come from a file; paths are relative to `folder`."""
    wanted = parse_metrics(metrics)
    files, reasons = find_networks(wanted, weights)  # first of all, because it may fail
    if not any(paired_slices(case) for case in manifest.cases):
        raise ValueError(f"{folder}: no slice has both a real and a generated image, so there is nothing to compare")
    radiomics = wanted is None or any(name in wanted for name in names(RADIOMICS))
    scores = _stream(folder, manifest, files, radiomics, torch.device(device), progress)
    result = _summarise(manifest, scores, wanted, files, reasons)
    write_json(folder / "metrics.json", result)
    write_text(folder / "metrics.csv", _csv(scores.rows))
    return result


# -- stream -------------------------------------------------------------------------------------------------------


def read_items(folder: Path, manifest: Manifest) -> Iterator[Item]:
    """Cases in manifest order, their slices by index, then channels; no slice that lacks a real or a generated image.

    ValueError naming the file where sizes differ or a label map has ids that the manifest does not know.
    """
    for case in manifest.cases:
        # By index, because neighbours are found by looking at the slice before.
        for item in sorted(paired_slices(case), key=lambda item: item.index):
            label: NDArray | None = read_png(folder / item.label) if item.label else None
            if label is not None and label.max() >= manifest.spec.num_labels:
                raise ValueError(
                    f"{folder / item.label}: label {label.max()}, allowed 0..{manifest.spec.num_labels - 1}"
                )
            for channel, (real, fake) in enumerate(zip(item.images, item.generated, strict=True)):
                images = [as_16_bit(read_png(folder / path)) for path in (real, fake)]
                ids = np.zeros(images[0].shape, np.uint8) if label is None else label
                if images[0].shape != images[1].shape or ids.shape != images[0].shape:
                    raise ValueError(f"{folder / fake}: {images[1].shape}, real {images[0].shape}, label {ids.shape}")
                yield Item(case, item, channel, ids, images[0], images[1])


def paired_slices(case: Case) -> list[Slice]:
    """Slices with a real and a generated image for every channel."""
    return [item for item in case.slices if item.images and len(item.images) == len(item.generated)]


def _stream(
    folder: Path, manifest: Manifest, files: dict[str, Path], radiomics: bool, device: torch.device, progress: bool
) -> Scores:
    scores = Scores()
    nets = {LPIPS: networks.lpips_alex(files[LPIPS]).to(device)} if LPIPS in files else {}
    if inception := next((files[name] for name in names(INCEPTION) if name in files), None):
        nets[INCEPTION] = networks.inception(inception).to(device)
    total = sum(len(item.images) for case in manifest.cases for item in paired_slices(case))
    waiting: list[tuple[Item, dict[str, Any]]] = []
    items = tqdm(read_items(folder, manifest), desc="evaluate", total=total, disable=None if progress else True)
    # Histograms live for one case only: they are exact, so large, and cases may be many.
    for case, of_case in itertools.groupby(items, key=lambda item: item.case):
        histograms: dict[int, tuple[LabelHistograms, LabelHistograms]] = {}
        looks: dict[int, CaseLook] = {}
        for item in of_case:
            row = _score_slice(item, manifest.spec.channels[item.channel].name, scores)
            scores.rows.append(row)
            pair = histograms.setdefault(item.channel, (LabelHistograms(), LabelHistograms()))
            pair[0].add(item.label, item.real)
            pair[1].add(item.label, item.fake)
            looks.setdefault(item.channel, CaseLook(manifest.spec.spacing)).add(item)
            if radiomics:
                _add_radiomics(item, scores)
            if nets:
                waiting.append((item, row))
            if len(waiting) == BATCH:
                _run_networks(waiting, nets, scores, device)
                waiting = []
        scores.labels += [
            row for channel, pair in histograms.items() for row in _label_rows(manifest, case, channel, *pair)
        ]
        scores.cases += [_case_row(manifest, case, channel, look) for channel, look in looks.items()]
    if waiting:
        _run_networks(waiting, nets, scores, device)
    return scores


def _score_slice(item: Item, channel: str, scores: Scores) -> dict[str, Any]:
    (real, fake), width = item.physical, item.window.width
    body = item.label > 0
    if min(real.shape) > LARGEST_REFUSED:
        ssim, ms_ssim = ssim_and_ms_ssim(real, fake, item.window.low, width)
    else:
        ssim, ms_ssim = paired.ssim(real, fake, item.window.low, width), math.nan
    psnr = paired.psnr(real, fake, width)
    scores.identical += math.isinf(psnr)
    scores.constant_images += int(item.fake.min() == item.fake.max())
    return {
        "patient": item.case.patient,
        "case": item.case.id,
        "slice": item.slice.index,
        "channel": channel,
        "mae": paired.mae(real, fake),
        "rmse": paired.rmse(real, fake),
        "mae_body": paired.mae(real, fake, body),
        "rmse_body": paired.rmse(real, fake, body),
        "psnr": psnr,
        "ssim": ssim,
        "ms_ssim": ms_ssim,
    }


def _add_radiomics(item: Item, scores: Scores) -> None:
    """Features of both images within the body, or of all pixels where no label says what the body is."""
    body = item.label > 0 if item.label.any() else np.ones(item.label.shape, bool)
    pair = (slice_features(image / LEVELS, body) for image in (item.real, item.fake))
    scores.features.add(RADIOMICS, item.channel, item.case.patient, *pair)


def _run_networks(
    waiting: list[tuple[Item, dict[str, Any]]], nets: dict[str, torch.nn.Module], scores: Scores, device: torch.device
) -> None:
    real = np.stack([item.real for item, _ in waiting]) / np.float32(LEVELS)
    fake = np.stack([item.fake for item, _ in waiting]) / np.float32(LEVELS)
    if LPIPS in nets:
        for (_, row), distance in zip(waiting, networks.lpips_distances(nets[LPIPS], real, fake, device), strict=True):
            row[LPIPS] = float(distance)
    if INCEPTION in nets:
        features = [networks.inception_features(nets[INCEPTION], images, device) for images in (real, fake)]
        for (item, _), *pair in zip(waiting, *features, strict=True):
            scores.features.add(INCEPTION, item.channel, item.case.patient, *pair)


# -- summarise ----------------------------------------------------------------------------------------------------


def _summarise(
    manifest: Manifest, scores: Scores, wanted: tuple[str, ...] | None, files: dict[str, Path], reasons: dict[str, str]
) -> dict[str, Any]:
    patients = sorted({row["patient"] for row in scores.rows})
    cases = {row["case"] for row in scores.rows}
    metrics: dict[str, dict[str, Any]] = {}
    per_patient: dict[str, dict[str, float | None]] = {patient: {} for patient in patients}
    for channel in manifest.spec.channels:
        for name in (*PAIRED, LPIPS, *BY_LABEL, *BY_CASE):
            if (wanted is not None and name not in wanted) or (name == LPIPS and name not in files):
                continue
            table = scores.labels if name in BY_LABEL else scores.cases if name in BY_CASE else scores.rows
            rows = [row for row in table if row["channel"] == channel.name]
            level = _mean_over_labels if name in BY_LABEL else _mean_over_rows
            values = [level(rows, name, patient) for patient in patients]
            entry = _entry(name, channel.name, channel.unit, values)
            if table is scores.rows:
                spread = _finite_only([row[name] for row in rows])
                entry["slice_sd"] = float(spread.std(ddof=1)) if len(spread) > 1 else None
            metrics[f"{name}/{channel.name}"] = entry
            for patient, value in zip(patients, values, strict=True):
                per_patient[patient][f"{name}/{channel.name}"] = _finite(value)
    _add_networks(metrics, manifest, scores, wanted, files, reasons)
    relative = [_relative_wasserstein(manifest, scores.labels, patient) for patient in patients]
    metrics["wasserstein"] = _entry("wasserstein", None, "of window", relative)
    for patient, value in zip(patients, relative, strict=True):
        per_patient[patient]["wasserstein"] = _finite(value)
    slices = {(row["case"], row["slice"]) for row in scores.rows}
    provenance = ("name", "method", "checkpoint", "images_seen", "split")
    return {
        "schema": SCHEMA,
        "n": {"slices": len(slices), "cases": len(cases), "patients": len(patients)},
        "metrics": metrics,
        "counts": {"constant_images": scores.constant_images, "psnr_identical": scores.identical},
        "per_patient": per_patient,
        "per_label": scores.labels,
        "per_case": [row | {name: _finite(row[name]) for name in BY_CASE} for row in scores.cases],
        "settings": SETTINGS,
        "environment": _environment(),
        "provenance": {key: manifest.provenance.get(key) for key in provenance},
    }


def _entry(name: str, channel: str | None, unit: str, values: list[float]) -> dict[str, Any]:
    """A metric over patients: value, interval, unit, direction (None where neither is better)."""
    known = _finite_only(values)
    interval = bootstrap_interval(known)
    entry: dict[str, Any] = {
        "value": _finite(float(known.mean())) if len(known) else None,
        "ci95": list(interval) if interval else None,
        "unit": "dB" if name == "psnr" else "" if name in UNITLESS else unit,
        "better": None if name in NO_DIRECTION else "higher" if name in HIGHER_IS_BETTER else "lower",
        "channel": channel,
        "n_patients": len(known),
    }
    if interval is None:
        entry["ci_note"] = f"no interval: {len(known)} patient(s), at least {MIN_PATIENTS} are needed"
    if entry["value"] is None:
        entry["reason"] = REASONS.get(name, "no pixels to measure")
    return entry


def _add_networks(
    metrics: dict[str, dict[str, Any]],
    manifest: Manifest,
    scores: Scores,
    wanted: tuple[str, ...] | None,
    files: dict[str, Path],
    reasons: dict[str, str],
) -> None:
    """Metrics of distributions, and for network metrics the extractor's hash or the reason why they are missing."""
    for c, channel in enumerate(manifest.spec.channels):
        found: dict[str, dict[str, Any]] = {}
        for extractor in (INCEPTION, RADIOMICS):
            found |= scores.features.metrics(extractor, c, wanted)
        for name in NETWORK:
            if wanted is not None and name not in wanted:
                continue
            if name not in files:
                better = "higher" if name in HIGHER else "lower"
                found[name] = {"value": None, "ci95": None, "unit": "", "better": better, "reason": reasons[name]}
            else:
                entry = found[name] if name in found else metrics[f"{name}/{channel.name}"]
                found[name] = entry | {"extractor": files[name].name, "weights_sha256": sha256(files[name])}
        metrics |= {f"{name}/{channel.name}": entry | {"channel": channel.name} for name, entry in found.items()}


def _label_rows(
    manifest: Manifest, case: Case, channel: int, real: LabelHistograms, fake: LabelHistograms
) -> list[dict[str, Any]]:
    """One row per label of a case and channel: real and generated mean and standard deviation, errors, distance."""
    window = case.windows[channel]
    rows = []
    for label in sorted(real.counts):
        (mean_r, std_r), (mean_f, std_f) = real.moments(label, window), fake.moments(label, window)
        distance = wasserstein(real.counts[label], fake.counts[label], window)
        rows.append(
            {
                "patient": case.patient,
                "case": case.id,
                "channel": manifest.spec.channels[channel].name,
                "label": label,
                "name": manifest.spec.labels[label].name,
                "pixels": int(real.counts[label].sum()),
                "real_mean": mean_r,
                "real_std": std_r,
                "generated_mean": mean_f,
                "generated_std": std_f,
                "label_mean_error": abs(mean_f - mean_r),
                "label_std_error": abs(std_f - std_r),
                "wasserstein": distance,
                "wasserstein_relative": distance / window.width,
            }
        )
    return rows


def _case_row(manifest: Manifest, case: Case, channel: int, look: CaseLook) -> dict[str, Any]:
    """The row of a case and channel, and from how many pairs of slices and border pixels it comes."""
    jumps = look.continuity.jumps
    return {
        "patient": case.patient,
        "case": case.id,
        "channel": manifest.spec.channels[channel].name,
        "slice_pairs": jumps.pairs,
        "slice_jump_ratio": jumps.ratio,
        "slice_difference_mae": jumps.mae,
        "spectrum_distance": look.spectrum.distance,
        "edge_pixels": look.edges.pixels,
        "edge_sharpness_ratio": look.edges.ratio,
    }


def _mean_over_rows(rows: list[dict[str, Any]], name: str, patient: str) -> float:
    """Mean of one patient's slices, or of its cases where a row is a case."""
    return nan_mean([row[name] for row in rows if row["patient"] == patient])


def _mean_over_labels(rows: list[dict[str, Any]], name: str, patient: str) -> float:
    """One patient: mean over cases of each label, then over labels, so that each label weighs the same."""
    by_label: dict[int, list[float]] = {}
    for row in rows:
        if row["patient"] == patient:
            by_label.setdefault(row["label"], []).append(row[name])
    return nan_mean([nan_mean(values) for values in by_label.values()])


def _relative_wasserstein(manifest: Manifest, labels: list[dict[str, Any]], patient: str) -> float:
    """One patient: mean over labels, then channels, of the distance as a share of the window. It always exists."""
    by_channel = [[row for row in labels if row["channel"] == channel.name] for channel in manifest.spec.channels]
    return nan_mean([_mean_over_labels(rows, "wasserstein_relative", patient) for rows in by_channel])


def _environment() -> dict[str, str]:
    """Versions of what computed the numbers."""
    packages = ("numpy", "scikit-image", "torch", "pytorch-fid", "lpips")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _finite_only(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    return array[np.isfinite(array)]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    fields = [*rows[0], *([LPIPS] if LPIPS in rows[-1] and LPIPS not in rows[0] else [])]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    # An empty cell where nothing could be measured; a PSNR of identical images stays ``inf``.
    writer.writerows({key: "" if value != value else value for key, value in row.items()} for row in rows)
    return text.getvalue()


# -- views --------------------------------------------------------------------------------------------------------


def headline(result: dict[str, Any]) -> dict[str, float]:
    """Flat metric -> value for logs; missing metrics are left out."""
    return {key: entry["value"] for key, entry in result["metrics"].items() if entry["value"] is not None}


def format_table(result: dict[str, Any]) -> str:
    """Table for the console."""
    n = result["n"]
    lines = [f"{n['slices']} slices, {n['cases']} cases, {n['patients']} patients"]
    width = max(len(key) for key in result["metrics"])
    for key, entry in result["metrics"].items():
        if entry["value"] is None:
            lines.append(f"  {key:<{width}}  n/a  ({entry['reason']})")
            continue
        interval = f"  [{entry['ci95'][0]:.4g}, {entry['ci95'][1]:.4g}]" if entry["ci95"] else ""
        arrow = f"{entry['better']} is better" if entry["better"] else "1 is as in the real images"
        lines.append(f"  {key:<{width}}  {entry['value']:.4g} {entry['unit']}{interval}  ({arrow})")
    constant = result["counts"]["constant_images"]
    if constant:
        lines.append(f"  warning: {constant} generated images are constant")
    return "\n".join(lines)
