"""Tissues split by intensity, for the GMM generator: ``python scripts/make_seeds.py --bids_path DIR --out_path DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataloaders.labelmaps.seed_making import SeedOptions, make_seeds
from engine.command import exit_code


def main() -> int:
    """Exit codes: 0 fine, 1 some subjects failed, 2 bad options."""
    options = tyro.cli(SeedOptions, description=SeedOptions.__doc__)
    report = make_seeds(options)
    for line in report.skipped:
        print(f"skipped: {line}")
    counts = f"{len(report.made)} made, {len(report.kept)} kept, {len(report.skipped)} skipped"
    print(f"{options.out_path}: {counts}, {len(report.failed)} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
