"""Strippers, segmenters and harmonisers: what there are says tools.toml, what they have in common base.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataloaders.io.files import read_toml
from dataloaders.io.schema import decode
from pipeline.study import Study
from pipeline.tools.base import Kind, Tool
from pipeline.tools.ours import CLASSIFIERS, Bet, BuiltIn

_OURS = {"bet": Bet, **dict.fromkeys(CLASSIFIERS, BuiltIn)}  # more than a command line


def read_tools(path: Path) -> dict[str, Tool]:
    """The tools of a table."""
    data = read_toml(path, "table of tools")
    tools = {}
    for name, row in data["tools"].items():
        suite = data["suites"][row.pop("suite")] if "suite" in row else {}
        tools[name] = decode(_OURS.get(name, Tool), {"name": name, **suite, **row}, f"{path}: {name}")
    return tools


TOOLS = read_tools(Path(__file__).with_name("tools.toml"))


def configured(study: Study, name: str, kind: Kind) -> tuple[Tool, dict[str, Any]]:
    """The tool that a study calls `name`, and its settings: of [tools.<name>], which may be a variant of another tool.

    ValueError naming the key, and what is allowed, for unknown tools, tools of another kind and wrong settings.
    """
    given = dict(study.tools.get(name, {}))
    base = given.pop("tool", name)
    if base not in TOOLS or TOOLS[base].kind != kind:
        of_kind = ", ".join(tool.name for tool in TOOLS.values() if tool.kind == kind)
        where = f"tools.{name}.tool" if "tool" in study.tools.get(name, {}) else f"{kind}.tools"
        raise ValueError(f'{where} = "{base}": must be one of {of_kind}, or a variant: [tools.{name}] tool = "..."')
    return TOOLS[base], TOOLS[base].complete(given, f"tools.{name}:")
