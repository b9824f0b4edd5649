"""Score images: ``python scripts/evaluate.py --results DIR`` or ``--real DIR --generated DIR [--labels DIR]``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

import tyro

from dataloaders.io.manifest import Manifest
from dataloaders.io.schema import LowHigh, Shard, check, options_of
from dataloaders.io.spec import Axis
from dataloaders.io.workers import parse_shard
from engine.command import exit_code
from evaluation.evaluate import evaluate_generated, evaluate_pairs, evaluate_shard
from evaluation.folders import Folders
from evaluation.pairs import ManifestPairs, Pairs
from evaluation.request import Request
from evaluation.tables import format_table


@dataclass(frozen=True, kw_only=True)
class Images:
    """Which images, and how they are read."""

    results: Path | None = None
    """Results folder of test.py; metrics.json and the tables are written there."""
    real: Path | None = None
    """Folder of real images: greyscale PNG, .nii or .nii.gz."""
    generated: Path | None = None
    """Folder of generated images with the same file names."""
    labels: Path | None = None
    """Folder of label maps with the same file names (with or without the channel ending)."""
    window: LowHigh | None = None
    """Physical values of the lowest and highest level, e.g. -1024 3071; default: PNG levels, each real volume's range."""
    levels: int | None = None
    """Highest level that the PNG files can hold, e.g. 4095 for 12-bit images in 16 bits; default: 255, 65535, or where
    16-bit real images stay below 16384 and no --window is given what their bits can hold."""
    unit: str = "units"
    """Unit of the intensities, e.g. HU."""
    axis: Axis = "axial"
    """Direction in which volumes are sliced."""
    patient_regex: str | None = None
    """Regular expression whose first group is the patient within a file name."""

    def pairs(self) -> Pairs:
        """Of the results folder, else of the two folders; without real images each generated one stands for both."""
        if self.results is not None:
            return ManifestPairs(self.results, Manifest.load(self.results))
        given = {item.name: getattr(self, item.name) for item in fields(Folders)}
        return Folders(**given | {"real": self.real or self.generated}).pairs()


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Request, Images):
    """Score a results folder of test.py, or any two folders of equally named PNG slices or NIfTI volumes."""

    progress: tyro.conf.Suppress[tyro.conf.Fixed[bool]] = True
    """Not an option: see --json."""
    reference: Path | None = None
    """Score --generated against such a file (or pytorch-fid's .npz) instead of --real."""
    shard: Shard = "0/1"
    """Score only part i of n of the cases, e.g. in a job array; the last part to finish merges all (same --out)."""
    out: Path | None = None
    """Folder of metrics.json and the tables; default: the results folder, else results/evaluate."""
    json: bool = False
    """Print JSON instead of a table."""


def evaluate(options: EvaluateOptions) -> dict[str, Any] | None:
    """Metrics of whatever the options name; None for a shard while others are missing."""
    check(options)
    refuse_ignored(options)
    request = replace(options, progress=not options.json)
    out = options.out or options.results or Path("results/evaluate")
    shard = parse_shard(options.shard)
    pairs = options.pairs()
    if options.reference is not None:
        return evaluate_generated(pairs, options.reference, out, request)
    return evaluate_pairs(pairs, out, request) if shard[1] == 1 else evaluate_shard(pairs, out, request, shard)


OF_ALL = {"metrics", "extractors", "cache", "weights", "device", "out", "json"}
OF_PAIRS = OF_ALL | {item.name for item in fields(Request)} | {"shard"}
OF_FOLDERS = {item.name for item in fields(Folders)} - {"real"}
MODES = {  # what names the images -> (options that it needs, options that it takes)
    "results": ({"results"}, OF_PAIRS),
    "reference": ({"reference", "generated"}, OF_ALL | OF_FOLDERS),
    "real": ({"real", "generated"}, OF_PAIRS | OF_FOLDERS),
}


def refuse_ignored(options: EvaluateOptions) -> None:
    """ValueError for options that lack something, or that would be ignored."""
    given = {name for name, value in vars(options).items() if value != getattr(EvaluateOptions(), name)}
    mode = next((name for name in MODES if name in given), None)
    if mode is None or not MODES[mode][0] <= given:
        raise ValueError(
            "give --results DIR, or --real DIR and --generated DIR, or --reference FILE and --generated DIR"
        )
    needed, allowed = MODES[mode]
    if ignored := sorted(given - needed - allowed):
        flags = ", ".join(f"--{name}" for name in ignored)
        raise ValueError(f"{flags}: cannot be used with --{' and --'.join(sorted(needed, reverse=True))}")


def main() -> int:
    """Exit codes: 0 fine, 2 bad options or files, 3 weights of a named metric are missing."""
    options = options_of(EvaluateOptions)
    result = evaluate(options)
    if result is None:
        print(f"shard {options.shard} is done; the last one merges all", file=sys.stderr)
    else:
        print(json.dumps(result, indent=1) if options.json else format_table(result))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
