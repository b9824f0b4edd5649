"""What is installed here, and what a study lacks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from dataloaders.io.files import package_version
from dataloaders.io.workers import cores
from pipeline import nnunet
from pipeline.plan import find_tools
from pipeline.programs import ToolMissing, answer, find_program
from pipeline.study import Study, read_study
from pipeline.tools import TOOLS
from pipeline.tools.base import Tool

SHARED_MEMORY_GB = 1.0  # less makes nnU-Net's and PyTorch's worker processes die
SLOW_TORCH = "2.9."  # its 3-D convolutions are slow with mixed precision; nnU-Net refuses it


def examine(path: Path | None) -> tuple[list[str], list[str]]:
    """Lines to print, and those tools that the study lacks.

    Every tool is looked for in the way in which the pipeline would find it; nothing is run but for versions.
    """
    study = read_study(path) if path is not None else None
    nnunetv2 = TOOLS["nnunetv2"]
    used = {name: tool for of_kind in find_tools(study).values() for name, tool in of_kind.items()} if study else {}
    used |= {nnunetv2.name: (nnunetv2, {})} if study else {}
    named = {tool.name for tool, _ in used.values()}
    others = {name: (tool, dict(tool.settings)) for name, tool in TOOLS.items() if name not in named}
    lines, lacking = ["tools:"], []
    for name, (tool, settings) in {**others, **used}.items():
        line, there = _tool_line(name, tool, settings)
        lines.append(f"  {'*' if name in used else ' '} {line}")
        lacking += [name] if name in used and not there else []
    lines += ["machine:", *(f"    {line}" for line in _machine(study))]
    if study is None:
        return lines, []
    missing = f"missing for this study: {', '.join(lacking)}" if lacking else "this study has all of its tools"
    return [*lines, "* used by this study", missing], lacking


def _tool_line(name: str, tool: Tool, settings: dict[str, Any]) -> tuple[str, bool]:
    label = f"{f'{name} ({tool.name})' if name != tool.name else name:<16} {tool.kind:<9}"
    try:
        found = tool.located(settings)
    except ToolMissing as error:
        return f"{label} missing: {str(error).removeprefix(f'{tool.name} is not installed: ')}", False
    python, broken = Path(found).with_name("python"), ""
    # Trainers are looked up by importing parts of nnU-Net that need these two.
    if (
        tool.kind == "train"
        and python.is_file()
        and not answer([python, "-c", "import timm, torchvision; print(1)"], 120)
    ):
        broken = "; but timm or torchvision cannot be imported, which it needs to find its trainers"
    return f"{label} {tool.version(found)}, {found}{broken}; {tool.licence}; cite {tool.citation}", True


def _machine(study: Study | None) -> list[str]:
    lines = [f"{cores()} cores, {nnunet.free_gb():.1f} GB of memory free"]
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / 2**30
        short = "" if free >= SHARED_MEMORY_GB else ": too little for worker processes, set nnunet.workers = 0"
        lines.append(f"{free:.1f} GB of shared memory (/dev/shm){short}")
    if study is not None:
        work = study.work.resolve()
        place = next(folder for folder in (work, *work.parents) if folder.exists())
        lines.append(f"{shutil.disk_usage(place).free / 2**30:.0f} GB free in {place}")
    torch = package_version("torch") or "missing"
    lines.append(f"torch {torch}{', too slow for nnU-Net, take another' if torch.startswith(SLOW_TORCH) else ''}")
    gpu = find_program(["nvidia-smi"])
    names = answer([gpu, "--query-gpu=name", "--format=csv,noheader"]) if gpu else ""
    lines.append(f"GPU: {names.replace(chr(10), ', ') or 'none'}")
    if study is not None and not names:
        devices = {"nnunet": study.nnunet.device, **{f"tools.{n}": s.get("device") for n, s in study.tools.items()}}
        wanted = [f"{name}.device" for name, device in devices.items() if device == "cuda"]
        there = "there is no GPU here; on a cluster there may be one where it runs"
        lines += [f"{', '.join(wanted)}: cuda, but {there}"] if wanted else []
    return lines
