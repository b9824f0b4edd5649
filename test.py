"""Synthesise a split with a trained run and evaluate it: ``python test.py --name exp --dataroot path``; or label maps
without images: ``python test.py --name exp --labels maps/ --out DIR``.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import config as options
from config import Config, TestConfig, parse_test
from dataloaders.case_volumes import channel_numbers
from dataloaders.folder import load_manifest
from dataloaders.io.files import check_name, whole_folder, write_text
from dataloaders.io.manifest import FILE_NAME, Manifest
from dataloaders.io.runlog import JSONL
from dataloaders.io.spec import DataSpec
from dataloaders.io.workers import parse_shard
from dataloaders.labelmaps.classes import ras_spacing
from dataloaders.labelmaps.labels import read_label_map
from dataloaders.lesions.loading import lesion_test_loader
from dataloaders.slices import SliceDataset, SliceLoader, fingerprint
from dataloaders.unpaired import as_label_source
from engine import device
from engine.checkpoint import Weights, load_weights, weights_path
from engine.command import exit_code
from engine.map_synthesis import SHOWN, MapJob, MapReport, synthesize_maps
from engine.results import ResultsWriter, synthesize_split
from engine.run import run_windows, weights_folder
from engine.segmentation import Predictor, predict_split
from evaluation import check_metrics, evaluate_results, format_table
from evaluation.metrics.lesion_regions import evaluate_lesion_regions, format_regions
from evaluation.segmentation_results import evaluate_segmentation, segmentation_table
from models import build_method
from models.base import Method
from models.gmm.labels import plain_name
from models.segmenter.method import Segmenter

# in results folders, by this command, evaluate.py and lesion scores; whoever adds files of a new name adds them here
WRITTEN = {FILE_NAME, "label", "generated", "groundtruth", "filled", "predictions", "volumes", "training_log.jsonl"}
WRITTEN |= {"metrics.json", "metrics.csv", "summary.csv", "lesion_regions.json", "lesion_regions.csv", "shards"}


def test(config: TestConfig) -> Path:
    """Weights + labels -> images on disk -> metrics; returns the results folder."""
    run_folder = weights_folder(config.checkpoints_dir, config.name)
    weights = load_weights(run_folder, config.ckpt_iter)
    trained, spec = options.from_dict(weights.config), DataSpec.from_dict(weights.spec)
    if trained.model == "segmenter":
        return test_segmenter(config, run_folder, weights)
    assert config.dataroot is not None
    data = load_manifest(config.dataroot, patient_regex=config.patient_regex)
    data.refuse_bare(config.dataroot, config.phase, "label map")
    if trained.unpaired or not data.spec.channels:
        data = as_label_source(data, spec, run_windows(weights, trained))
    scored = config.metrics != "none" and any(item.images for case in data.split(config.phase) for item in case.slices)
    if scored:
        check_metrics(config.metrics, config.weights)  # before any work
    check_same_spec(spec, data.spec, config)
    resampled = label_ids(config.resample, spec)
    method, target = load_method(config, weights, trained, spec)
    out = config.results_dir / config.name / config.ckpt_iter
    made_from = {
        "weights_sha256": hashlib.sha256(weights_path(run_folder, config.ckpt_iter).read_bytes()).hexdigest(),
        "data": fingerprint(config.dataroot),
        **{key: getattr(config, key) for key in ("phase", "seed", "noise", "volumes", "resample")},
        "draw": config.draw if config.resample else 0,
    }
    refuse_other_results(out, made_from, config.overwrite)
    neighbours = trained.gan.neighbours if trained.gan else 0
    if trained.model == "lesion":
        loader = lesion_test_loader(trained.lesion, config.dataroot, data, config.phase, config.batch_size)
    else:
        classes = run_classes(spec, data.spec)
        dataset = SliceDataset(config.dataroot, data, config.phase, neighbours=neighbours, classes=classes)
        loader = SliceLoader(dataset, config.batch_size)
    writer = ResultsWriter(out, config.dataroot, data, config.volumes)
    draws = (config.seed, config.noise, resampled, config.draw)
    seconds = synthesize_split(method, loader.once(), writer, target, *draws, total=len(loader))
    log = run_folder / JSONL
    if log.is_file():  # so that the results folder can be reported on alone
        write_text(writer.staging / "training_log.jsonl", log.read_text(encoding="utf-8"))
    writer.close(
        {
            "name": config.name,
            "method": trained.model,
            "checkpoint": config.ckpt_iter,
            "images_seen": weights.images,
            "split": config.phase,
            "config": options.without_paths(options.from_dict(weights.config)),
            "data_provenance": data.provenance,
            "made_from": made_from,
            "seconds_per_slice": round(seconds, 5),
            "environment": device.environment(target),
        }
    )
    if scored:
        print(format_table(evaluate_results(out, config.metrics, config.weights, str(target), progress=True)))
        lesions = evaluate_lesion_regions(out)
        if lesions is not None:
            print(format_regions(lesions))
    elif config.metrics != "none":
        print(f"the {config.phase} split has no real images, so there is nothing to evaluate against: no metrics")
    return out


def load_method(config: TestConfig, weights: Weights, trained: Config, spec: DataSpec) -> tuple[Method, torch.device]:
    """The trained method, on the device. ValueError where --resample has nothing to draw."""
    target = device.select_device(config.gpu_ids)
    if trained.tuned and target.type == "cpu":
        device.keep_freed_memory()
    method = build_method(trained, spec).to(target).eval()
    method.load_release(weights.tensors)
    if config.resample and not method.resamples:
        raise ValueError(
            f"--resample {config.resample}: the run {config.name!r} was trained without noise to draw anew"
        )
    return method, target


def test_labels(config: TestConfig) -> MapReport:
    """Weights + label maps without images -> volumes in the maps' own geometry, in --out."""
    assert config.labels is not None
    assert config.out is not None
    part = parse_shard(config.shard)
    run_folder = weights_folder(config.checkpoints_dir, config.name)
    weights = load_weights(run_folder, config.ckpt_iter)
    trained, spec = options.from_dict(weights.config), DataSpec.from_dict(weights.spec)
    if not trained.paints_labels:
        why = {
            "segmenter": "turns images into labels: python scripts/segment.py --checkpoint RUN --input SCANS --output DIR",
            "lesion": f"paints lesions into images: python scripts/add_lesions.py --name {config.name} --input SCANS …",
        }[trained.model]
        raise ValueError(f"--labels: the run {config.name!r} {why}")
    windows = run_windows(weights, trained)
    given = read_label_map(config.label_map) if config.label_map is not None else None
    resampled = label_ids(config.resample, spec)
    method, target = load_method(config, weights, trained, spec)
    settings = {
        "weights_sha256": hashlib.sha256(weights_path(run_folder, config.ckpt_iter).read_bytes()).hexdigest(),
        **{key: getattr(config, key) for key in ("seed", "noise", "resample")},
        "draw": config.draw if config.resample else 0,
        "windows": [[window.low, window.high] for window in windows],
    }
    about = {
        "name": config.name,
        "method": trained.model,
        "checkpoint": config.ckpt_iter,
        "images_seen": weights.images,
        "channels": [asdict(channel) for channel in spec.channels],
        "config": options.without_paths(options.from_dict(weights.config)),
    }
    neighbours = trained.gan.neighbours if trained.gan else 0
    job = MapJob(config, config.out, method, spec, windows, target, settings, about, neighbours, resampled, given)
    report = synthesize_maps(job, config.labels, part)
    for line in report.lines(spec):
        print(f"note: {line}")
    return report


def test_segmenter(config: TestConfig, run_folder: Path, weights: Weights) -> Path:
    """Weights + images -> predicted label maps in the sources' geometry -> Dice, HD95 and volumes."""
    trained, spec = options.from_dict(weights.config), DataSpec.from_dict(weights.spec)
    assert config.dataroot is not None
    data = load_manifest(config.dataroot, patient_regex=config.patient_regex)
    cases = [case for case in data.split(config.phase) if any(item.images for item in case.slices)]
    if not cases:
        raise ValueError(f"{config.dataroot}: the split {config.phase!r} has no images to segment")
    data.refuse_bare(config.dataroot, config.phase, "label map")
    inputs = config.inputs or tuple(channel.name for channel in spec.channels)
    if not config.inputs and len(data.spec.channels) == spec.num_channels:
        inputs = ()  # as many as there are: no names needed
    channels = channel_numbers(data.spec, inputs, spec.num_channels, "--inputs")
    target = device.select_device(config.gpu_ids)
    method = Segmenter(trained, spec).to(target)
    method.load_release(weights.tensors)
    names = [data.spec.channels[channel].name for channel in channels]
    folder = config.ckpt_iter if not config.inputs else f"{config.ckpt_iter}-{'-'.join(names)}"
    out = config.results_dir / config.name / check_name(folder, "results folder")
    made_from = {
        "weights_sha256": hashlib.sha256(weights_path(run_folder, config.ckpt_iter).read_bytes()).hexdigest(),
        "data": fingerprint(config.dataroot),
        "phase": config.phase,
        "inputs": names,
    }
    refuse_other_results(out, made_from, config.overwrite)
    with whole_folder(out) as staging:
        predictor = Predictor(method, trained, target)
        found, seconds = predict_split(predictor, config.dataroot, data, cases, channels, ras_spacing(spec), staging)
        provenance = {
            "kind": "segmentation",
            "name": config.name,
            "method": trained.model,
            "checkpoint": config.ckpt_iter,
            "images_seen": weights.images,
            "split": config.phase,
            "inputs": names,
            "config": options.without_paths(options.from_dict(weights.config)),
            "data_provenance": data.provenance,
            "made_from": made_from,
            "seconds_per_case": round(seconds, 3),
            "environment": device.environment(target),
        }
        Manifest(replace(data.spec, labels=spec.labels), tuple(found), provenance).save(staging)
        if config.metrics != "none":
            print(segmentation_table(evaluate_segmentation(staging, progress=True)))
    return out


def check_same_spec(trained: DataSpec, given: DataSpec, config: TestConfig) -> None:
    """Refuse data with labels that the run does not know, or other channels or size, listing what differs."""
    facts = {
        "channels": ([channel.name for channel in trained.channels], [channel.name for channel in given.channels]),
        "size": (trained.size, given.size),
    }
    wrong = [f"  {name}: trained on {old}, found {new}" for name, (old, new) in facts.items() if old != new]
    if trained.size != given.size:
        wrong[-1] += f"; prepare_data.py --size {' '.join(map(str, trained.size))} makes such slices"
    names = [label.name for label in trained.labels]
    known = {plain_name(name) for name in names}
    if unknown := [label.name for label in given.labels if plain_name(label.name) not in known]:
        wrong.append(f"  labels: {', '.join(unknown)} are none of the run's; it knows {', '.join(names)}")
    if wrong:
        raise ValueError(f"--dataroot {config.dataroot} does not fit the run {config.name!r}:\n" + "\n".join(wrong))


def run_classes(trained: DataSpec, given: DataSpec) -> NDArray[np.int64] | None:
    """The run's class of each label of the data, by name; None where they are the same. For specs that were checked."""
    names = [plain_name(label.name) for label in trained.labels]
    wanted = [plain_name(label.name) for label in given.labels]
    return None if names == wanted else np.array([names.index(name) for name in wanted], np.int64)


def label_ids(names: str, spec: DataSpec) -> list[int]:
    """Ids of comma-separated label names or ids; ValueError lists what there is."""
    known = {label.name: label.id for label in spec.labels} | {str(label.id): label.id for label in spec.labels}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        there = ", ".join(f"{label.id} {label.name}" for label in spec.labels)
        raise ValueError(f"--resample {','.join(unknown)}: no such label; there are {there}")
    return [known[name] for name in wanted]


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
    changed = [key for key, value in made_from.items() if old.get(key) != value]
    if changed:
        raise ValueError(
            f"{out} holds results with other {', '.join(changed)}; give --overwrite to replace them, "
            "or another --results_dir"
        )


def main() -> int:
    """Command line. Exit codes: 0 fine, 1 some label maps failed, 2 bad options."""
    config = parse_test()
    if config.labels is None:
        print(f"results: {test(config)}")
        return 0
    report = test_labels(config)
    listed = f", of which the first {SHOWN} are listed" * (len(report.faults) > SHOWN)
    print(f"{config.out}: {report.made} made, {report.kept} kept, {len(report.faults)} failed{listed}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
