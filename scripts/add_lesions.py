"""Put MS lesions into a scan: ``scripts/add_lesions.py --name RUN --input T1 FLAIR --from_patient DIR --output DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

from dataloaders.io.schema import check, options_of
from engine.add_lesions import AddLesionsOptions, LesionRun, add_to_scan
from engine.command import exit_code
from engine.trained import TrainedRun


def main() -> int:
    """Exit codes: 0 fine, 2 bad options or scans that cannot be used."""
    o = options_of(AddLesionsOptions)
    check(o)
    print(add_to_scan(o, LesionRun.of(TrainedRun.load(o.checkpoints_dir, o.name, o.ckpt_iter), o.gpu_ids)))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
