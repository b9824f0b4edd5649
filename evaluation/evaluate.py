"""The doors of the evaluation: a results folder, or any pairs of images, to metrics.json and its tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.io.console import warn_once
from dataloaders.io.files import write_json, write_text
from dataloaders.io.manifest import Manifest
from dataloaders.io.weights import MissingWeights
from evaluation.floors import NO_FLOORS, add_floors, of_second_scans, second_side
from evaluation.metrics.feature_sets import INCEPTION, of_extractor
from evaluation.metrics.metric import Row
from evaluation.pairs import ManifestPairs, Pairs, no_label
from evaluation.reference import load_reference, reference_entries, refuse_other_reading, save_reference, usable
from evaluation.request import Request, find_weights, plan, refuse_own_windows
from evaluation.scoring import Scored, Scores, Side, merged, score
from evaluation.shards import Parts, key_of
from evaluation.summary import Summary, about
from evaluation.tables import rows_csv, summary_csv


def check_metrics(metrics: str, weights: Path | None = None) -> None:
    """Raise what `evaluate_results` would raise for these names: ValueError for unknown ones, MissingWeights.

    For the first second of a long command, before it has anything to evaluate.
    """
    request = Request(metrics, weights)
    find_weights(request, request.chosen)


def evaluate_results(
    folder: Path,
    metrics: str = "auto",
    weights: Path | None = None,
    device: str = "cpu",
    progress: bool = False,
    repeats: Path | None = None,
) -> dict[str, Any]:
    """Score `folder` (written by test.py) and write metrics.json and its tables there; returns the former.

    metrics: ``auto`` for all that can be computed, else names. repeats: second scans, where there is such a folder;
    those that do not fit are left out with a warning. Raises MissingWeights for a named metric without weights, ValueError
    for folders without real images or with damaged files.
    """
    pairs = ManifestPairs(folder, Manifest.load(folder))
    second = repeats if repeats is not None and repeats.is_dir() else None
    side = pairs, plan(Request(metrics, weights, device, progress, repeats=second), pairs)
    scores, floors = merged(score([side])), NO_FLOORS
    try:
        if second is not None:
            beside = second_side(*side, second)
            floors = of_second_scans(beside, merged(score([beside])))
    except (OSError, ValueError) as error:
        floors = {}, f"none: {error}"
        warn_once(f"paired metrics have no floor: {error}; if it is old, remove it and run scripts/repeats.py again")
    return _write(side, folder, scores, floors)


def evaluate_pairs(pairs: Pairs, out: Path, request: Request) -> dict[str, Any]:
    """Score any pairs of images and write metrics.json, metrics.csv (slices) and summary.csv (metrics) to `out`.

    ValueError, with nothing written, where none of the named metrics can be computed.
    """
    sides = _sides(pairs, out, request)
    return _write_all(sides, out, score(sides))


def evaluate_shard(pairs: Pairs, out: Path, request: Request, shard: tuple[int, int]) -> dict[str, Any] | None:
    """Score every n-th group of cases from the i-th on; the shard that finds all others done merges and writes.

    Returns metrics.json, byte for byte that of `evaluate_pairs`, or None while other shards are missing.
    """
    number, shards = shard
    key, parts = key_of(pairs, request), Parts.of(out)
    sides = _sides(pairs, out, request)
    groups = range(number, max(len(side[0].groups()) for side in sides), shards)
    parts.save_part(shard, key, score(sides, groups), pairs.seen())
    scored = parts.load_all(shards, key, pairs)
    if scored is None:
        return None
    result = _write_all(sides, out, score(sides, known=scored))
    parts.remove()
    return result


def _sides(pairs: Pairs, out: Path, request: Request) -> list[Side]:
    """What is scored, and its second scans. First of all, because it may fail."""
    refuse_unwritable(out, request)
    side = pairs, plan(request, pairs)
    return [side] if request.repeats is None else [side, second_side(*side, request.repeats)]


def _write_all(sides: Sequence[Side], out: Path, scored: Scored) -> dict[str, Any]:
    floors = of_second_scans(sides[1], merged(scored, 1)) if len(sides) > 1 else NO_FLOORS
    return _write(sides[0], out, merged(scored), floors, strict=True)


def evaluate_generated(pairs: Pairs, reference_file: Path, out: Path, request: Request) -> dict[str, Any]:
    """Write metrics.json and summary.csv with the distribution metrics of the generated images in `pairs`.

    ValueError where weights, preparation, channels, window, unit, axis or the use of label maps are not those of the
    reference, where it is none, and where nothing can be computed.
    """
    refuse_unwritable(out, request)
    reference = load_reference(reference_file)
    planned = plan(request, pairs, real=False)
    wanted = [INCEPTION] if reference.moments is not None else usable(reference, planned.extractors)
    if (reference.moments is not None and INCEPTION not in planned.extractors) or not wanted:
        reason = next(iter(planned.reasons.values()), "Inception was not asked for")
        raise MissingWeights(f"--reference {reference_file}: needs Inception; {reason}", reason)
    refuse_own_windows("reference", reference_file, pairs)
    if reference.moments is None:
        refuse_other_reading(reference, pairs)
    of_wanted = {metric.key for key in wanted for metric in of_extractor(key).values()}
    planned = replace(
        planned,
        chosen={key: metric for key, metric in planned.chosen.items() if key in of_wanted},
        extractors={key: network for key, network in planned.extractors.items() if key in wanted},
    )
    scores = merged(score([(pairs, planned)]))
    if reference.moments is None:
        refuse_other_reading(reference, pairs)
    metrics: dict[str, dict[str, Any]] = {}
    for (key, channel), rows in scores.sets.items():
        name = pairs.channels[channel].name
        entries = reference_entries(reference, key, name, np.stack([fake for _, _, fake in rows]))
        for metric in of_extractor(key).values():
            if metric.key in planned.chosen and metric.key in entries:
                entry = entries[metric.key] | planned.about_network(metric, key)
                metrics[f"{metric.key}/{name}"] = entry | {"channel": name}
    if not metrics:
        raise ValueError(f"--reference {reference_file}: it has nothing that could be compared by {request.metrics}")
    counts = {"constant_images": scores.counts["constant_images"]}  # the others are of pairs
    result = about(pairs, scores, planned, metrics) | {"counts": counts, "reference": reference_file.name}
    write_json(out / "metrics.json", result)
    write_text(out / "summary.csv", summary_csv(result))
    return result


def refuse_unwritable(out: Path, request: Request) -> None:
    """ValueError for an output that cannot be written, before hours of computing; creates nothing."""
    asked = {"out": out, "cache": request.cache, "save_reference": request.save_reference}
    for flag, path in asked.items():
        if path is None:
            continue
        folder = path.parent if flag == "save_reference" else path
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        if not there.is_dir():
            raise ValueError(f"--{flag} {path}: {there} is a file, not a folder")
        if flag == "save_reference" and path.is_dir():
            raise ValueError(f"--{flag} {path}: is a folder; name a file such as real.npz")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ValueError(f"--{flag} {path}: {there} cannot be written to")


def _write(
    side: Side, out: Path, scores: Scores, floors: tuple[dict[str, Row], str], strict: bool = False
) -> dict[str, Any]:
    """floors: of `of_second_scans`. strict: whether having none of the metrics that were named is an error."""
    pairs, planned = side
    if not scores.tables["slice"]:
        raise ValueError(f"{out}: no slice has both a real and a generated image, so there is nothing to compare")
    _check_labels(side, scores)
    result = Summary(pairs, scores, planned).result()
    seconds, said = floors
    add_floors(result["metrics"], seconds)
    result["settings"]["repeats"] = said
    named = {key: entry for key, entry in result["metrics"].items() if key.partition("/")[0] in planned.chosen}
    if strict and all(entry["value"] is None for entry in named.values()):
        reasons = "; ".join(f"{key}: {entry['reason']}" for key, entry in named.items())
        raise ValueError(f"nothing could be computed: {reasons}")
    write_json(out / "metrics.json", result)
    write_text(out / "metrics.csv", rows_csv(scores.tables["slice"]))
    write_text(out / "summary.csv", summary_csv(result))
    if planned.request.save_reference is not None:
        save_reference(planned.request.save_reference, scores.sets, planned.extractors, pairs)
    return result


def _check_labels(side: Side, scores: Scores) -> None:
    """What only reading tells of label maps: ValueError where a lesion label is nowhere that need not be named."""
    pairs, planned = side
    if not pairs.labelled:
        return
    there = {row["label"]: row["name"] for row in scores.tables["label"]}
    if not pairs.all_named and planned.lesion is not None and planned.lesion not in there:
        raise ValueError(no_label(planned.request.lesion, there))
    if not any(there):
        warn_once("all label maps are 0 where images are compared, so nothing within labels has a value")


def headline(result: dict[str, Any]) -> dict[str, float]:
    """Flat metric -> value for logs; missing metrics are left out."""
    return {key: entry["value"] for key, entry in result["metrics"].items() if entry["value"] is not None}
