"""Generated images against the saved features of real ones: the distribution metrics, without any real image at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.io.files import write_json, write_text
from dataloaders.io.weights import MissingWeights
from evaluation.metrics.feature_sets import INCEPTION, of_extractor
from evaluation.pairs import Pairs
from evaluation.reference import load_reference, reference_entries, refuse_other_reading, usable
from evaluation.request import Request, plan, refuse_own_windows
from evaluation.results import refuse_unwritable
from evaluation.scoring import merged, score
from evaluation.summary import about
from evaluation.tables import summary_csv


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
    scores = merged(score(pairs, planned))
    metrics: dict[str, dict[str, Any]] = {}
    for (key, channel), rows in scores.sets.items():
        name = pairs.spec.channels[channel].name
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
