"""Devices, precision and what the machine is."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch.nn.utils import parametrizations

from dataloaders.io.files import package_version

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "nibabel", "scikit-image", "pytorch-fid", "lpips", "tyro", "dipy")


def select_device(gpu_ids: str, local_rank: int = 0, flag: str = "--gpu_ids") -> torch.device:
    """`auto`, `-1` for the CPU, or a GPU number; ValueError where that GPU does not exist.

    local_rank: number of this process on its machine; with `auto` each takes a GPU of its own. flag: the user's.
    """
    count = torch.cuda.device_count()
    if gpu_ids == "auto":
        return torch.device("cuda", local_rank % count) if count else torch.device("cpu")
    number = int(gpu_ids)
    if number < 0:
        return torch.device("cpu")
    if number >= count:
        cpu = "-1" if flag == "--gpu_ids" else "cpu"
        raise ValueError(f"{flag} {gpu_ids}: this machine shows {count} GPUs to torch; use {cpu} for the CPU")
    return torch.device("cuda", number)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """bf16 autocast where asked for, or where `auto` finds a GPU that has it; otherwise nothing."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def keep_freed_memory() -> bool:
    """Let this process keep memory it has freed instead of giving it back to the system; whether that worked.

    glibc maps every large tensor anew, so that each first touch of a page is a fault; on two cores that was most of the
    time of memory-bound operations (docs/benchmarks.md). Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    never, largest = 0, 2**31 - 1
    return bool(mallopt(M_MMAP_MAX, never)) and bool(mallopt(M_TRIM_THRESHOLD, largest))


def channels_last(module: torch.nn.Module) -> torch.memory_format:
    """Channels-last for networks of slices, its three-dimensional form for those of volumes, which refuse the other."""
    volumes = any(parameter.dim() == 5 for parameter in module.parameters())
    return torch.channels_last_3d if volumes else torch.channels_last


@contextmanager
def without_power_steps(module: torch.nn.Module | None) -> Iterator[None]:
    """Within, spectral norms of the module use their vectors as they are; None for nothing."""
    modules = [] if module is None else module.modules()
    norms = [m for m in modules if isinstance(m, parametrizations._SpectralNorm) and m.training]  # not the average's
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def step_if(wanted: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Step, or change nothing where `wanted`, a boolean on the device, is false; fused, without asking the GPU.

    It is what gradient scaling does after an overflow: the fused kernel itself looks at the flag.
    """
    if optimizer.param_groups[0].get("fused"):
        optimizer.found_inf = (~wanted).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif wanted:
        optimizer.step()


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (AVX-512 BF16 or AMX), where it is 1.6 times as fast as fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory: of the GPU's allocator, or of this process on the CPU, in GB (1e9 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")  # ru_maxrss would include what the parent held when this process was started
    for line in status.read_text(encoding="utf-8").splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def machine_memory_gb() -> float:
    """Memory of this machine in GB (1e9 bytes)."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware for run logs and manifests; no user names, host names or paths."""
    versions = {package: package_version(package) or "not installed" for package in PACKAGES}
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    return {"python": platform.python_version(), "device": hardware, "git_commit": git_commit(), **versions}


def git_commit() -> str:
    """Commit of this checkout, with ``-dirty`` for changes; ``unknown`` outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    root, env = Path(__file__).resolve().parents[1], {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True, env=env)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
