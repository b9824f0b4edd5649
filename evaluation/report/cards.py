"""Method cards: what each method is, how it was made, and in what it differs from the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.compare import Entrant
from evaluation.report.kit import Cell, Table, color_of

KINDS = {
    "oasis": "OASIS: adversarial, 3-D noise, segmentation discriminator",
    "spade": "SPADE: adversarial, patch discriminator",
    "gmm": "Gaussian mixture by label",
    "lesion": "lesion U-Net",
    "segmenter": "segmentation network",
}
TRAINED = (
    "batch_size",
    "num_epochs",
    "lr_g",
    "lr_d",
)  # options of the run that mean nothing to a method that is fitted
FITTED = ("gmm",)
NOT_FITTED = (*TRAINED, "preset", "beta1", "beta2", "flip", "stop_patience")
PLUMBING = (
    "name",
    "model",
    "gpu_ids",
    "num_workers",
    "cache_gb",
    "eval_slices",
    "metrics",
    "continue_train",
    "which_iter",
)
GAN = (
    *("generator", "norm", "param_free_norm", "channels_G", "channels_D", "z_dim", "neighbours", "slice_position"),
    *("critic", "unpaired", "lambda_segment", "lambda_labelmix", "lambda_l1", "lambda_edge", "lambda_vgg"),
    *("lambda_feature", "lambda_mask", "ema_decay"),
)
GMM = (
    *("preset", "priors", "robust", "vary", "covariance", "background", "texture_fwhm", "partial_volume"),
    *("blur", "noise_std", "bias_field_std", "gamma_std"),
)
MATTER = {"oasis": GAN, "spade": GAN, "gmm": GMM}
OFF: tuple[Any, ...] = (0, 0.0, False, "none", None, "", [], [0.0], [0])
MOST_DIFFERENCES = 12


@dataclass(frozen=True)
class Card:
    """facts: what a reader asks first. only: settings that no other method has so; more: how many are left out of it."""

    name: str
    color: str
    kind: str
    facts: dict[str, str]
    only: list[tuple[str, str]]
    more: int


def cards(entrants: Sequence[Entrant]) -> list[Card]:
    """One card a method."""
    settings = [flat_settings(entrant.manifest.provenance) for entrant in entrants]
    found = []
    for i, entrant in enumerate(entrants):
        provenance, only = entrant.manifest.provenance, _different(settings, i)
        method = str(provenance.get("method") or "unknown method")
        facts = {name: value for name, value in _facts(provenance).items() if value} or {"nothing known": ""}
        more = max(0, len(only) - MOST_DIFFERENCES)
        found.append(Card(entrant.name, color_of(i), KINDS.get(method, method), facts, only[:MOST_DIFFERENCES], more))
    return found


def _facts(provenance: dict[str, Any]) -> dict[str, str]:
    """What a reader asks first."""
    config: dict[str, Any] = provenance.get("config") or {}
    made, data = provenance.get("made_from") or {}, provenance.get("data_provenance") or {}
    source = data.get("options") or {}
    seconds, seen = provenance.get("seconds_per_slice"), provenance.get("images_seen")
    device = (provenance.get("environment") or {}).get("device")
    device = f" on {device}" if device else ""
    seeds = [f"training {config['seed']}"] if "seed" in config else []
    seeds += [f"synthesis {made['seed']}, noise by {made.get('noise', 'case')}"] if "seed" in made else []
    data_facts = [str(source[key]) for key in ("format",) if source.get(key)]
    data_facts += [f"split by {data['split']}"] if data.get("split") else []
    data_facts += [f"labels by {source['tissue']}"] if source.get("tissue", "none") != "none" else []
    return {
        "weights": str(provenance.get("checkpoint") or ""),
        "images seen": f"{seen:,}" if seen else "",
        "time": f"{seconds:.2g} s a slice{device}" if seconds else "",
        "seeds": "; ".join(seeds),
        "data": ", ".join(data_facts),
        "parameters": _parameters(provenance),
    }


def _parameters(provenance: dict[str, Any]) -> str:
    """Options that shape the method: the listed ones that are on; of an unknown method, all that are."""
    method, config = str(provenance.get("method")), provenance.get("config") or {}
    own: dict[str, Any] = config.get(method) or {}
    shown = {name: config[name] for name in TRAINED if name in config and method not in FITTED}
    shown |= {name: own[name] for name in MATTER.get(method, tuple(own)) if name in own and own[name] not in OFF}
    return ", ".join(f"{name} {_short(value)}" for name, value in shown.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "–".join(_short(item) for item in value)
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _different(settings: Sequence[dict[str, str]], i: int) -> list[tuple[str, str]]:
    """Settings that no other method has so; those that the card shows anyway only against methods of the same kind."""
    mine = settings[i]
    others = [one for j, one in enumerate(settings) if j != i]
    idle = {"seconds_per_slice", "images_seen", "method", *PLUMBING}
    if mine.get("method") in FITTED:
        idle |= set(NOT_FITTED)
    elif all(one.get("method") != mine.get("method") for one in others):
        idle |= set(TRAINED)
    return [
        (name, value)
        for name, value in mine.items()
        if name not in idle and any(name in one for one in others) and all(one.get(name) != value for one in others)
    ]


# -- all of them --------------------------------------------------------------------------------------------------


def settings_table(entrants: Sequence[Entrant], shared: bool | None = None) -> Table:
    """A setting a line. shared: those that are the same for all, in one column, or those that are not; None: both."""
    settings = [flat_settings(entrant.manifest.provenance) for entrant in entrants]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    names = [entrant.name for entrant in entrants]
    if shared is not None:
        alone = len(entrants) == 1
        same = {key for key in keys if not alone and len({one.get(key) for one in settings}) == 1}
        keys = [key for key in keys if (key in same) == shared]
        settings, names = (settings[:1], ["value"]) if shared or alone else (settings, names)
    absent = Cell("–")
    rows = [[key, *(one.get(key, absent) for one in settings)] for key in keys]
    return Table(["setting", *names], rows, kind="settings")


def flat_settings(provenance: dict[str, Any]) -> dict[str, str]:
    """Settings worth a row; of the nested method options only those of the method that ran."""
    method = provenance.get("method")
    known = ("method", "checkpoint", "images_seen", "seconds_per_slice")
    flat = {str(key): str(provenance[key]) for key in known if key in provenance}
    for key, value in (provenance.get("config") or {}).items():
        if isinstance(value, dict):
            if key == method:
                flat |= {f"{key}.{name}": str(item) for name, item in value.items()}
        elif not key.startswith("freq_"):
            flat[key] = str(value)
    made = provenance.get("made_from") or {}
    flat |= {f"test {key}": str(made[key]) for key in ("seed", "noise", "resample", "draw") if key in made}
    data = provenance.get("data_provenance") or {}
    flat |= {"data split": str(data["split"])} if data.get("split") else {}
    flat |= {f"data {key}": str(value) for key, value in (data.get("options") or {}).items() if key != "source"}
    return flat | {key: str(value) for key, value in (provenance.get("environment") or {}).items()}
