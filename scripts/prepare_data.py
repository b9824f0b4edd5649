"""3-D scans and label maps -> slices and a manifest: ``python scripts/prepare_data.py --format bids --source … --out …``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

from dataloaders.io.files import listed
from dataloaders.io.schema import options_of
from dataloaders.overview import overview
from dataloaders.prepare.check import check_folder
from dataloaders.prepare.options import PrepareOptions
from dataloaders.prepare.prepare import DataFaults, prepare
from engine.command import exit_code


def main() -> int:
    """Exit codes: 0 fine, 1 faults in the data, 2 bad options."""
    options = options_of(PrepareOptions)
    if options.check is not None:
        return max(report_check(folder, options.workers) for folder in options.checked)
    try:
        manifest = prepare(options)
    except DataFaults as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if manifest is not None:
        print("\n".join(overview(manifest)))
        print(f"prepared: {options.out}")
    return 0


def report_check(folder: Path, workers: int) -> int:
    """Print the faults of a prepared folder; 1 if there are any."""
    faults = check_folder(folder, workers)
    for fault in listed(faults):
        print(fault, file=sys.stderr)
    print(f"{folder}: {len(faults)} faults" if faults else f"{folder}: fine")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
