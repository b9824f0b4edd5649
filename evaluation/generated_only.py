"""Generated images against the saved features of real ones: the distribution metrics, without any real image at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dataloaders.io.files import write_json, write_text
from dataloaders.io.weights import MissingWeights
from evaluation.catalog import SCHEMA, SETTINGS
from evaluation.metrics.feature_sets import INCEPTION, RADIOMICS, names
from evaluation.pairs import Pairs
from evaluation.reference import load_reference, reference_entries, refuse_other_reading, usable
from evaluation.request import Request, about_extractor, load_networks, refuse_own_windows
from evaluation.results import refuse_unwritable
from evaluation.scoring import Work, generated_features
from evaluation.summary import environment, settings_of
from evaluation.tables import summary_csv


def evaluate_generated(pairs: Pairs, reference_file: Path, out: Path, request: Request) -> dict[str, Any]:
    """Write metrics.json and summary.csv with the distribution metrics of the generated images in `pairs`.

    ValueError where weights, preparation, channels, window, unit, axis or the use of label maps are not those of the
    reference, where it is none, and where nothing can be computed.
    """
    refuse_unwritable(out, request)
    reference = load_reference(reference_file)
    found = load_networks(request, pairs=False)
    networks = found.extractors
    wanted = [INCEPTION] if reference.moments is not None else usable(reference, networks)
    if (reference.moments is not None and INCEPTION not in networks) or not wanted:
        reason = next(iter(found.reasons.values()), "Inception was not asked for")
        raise MissingWeights(f"--reference {reference_file}: needs Inception; {reason}", reason)
    refuse_own_windows("reference", reference_file, pairs)
    if reference.moments is None:
        refuse_other_reading(reference, pairs)
    work = Work(
        wanted=frozenset(names(RADIOMICS)) if RADIOMICS in wanted else frozenset(),
        extractors={key: network for key, network in networks.items() if key in wanted},
        device=torch.device(request.device),
        cache=request.cache,
        progress=request.progress,
        real=False,
    )
    sets, n, constant = generated_features(pairs, work)
    metrics: dict[str, dict[str, Any]] = {}
    for (key, channel), fake in sets.items():
        name = pairs.spec.channels[channel].name
        entries = reference_entries(reference, key, name, fake)
        for metric, entry in entries.items():
            if request.wanted is None or metric in request.wanted:
                about = about_extractor(key, found, metric) if key in networks else {}
                metrics[f"{metric}/{name}"] = entry | about | {"channel": name}
    if not metrics:
        raise ValueError(f"--reference {reference_file}: it has nothing that could be compared by {request.metrics}")
    result = {
        "schema": SCHEMA,
        "n": n,
        "metrics": metrics,
        "counts": {"constant_images": constant},
        "reference": reference_file.name,
        "settings": SETTINGS | settings_of(pairs),
        "environment": environment(),
    }
    write_json(out / "metrics.json", result)
    write_text(out / "summary.csv", summary_csv(result))
    return result
