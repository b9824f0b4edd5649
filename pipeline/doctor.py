"""What is installed here, and what a study lacks."""

from __future__ import annotations

import shutil
from pathlib import Path

from dataloaders.io.workers import cores
from pipeline import nnunet
from pipeline.commands import ToolMissing, answer, find_program
from pipeline.plan import find_tools
from pipeline.study import StudyOptions, read_study
from pipeline.tools import TOOLS
from pipeline.tools.base import Tool, package_version

SHARED_MEMORY_GB = 1.0  # less makes nnU-Net's and PyTorch's worker processes die
SLOW_TORCH = "2.9."  # its 3-D convolutions are slow with mixed precision; nnU-Net refuses it


def examine(path: Path | None) -> tuple[list[str], list[str]]:
    """Lines to print, and those tools that the study lacks.

    Every tool is looked for in the way in which the pipeline would find it; nothing is run but for versions.
    """
    study = read_study(path) if path is not None else None
    lines = ["tools:"]
    used = find_tools(study).all if study is not None else {}
    variants = dict(used)
    if study is not None and study.harmonise.method == "synthsr":
        variants["synthsr"] = (TOOLS["synthsr"], find_tools(study).synthsr)
    lacking = []
    named = {tool.name for tool, _ in variants.values()}
    for name, (tool, settings) in {
        **{n: (t, dict(t.settings)) for n, t in TOOLS.items() if n not in named},
        **variants,
    }.items():
        line, there = _tool_line(name, tool, settings)
        needed = name in variants
        lines.append(f"  {'*' if needed else ' '} {line}")
        if needed and not there:
            lacking.append(name)
    lines.append(f"  {'*' if study is not None else ' '} {_nnunet_line()}")
    if study is not None and find_program(["nnUNetv2_train"]) is None:
        lacking.append("nnunetv2")
    lines += ["machine:", *(f"    {line}" for line in _machine(study))]
    if study is not None:
        lines.append("* used by this study")
        lines.append(f"missing for this study: {', '.join(lacking)}" if lacking else "this study has all of its tools")
    return lines, lacking


def _tool_line(name: str, tool: Tool, settings: dict[str, object]) -> tuple[str, bool]:
    label = f"{name} ({tool.name})" if name != tool.name else name
    try:
        found = tool.located(settings)
    except ToolMissing as error:
        reason = str(error).removeprefix(f"{tool.name} is not installed: ")
        return f"{label:<16} {tool.kind:<9} missing: {reason}", False
    line = f"{label:<16} {tool.kind:<9} {tool.version(found)}, {found}; {tool.licence}; cite {tool.citation}"
    return line, True


def _nnunet_line() -> str:
    """nnU-Net, and whether its trainers can be looked up: that imports parts of it that need timm and torchvision."""
    found = find_program(["nnUNetv2_train"])
    label = f"{'nnunetv2':<16} {'train':<9}"
    if found is None:
        return f"{label} missing: {nnunet.GET}"
    python = found.with_name("python")
    broken = ""
    if python.is_file() and not answer([python, "-c", "import timm, torchvision; print('fine')"], 120):
        broken = "; but timm or torchvision cannot be imported, which it needs to find its trainers"
    version = package_version("nnunetv2") or "unknown version"
    return f"{label} {version}, {found}{broken}; {nnunet.LICENCE}; cite {nnunet.CITATION}"


def _machine(study: StudyOptions | None) -> list[str]:
    lines = [f"{cores()} cores, {nnunet.free_gb():.1f} GB of memory free"]
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / 2**30
        short = "" if free >= SHARED_MEMORY_GB else ": too little for worker processes, set nnunet.workers = 0"
        lines.append(f"{free:.1f} GB of shared memory (/dev/shm){short}")
    if study is not None:
        place = study.work.resolve()
        while not place.exists():
            place = place.parent
        lines.append(f"{shutil.disk_usage(place).free / 2**30:.0f} GB free in {place}")
    torch = package_version("torch") or ""
    lines.append(
        f"torch {torch or 'missing'}{', too slow for nnU-Net, take another' if torch.startswith(SLOW_TORCH) else ''}"
    )
    gpu = find_program(["nvidia-smi"])
    names = answer([gpu, "--query-gpu=name", "--format=csv,noheader"]) if gpu else ""
    lines.append(f"GPU: {names.replace(chr(10), ', ') or 'none'}")
    if study is not None and not names:
        devices = {"nnunet": study.nnunet.device, **{f"tools.{n}": s.get("device") for n, s in study.tools.items()}}
        wanted = [f"{name}.device" for name, device in devices.items() if device == "cuda"]
        if wanted:
            there = "there is no GPU here; on a cluster there may be one where it runs"
            lines.append(f"{', '.join(wanted)}: cuda, but {there}")
    return lines
