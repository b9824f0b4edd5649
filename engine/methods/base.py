"""What a method has beside its networks: data, validation, a test, words on it. The loop and the commands know no other."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from config import Config, TestConfig
from dataloaders.io.manifest import Manifest
from dataloaders.io.schema import NAME
from dataloaders.io.spec import DataSpec
from dataloaders.io.weights import locate
from dataloaders.plain_folder import load_manifest
from engine.checkpoint import has_work
from models import load_class
from models.base import Method

if TYPE_CHECKING:
    from dataloaders.slices import BatchLoader
    from engine.trained import TrainedRun


class SplitTest(ABC):
    """A split of --dataroot and a trained run that goes with it. ValueError of its making where it does not.

    folder: name of the results folder; made_from: what its content depends on beside weights, data and split.
    idle: options of test.py that would change nothing, which are refused.
    """

    folder: str
    made_from: dict[str, Any]
    idle: tuple[str, ...] = ()

    def __init__(self, config: TestConfig, run: TrainedRun) -> None:
        assert config.dataroot is not None
        self.config, self.run, self.root = config, run, config.dataroot
        for _, flag in config.given(self.idle):
            raise ValueError(f"{flag}: changes nothing for {run.config.model}")
        data = load_manifest(self.root, patient_regex=config.patient_regex)
        self.data = data.only(config.phase, config.only_patients)
        self.data.refuse_bare(self.root, config.phase, "label map")

    @abstractmethod
    def write(self, out: Path, provenance: dict[str, Any]) -> None:
        """Synthesise, or segment, the split into the results folder `out`, which is whole or absent."""

    @abstractmethod
    def evaluate(self, out: Path) -> None:
        """Metrics of the results folder, to files and to the console."""


class Workflow(ABC):
    """Made of the options of a run, before anything is read. config: those options, completed by `read`.

    data: what is trained on, after `read`. metrics_needed: whether --metrics says what the validation computes.
    measure: name of the metric that chooses the best weights; higher: whether more of it is better; patience: evaluations
    without a better one after which training stops, 0 for never. method, folder, device: after `validate`.
    instead_of_labels: command that does with {name} what test.py --labels cannot, "" where it can.
    usage, limits: lines of the model card.
    """

    data: Manifest
    metrics_needed = True
    measure: str
    higher = False
    patience = 0
    instead_of_labels = ""
    usage = ""
    limits: tuple[str, ...] = ()

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def paints_labels(self) -> bool:
        """Whether the method makes images of label maps alone."""
        return not self.instead_of_labels

    def check_start(self) -> None:
        """What can be refused before any data are read: the name, metrics, weights that are not there or do not fit.

        ValueError or MissingWeights.
        """
        NAME.of(self.config.name, "--name")
        if self.metrics_needed and self.config.metrics != "none":
            from evaluation import check_metrics  # seconds to import

            check_metrics(self.config.metrics, self.config.weights)
        for key in self.pretrained():
            locate(key, self.config.weights)
        if not has_work(self.config.checkpoints_dir / self.config.name):  # else it is resumed
            self.other  # noqa: B018

    @functools.cached_property
    def other(self) -> TrainedRun | None:
        """The run that --init_from names, read when it is first asked for."""
        if self.config.init_from is None:
            return None
        from engine.trained import TrainedRun  # of no use to most runs

        return TrainedRun.to_begin_with(self.config)

    def pretrained(self) -> list[str]:
        """Keys of the pretrained weight files that training needs."""
        return []

    def sources(self) -> dict[str, Path]:
        """Flag -> folder or file beside --dataroot that the training depends on."""
        return {}

    @abstractmethod
    def read(self) -> None:
        """Find the data. ValueError naming the flag where folders and options do not fit."""

    @abstractmethod
    def overview(self) -> list[str]:
        """What was found, in lines."""

    def advice(self, images: int, device: torch.device) -> list[str]:
        """Lines on what a training of so many images will cost, where there is anything to be said before it begins."""
        return []

    @abstractmethod
    def loader(self) -> BatchLoader:
        """Batches of the training split."""

    def equip(self, method: Method) -> None:  # noqa: B027 (most methods need nothing)
        """Give a new method what it needs from disk beside its data. MissingWeights, or ValueError where it does not fit."""

    def validate(self, method: Method, folder: Path, device: torch.device) -> None:
        """It is this method that is evaluated and shown from here on; folder: of the run. After `loader`."""
        self.method, self.folder, self.device = method, folder, device

    @abstractmethod
    def evaluate(self, images: int) -> Mapping[str, float | None] | None:
        """Metrics of the method as it is after so many images; None where there is nothing to validate on."""

    @abstractmethod
    def preview(self, path: Path) -> None:
        """Write one picture, if there is anything to show."""

    @abstractmethod
    def test(self, config: TestConfig, run: TrainedRun) -> SplitTest:
        """How test.py tests a run of this method."""

    @abstractmethod
    def purpose(self, spec: DataSpec) -> dict[str, str]:
        """What goes in, what comes out, and on which grid; for the model card."""


def workflow_of(config: Config) -> Workflow:
    """The workflow of the method that the options name."""
    made: Workflow = load_class(config.method.workflow)(config)
    return made
