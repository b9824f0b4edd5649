"""What a user asks the evaluation for, and the networks that it takes, found before anything is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from dataloaders.io.console import warn_once
from dataloaders.io.files import known_sha256
from dataloaders.io.weights import MissingWeights, resolve
from evaluation.catalog import METRICS, PROTOCOLS, named
from evaluation.metrics import extractors, perceptual
from evaluation.metrics.extractors import Extractor
from evaluation.metrics.feature_sets import (
    ALWAYS,
    DISTANCE,
    EFFICIENTNET,
    INCEPTION,
    OASIS,
    of_extractor,
    paired_of,
    title_of,
)
from evaluation.metrics.metric import Level, Metric
from evaluation.pairs import PER_VOLUME, Pairs


@dataclass(frozen=True)
class Request:
    """Which metrics, and with what: options of scripts/evaluate.py, whose help the words below are."""

    metrics: str = "auto"
    """auto for all that can be computed here, or a comma-separated list."""
    weights: Path | None = None
    """Folder or file with pretrained weights; else $MEDSIS_WEIGHTS, else torch's cache."""
    device: str = "cpu"
    """Device of the networks, e.g. cuda."""
    progress: bool = False
    """Whether a bar is shown."""
    extractors: tuple[str, ...] = ()
    """Further feature extractors: torchscript:FILE, a torchvision model as resnet50:FILE."""
    cache: Path | None = None
    """Folder that keeps network features by the images' content, so that a second run is fast."""
    protocol: tuple[Literal["synthrad2023", "oasis"], ...] = ()
    """Also the numbers of a published protocol, exactly."""
    draws: tuple[Path, ...] = ()
    """Folders with further draws of the same label maps (same file names), for the diversity metrics."""
    segmented: Path | None = None
    """Folder of label maps that a segmenter made of the generated images, for label faithfulness."""
    segmented_real: Path | None = None
    """The same of the real images: the ceiling of faithfulness."""
    lesion: str = ""
    """Name or id of the lesion label, for the lesion metrics."""
    save_reference: Path | None = None
    """Also save the features of the real images to this .npz file."""
    repeats: Path | None = None
    """Folder with second scans of the same heads (scripts/repeats.py): what they reach is the floor of paired metrics."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.protocol if name not in PROTOCOLS]
        if unknown:
            raise ValueError(f"--protocol {' '.join(unknown)}: unknown; there are {', '.join(PROTOCOLS)}")
        for flag in ("draws", "segmented", "segmented_real", "repeats"):
            value = getattr(self, flag)
            for folder in value if isinstance(value, tuple) else [value] if value else []:
                if not folder.is_dir():
                    raise ValueError(f"--{flag} {folder}: no such folder")
        if self.segmented_real is not None and self.segmented is None:
            raise ValueError(f"--segmented_real {self.segmented_real}: only with --segmented")

    @cached_property
    def extractor_keys(self) -> dict[str, str]:
        """Key in the results -> what the user named, for the further extractors; ValueError for two of one key.

        ``resnet50:FILE`` -> ``resnet50``; ``torchscript:FILE`` -> ``torchscript_<name of the file>``.
        """
        keys: dict[str, str] = {}
        for text in self.extractors:
            kind, _, file = text.partition(":")
            stem = re.sub(r"[^A-Za-z0-9]+", "_", Path(file).stem)
            key = f"{kind}_{stem}" if kind == "torchscript" else kind
            if key in (INCEPTION, EFFICIENTNET):
                raise ValueError(f"--extractors {text}: {title_of(key)} is always measured; name its file by --weights")
            if key in (*keys, *ALWAYS, OASIS):
                raise ValueError(f"--extractors {text}: the results already have {key!r}; rename the file")
            keys[key] = text
        return keys

    @cached_property
    def chosen(self) -> dict[str, Metric]:
        """The metrics to compute, by key; ValueError for a name that is not among what was given options for."""
        given = {flag for flag in ("draws", "segmented", "lesion") if getattr(self, flag)} | {*self.protocol}
        allowed = {key: metric for key, metric in METRICS.items() if given.issuperset(metric.asked)}
        for key in self.extractor_keys:
            allowed |= {metric.key: metric for metric in (*of_extractor(key).values(), paired_of(key))}
        return named(self.metrics, allowed)


@dataclass(frozen=True)
class ScoringPlan:
    """What is to be measured, and with what.

    chosen: metrics by key. files, reasons: of every metric with pretrained weights its file, or why there is none.
    extractors: key of the results -> network; lpips: its network. lesion: label id. real: whether there are real images;
    without, features of the generated ones are all that is gathered.
    """

    request: Request
    chosen: Mapping[str, Metric]
    files: Mapping[str, Path] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    extractors: Mapping[str, Extractor] = field(default_factory=dict)
    lpips: torch.nn.Module | None = None
    lesion: int | None = None
    real: bool = True

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return torch.device(self.request.device)

    def of(self, *levels: Level) -> list[Metric]:
        """The chosen metrics of these levels."""
        return [metric for metric in self.chosen.values() if metric.level in levels]

    def about_network(self, metric: Metric, extractor: str = "") -> dict[str, Any]:
        """Name and hash of the network that a metric was computed with; nothing where it takes none."""
        network = self.extractors.get(extractor or metric.key.removesuffix(f"_{DISTANCE}"))
        if network is not None:
            return {"extractor": network.name, "weights_sha256": network.sha256, "preparation": network.preparation}
        file = self.files.get(metric.key)
        return {"extractor": file.name, "weights_sha256": known_sha256(file)} if file else {}


def find_weights(request: Request, chosen: Mapping[str, Metric]) -> tuple[dict[str, Path], dict[str, str]]:
    """(metric -> weight file, metric -> reason why there is none) of the chosen metrics.

    MissingWeights where a metric was asked for by name or by its protocol.
    """
    files: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    for key in dict.fromkeys(metric.weights for metric in chosen.values() if metric.weights):
        metrics = [metric for metric in chosen.values() if metric.weights == key]
        names = [metric.key for metric in metrics]
        try:
            files |= dict.fromkeys(names, resolve(key, request.weights))
        except MissingWeights as error:
            if request.metrics != "auto" or any({*metric.asked} & {*PROTOCOLS} for metric in metrics):
                raise
            warn_once(f"{', '.join(names)} left out: {error}")
            reasons |= dict.fromkeys(names, error.reason)
    for text in request.extractor_keys.values():
        extractors.named(text)
    return files, reasons


def device_named(text: str) -> torch.device:
    """The device, tried out; ValueError in one line for one that is unknown or not there."""
    try:
        device = torch.device(text)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--device {text}: cannot be used here ({first}); cpu always can") from None
    return device


def plan(request: Request, pairs: Pairs, real: bool = True) -> ScoringPlan:
    """Load the networks that the request needs. Raises as `find_weights`; ValueError where the images lack what it names.

    real: whether there are real images; without, distributions are all that can be measured.
    """
    chosen = {key: metric for key, metric in request.chosen.items() if real or metric.level == "set"}
    files, reasons = find_weights(request, chosen)
    device = device_named(request.device)
    units = dict.fromkeys(channel.unit for channel in pairs.channels)
    if "synthrad2023" in request.protocol and set(units) != {"HU"}:
        raise ValueError(
            f"--protocol synthrad2023: for CT in HU, the images are in {', '.join(units)}; give --unit HU if they are"
        )
    for flag, value in (("segmented", request.segmented), ("lesion", request.lesion)):
        if value and not pairs.labelled:
            raise ValueError(f"--{flag} {value}: needs label maps to compare with; give --labels DIR")
    if request.save_reference is not None:
        refuse_own_windows("save_reference", request.save_reference, pairs)
    found: dict[str, Extractor] = {}
    for key in (EFFICIENTNET, INCEPTION, OASIS):
        if path := next((files[name] for name in names_of(key) if name in files), None):
            build = extractors.efficientnet_extractor if key == EFFICIENTNET else extractors.inception_extractor
            found[key] = found[INCEPTION] if key == OASIS and INCEPTION in found else build(device, path)
    for key, text in request.extractor_keys.items():
        if not chosen.keys().isdisjoint(names_of(key)):
            found[key] = extractors.extractor(text, device)
    alexnet = next((files[key] for key in files if METRICS[key].weights == "alexnet"), None)
    return ScoringPlan(
        request=request,
        chosen=chosen,
        files=files,
        reasons=reasons,
        extractors=found,
        lpips=perceptual.lpips_alex(alexnet).to(device) if alexnet else None,
        lesion=pairs.label_named(request.lesion) if request.lesion else None,
        real=real,
    )


def names_of(extractor: str) -> list[str]:
    """Keys of the metrics on an extractor's features."""
    return [metric.key for metric in (*of_extractor(extractor).values(), paired_of(extractor))]


def refuse_own_windows(flag: str, file: Path, pairs: Pairs) -> None:
    """ValueError where every volume has a window of its own, so that features of two folders say nothing."""
    if pairs.windows.get("image") == PER_VOLUME:
        raise ValueError(f"--{flag} {file}: NIfTI volumes need a common --window LOW HIGH for it")
