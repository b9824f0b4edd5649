"""How test.py tests methods that make images of label maps: a split of a prepared folder to a results folder, scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from config import TestConfig
from dataloaders.io.files import whole_folder, write_text
from dataloaders.io.runlog import JSONL
from dataloaders.io.spec import DataSpec, plain_name
from dataloaders.unpaired import as_label_source
from engine.methods.base import SplitTest
from engine.methods.synthesis import SynthesisWorkflow
from engine.results import Draws, Synthesis, write_results
from engine.trained import TrainedRun
from evaluation import check_metrics, evaluate_results, format_table
from evaluation.floors import REPEATS
from evaluation.metrics.lesion_regions import evaluate_lesion_regions, format_regions
from models.base import Method


class SplitSynthesis(SplitTest):
    """A split of --dataroot to images, where its labels, channels and size fit the run."""

    idle = ("inputs", "tissue")

    def __init__(self, workflow: SynthesisWorkflow, config: TestConfig, run: TrainedRun) -> None:
        super().__init__(config, run)
        self.workflow = workflow
        if workflow.unpaired or not self.data.spec.channels:
            self.data = as_label_source(self.data, run.spec, run.windows())
        self.scored = any(item.images for case in self.data.split(config.phase) for item in case.slices)
        if self.scored and config.metrics != "none":
            check_metrics(config.metrics, config.weights)  # before any work
        check_same_spec(run.spec, self.data.spec, config)
        self.method, self.device, self.draws, drawn = drawing(config, run)
        self.folder, self.made_from = config.ckpt_iter, {**drawn, "volumes": config.volumes}

    def write(self, out: Path, provenance: dict[str, Any]) -> None:
        """Slices, volumes, manifest and the training's log, so that the results folder can be reported on alone."""
        c = self.config
        classes = run_classes(self.run.spec, self.data.spec)
        loader = self.workflow.test_loader(self.root, self.data, c, classes)
        made = Synthesis(self.method, loader.once(), self.device, self.draws, len(loader))
        with whole_folder(out) as staging:
            write_results(staging, self.root, self.data, made, provenance, c.volumes)
            log = self.run.folder / JSONL
            if log.is_file():
                write_text(staging / "training_log.jsonl", log.read_text(encoding="utf-8"))

    def evaluate(self, out: Path) -> None:
        """Every metric that was asked for, and of lesions by region."""
        if not self.scored:
            phase = self.config.phase
            print(f"the {phase} split has no real images, so there is nothing to evaluate against: no metrics")
            return
        c = self.config
        asked = (c.metrics, c.weights, str(self.device))
        print(format_table(evaluate_results(out, *asked, progress=True, repeats=self.root / REPEATS)))
        lesions = evaluate_lesion_regions(out)
        if lesions is not None:
            print(format_regions(lesions))


def drawing(config: TestConfig, run: TrainedRun) -> tuple[Method, torch.device, Draws, dict[str, Any]]:
    """The trained method, its device, what its styles are drawn from, and what records say of that.

    ValueError where --resample has nothing to draw.
    """
    draws = Draws(config.seed, config.noise, dict.fromkeys(label_ids(config.resample, run.spec), config.draw))
    method, device = run.method(config.gpu_ids)
    if config.resample and not method.resamples:
        raise ValueError(
            f"--resample {config.resample}: the run {config.name!r} was trained without noise to draw anew"
        )
    said = {key: getattr(config, key) for key in ("seed", "noise", "resample")}
    return method, device, draws, {**said, "draw": config.draw if config.resample else 0}


def label_ids(names: str, spec: DataSpec) -> list[int]:
    """Ids of comma-separated label names or ids; ValueError lists what there is."""
    known = {label.name: label.id for label in spec.labels} | {str(label.id): label.id for label in spec.labels}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        there = ", ".join(f"{label.id} {label.name}" for label in spec.labels)
        raise ValueError(f"--resample {','.join(unknown)}: no such label; there are {there}")
    return [known[name] for name in wanted]


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
