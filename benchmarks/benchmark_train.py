"""Training speed: the plain published way against the tuned one, in one run.

Every variant runs in a process of its own, in turn, several rounds; the best round counts, because other load only ever
slows down. Baseline: fp32, eager, one-hot convolutions, nothing merged or reused, the C library's own memory handling.
Label maps: tissue classes of the embedded MNI152 template, split into regions, 38 classes as in the published setting; or
the training slices of --dataroot.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import config as options
from benchmarks.measuring import in_process, seconds
from config import Config
from dataloaders.io import ranks
from dataloaders.io.files import markdown_table, write_json
from dataloaders.io.spec import DataSpec, Label
from dataloaders.plain_folder import load_manifest
from dataloaders.prepare.options import PrepareOptions
from dataloaders.prepare.prepare import prepare
from dataloaders.slices import BatchLoader, SliceDataset
from engine import device
from engine.command import exit_code
from engine.methods.base import workflow_of
from engine.run import only_trains
from models import build_method
from models.base import Batch, Method, Player, seeded_generator
from models.collectives import average_gradients
from models.gan.adversarial import Gan

NUM_LABELS = 38
Step = Callable[[Batch, int], None]  # a batch and the number of the step


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Compare training and synthesis speed of the plain and the tuned way, and of SPADE, CLADE and wavelet generators."""

    out: Path | None = None
    """Also write the figures to this JSON file."""
    dataroot: Path | None = None
    """Prepared data to take label maps from; by default the embedded template."""
    size: int = 256
    """Pixels per side."""
    batch_size: int = 1
    """Images per step."""
    model: Literal["oasis", "spade"] = "oasis"
    """The method."""
    preset: Literal["", "oasis", "spade", "small", "demo"] = ""
    """Preset of train.py that gives widths and losses; by default the published one."""
    gpu_ids: str = "auto"
    """GPU to use: a number, -1 for the CPU, auto for GPU 0 where there is one."""
    steps: int = 3
    """Timed steps per round."""
    rounds: int = 2
    """Rounds of all variants."""
    compile: bool = False
    """Also measure torch.compile (minutes; needs a C++ compiler on the CPU)."""
    variant: str = ""
    """Internal: run this one variant and print its figures as JSON."""


@dataclass(frozen=True)
class Variant:
    """One way to run. flags: for train.py. forward: time only the generator's forward pass, without gradients."""

    flags: str
    forward: bool = False


BASELINE = "baseline: plain, fp32"
SPADE_FORWARD = "forward: SPADE, image domain"
PLAIN = "--no-tuned --precision fp32 --oasis.no-reuse_fake"
TUNED = "--tuned --precision fp32"
VARIANTS = {
    BASELINE: Variant(PLAIN),
    "tuned, fp32": Variant(TUNED),
    "tuned, bf16": Variant("--tuned --precision bf16"),
    "tuned, bf16, compiled": Variant("--tuned --precision bf16 --compile"),
    "tuned, fp32, CLADE": Variant(TUNED + " --oasis.norm clade"),
    "tuned, fp32, haar": Variant(TUNED + " --oasis.generator haar"),
    "tuned, bf16, haar": Variant("--tuned --precision bf16 --oasis.generator haar"),
    SPADE_FORWARD: Variant(PLAIN, forward=True),
    "forward: SPADE, image domain, tuned": Variant(TUNED, forward=True),
    "forward: CLADE, image domain": Variant(TUNED + " --oasis.norm clade", forward=True),
    "forward: SPADE, haar": Variant(PLAIN + " --oasis.generator haar", forward=True),
    "forward: SPADE, haar, tuned": Variant(TUNED + " --oasis.generator haar", forward=True),
    "forward: CLADE, haar": Variant(TUNED + " --oasis.norm clade --oasis.generator haar", forward=True),
}


# -- data ---------------------------------------------------------------------------------------------------------


def template_folder(root: Path, size: int) -> Path:
    """Tissue slices of the embedded template, filling the image."""
    spacing = (192 / size, 192 / size, 4.0)
    prepare(PrepareOptions(format="mni152", out=root, size=(size,), spacing=spacing, workers=1))
    return root


def into_regions(label: Tensor) -> Tensor:
    """Tissue classes (…, H, W) in 0..4 -> 38 classes: the foreground is cut into nine regions."""
    H, W = label.shape[-2:]
    rows = torch.arange(H)[:, None] * 3 // H
    columns = torch.arange(W) * 3 // W
    tissue = label.clamp(max=4)
    return torch.where(tissue > 0, 1 + (tissue - 1) * 9 + rows * 3 + columns, torch.zeros_like(label))


def load_batches(settings: BenchmarkOptions) -> tuple[DataSpec, list[Batch], float]:
    """Spec, a few training batches in memory, and the seconds that the loader takes for one once its cache is warm."""
    assert settings.dataroot is not None
    data = load_manifest(settings.dataroot)
    slices = SliceDataset(settings.dataroot, data, "train", flip=True, cache_gb=2.0, neighbours=1)  # as in the presets
    loader = BatchLoader(slices, settings.batch_size)
    batches = loader.endless()
    for _ in range(-(-len(loader) // settings.batch_size)):
        next(batches)
    start = time.perf_counter()
    chosen = [next(batches) for _ in range(8)]
    seconds = (time.perf_counter() - start) / len(chosen)
    spec = data.spec
    if data.provenance.get("format") == "mni152" or spec.num_labels < 6:
        for batch in chosen:
            assert batch.neighbours is not None
            batch.label, batch.neighbours = into_regions(batch.label), into_regions(batch.neighbours)
        spec = replace(spec, labels=tuple(Label(i, f"class_{i}") for i in range(NUM_LABELS)))
    return spec, chosen, seconds


# -- one variant --------------------------------------------------------------------------------------------------


def measure(name: str, settings: BenchmarkOptions) -> dict[str, Any]:
    """Seconds per image, peak memory and arithmetic of one variant, in this process."""
    variant = VARIANTS[name]
    model = settings.model
    flags = ["--name", "benchmark", "--dataroot", "d", "--model", model, "--preset", settings.preset or model]
    flags += variant.flags.replace("--oasis.", f"--{model}.").split()
    config = options.parse_train([*flags, "--batch_size", str(settings.batch_size), "--gpu_ids", settings.gpu_ids])
    target = device.select_device(settings.gpu_ids)
    if config.tuned and target.type == "cpu":
        device.keep_freed_memory()
    spec, batches, loader_seconds = load_batches(settings)
    torch.manual_seed(0)
    method = build_method(config, spec).to(target)
    assert isinstance(method, Gan)
    workflow_of(config).equip(method)
    if config.tuned and target.type == "cuda":
        method.to(memory_format=torch.channels_last)
    batches = [batch.to(target) for batch in batches]
    step = _forward_step(method) if variant.forward else train_step(method, method.players(), config, target)

    def run(number: int) -> None:
        batch = batches[number % len(batches)]
        step(replace(batch, rng=seeded_generator("benchmark", number), fake=None, measures={}), number)

    times = seconds(run, settings.steps, target)  # after two: memory, optimiser state, compilation
    result: dict[str, Any] = {
        "parameters": sum(p.numel() for p in method.generator.parameters()),
        "seconds_per_image": min(times) / settings.batch_size,
        "peak_memory_gb": device.peak_memory_gb(target),
        "loader_share": loader_seconds / min(times),
    }
    if variant.forward:
        with FlopCounterMode(display=False) as counter:
            step(batches[0], 0)
        result["gflop_per_image"] = counter.get_total_flops() / 1e9 / settings.batch_size
    return result


def _forward_step(method: Gan) -> Step:
    def step(batch: Batch, number: int) -> None:
        with torch.no_grad():
            method.generate(batch)

    return step


def train_step(
    method: Method, players: dict[str, Player], config: Config, target: torch.device, exchange: bool = False
) -> Step:
    """What train.py does between two batches, without files. exchange: together with the other processes."""
    if config.compile:
        for player in players.values():
            player.net.compile()

    def step(batch: Batch, number: int) -> None:
        for player in players.values():
            if number % player.every:
                continue
            with only_trains(player, players):
                with device.autocast(target, config.precision):
                    losses = player.losses(batch)
                player.optimizer.zero_grad(set_to_none=True)
                torch.stack(list(losses.values())).sum().backward()
            if exchange:
                average_gradients(player.net.parameters())
            player.optimizer.step()
        method.after_step(number)
        if exchange:
            ranks.max_over_ranks(None)

    return step


# -- all of them --------------------------------------------------------------------------------------------------


def chosen_variants(settings: BenchmarkOptions) -> list[str]:
    """Names of the variants to run."""
    return [name for name in VARIANTS if settings.compile or "compiled" not in name]


def run_all(settings: BenchmarkOptions) -> dict[str, dict[str, Any]]:
    """Best round of each variant; every measurement in a process of its own, variants in turn."""
    best: dict[str, dict[str, Any]] = {}
    for round_number in range(settings.rounds):
        for name in chosen_variants(settings):
            print(f"round {round_number + 1}/{settings.rounds}: {name}", file=sys.stderr, flush=True)
            words = ["--variant", name, "--dataroot", settings.dataroot]
            for key in ("size", "batch_size", "steps", "gpu_ids", "model", "preset"):
                words += [f"--{key}", getattr(settings, key)]
            try:
                result = in_process(__file__, *words)
            except ValueError as error:
                if name == BASELINE:  # without it there is nothing to compare with
                    raise
                print(f"  failed: {error}", file=sys.stderr)
                continue
            if name not in best or result["seconds_per_image"] < best[name]["seconds_per_image"]:
                best[name] = result
    return best


def table(best: dict[str, dict[str, Any]]) -> str:
    """Markdown rows; ratios against the baseline of the same kind."""
    lines = []
    for name, result in best.items():
        base = best.get(SPADE_FORWARD if VARIANTS[name].forward else BASELINE)
        ratio = f"{base['seconds_per_image'] / result['seconds_per_image']:.2f}" if base else ""
        flops = f"{result['gflop_per_image']:.0f}" if "gflop_per_image" in result else ""
        speed = 1 / result["seconds_per_image"]
        lines.append([name, f"{speed:.3g}", ratio, f"{result['peak_memory_gb']:.2f}", flops])
    return markdown_table(["variant", "images/s", "ratio", "peak memory, GB", "GFLOP/image forward"], lines)


def main() -> int:
    """Command line."""
    settings = tyro.cli(BenchmarkOptions, description=BenchmarkOptions.__doc__)
    if settings.variant:
        print(json.dumps(measure(settings.variant, settings)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if settings.dataroot is None:
            settings = replace(settings, dataroot=template_folder(Path(folder) / "data", settings.size))
        assert settings.dataroot is not None
        pixels = load_manifest(settings.dataroot).spec.size  # one line about a wrong folder, before any round
        best = run_all(settings)
    machine = device.environment(device.select_device(settings.gpu_ids))
    size = "×".join(map(str, pixels))
    print(f"\n{machine['device']}, torch {machine['torch']}, {size} pixels, batch {settings.batch_size}\n")
    print(table(best))
    first = next(iter(best.values()), None)
    if first:
        shares = max(result["loader_share"] for result in best.values())
        print(f"\nloader: at most {100 * shares:.1f} % of a step")
    if settings.out:
        write_json(settings.out, {"machine": machine, "size": list(pixels), "results": best})
    return 0 if len(best) == len(chosen_variants(settings)) else 1


if __name__ == "__main__":
    sys.exit(exit_code(main))
