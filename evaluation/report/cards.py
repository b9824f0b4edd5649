"""Method cards: what each method is, how it was made, and in what it differs from the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from config import METHODS, RUNTIME_OPTIONS
from evaluation.compare import Entrant
from evaluation.report.kit import Cell, Table, color_of

TRAINED = ("batch_size", "num_epochs", "lr_g", "lr_d")  # mean nothing to a method that is fitted
NOT_FITTED = {*TRAINED, "preset", "beta1", "beta2", "flip", "stop_patience"}
PLUMBING = {*RUNTIME_OPTIONS, "model"} - {"preset", "num_epochs", "tuned", "compile"}
OFF: tuple[Any, ...] = (0, 0.0, False, "none", None, "", [], [0.0], [0])


@dataclass(frozen=True)
class Card:
    """facts: what a reader asks first. only: settings that no other method has so."""

    name: str
    color: str
    kind: str
    facts: dict[str, str]
    only: list[tuple[str, str]]


def cards(entrants: Sequence[Entrant]) -> list[Card]:
    """One card a method."""
    settings = [flat_settings(entrant) for entrant in entrants]
    found = []
    for i, entrant in enumerate(entrants):
        method = entrant.method
        facts = {name: value for name, value in _facts(entrant).items() if value} or {"nothing known": ""}
        kind = METHODS[method].title if method in METHODS else method or "unknown method"
        found.append(Card(entrant.name, color_of(i), kind, facts, _different(entrants, settings, i)))
    return found


def _facts(entrant: Entrant) -> dict[str, str]:
    """What a reader asks first."""
    config, made, data = (entrant.part(name) for name in ("config", "made_from", "data_provenance"))
    source = data.get("options") or {}
    seconds, seen = entrant.provenance.get("seconds_per_slice"), entrant.provenance.get("images_seen")
    device = entrant.part("environment").get("device")
    device = f" on {device}" if device else ""
    seeds = [f"training {config['seed']}"] if "seed" in config else []
    seeds += [f"synthesis {made['seed']}, noise by {made.get('noise', 'case')}"] if "seed" in made else []
    data_facts = [str(source["format"])] if source.get("format") else []
    data_facts += [f"split by {data['split']}"] if data.get("split") else []
    data_facts += [f"labels by {source['tissue']}"] if source.get("tissue", "none") != "none" else []
    return {
        "weights": str(entrant.provenance.get("checkpoint") or ""),
        "images seen": f"{seen:,}" if seen else "",
        "time": f"{seconds:.2g} s a slice{device}" if seconds else "",
        "seeds": "; ".join(seeds),
        "data": ", ".join(data_facts),
        "parameters": _parameters(entrant),
    }


def _parameters(entrant: Entrant) -> str:
    """Options that shape the method: the listed ones that are on; of an unknown method, all that are."""
    config = entrant.part("config")
    own: dict[str, Any] = config.get(entrant.method) or {}
    telling = METHODS[entrant.method].telling if entrant.method in METHODS else ()
    shown = {name: config[name] for name in TRAINED if name in config and not entrant.fitted}
    shown |= {name: own[name] for name in telling or own if name in own and own[name] not in OFF}
    return ", ".join(f"{name} {_short(value)}" for name, value in shown.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "–".join(_short(item) for item in value)
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _different(entrants: Sequence[Entrant], settings: Sequence[dict[str, str]], i: int) -> list[tuple[str, str]]:
    """Settings that no other method has so; those that the card shows anyway only against methods of the same kind."""
    others = [one for j, one in enumerate(settings) if j != i]
    idle = {"seconds_per_slice", "images_seen", "method", *PLUMBING}
    if entrants[i].fitted:
        idle |= NOT_FITTED
    elif sum(entrant.method == entrants[i].method for entrant in entrants) == 1:
        idle |= {*TRAINED}
    return [
        (name, value)
        for name, value in settings[i].items()
        if name not in idle and any(name in one for one in others) and all(one.get(name) != value for one in others)
    ]


# -- all of them --------------------------------------------------------------------------------------------------


def settings_table(entrants: Sequence[Entrant], shared: bool | None = None) -> Table:
    """A setting a line. shared: those that are the same for all, in one column, or those that are not; None: both."""
    settings = [flat_settings(entrant) for entrant in entrants]
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


def flat_settings(entrant: Entrant) -> dict[str, str]:
    """Settings worth a row; of the nested method options only those of the method that ran."""
    made, data = entrant.part("made_from"), entrant.part("data_provenance")
    known = ("method", "checkpoint", "images_seen", "seconds_per_slice")
    flat = {key: entrant.provenance[key] for key in known if key in entrant.provenance}
    for key, value in entrant.part("config").items():
        if key == entrant.method and isinstance(value, dict):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        elif not isinstance(value, dict) and not key.startswith("freq_"):
            flat[key] = value
    flat |= {f"test {key}": made[key] for key in ("seed", "noise", "resample", "draw") if key in made}
    flat |= {"data split": data["split"]} if data.get("split") else {}
    flat |= {f"data {key}": value for key, value in (data.get("options") or {}).items() if key != "source"}
    return {key: str(value) for key, value in (flat | entrant.part("environment")).items()}
