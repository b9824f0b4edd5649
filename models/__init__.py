"""Tensors to tensors: networks, losses, generators. No files, no command line, no logging."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from config import Config
    from dataloaders.io.spec import DataSpec
    from models.base import Method


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What the command line and a run's files know of a method; stands beside its options, config.py lists all.

    network, workflow: ``module:class``, imported when it is needed; of its `Method`, and of its data, validation and test.
    groups: fields of Config with the options that it reads, its own first. presets: --preset -> values of Config that
    differ from the defaults; the first one is the default. check: raises ValueError for options that do not go together.
    runtime: its options that may differ when a run is resumed; rates: its learning rates, which may too. idle: options of a
    command line that do nothing, with the reason. fitted: in one pass over the data, without steps. title: what it is, for
    reports. telling: those of its options that a report names where they are on, all where there are none.
    """

    title: str
    network: str
    workflow: str
    groups: tuple[str, ...]
    presets: Mapping[str, Mapping[str, Any]]
    check: Callable[[Config], None] = lambda config: None
    runtime: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    idle: Callable[[Sequence[str], Config], list[tuple[str, str]]] = lambda arguments, config: []
    fitted: bool = False
    telling: tuple[str, ...] = ()


def load_class(where: str) -> Any:
    """The class called ``module:class``."""
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def build_method(config: Config, spec: DataSpec) -> Method:
    """The method named by `config.model`, with fresh weights."""
    built: Method = load_class(config.method.network)(config, spec)
    return built
