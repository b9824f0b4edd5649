"""Generated images against the saved features of real ones: the distribution metrics, without any real image at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine.files import write_json, write_text
from evaluation.catalog import SCHEMA, SETTINGS
from evaluation.feature_sets import INCEPTION, RADIOMICS
from evaluation.pairs import Pairs
from evaluation.reference import load_reference, reference_entries, usable
from evaluation.request import Request, about_extractor, load_networks
from evaluation.scoring import Work, generated_features
from evaluation.summary import environment
from evaluation.tables import summary_csv


def evaluate_generated(pairs: Pairs, reference_file: Path, out: Path, request: Request) -> dict[str, Any]:
    """Write metrics.json and summary.csv with the distribution metrics of the generated images in `pairs`.

    The images have to be in the window that those of the reference were in. ValueError where weights, preparation or
    channels are not those of the reference, or it is none.
    """
    reference = load_reference(reference_file)
    found = load_networks(request, pairs=False)
    networks = found.extractors
    wanted = [INCEPTION] if reference.moments is not None else usable(reference, networks)
    work = Work(
        extractors={key: network for key, network in networks.items() if key in wanted},
        device=torch.device(request.device),
        radiomics=RADIOMICS in wanted,
        cache=request.cache,
        progress=request.progress,
    )
    sets, n = generated_features(pairs, work)
    metrics: dict[str, dict[str, Any]] = {}
    for (key, channel), fake in sets.items():
        name = pairs.spec.channels[channel].name
        entries = reference_entries(reference, key, name, fake)
        for metric, entry in entries.items():
            if request.wanted is None or metric in request.wanted:
                about = about_extractor(key, found, metric) if key in networks else {}
                metrics[f"{metric}/{name}"] = entry | about | {"channel": name}
    result = {
        "schema": SCHEMA,
        "n": n,
        "metrics": metrics,
        "counts": {"constant_images": 0},
        "reference": reference_file.name,
        "settings": SETTINGS,
        "environment": environment(),
    }
    write_json(out / "metrics.json", result)
    write_text(out / "summary.csv", summary_csv(result))
    return result
