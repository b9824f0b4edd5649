"""Label maps to images: what its methods are trained on, what judges them, and how test.py tests them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from config import Config, TestConfig
from dataloaders.folder import load_manifest
from dataloaders.io.files import write_text
from dataloaders.io.manifest import Manifest
from dataloaders.io.runlog import JSONL
from dataloaders.io.spec import DataSpec
from dataloaders.overview import overview
from dataloaders.slices import SliceDataset, SliceLoader
from engine.methods.base import Judge, SplitTest, Verdict, Workflow
from engine.preview import save_preview
from engine.results import ResultsWriter, synthesize_split
from engine.trained import TrainedRun
from models.base import Method, SampleRandom, seeded_generator
from models.gmm.labels import plain_name

BEST_METRIC = "wasserstein"  # always computable, so the choice of the best weights does not depend on the machine
PREVIEW_ROWS = 6


class SynthesisWorkflow(Workflow):
    """Label maps to images.

    neighbours: label slices on each side that the method sees too. histograms: whether those of the manifest are read.
    unpaired: whether labels and images do not belong together. source: what images are made from, for the model card.
    """

    neighbours = 0
    histograms = False
    unpaired = False
    source = "label maps"
    usage = "python test.py --name {name} --checkpoints_dir <…> --labels <maps> --out <volumes>"
    limits = (
        "Images are synthetic and not for diagnosis. They follow the scanners, protocols and patients of the training",
        "data, and may repeat features of single training images: whoever releases them must judge whether that is",
        "allowed. What a label does not say (texture within an organ, small findings) is invented.",
    )
    val_loader: SliceLoader | None = None

    def read(self) -> None:
        """A prepared folder, or one of PNG slices, with label maps in both splits and training images."""
        self.data = self.read_labels()
        self.data.refuse_bare(self.config.dataroot, "train", "image")

    def read_labels(self) -> Manifest:
        """The manifest of --dataroot. ValueError where it lacks label maps."""
        data = load_manifest(self.config.dataroot, self.histograms, self.config.patient_regex)
        for split in ("train", "val"):
            data.refuse_bare(self.config.dataroot, split, "label map")
        return data

    def overview(self) -> list[str]:
        """What was found, in lines."""
        return [f"data: {self.config.dataroot}", *overview(self.data)]

    def loader(self) -> SliceLoader:
        """The training slices; those of validation are found too."""
        if self.data.split("val"):
            validation = SliceDataset(self.config.dataroot, self.data, "val", neighbours=self.neighbours)
            self.val_loader = SliceLoader(validation, self.config.batch_size)
        return self.training_loader()

    def training_loader(self) -> SliceLoader:
        """Slices in an order drawn anew for each epoch."""
        c = self.config
        return SliceLoader(self.training_slices(), c.batch_size, c.seed, c.num_workers)

    def training_slices(self, read: Any = "both") -> SliceDataset:
        """Slices of --dataroot with the augmentation of training. read: as that of `SliceDataset`."""
        c = self.config
        return SliceDataset(
            c.dataroot, self.data, "train", c.flip, c.seed, c.cache_gb, neighbours=self.neighbours, read=read
        )

    def judge(self, method: Method, folder: Path, device: torch.device) -> Judge:
        """The validation split; without pairs there is no best by comparison, which would use a pairing not to be used."""
        return SynthesisJudge(self.config, self.data, method, self.val_loader, folder, device, not self.unpaired)

    def test(self, config: TestConfig, run: TrainedRun) -> SplitTest:
        """See `SplitSynthesis`."""
        return SplitSynthesis(self, config, run)

    def test_loader(self, root: Path, data: Manifest, config: TestConfig, spec: DataSpec) -> SliceLoader:
        """All slices of a split, with classes of the run's spec."""
        classes = run_classes(spec, data.spec)
        dataset = SliceDataset(root, data, config.phase, neighbours=self.neighbours, classes=classes)
        return SliceLoader(dataset, config.batch_size)

    def purpose(self, spec: DataSpec) -> dict[str, str]:
        """What goes in, what comes out, and on which grid."""
        images = " and ".join(f"{channel.name} ({channel.unit})" for channel in spec.channels)
        size = f"{spec.size[0]} x {spec.size[1]} pixels of {spec.spacing[0]:g} x {spec.spacing[1]:g} mm"
        return {
            "Makes": f"{images} from {self.source}",
            "Slices": f"{spec.axis or 'any direction'}, {size}, {spec.slice_spacing:g} mm apart",
        }


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
        paired: bool = True,
    ) -> None:
        self.config, self.data, self.method, self.val_loader = config, data, method, val_loader
        self.folder, self.device = folder, device
        self.comparable = paired and any(item.images for case in data.split("val") for item in case.slices)

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
        """All metrics of the validation split; None without pairs to compare."""
        if self.val_loader is None or not self.comparable:
            return None
        from evaluation import evaluate_results, headline  # seconds to import

        folder = self.folder / "validation"
        writer = ResultsWriter(folder, self.config.dataroot, self.data, volumes=False)
        limit, count = self.config.eval_slices, len(self.val_loader)
        batches, total = self.val_loader.once(limit=limit), min(limit, count) if limit else count
        synthesize_split(self.method, batches, writer, self.device, self.config.seed, total=total)
        writer.close({"name": self.config.name, "method": self.config.model, "images_seen": images})
        result = evaluate_results(folder, self.config.metrics, self.config.weights, str(self.device), progress=True)
        metrics = headline(result)
        return Verdict(metrics, BEST_METRIC, metrics[BEST_METRIC])


class SplitSynthesis:
    """A split of --dataroot to images, where its labels, channels and size fit the run."""

    def __init__(self, workflow: SynthesisWorkflow, config: TestConfig, run: TrainedRun) -> None:
        assert config.dataroot is not None
        self.workflow, self.config, self.run, self.root = workflow, config, run, config.dataroot
        data = load_manifest(self.root, patient_regex=config.patient_regex)
        data.refuse_bare(self.root, config.phase, "label map")
        if workflow.unpaired or not data.spec.channels:
            from dataloaders.unpaired import as_label_source

            data = as_label_source(data, run.spec, run.windows())
        self.data = data
        self.scored = any(item.images for case in data.split(config.phase) for item in case.slices)
        if self.scored and config.metrics != "none":
            from evaluation import check_metrics

            check_metrics(config.metrics, config.weights)  # before any work
        check_same_spec(run.spec, data.spec, config)
        self.resampled = label_ids(config.resample, run.spec)
        self.method, self.device = drawing_method(config, run)
        self.folder = config.ckpt_iter
        self.made_from = {key: getattr(config, key) for key in ("seed", "noise", "volumes", "resample")}
        self.made_from["draw"] = config.draw if config.resample else 0

    def write(self, out: Path, provenance: dict[str, Any]) -> None:
        """Slices, volumes, manifest and the training's log, so that the results folder can be reported on alone."""
        c = self.config
        loader = self.workflow.test_loader(self.root, self.data, c, self.run.spec)
        writer = ResultsWriter(out, self.root, self.data, c.volumes)
        draws = (c.seed, c.noise, self.resampled, c.draw)
        seconds = synthesize_split(self.method, loader.once(), writer, self.device, *draws, total=len(loader))
        log = self.run.folder / JSONL
        if log.is_file():
            write_text(writer.staging / "training_log.jsonl", log.read_text(encoding="utf-8"))
        writer.close({**provenance, "seconds_per_slice": round(seconds, 5)})

    def evaluate(self, out: Path) -> None:
        """Every metric that was asked for, and of lesions by region."""
        if not self.scored:
            phase = self.config.phase
            print(f"the {phase} split has no real images, so there is nothing to evaluate against: no metrics")
            return
        from evaluation import evaluate_results, format_table
        from evaluation.metrics.lesion_regions import evaluate_lesion_regions, format_regions

        c = self.config
        print(format_table(evaluate_results(out, c.metrics, c.weights, str(self.device), progress=True)))
        lesions = evaluate_lesion_regions(out)
        if lesions is not None:
            print(format_regions(lesions))


def drawing_method(config: TestConfig, run: TrainedRun) -> tuple[Method, torch.device]:
    """The trained method and its device. ValueError where --resample has nothing to draw."""
    method, device = run.method(config.gpu_ids)
    if config.resample and not method.resamples:
        raise ValueError(
            f"--resample {config.resample}: the run {config.name!r} was trained without noise to draw anew"
        )
    return method, device


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
