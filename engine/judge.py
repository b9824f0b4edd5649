"""What a validation is, what a preview is and what best means, for each kind of method. The loop knows none of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from config import Config
from dataloaders.case_volumes import CaseVolume
from dataloaders.io.manifest import Manifest
from dataloaders.io.progress import tracked
from dataloaders.patches import ACROSS
from dataloaders.slices import SliceLoader
from engine.preview import save_label_preview, save_preview
from engine.results import ResultsWriter, synthesize_split
from engine.segmentation import Predictor
from evaluation import evaluate_results, headline
from evaluation.metrics.segmentation import dice, mean_over_cases
from models.base import Method, SampleRandom, seeded_generator

BEST_METRIC = "wasserstein"  # always computable, so the choice of the best weights does not depend on the machine
PREVIEW_ROWS = 6


@dataclass(frozen=True)
class Verdict:
    """Metrics of one validation, and the one that chooses the best weights: name, value, and whether higher is better."""

    metrics: Mapping[str, float | None]
    name: str
    value: float
    higher: bool = False

    @property
    def loss(self) -> float:
        """The value as a number of which less is better."""
        return -self.value if self.higher else self.value


class Judge(Protocol):
    """Chosen once for a run. patience: evaluations without a better one after which it stops, 0 for never."""

    patience: int

    def evaluate(self, images: int) -> Verdict | None:
        """Validate the method as it is after so many images; None where there is nothing to validate on."""
        ...

    def preview(self, path: Path) -> None:
        """Write one picture, if there is anything to show."""
        ...


class SynthesisJudge:
    """Label maps to images: the validation split as test.py would synthesise it, best by `BEST_METRIC`."""

    patience = 0

    def __init__(
        self,
        config: Config,
        data: Manifest,
        method: Method,
        val_loader: SliceLoader | None,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.config, self.data, self.method, self.val_loader = config, data, method, val_loader
        self.folder, self.device = folder, device

    def preview(self, path: Path) -> None:
        """Rows of label | real | generated (trained net) | generated (moving average)."""
        if self.val_loader is None:
            return
        batches = list(self.val_loader.once(limit=PREVIEW_ROWS))
        labels, columns = [], []
        for batch in (b.to(self.device) for b in batches):
            randoms = [SampleRandom.of(self.config.seed, c, i) for c, i in zip(batch.cases, batch.indices, strict=True)]
            average = self.method.synthesize(batch, randoms)
            batch.rng = seeded_generator(self.config.seed, "preview")
            current = self.method.current(batch)
            shown = [batch.image, current, average] if batch.image is not None else [current, average]
            labels.append(batch.label.cpu())
            columns.append([column.cpu() for column in shown if column is not None])
        stacked = [torch.cat(column).numpy() for column in zip(*columns, strict=True)]
        save_preview(path, torch.cat(labels).numpy(), stacked, self.data.spec.num_labels)

    def evaluate(self, images: int) -> Verdict | None:
        """Without pairs there is no best by comparison, and comparing would use a pairing that must not be used."""
        paired = any(item.images for case in self.data.split("val") for item in case.slices)
        if self.val_loader is None or self.config.unpaired or not paired:
            return None
        folder = self.folder / "validation"
        writer = ResultsWriter(folder, self.config.dataroot, self.data, volumes=False)
        batches = self.val_loader.once(limit=self.config.eval_slices)
        limit, count = self.config.eval_slices, len(self.val_loader)
        total = min(limit, count) if limit else count
        synthesize_split(self.method, batches, writer, self.device, self.config.seed, total=total)
        writer.close({"name": self.config.name, "method": self.config.model, "images_seen": images})
        result = evaluate_results(folder, self.config.metrics, self.config.weights, str(self.device), progress=True)
        metrics = headline(result)
        return Verdict(metrics, BEST_METRIC, metrics[BEST_METRIC])


class SegmentationJudge:
    """Images to labels: Dice of whole validation scans on the network's grid, best by its mean over labels."""

    def __init__(self, config: Config, method: Any, scans: Sequence[CaseVolume], device: torch.device) -> None:
        self.patience = config.segmenter.patience
        self.spec, self.scans = method.spec, list(scans)
        self.predictor = Predictor(method, config, device)

    def evaluate(self, images: int) -> Verdict | None:
        """Dice by label with nnU-Net's rules for absent labels (`evaluation.metrics.segmentation`), then their mean."""
        del images
        if not self.scans:
            return None
        names = {label.id: label.name for label in self.spec.labels if label.id}
        scores = [dice(scan.label, self.predictor.label(scan.image), names) for scan in tracked(self.scans, "validate")]
        found = mean_over_cases(scores)
        values = {"dice": found.mean} | {f"dice/{names[i]}": value for i, value in found.per_label.items()}
        metrics = {name: value if math.isfinite(value) else None for name, value in values.items()}
        mean = found.mean if math.isfinite(found.mean) else 0.0
        return Verdict(metrics, "dice", mean, higher=True)

    def preview(self, path: Path) -> None:
        """Rows of image | truth | prediction, the slice with most foreground of each of the first scans."""
        rows = []
        across = ACROSS[self.predictor.o.axis]
        for scan in self.scans[:PREVIEW_ROWS]:
            other = tuple(axis for axis in range(3) if axis != across)
            index = int(np.count_nonzero(scan.label, axis=other).argmax())
            predicted = self.predictor.label(scan.image)
            planes = [np.take(volume, index, across) for volume in (scan.image[0], scan.label, predicted)]
            rows.append(tuple(plane.T[::-1, ::-1] for plane in planes))  # as displayed
        if rows:
            save_label_preview(path, rows, self.spec.num_labels)
