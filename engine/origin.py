"""The other run that a new one begins with: fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import config as options
from config import Config
from dataloaders.io.spec import SYNTHETIC, DataSpec
from engine.trained import TrainedRun
from models import build_method
from models.base import Method


def other_run(config: Config) -> TrainedRun:
    """The run that --init_from names.

    ValueError in one line where there are no such weights, or where its networks are not those that `config` describes.
    """
    assert config.init_from is not None
    other = TrainedRun.named(config.init_from, "--init_from", config.checkpoints_dir)
    why = ""
    if config.method.fitted:
        why = f"{config.model} is fitted to its data, it begins with nothing"
    elif other.config.model != config.model:
        why = f"is a run of {other.config.model}, this is one of {config.model}"
    else:
        try:
            build_method(config, other.spec).start_from(other.weights.tensors, {})
        except RuntimeError as error:  # torch's, of one line for each tensor
            changed = options.differences(options.to_dict(other.config), options.to_dict(config))
            sizes = [
                line for line in changed if line.startswith(tuple(f"--{group}." for group in config.method.groups))
            ]
            found = "; ".join(sizes) or str(error).splitlines()[1].strip()
            why = f"its networks are not of this run's shape: {found}"
    if why:
        raise ValueError(f"--init_from {config.init_from}: {why}")
    return other


def check_data(other: TrainedRun, config: Config, spec: DataSpec) -> None:
    """ValueError in one line where its labels or channels are not those of the data."""
    faults = _unlike("labels", [label.name for label in other.spec.labels], [label.name for label in spec.labels])
    there, here = ([channel.name for channel in one.channels] for one in (other.spec, spec))
    if not (there == [SYNTHETIC] and len(here) == 1):  # painted from label maps alone: any one channel
        faults += _unlike("channels", there, here)
    if faults:
        raise ValueError(f"--init_from {config.init_from}: {'; '.join(faults)}")


def begin_with(method: Method, other: TrainedRun) -> tuple[dict[str, Any], list[str]]:
    """Give a new method the other run's weights. Returns what is recorded of them, and what else was taken."""
    taken = method.start_from(other.weights.tensors, other.state())
    facts = {"run": other.folder.name, "weights": other.which, "images": other.weights.images, "sha256": other.sha256}
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
