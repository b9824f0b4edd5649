"""Segment scans: ``python scripts/segment.py --input FILE… | DIR | BIDS_DIR --output DIR --checkpoint checkpoints/exp``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import config as options
from dataloaders.nifti import file_sha256
from dataloaders.segment_options import SegmentOptions, check_options
from engine import device
from engine.checkpoint import load_weights, weights_path
from engine.command import exit_code
from engine.segment import segment
from engine.segmentation import Predictor
from models.segmenter import Segmenter
from spec import DataSpec


def parse(arguments: Sequence[str] | None = None) -> SegmentOptions:
    """Command line -> checked options."""
    o = tyro.cli(SegmentOptions, args=arguments, description=SegmentOptions.__doc__)
    check_options(o)
    return o


def load(o: SegmentOptions) -> tuple[Predictor, dict[str, str]]:
    """The network on its device, and the name and SHA-256 of its weights. ValueError for weights of another method."""
    folder, which = o.checkpoint, o.ckpt_iter
    if folder.suffix == ".safetensors":
        folder, which = folder.parent, folder.stem.removeprefix("weights-")
    if not folder.is_dir():
        raise ValueError(
            f"--checkpoint {o.checkpoint}: no such run folder; train.py --model segmenter --name NAME makes one in "
            "checkpoints/NAME"
        )
    weights = load_weights(folder, which)
    config, spec = options.from_dict(weights.config), DataSpec.from_dict(weights.spec)
    if config.model != "segmenter":
        raise ValueError(f"--checkpoint {o.checkpoint}: was trained with --model {config.model}, not segmenter")
    if o.overlap is not None:
        config = replace(config, segmenter=replace(config.segmenter, overlap=o.overlap))
    target = device.select_device(o.gpu_ids, flag="--device")
    if target.type == "cpu":
        device.keep_freed_memory()
    method = Segmenter(config, spec).to(target).eval()
    method.load_release(weights.tensors)
    model = {"name": config.name, "weights_sha256": file_sha256(weights_path(folder, which))}
    return Predictor(method, config, target), model


def main() -> int:
    """Exit codes: 0 fine, 1 some scans could not be segmented, 2 bad options."""
    o = parse()
    if o.threads:
        torch.set_num_threads(o.threads)
    predictor, model = load(o)
    report = segment(o, predictor, model)
    print(f"{o.output}: {report.made} segmented, {report.kept} kept, {len(report.faults)} failed")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
