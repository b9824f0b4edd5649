"""Intensity priors from real images: ``python scripts/estimate_priors.py --images DIR --labels DIR --out priors.json``."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataloaders.io.files import listed
from dataloaders.labelmaps.prior_estimation import PriorOptions, SourceFaults, estimate_priors
from engine.command import exit_code


def main() -> int:
    """Exit codes: 0 fine, 1 faults in the data, 2 bad options."""
    options = tyro.cli(PriorOptions, description=PriorOptions.__doc__)
    try:
        result = estimate_priors(options)
    except SourceFaults as error:
        for line in listed(error.faults):
            print(f"error: {line}", file=sys.stderr)
        return 1
    for note in result.notes:
        print(f"warning: {note}", file=sys.stderr)
    print(result.table())
    print(f"priors: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
