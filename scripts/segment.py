"""Segment scans: ``python scripts/segment.py --input FILE… | DIR | BIDS_DIR --output DIR --checkpoint checkpoints/exp``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import config as options
from dataloaders.io.nifti import file_sha256
from dataloaders.io.spec import DataSpec
from dataloaders.segment_options import SegmentOptions, check_options
from engine import device
from engine.checkpoint import load_weights, weights_path
from engine.command import exit_code
from engine.segment import Expected, segment
from engine.segmentation import Predictor
from models.segmenter.method import Segmenter


def parse(arguments: Sequence[str] | None = None) -> SegmentOptions:
    """Command line -> checked options. --no-qc, and --qc without a file, are about pictures, as they used to be."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = ["--no-pictures" if word == "--no-qc" else word for word in words]
    bare = [word == "--qc" and (after is None or after[:1] == "-") for word, after in zip_longest(words, words[1:])]
    words = ["--pictures" if alone else word for word, alone in zip(words, bare, strict=True)]
    o = tyro.cli(SegmentOptions, args=words, description=SegmentOptions.__doc__)
    check_options(o)
    return o


def load(o: SegmentOptions) -> tuple[Predictor, dict[str, str], Expected]:
    """The network on its device, name and SHA-256 of its weights, and what its training scans were like.

    ValueError for weights of another method.
    """
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
    return Predictor(method, config, target, o.crop), model, weights.expected


def main() -> int:
    """Exit codes: 0 fine, 1 some scans could not be segmented, 2 bad options."""
    o = parse()
    if o.threads:
        torch.set_num_threads(o.threads)
    report = segment(o, *load(o))
    print(f"{o.output}: {report.made} segmented, {report.kept} kept, {len(report.faults)} failed")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
