"""Large data: start of train.py, memory, loader speed and resuming with 100,000 slices.

The set is made here: a few slices of the embedded MNI152 template, linked under as many names as a large study has, with
a manifest of full size. Files are few, so the disk is not what is measured: reading is from the page cache. Every figure
is of a process of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import tyro

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.measuring import in_process
from dataloaders import slices
from dataloaders.io.files import write_json
from dataloaders.io.manifest import Manifest, Slice, slice_name
from dataloaders.io.png import read_slice
from dataloaders.io.spec import DataSpec
from dataloaders.plain_folder import load_manifest
from dataloaders.prepare.options import PrepareOptions
from dataloaders.prepare.prepare import prepare
from dataloaders.slices import BatchLoader, SliceDataset
from engine import device
from engine.command import exit_code

SLICES_OF_A_CASE = 100
CASES_TO_VALIDATE = 10
CLASSES = 38  # entries of each slice's histogram


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Start-up, memory, loader throughput and resuming with a large data set."""

    slices: int = 100_000
    """Training slices."""
    size: int = 256
    """Pixels per side."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Numbers of loader processes to compare."""
    batch_size: int = 8
    """Images per batch."""
    read: int = 4000
    """Slices read for each loader figure; memory is looked at over `epoch` of them."""
    epoch: int = 0
    """Slices over which memory must stay flat; 0 for one whole epoch."""
    source: Path | None = None
    """Prepared data to link slices of; by default the embedded template, sliced."""
    keep: Path | None = None
    """Make the data here and leave them, instead of in a folder that goes when this ends."""
    out: Path | None = None
    """Also write the figures to this JSON file."""
    stage: str = ""
    """Internal: run this one measurement and print it as JSON."""


def make(root: Path, o: BenchmarkOptions) -> None:
    """The linked slices and their manifest."""
    source = o.source or root / "source"
    if o.source is None:
        spacing = (192 / o.size, 192 / o.size, 2.0)
        prepare(PrepareOptions(format="mni152", out=source, size=(o.size,), spacing=spacing, workers=1))
    few = Manifest.load(source)
    real = itertools.cycle([item for case in few.cases for item in case.slices])
    histogram = {label: 1000 + label for label in range(CLASSES)}
    cases = []
    training = o.slices // SLICES_OF_A_CASE
    for number in range(training + CASES_TO_VALIDATE):
        split = "train" if number < training else "val"
        name = f"sub-{number:06d}"
        (root / split / "labels").mkdir(parents=True, exist_ok=True)
        (root / split / "images").mkdir(parents=True, exist_ok=True)
        items = []
        for z in range(SLICES_OF_A_CASE):
            like = next(real)
            label = f"{split}/labels/{slice_name(name, z)}"
            image = f"{split}/images/{slice_name(name, z, 0)}"
            os.link(source / like.label, root / label)
            os.link(source / like.images[0], root / image)
            items.append(Slice(z, label, (image,), (), histogram))
        cases.append(replace(few.cases[0], id=name, patient=name, split=split, slices=tuple(items)))  # type: ignore[arg-type]
    Manifest(few.spec, tuple(cases), {"split": "patients"}).save(root)


# -- measurements, each in a process of its own -----------------------------------------------------------------------


def dataset(root: Path) -> SliceDataset:
    """As train.py makes it; 100,000 slices of 256² do not fit into its default cache."""
    return SliceDataset(root, load_manifest(root, histograms=False), "train", flip=True, seed=1)


def loading(root: Path, o: BenchmarkOptions, workers: int) -> dict[str, Any]:
    """Slices a second, after the first batches."""
    batches = BatchLoader(dataset(root), o.batch_size, 1, workers).endless()
    for _ in range(8):
        next(batches)
    start = time.perf_counter()
    for _ in range(o.read // o.batch_size):
        next(batches)
    return {"slices_per_second": round(o.read / (time.perf_counter() - start), 1)}


def memory(root: Path, o: BenchmarkOptions, workers: int) -> dict[str, Any]:
    """Own memory of the main process and of the loader processes at the start and the end of an epoch, in MB."""
    data = dataset(root)
    total = o.epoch or len(data)
    batches = BatchLoader(data, o.batch_size, 1, workers).endless()
    seen, early = 0, 0.0
    for batch in batches:
        seen += len(batch)
        if not early and seen >= total // 20:
            early = family_mb()
        if seen >= total:
            break
    return {"slices": seen, "early_mb": early, "late_mb": family_mb()}


def resuming(root: Path, o: BenchmarkOptions, workers: int) -> dict[str, Any]:
    """Seconds from a loader to its first batch in the middle of the third epoch, and the files opened for it."""
    data = dataset(root)
    opened: list[Path] = []

    def counting(path: Path, spec: DataSpec, *, image_only: bool = False) -> Any:
        opened.append(path)
        return read_slice(path, spec, image_only=image_only)

    start = time.perf_counter()
    with mock.patch.object(slices, "read_slice", counting):
        next(BatchLoader(data, o.batch_size, 1, workers).endless(start=len(data) * 5 // 2))
    return {"seconds": round(time.perf_counter() - start, 2), "files_opened": len(opened)}


STAGES = {"loading": loading, "memory": memory, "resuming": resuming}


def family_mb() -> float:
    """Memory that this process and its children have for themselves (USS: pages shared after a fork do not count)."""
    own = os.getpid()
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            if int(folder.name) != own and parent != own:
                continue
            lines = (folder / "smaps_rollup").read_text(encoding="utf-8").splitlines()
        except (OSError, IndexError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return round(total / 1024, 1)


def run_stage(name: str, workers: int, root: Path, o: BenchmarkOptions) -> dict[str, Any]:
    """One measurement in a fresh process."""
    options = {"slices": o.slices, "read": o.read, "batch_size": o.batch_size, "epoch": o.epoch, "keep": root}
    words = [word for option, value in options.items() for word in (f"--{option}", value)]
    result: dict[str, Any] = in_process(__file__, "--stage", f"{name} {workers}", *words)
    return result


def start_of_train(root: Path) -> dict[str, Any]:
    """Seconds from the command until train.py has its first step behind it, and its peak memory, with a tiny network."""
    runs = Path(tempfile.mkdtemp())
    tiny = "--gpu_ids -1 --batch_size 1 --preset demo --freq_print 1 --oasis.channels_G 4 --oasis.channels_D 4"
    words = [sys.executable, "train.py", "--name", "start", "--dataroot", str(root), "--checkpoints_dir", str(runs)]
    words += [*tiny.split(), "--oasis.spade_hidden", "4", "--oasis.lambda_mask", "0"]
    begin = time.perf_counter()
    process = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    ready = next((time.perf_counter() for line in process.stdout if " images  " in line), None)
    if ready is None:
        raise ValueError("train.py ended before its first step")
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    ticks = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    process.kill()
    process.wait()
    shutil.rmtree(runs)
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    busy = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")  # other jobs on the machine do not count in it
    return {"seconds": round(ready - begin, 2), "cpu_seconds": round(busy, 2), "peak_mb": round(peak / 1024)}


def measure(root: Path, o: BenchmarkOptions) -> Iterator[tuple[str, Any]]:
    """All figures, one after the other."""
    if not (root / "manifest.json").is_file():
        make(root, o)
    yield "manifest_mb", round((root / "manifest.json").stat().st_size / 1e6, 1)
    yield "start of train.py", start_of_train(root)
    for workers in o.workers:
        yield f"loading, {workers} workers", run_stage("loading", workers, root, o)
    yield "resuming in mid-epoch", run_stage("resuming", 0, root, o)
    for workers in sorted({0, max(o.workers)}):
        yield f"memory over an epoch, {workers} workers", run_stage("memory", workers, root, o)


def main() -> int:
    """Exit codes: 0 fine, 2 bad options."""
    o = tyro.cli(BenchmarkOptions, description=BenchmarkOptions.__doc__)
    if o.slices < SLICES_OF_A_CASE:
        raise ValueError(f"--slices {o.slices}: must be at least {SLICES_OF_A_CASE}")
    if o.stage:
        assert o.keep is not None
        name, workers = o.stage.split()
        print(json.dumps(STAGES[name](o.keep, o, int(workers))))
        return 0
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, values in measure(o.keep or Path(temporary), o):
            print(f"{name:<34} {values}", flush=True)
            figures[name] = values
    print(f"machine: {device.environment(device.torch.device('cpu'))['device']}, {os.cpu_count()} cores")
    if o.out is not None:
        write_json(o.out, figures)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
