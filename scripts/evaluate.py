"""Score images: ``python scripts/evaluate.py --results DIR`` or ``--real DIR --generated DIR [--labels DIR]``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.command import exit_code
from evaluation import evaluate_results, format_table
from evaluation.folders import folders_manifest
from evaluation.results import evaluate_manifest


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Score a results folder of test.py, or any two folders of equally named greyscale PNG files."""

    results: Path | None = None
    """Results folder of test.py; metrics.json and metrics.csv are written there."""
    real: Path | None = None
    """Folder of real images."""
    generated: Path | None = None
    """Folder of generated images with the same file names."""
    labels: Path | None = None
    """Folder of label maps with the same file names (with or without the channel ending)."""
    window: tuple[float, float] | None = None
    """Physical values of the lowest and highest level, e.g. -1024 3071; without it levels count as they are."""
    patient_regex: str | None = None
    """Regular expression whose first group is the patient within a file name."""
    metrics: str = "auto"
    """auto for all that can be computed here, or a comma-separated list."""
    weights: Path | None = None
    """Folder or file with pretrained weights; else $MEDSIS_WEIGHTS, else torch's cache."""
    device: str = "cpu"
    """Device of the networks, e.g. cuda."""
    out: Path = Path("results/evaluate")
    """Folder of metrics.json and metrics.csv for --real and --generated."""
    json: bool = False
    """Print JSON instead of a table."""


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Metrics of whatever the options name."""
    arguments = (options.metrics, options.weights, options.device, not options.json)
    if options.results is not None:
        return evaluate_results(options.results, *arguments)
    if options.real is None or options.generated is None:
        raise ValueError("give --results DIR, or --real DIR and --generated DIR")
    manifest = folders_manifest(options.real, options.generated, options.labels, options.window, options.patient_regex)
    return evaluate_manifest(manifest, options.out, *arguments)


def run() -> int:
    """The command."""
    options = tyro.cli(EvaluateOptions, description=EvaluateOptions.__doc__)
    result = evaluate(options)
    print(json.dumps(result, indent=1) if options.json else format_table(result))
    return 0


def main() -> int:
    """Exit codes: 0 fine, 2 bad options or files, 3 weights of a named metric are missing."""
    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
