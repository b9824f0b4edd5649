"""Raw scans to a tissue-segmentation study: ``python scripts/pipeline.py run|plan|status|doctor study.toml``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

from engine.command import exit_code
from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(exit_code(main))
