"""What a user asks the evaluation for, and the networks that it takes, found before anything is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dataloaders.io.notices import warn_once
from dataloaders.io.weights import MissingWeights, resolve, sha256
from evaluation.catalog import (
    ALWAYS,
    DIVERSITY,
    FAITHFULNESS,
    LABEL_SPREAD,
    LESION_CHANGE,
    LESION_VOLUMES,
    LESIONS,
    LPIPS,
    NETWORK,
    OASIS_FID,
    PROTOCOLS,
    SYNTHRAD,
    parse_metrics,
)
from evaluation.metrics import networks
from evaluation.metrics.extractors import Extractor, extractor, inception_extractor
from evaluation.metrics.feature_sets import INCEPTION, OASIS, RADIOMICS, names
from evaluation.pairs import PER_VOLUME, Pairs
from evaluation.scoring import Work


@dataclass(frozen=True)
class Request:
    """Which metrics, and with what.

    metrics: ``auto`` for all that can be computed, else names. weights: file or folder of pretrained weights. device: of the
    networks. extractors: further networks as `metrics.extractors.extractor` names them. cache: folder where features
    are kept by the content of the images. protocols: keys of PROTOCOLS. draws: folders with further draws of the same
    label maps. segmented, segmented_real: folders with what a segmenter sees in the generated and in the real images.
    lesion: name or id of the lesion label. save_reference: file for the features of the real images.
    """

    metrics: str | Sequence[str] = "auto"
    weights: Path | None = None
    device: str = "cpu"
    progress: bool = False
    extractors: tuple[str, ...] = ()
    cache: Path | None = None
    protocols: tuple[str, ...] = ()
    draws: tuple[Path, ...] = ()
    segmented: Path | None = None
    segmented_real: Path | None = None
    lesion: str = ""
    save_reference: Path | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.protocols if name not in PROTOCOLS]
        if unknown:
            raise ValueError(f"--protocol {' '.join(unknown)}: unknown; there are {', '.join(PROTOCOLS)}")
        for flag in ("draws", "segmented", "segmented_real"):
            value = getattr(self, flag)
            for folder in value if isinstance(value, tuple) else [value] if value else []:
                if not folder.is_dir():
                    raise ValueError(f"--{flag} {folder}: no such folder")
        if self.segmented_real is not None and self.segmented is None:
            raise ValueError(f"--segmented_real {self.segmented_real}: only with --segmented")

    @property
    def extractor_keys(self) -> dict[str, str]:
        """Key in the results -> what the user named, for the further extractors; ValueError for two of one key."""
        keys: dict[str, str] = {}
        for text in self.extractors:
            key = extractor_key(text)
            if key == INCEPTION:
                raise ValueError(f"--extractors {text}: Inception is always measured; name its file by --weights")
            if key in (*keys, INCEPTION, RADIOMICS, OASIS):
                raise ValueError(f"--extractors {text}: the results already have {key!r}; rename the file")
            keys[key] = text
        return keys

    @property
    def allowed(self) -> tuple[str, ...]:
        """Every metric that this request could compute."""
        extra = [name for protocol in self.protocols for name in PROTOCOLS[protocol]]
        extra += [name for key in self.extractor_keys for name in names(key)]
        extra += [*DIVERSITY, LABEL_SPREAD] if self.draws else []
        extra += FAITHFULNESS if self.segmented else []
        extra += [LESION_CHANGE] if self.lesion else []
        extra += [*LESIONS, LESION_VOLUMES] if self.lesion and self.segmented else []
        return (*ALWAYS, *extra)

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """Metrics by name, None for all that can be computed; ValueError lists what there is."""
        return parse_metrics(self.metrics, self.allowed)

    def wants(self, *metrics: str) -> bool:
        """Whether any of these is to be computed."""
        wanted = self.wanted
        return any(name in self.allowed and (wanted is None or name in wanted) for name in metrics)


@dataclass(frozen=True)
class Networks:
    """Networks that were found, and of every network metric its weight file or the reason why it is missing."""

    extractors: dict[str, Extractor]
    lpips: torch.nn.Module | None
    files: dict[str, Path]
    reasons: dict[str, str]


def extractor_key(text: str) -> str:
    """``resnet50:FILE`` -> ``resnet50``; ``torchscript:FILE`` -> ``torchscript_<name of the file>``."""
    kind, _, file = text.partition(":")
    stem = re.sub(r"[^A-Za-z0-9]+", "_", Path(file).stem)
    return f"{kind}_{stem}" if kind == "torchscript" else kind


def find_weights(request: Request, pairs: bool = True) -> tuple[dict[str, Path], dict[str, str]]:
    """(metric -> weight file, metric -> reason why there is none). MissingWeights if a metric was asked for by name.

    pairs: whether there are pairs of images, which LPIPS needs.
    """
    files: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    oasis = request.wants(OASIS_FID)
    needs = NETWORK | ({OASIS_FID: "inception"} if oasis else {}) | {"diversity_lpips": "alexnet"}
    for key in dict.fromkeys(needs.values()):
        of_key = [name for name, weights in needs.items() if weights == key and request.wants(name)]
        if not of_key or (key == "alexnet" and not pairs):
            continue
        try:
            files |= dict.fromkeys(of_key, resolve(key, request.weights))
        except MissingWeights as error:
            if request.wanted is not None or (oasis and OASIS_FID in of_key):
                raise
            warn_once(f"{', '.join(of_key)} left out: {error}")
            reasons |= dict.fromkeys(of_key, error.reason)
    for text in request.extractor_keys.values():
        kind, _, name = text.partition(":")
        if not kind or not name:
            raise ValueError(f"--extractors {text}: use torchscript:FILE or a torchvision model as NAME:FILE")
        if not Path(name).is_file():
            raise MissingWeights(f"--extractors {text}: no such file", f"weights missing: {Path(name).name}")
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


def load_networks(request: Request, pairs: bool = True) -> Networks:
    """The networks that the request needs; what is missing raises as in `find_weights`."""
    files, reasons = find_weights(request, pairs)
    device = device_named(request.device)
    found: dict[str, Extractor] = {}
    for key in (INCEPTION, OASIS):
        if path := next((files[name] for name in names(key) if name in files), None):
            found[key] = found.get(INCEPTION) or inception_extractor(device, path)
    for key, text in request.extractor_keys.items():
        if request.wants(*names(key)):
            found[key] = extractor(text, device, request.weights)
    path = files.get(LPIPS) or files.get("diversity_lpips")
    return Networks(found, networks.lpips_alex(path).to(device) if path else None, files, reasons)


def plan(request: Request, found: Networks, pairs: Pairs) -> Work:
    """What the stream over the images has to gather. ValueError where the images lack what the request names."""
    units = dict.fromkeys(channel.unit for channel in pairs.spec.channels)
    if request.wants(*SYNTHRAD) and set(units) != {"HU"}:
        raise ValueError(
            f"--protocol synthrad2023: for CT in HU, the images are in {', '.join(units)}; give --unit HU if they are"
        )
    for flag, value in (("segmented", request.segmented), ("lesion", request.lesion)):
        if value and not pairs.labelled:
            raise ValueError(f"--{flag} {value}: needs label maps to compare with; give --labels DIR")
    if request.save_reference is not None:
        refuse_own_windows("save_reference", request.save_reference, pairs)
    lpips = found.lpips if request.wants(LPIPS, "diversity_lpips") else None
    return Work(
        wanted=frozenset(name for name in request.allowed if request.wants(name)),
        extractors=found.extractors,
        lpips=lpips,
        device=torch.device(request.device),
        cache=request.cache,
        draws=request.draws,
        segmented=request.segmented,
        segmented_real=request.segmented_real,
        lesion=pairs.label_named(request.lesion) if request.lesion else None,
        progress=request.progress,
    )


def refuse_own_windows(flag: str, file: Path, pairs: Pairs) -> None:
    """ValueError where every volume has a window of its own, so that features of two folders say nothing."""
    if pairs.windows.get("image") == PER_VOLUME:
        raise ValueError(f"--{flag} {file}: NIfTI volumes need a common --window LOW HIGH for it")


def about_extractor(key: str, found: Networks, metric: str) -> dict[str, str]:
    """Name and hash of what a network metric was computed with."""
    if key in found.extractors:
        network = found.extractors[key]
        return {"extractor": network.name, "weights_sha256": network.sha256, "preparation": network.preparation}
    file = found.files[metric]
    return {"extractor": file.name, "weights_sha256": sha256(file)}
