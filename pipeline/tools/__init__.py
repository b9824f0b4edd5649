"""Adapters, one file each: find -> version -> command -> outputs."""

from __future__ import annotations

from typing import Any

from pipeline.study import StudyOptions
from pipeline.tools.atlas import Atlas
from pipeline.tools.base import ExternalTool, Job, Kind, Outcome, Tool
from pipeline.tools.bet import Bet
from pipeline.tools.fast import Fast
from pipeline.tools.fastsurfer import FastSurfer
from pipeline.tools.hdbet import HdBet
from pipeline.tools.hmrf import Hmrf
from pipeline.tools.own import Own
from pipeline.tools.samseg import Samseg
from pipeline.tools.synthseg import SynthSeg
from pipeline.tools.synthseg_torch import SynthSegTorch
from pipeline.tools.synthsr import SynthSR
from pipeline.tools.synthstrip import SynthStrip

__all__ = ["TOOLS", "ExternalTool", "Job", "Kind", "Outcome", "Tool", "configured"]

TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        SynthSR(),
        Bet(),
        SynthStrip(),
        HdBet(),
        Hmrf(),
        Atlas(),
        Fast(),
        FastSurfer(),
        Samseg(),
        SynthSeg(),
        SynthSegTorch(),
        Own(),
    )
}


def configured(study: StudyOptions, name: str, kind: Kind) -> tuple[Tool, dict[str, Any]]:
    """The tool that a study calls `name`, and its settings: of [tools.<name>], which may be a variant of another tool.

    ValueError naming the key, and what is allowed, for unknown tools, tools of another kind and wrong settings.
    """
    given = dict(study.tools.get(name, {}))
    of_kind = ", ".join(tool.name for tool in TOOLS.values() if tool.kind == kind)
    base = given.pop("tool", name)
    if base not in TOOLS or TOOLS[base].kind != kind:
        where = f"tools.{name}.tool" if "tool" in study.tools.get(name, {}) else f"{kind}.tools"
        raise ValueError(f'{where} = "{base}": must be one of {of_kind}, or a variant: [tools.{name}] tool = "..."')
    return TOOLS[base], TOOLS[base].complete(given, f"tools.{name}:")
