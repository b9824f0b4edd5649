"""Synthesise a split with a trained run and evaluate it: ``python test.py --name exp --dataroot path``; or label maps
without images: ``python test.py --name exp --labels maps/ --out DIR``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import engine.signals  # noqa: F401  # isort: skip

from config import TestConfig, parse_test
from dataloaders.io.manifest import FILE_NAME, Manifest
from dataloaders.slices import fingerprint
from engine import device
from engine.command import exit_code
from engine.methods.base import workflow_of
from engine.trained import TrainedRun

# in results folders, by this command, evaluate.py and lesion scores; whoever adds files of a new name adds them here
WRITTEN = {FILE_NAME, "label", "generated", "groundtruth", "filled", "predictions", "volumes", "training_log.jsonl"}
WRITTEN |= {"metrics.json", "metrics.csv", "summary.csv", "lesion_regions.json", "lesion_regions.csv", "shards"}


def test(config: TestConfig) -> Path:
    """Weights + data -> images, or of a segmenter label maps, on disk -> metrics; returns the results folder."""
    assert config.dataroot is not None
    run = TrainedRun.load(config.checkpoints_dir, config.name, config.ckpt_iter)
    split = workflow_of(run.config).test(config, run)
    out = config.results_dir / config.name / split.folder
    data = {"data": fingerprint(config.dataroot), "phase": config.phase, "only_patients": sorted(config.only_patients)}
    made_from = {"weights_sha256": run.sha256, **data, **split.made_from}
    refuse_other_results(out, made_from, config.overwrite)
    provenance = {
        **run.about(),
        "split": config.phase,
        "data_provenance": split.data.provenance,
        "made_from": made_from,
        "environment": device.environment(device.select_device(config.gpu_ids)),
    }
    split.write(out, provenance)
    if config.metrics != "none":
        split.evaluate(out)
    return out


def refuse_other_results(out: Path, made_from: dict[str, Any], overwrite: bool) -> None:
    """ValueError where `out` holds results that this call would not make again, which --overwrite allows, or no results."""
    if not out.exists():
        return
    provenance = Manifest.load(out, histograms=False).provenance if (out / FILE_NAME).is_file() else {}
    if provenance.get("kind") not in ("results", "segmentation"):
        raise ValueError(f"{out} exists and is not a results folder; choose another --results_dir")
    if foreign := sorted(p.name for p in out.iterdir() if p.name not in WRITTEN and not p.name.startswith(".")):
        raise ValueError(
            f"{out} would be replaced, but holds what test.py did not write, move it: {', '.join(foreign)}"
        )
    if overwrite:
        return
    old = provenance.get("made_from", {})
    changed = [
        key for key, value in made_from.items() if old.get(key, []) != value
    ]  # earlier versions lack only_patients
    if changed:
        raise ValueError(
            f"{out} holds results with other {', '.join(changed)}; give --overwrite to replace them, "
            "or another --results_dir"
        )


def test_labels(config: TestConfig) -> int:
    """Weights + label maps without images -> volumes in the maps' own geometry, in --out; how many maps failed."""
    from engine.map_synthesis import MapSynthesis  # seconds to import

    run = TrainedRun.load(config.checkpoints_dir, config.name, config.ckpt_iter)
    report = MapSynthesis(config, run).write()
    for line in report.lines(run.spec):
        print(f"note: {line}")
    print(f"{config.out}: {report.line()}")
    return len(report.faults)


def main() -> int:
    """Command line. Exit codes: 0 fine, 1 some label maps failed, 2 bad options."""
    config = parse_test()
    if config.labels is None:
        print(f"results: {test(config)}")
        return 0
    return 1 if test_labels(config) else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
