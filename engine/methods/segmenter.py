"""Images to labels: what a segmenter is trained and validated on, and how test.py tests it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import TestConfig
from dataloaders.io.console import tracked
from dataloaders.io.files import whole_folder
from dataloaders.io.geometry import PLANES, plane, resample
from dataloaders.io.manifest import Manifest
from dataloaders.io.nifti import write_volume
from dataloaders.io.pictures import WHITE, label_colors, save_picture, tile_grid, to_grey
from dataloaders.io.schema import NAME
from dataloaders.io.spec import DataSpec
from dataloaders.labelmaps.classes import ras_spacing, trained_classes
from dataloaders.labelmaps.labels import id_type
from dataloaders.segmenter.case_volumes import channel_numbers, read_case
from dataloaders.segmenter.task import SegmentationTask
from dataloaders.slices import BatchLoader
from engine.methods.base import SplitTest, Workflow
from engine.segmentation import Predictor, most_probable
from engine.trained import TrainedRun
from evaluation.metrics.segmentation import dice
from evaluation.segmentation_results import PREDICTED, TRUE, evaluate_segmentation, segmentation_table
from evaluation.statistics import finite, label_means, nan_mean
from models.base import Method

PREVIEW_ROWS = 6


class SegmenterWorkflow(Workflow):
    """Real scans, synthetic ones made on the fly, or both. config: with the classes written out, after `read`."""

    metrics_needed = False  # it is judged by its Dice
    measure = "dice"
    higher = True
    instead_of_labels = (
        "turns images into labels: python scripts/segment.py --checkpoint RUN --input SCANS --output DIR"
    )
    usage = "python scripts/segment.py --checkpoint <this folder> --i <scans> --o <labels>"
    limits = (
        "Not for diagnosis. Scanners, protocols, ages and diseases that the training data do not show were not tested; the",
        "scores above are of the training data's own validation split.",
    )

    def sources(self) -> dict[str, Path]:
        """What it learns from beside --dataroot; seeds go with their label maps."""
        o = self.config.segmenter
        sources = {"--segmenter.label_maps": o.label_maps, "--segmenter.lesions": o.lesions}
        for path in o.results:  # results/a/best and results/b/best are two
            flag = f"--segmenter.results {path.name}"
            sources[f"{flag} ({len(sources) - 1})" if flag in sources else flag] = path
        return {flag: path for flag, path in sources.items() if path is not None}

    def read(self) -> None:
        """See `SegmentationTask`."""
        self.task = SegmentationTask(self.config)
        self.config, self.data = self.task.config, self.task.data

    def overview(self) -> list[str]:
        """What was found, in lines."""
        return self.task.overview()

    def loader(self) -> BatchLoader:
        """The training patches."""
        return self.task.loader()

    def validate(self, method: Method, folder: Path, device: torch.device) -> None:
        """The validation scans are read now."""
        super().validate(method, folder, device)
        self.patience = self.config.segmenter.patience
        self.scans, self.predictor = self.task.validation(), Predictor(method, self.config, device)

    def evaluate(self, images: int) -> dict[str, float | None] | None:
        """Dice by label with nnU-Net's rules for absent labels (`evaluation.metrics.segmentation`), then their mean."""
        if not self.scans:
            return None
        names = {label.id: label.name for label in self.data.spec.labels if label.id}
        scores = [dice(scan.label, self.predictor.label(scan.image), names) for scan in tracked(self.scans, "validate")]
        found = label_means(item for of_scan in scores for item in of_scan.items())
        values = {"dice": nan_mean(found.values())} | {f"dice/{names[i]}": value for i, value in found.items()}
        return {name: finite(value) for name, value in values.items()}

    def preview(self, path: Path) -> None:
        """Rows of image | truth | prediction, the slice with most foreground of each of the first scans."""
        axis, colors, rows = self.predictor.o.axis, label_colors(self.data.spec.labels), []
        for scan in self.scans[:PREVIEW_ROWS]:
            index = int(np.count_nonzero(scan.label, axis=PLANES[axis][1:]).argmax())
            maps = (colors[plane(one, axis, index)] for one in (scan.label, self.predictor.label(scan.image)))
            rows.append([to_grey(plane(scan.image[0], axis, index), 0, 1), *maps])
        if rows:
            save_picture(path, tile_grid(rows, WHITE))

    def test(self, config: TestConfig, run: TrainedRun) -> SplitTest:
        """See `SplitSegmentation`."""
        return SplitSegmentation(config, run)

    def purpose(self, spec: DataSpec) -> dict[str, str]:
        """What goes in, what comes out, and on which grid."""
        o = self.config.segmenter
        images = " and ".join(f"{channel.name} ({channel.unit})" for channel in spec.channels)
        patch = " x ".join(map(str, o.spatial_patch))
        return {"Makes": f"label maps from {images}", "Patches": f"{o.dims}-D, {patch} voxels"}


class SplitSegmentation(SplitTest):
    """The images of a split of --dataroot to label maps in the sources' geometry, with Dice, HD95 and volumes."""

    idle = ("seed", "resample", "draw", "noise", "volumes")

    def __init__(self, config: TestConfig, run: TrainedRun) -> None:
        super().__init__(config, run)
        if config.metrics not in ("auto", "dice", "none"):
            raise ValueError(
                f"--metrics {config.metrics}: of a segmenter must be auto (Dice, HD95, volumes), dice or none"
            )
        self.cases = [case for case in self.data.split(config.phase) if any(item.images for item in case.slices)]
        if not self.cases:
            raise ValueError(f"{self.root}: the split {config.phase!r} has no images to segment")
        inputs = config.inputs or tuple(channel.name for channel in run.spec.channels)
        if not config.inputs and len(self.data.spec.channels) == run.spec.num_channels:
            inputs = ()  # as many as there are: no names needed
        self.channels = channel_numbers(self.data.spec, inputs, run.spec.num_channels, "--inputs")
        names = [self.data.spec.channels[channel].name for channel in self.channels]
        parts = [config.ckpt_iter, *(names if config.inputs else ()), *(["tissue"] if config.tissue else ())]
        self.folder = NAME.of("-".join(parts), "results folder")
        self.made_from = {"inputs": names}

    def write(self, out: Path, provenance: dict[str, Any]) -> None:
        """Predicted and true label maps as <case>.nii.gz in the geometry of the sources, and the manifest.

        Labels without a class count as background.
        """
        method, device = self.run.method(self.config.gpu_ids)
        predictor, seconds = Predictor(method, self.run.config, device, tissue=self.config.tissue), 0.0
        spec, classes = predictor.spec, trained_classes(predictor.config, predictor.spec)
        with whole_folder(out) as staging:
            for case in tracked(self.cases, "segment"):
                native = read_case(self.root, case, self.data.spec, classes, self.channels, ())
                start = time.perf_counter()
                predicted, _, _ = most_probable(predictor, native.image, native.affine, ras_spacing(spec))
                seconds += time.perf_counter() - start
                shape, affine, codes = native.label.shape, native.affine, None
                if case.geometry is not None:
                    shape, affine = case.geometry.source_shape, np.array(case.geometry.source_affine)
                    codes = case.geometry.source_codes
                for kind, volume in ((PREDICTED, predicted), (TRUE, native.label)):
                    moved = resample(volume, native.affine, shape, affine, labels=True)
                    write_volume(staging / kind / f"{case.id}.nii.gz", moved, affine, id_type(spec.num_labels), codes)
            each = round(seconds / len(self.cases), 3)
            facts = {**provenance, "kind": "segmentation", **self.made_from, "seconds_per_case": each}
            cases = tuple(replace(case, slices=()) for case in self.cases)
            Manifest(replace(self.data.spec, labels=spec.labels), cases, facts).save(staging)

    def evaluate(self, out: Path) -> None:
        """Dice, HD95 and volumes; `--metrics dice` does without HD95, which takes long."""
        print(segmentation_table(evaluate_segmentation(out, progress=True, distances=self.config.metrics != "dice")))
