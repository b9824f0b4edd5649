"""A trained run to give away: ``python scripts/export_model.py --name exp --out released --license CC-BY-4.0``."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.command import exit_code
from engine.export import ExportOptions, export


def main() -> int:
    """Exit codes: 0 fine, 2 bad options."""
    folder = export(tyro.cli(ExportOptions, description=ExportOptions.__doc__))
    print(f"released: {folder}; read {folder / 'README.md'} and complete it before you pass it on")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
