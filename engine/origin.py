"""The other run that a new one begins with: fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import config as options
from config import Config
from dataloaders.io.spec import SYNTHETIC, DataSpec
from engine.trained import TrainedRun
from models.base import Method


def begin_with(method: Method, config: Config, spec: DataSpec) -> tuple[dict[str, Any], list[str]]:
    """Give a new method the weights that --init_from names. Returns what is recorded of them, and what else was taken.

    ValueError in one line where there are none, or where method, labels, channels or networks are not those of this run.
    """
    assert config.init_from is not None
    other = TrainedRun.named(config.init_from, "--init_from", config.checkpoints_dir)
    if config.method.fitted:
        raise ValueError(
            f"--init_from {config.init_from}: {config.model} is fitted to its data, it begins with nothing"
        )
    if faults := _differences(other, config, spec):
        raise ValueError(f"--init_from {config.init_from}: {'; '.join(faults)}")
    try:
        taken = method.start_from(other.weights.tensors, other.state())
    except RuntimeError as error:  # torch's, of one line for each tensor
        changed = options.differences(options.to_dict(other.config), options.to_dict(config))
        sizes = [line for line in changed if line.startswith(tuple(f"--{group}." for group in config.method.groups))]
        why = "; ".join(sizes) or str(error).splitlines()[1].strip()
        raise ValueError(f"--init_from {config.init_from}: its networks are not of this run's shape: {why}") from None
    facts = {"run": other.folder.name, "weights": other.which, "images": other.weights.images, "sha256": other.sha256}
    return facts, taken


def origin_line(origin: Mapping[str, Any]) -> str:
    """What was recorded, in words."""
    return f"`{origin['run']}`, {origin['weights']}, after {origin['images']:,} images (SHA-256 `{origin['sha256']}`)"


def _differences(other: TrainedRun, config: Config, spec: DataSpec) -> list[str]:
    if other.config.model != config.model:
        return [f"is a run of {other.config.model}, this is one of {config.model}"]
    labels = _unlike("labels", [label.name for label in other.spec.labels], [label.name for label in spec.labels])
    there, here = ([channel.name for channel in one.channels] for one in (other.spec, spec))
    painted = there == [SYNTHETIC] and len(here) == 1
    return labels + ([] if painted else _unlike("channels", there, here))


def _unlike(what: str, there: Sequence[str], here: Sequence[str]) -> list[str]:
    if there == here:
        return []
    alone = [", ".join(name for name in one if name not in two) for one, two in ((there, here), (here, there))]
    parts = [f"{names} only {place}" for names, place in zip(alone, ("there", "here"), strict=True) if names]
    return [f"its {what} are not those of --dataroot: {' and '.join(parts) or 'they are in another order'}"]
