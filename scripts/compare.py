"""Compare results folders: report, figures and tables: ``python scripts/compare.py results/a results/b``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

import tyro

from dataloaders.io.locks import lock_place
from dataloaders.io.schema import options_of
from engine.command import exit_code
from evaluation.compare import load_entrants
from evaluation.report.page import RUNS, refuse_foreign, write_report
from evaluation.report.pdf import print_pdf


@dataclass(frozen=True)
class CompareOptions:
    """Write report.html, compare.json, figures/ and tables/ for one or more results of test.py on the same slices."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Results folders, or their parents (the newest results inside are taken)."""
    out: Path = Path("results/compare")
    """Folder to write."""
    weights: Path | None = None
    """Folder with pretrained weights, for results that were not evaluated yet."""
    rank_by: str = "mae_body"
    """Metric with a value per slice (a column of metrics.csv) by which worst and best are chosen."""
    checkpoints_dir: Path = RUNS
    """Folder of all runs, whose records of privacy.py are shown; results/<name>/privacy is looked into first."""
    pdf: bool = False
    """Also write report.pdf, everything unfolded, by the Chromium or Chrome that is installed."""


def main() -> int:
    """Exit codes: 0 fine, 2 bad options or folders that cannot be compared."""
    options = options_of(CompareOptions)
    if not options.results:
        raise ValueError("name at least one results folder")
    refuse_foreign(options.out)  # before any work
    with lock_place(options.out):
        entrants = load_entrants(list(options.results), options.weights)
        path = write_report(entrants, options.out, options.rank_by, options.checkpoints_dir)
        printed = print_pdf(path) if options.pdf else ""
    print(f"report: {path.resolve()}")
    if printed:
        print(printed)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
