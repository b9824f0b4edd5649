"""A trained run as it is read again: to test it, to give it away, to begin another with it, to use it in other commands."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from config import Config, differences, from_dict, to_dict, without_paths
from dataloaders.io.files import file_sha256
from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Manifest
from dataloaders.io.schema import NAME
from dataloaders.io.spec import SYNTHETIC, DataSpec
from dataloaders.unpaired import typical_windows
from engine import checkpoint, device
from engine.checkpoint import Weights, load_weights, weights_path
from models import build_method
from models.base import Method


@dataclass(frozen=True)
class TrainedRun:
    """Weights called `which` of a run folder, with the options and the spec that they were trained with."""

    folder: Path
    which: str
    weights: Weights
    config: Config
    spec: DataSpec

    @classmethod
    def load(cls, checkpoints_dir: Path, name: str, which: str) -> TrainedRun:
        """The run called `name`. ValueError where there is none, CheckpointError where there are no such weights."""
        folder = checkpoints_dir / NAME.of(name, "--name")
        if not folder.is_dir():
            raise ValueError(f"--name {name}: no such run in {checkpoints_dir}")
        return cls.of(folder, which)

    @classmethod
    def of(cls, folder: Path, which: str) -> TrainedRun:
        """That of a folder."""
        weights = load_weights(folder, which)
        return cls(folder, which, weights, from_dict(weights.config), DataSpec.from_dict(weights.spec))

    @classmethod
    def named(cls, text: str, flag: str, runs: Path, which: str = "best") -> TrainedRun:
        """That of a weights file, of a folder, or of a name in `runs`; what follows a colon says which of its weights.

        ValueError naming the flag where there is none.
        """
        path = Path(text)
        if path.is_file() and (found := re.fullmatch(r"weights-(.+)\.safetensors", path.name)):
            return cls.of(path.parent, found[1])
        folder, _, after = text.rpartition(":")
        for name, weights in ((text, which), (folder, after)):
            for path in (Path(name), runs / name):
                if name and path.is_dir():
                    return cls.of(path, weights)
        raise ValueError(f"{flag} {text}: no such run folder or weights file, nor a run in {runs}")

    @functools.cached_property
    def sha256(self) -> str:
        """Of the weight file."""
        return file_sha256(weights_path(self.folder, self.which))

    def method(self, gpu_ids: str, flag: str = "--gpu_ids") -> tuple[Method, torch.device]:
        """The method with its weights, on the device that `gpu_ids` names."""
        target = device.select_device(gpu_ids, flag=flag)
        if self.config.tuned and target.type == "cpu":
            device.keep_freed_memory()
        method = build_method(self.config, self.spec).to(target).eval()
        method.load_release(self.weights.tensors)
        return method, target

    def state(self) -> dict[str, Any]:
        """All networks of the run after as many images; nothing where no state of that moment was kept."""
        best = checkpoint.best_state(self.folder)
        for path in (checkpoint.state_path(self.folder, self.weights.images), *([best] if best else [])):
            if path.is_file() and checkpoint.images_of(path) == self.weights.images:
                found: dict[str, Any] = checkpoint.load_state(path)["method"]
                return found
        return {}

    def windows(self) -> tuple[Window, ...]:
        """Typical windows of the run's images, one per channel, for label maps that have no scan of their own.

        Weights of earlier versions do not hold them; the training data do, where they are still there and unchanged.
        ValueError where they are not.
        """
        if self.weights.windows:
            return tuple(Window(*window) for window in self.weights.windows)
        try:
            data = Manifest.load(self.config.dataroot, histograms=False)
            if data.spec == self.spec:
                return typical_windows(data)
        except (ValueError, OSError):  # moved, or prepared anew
            pass
        raise ValueError(
            f"the weights of {self.config.name!r}, of an earlier version, do not say which units its images had, and its "
            f"training data {self.config.dataroot} are not there as they were; train a little further, which writes the "
            "weights anew"
        )

    def about(self) -> dict[str, Any]:
        """What results and volumes say of the run that made them, without paths."""
        return {
            "name": self.folder.name,
            "method": self.config.model,
            "checkpoint": self.which,
            "images_seen": self.weights.images,
            "config": without_paths(self.config),
            **({"origin": dict(self.weights.origin)} if self.weights.origin else {}),
        }

    # -- what a new run begins with --------------------------------------------------------------------------------------

    @classmethod
    def to_begin_with(cls, config: Config) -> TrainedRun:
        """The run that --init_from names.

        ValueError in one line where there are no such weights, or where its networks are not those that `config` describes.
        """
        assert config.init_from is not None
        other, why = cls.named(config.init_from, "--init_from", config.checkpoints_dir), ""
        if config.method.fitted:
            why = f"{config.model} is fitted to its data, it begins with nothing"
        elif other.config.model != config.model:
            why = f"is a run of {other.config.model}, this is one of {config.model}"
        else:
            try:
                build_method(config, other.spec).start_from(other.weights.tensors, {})
            except RuntimeError as error:  # torch's, of one line for each tensor
                changed = differences(to_dict(other.config), to_dict(config))
                sizes = [line for line in changed if line.startswith(tuple(f"--{g}." for g in config.method.groups))]
                found = "; ".join(sizes) or str(error).splitlines()[1].strip()
                why = f"its networks are not of this run's shape: {found}"
        if why:
            raise ValueError(f"--init_from {config.init_from}: {why}")
        return other

    def refuse_other_data(self, config: Config, spec: DataSpec) -> None:
        """ValueError in one line where its labels or channels are not those of the data of a run that begins with it."""
        faults = _unlike("labels", [label.name for label in self.spec.labels], [label.name for label in spec.labels])
        there, here = ([channel.name for channel in one.channels] for one in (self.spec, spec))
        if not (there == [SYNTHETIC] and len(here) == 1):  # painted from label maps alone: any one channel
            faults += _unlike("channels", there, here)
        if faults:
            raise ValueError(f"--init_from {config.init_from}: {'; '.join(faults)}")

    def give_weights(self, method: Method) -> tuple[dict[str, Any], list[str]]:
        """Let a new method begin with its weights. Returns what is recorded of them, and what else was taken."""
        taken = method.start_from(self.weights.tensors, self.state())
        facts = {"run": self.folder.name, "weights": self.which, "images": self.weights.images, "sha256": self.sha256}
        return facts, taken


def origin_line(origin: Mapping[str, Any]) -> str:
    """What was recorded, in words."""
    return f"`{origin['run']}`, {origin['weights']}, after {origin['images']:,} images (SHA-256 `{origin['sha256']}`)"


def _unlike(what: str, there: Sequence[str], here: Sequence[str]) -> list[str]:
    if there == here:
        return []
    alone = [", ".join(name for name in one if name not in two) for one, two in ((there, here), (here, there))]
    parts = [f"{names} only {place}" for names, place in zip(alone, ("there", "here"), strict=True) if names]
    return [f"its {what} are not those of --dataroot: {' and '.join(parts) or 'they are in another order'}"]
