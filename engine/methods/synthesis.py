"""Label maps to images: what its methods are trained and validated on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from config import TestConfig
from dataloaders.io.files import whole_folder
from dataloaders.io.manifest import Manifest
from dataloaders.io.pictures import WHITE, label_colors, save_picture, tile_grid, to_grey
from dataloaders.io.spec import DataSpec
from dataloaders.overview import overview
from dataloaders.plain_folder import load_manifest
from dataloaders.slices import BatchLoader, SliceDataset
from engine.methods.base import SplitTest, Workflow
from engine.results import Draws, Synthesis, write_results
from models.base import SampleRandom, seeded_generator

if TYPE_CHECKING:
    from engine.trained import TrainedRun

PREVIEW_ROWS = 6


class SynthesisWorkflow(Workflow):
    """Label maps to images.

    neighbours: label slices on each side that the method sees too. row: neighbouring slices that training sees at a time.
    crop: (H, W) of the windows that training sees.
    histograms: whether those of the manifest are read.
    unpaired: whether labels and images do not belong together. source: what images are made from, for the model card.
    """

    measure = "composite"
    neighbours = 0
    row = 1
    crop: tuple[int, int] | None = None
    histograms = False
    unpaired = False
    source = "label maps"
    usage = "python test.py --name {name} --checkpoints_dir <…> --labels <maps> --out <volumes>"
    limits = (
        "Images are synthetic and not for diagnosis. They follow the scanners, protocols and patients of the training",
        "data, and may repeat features of single training images: whoever releases them must judge whether that is",
        "allowed. What a label does not say (texture within an organ, small findings) is invented.",
    )
    val_loader: BatchLoader | None = None

    def read(self) -> None:
        """A prepared folder, or one of PNG slices, with label maps in both splits and training images."""
        self.data = self.read_labels()
        self.data.refuse_bare(self.config.dataroot, "train", "image")

    def read_labels(self) -> Manifest:
        """The manifest of --dataroot. ValueError where it lacks label maps."""
        c = self.config
        data = load_manifest(c.dataroot, self.histograms or bool(c.only_patients), c.patient_regex)
        data = data.only("train", c.only_patients)
        for split in ("train", "val"):
            data.refuse_bare(c.dataroot, split, "label map")
        return data

    def overview(self) -> list[str]:
        """What was found, in lines."""
        return [f"data: {self.config.dataroot}", *overview(self.data)]

    def loader(self) -> BatchLoader:
        """The training slices; those of validation are found too."""
        if self.data.split("val"):
            validation = SliceDataset(self.config.dataroot, self.data, "val", neighbours=self.neighbours)
            self.val_loader = BatchLoader(validation, self.config.batch_size)
        return self.training_loader()

    def training_loader(self) -> BatchLoader:
        """Slices in an order drawn anew for each epoch."""
        c = self.config
        slices = self.training_slices(c.dataroot, self.data)
        return BatchLoader(slices, c.batch_size, c.seed, c.num_workers, row=self.row)

    def training_slices(self, root: Path, data: Manifest, read: Any = "both") -> SliceDataset:
        """Training slices of a folder, mirrored and cut as the options say. read: as that of `SliceDataset`."""
        c = self.config
        common = (root, data, "train", c.flip, c.seed, c.cache_gb, self.neighbours, read)
        return SliceDataset(*common, crop=self.crop)

    def preview(self, path: Path) -> None:
        """Rows of label | real | generated (trained net) | generated (moving average)."""
        if self.val_loader is None:
            return
        colors, rows = label_colors(self.data.spec.labels), []
        for batch in self.val_loader.once(limit=PREVIEW_ROWS):
            batch = batch.to(self.device)
            randoms = [SampleRandom.of(self.config.seed, c, i) for c, i in zip(batch.cases, batch.indices, strict=True)]
            average = self.method.synthesize(batch, randoms)
            batch.rng = seeded_generator(self.config.seed, "preview")
            columns = [column for column in (batch.image, self.method.current(batch), average) if column is not None]
            pixels = torch.cat(columns, 1).cpu().numpy()
            labels = batch.label.cpu().numpy()
            rows += [
                [colors[ids], *(to_grey(one, -1, 1) for one in row)] for ids, row in zip(labels, pixels, strict=True)
            ]
        save_picture(path, tile_grid(rows, WHITE))

    def evaluate(self, images: int) -> dict[str, float] | None:
        """All metrics of the validation split as test.py would synthesise it, and their composite.

        None without pairs, as a comparison would use a pairing that is not to be used.
        """
        real = any(item.images for case in self.data.split("val") for item in case.slices)
        if self.val_loader is None or not real or self.unpaired:
            return None
        from evaluation import evaluate_results, headline  # seconds to import
        from evaluation.composite import PARTS, composite

        folder = self.folder / "validation"
        limit, count = self.config.eval_slices, len(self.val_loader)
        batches, total = self.val_loader.once(limit=limit), min(limit, count) if limit else count
        with whole_folder(folder) as staging:
            about = {"name": self.config.name, "method": self.config.model, "images_seen": images}
            made = Synthesis(self.method, batches, self.device, Draws(self.config.seed), total)
            write_results(staging, self.config.dataroot, self.data, made, about, volumes=False)
        asked = self.config.metrics
        names = asked if asked == "auto" else ",".join(dict.fromkeys([*asked.split(","), *PARTS]))
        metrics = headline(evaluate_results(folder, names, self.config.weights, str(self.device), progress=True))
        return metrics | {self.measure: composite(metrics)}

    def test(self, config: TestConfig, run: TrainedRun) -> SplitTest:
        """See `SplitSynthesis`."""
        from engine.split_synthesis import SplitSynthesis  # of no use to training

        return SplitSynthesis(self, config, run)

    def test_loader(
        self, root: Path, data: Manifest, config: TestConfig, classes: NDArray[np.int64] | None
    ) -> BatchLoader:
        """All slices of a split. classes: the run's class of each label of the data, None where they are the same."""
        dataset = SliceDataset(root, data, config.phase, neighbours=self.neighbours, classes=classes)
        return BatchLoader(dataset, config.batch_size)

    def purpose(self, spec: DataSpec) -> dict[str, str]:
        """What goes in, what comes out, and on which grid."""
        images = " and ".join(f"{channel.name} ({channel.unit})" for channel in spec.channels)
        size = f"{spec.size[0]} x {spec.size[1]} pixels of {spec.spacing[0]:g} x {spec.spacing[1]:g} mm"
        return {
            "Makes": f"{images} from {self.source}",
            "Slices": f"{spec.axis or 'any direction'}, {size}, {spec.slice_spacing:g} mm apart",
        }
