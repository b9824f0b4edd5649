"""Method cards: what each method is, how it was made, and in what it differs from the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.compare import Entrant
from evaluation.report.html import table, text
from evaluation.report.plots import color_of

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


def cards(entrants: Sequence[Entrant]) -> str:
    """One card a method."""
    settings = [flat_settings(entrant.manifest.provenance) for entrant in entrants]
    return f"<div class='cards'>{''.join(_card(entrants, settings, i) for i in range(len(entrants)))}</div>"


def _card(entrants: Sequence[Entrant], settings: Sequence[dict[str, str]], i: int) -> str:
    provenance = entrants[i].manifest.provenance
    facts = "".join(
        f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in _facts(provenance).items() if value
    )
    different = _different(settings, i)
    kind = KINDS.get(str(provenance.get("method")), str(provenance.get("method") or "unknown method"))
    page = (
        f"<article class='card' style='--c:{color_of(i)}'><h3>{text(entrants[i].name)}</h3>"
        f"<p class='soft'>{text(kind)}</p><dl>{facts or '<dt>nothing known</dt><dd></dd>'}</dl>"
    )
    if different:
        told = "".join(f"<li><b>{text(name)}</b> {text(value)}</li>" for name, value in different[:MOST_DIFFERENCES])
        rest = len(different) - MOST_DIFFERENCES
        told += f"<li>and {rest} more, in Settings</li>" if rest > 0 else ""
        page += f"<p class='soft'>Only this method has:</p><ul class='differs'>{told}</ul>"
    return page + "</article>"


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


def settings_section(entrants: Sequence[Entrant]) -> str:
    """What differs between the methods stands open, what they share is folded away."""
    settings = [flat_settings(entrant.manifest.provenance) for entrant in entrants]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    shared = [key for key in keys if len(entrants) > 1 and len({one.get(key) for one in settings}) == 1]
    own = [key for key in keys if key not in shared]
    names = [entrant.name for entrant in entrants] if len(entrants) > 1 else ["value"]
    page = "<p>No setting differs.</p>"
    if own:
        what = "what differs" if len(entrants) > 1 else "all settings"
        page = f"<details><summary>{what} ({len(own)})</summary>{_table(names, settings, own)}</details>"
    if shared:
        page += f"<details><summary>the same for all ({len(shared)})</summary>"
        page += f"{_table(['value'], settings[:1], shared)}</details>"
    return page


def _table(names: Sequence[str], settings: Sequence[dict[str, str]], keys: Sequence[str]) -> str:
    body = [[text(key), *(text(one.get(key, "–")) for one in settings)] for key in keys]
    return table(["setting", *(text(name) for name in names)], body, "settings")


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
