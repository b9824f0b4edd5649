"""The whole road on the embedded MNI152 template, on a CPU, in minutes: ``make demo``.

Prepare -> train a small SPADE -> fit a GMM -> test both on held-out slices -> compare. Every stage is the command a user
would type; a stage that is done is not done again.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import engine.signals  # noqa: F401  # isort: skip

from dataloaders.io.files import write_json
from dataloaders.io.schema import options_of
from engine.device import cpu_has_bf16


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Prepare, train, test and compare on the embedded template."""

    out: Path = Path("demo")
    """Folder for data, runs, results and the report."""
    num_epochs: int = 20 if cpu_has_bf16() else 6
    """Training passes of the GAN over the 75 slices: what two cores do in about four minutes, with bf16 or without."""


@dataclass(frozen=True)
class Stage:
    """What one stage took."""

    name: str
    seconds: float
    peak_memory_gb: float


def stages(options: DemoOptions) -> dict[str, list[str]]:
    """Stage -> command line."""
    data, runs, results = (str(options.out / name) for name in ("data", "checkpoints", "results"))
    precision = "bf16" if cpu_has_bf16() else "fp32"
    run = ["--dataroot", data, "--checkpoints_dir", runs]
    spade = ["--model", "spade", "--preset", "demo", "--precision", precision, "--num_epochs", str(options.num_epochs)]
    prepare = ["--format", "mni152", "--size", "128", "--spacing", "1.5", "1.5", "1", "--split", "0.75", "0.1", "0.15"]
    return {
        "prepare": ["scripts/prepare_data.py", *prepare, "--out", data],
        "train SPADE": ["train.py", "--name", "spade", "--gpu_ids", "-1", *spade, *run],
        "fit GMM": ["train.py", "--name", "gmm", "--model", "gmm", "--gpu_ids", "-1", *run],
        "test SPADE": ["test.py", "--name", "spade", "--gpu_ids", "-1", "--results_dir", results, *run],
        "test GMM": ["test.py", "--name", "gmm", "--gpu_ids", "-1", "--results_dir", results, *run],
        "compare": ["scripts/compare.py", f"{results}/spade", f"{results}/gmm", "--out", str(options.out / "report")],
    }


def run_stage(name: str, command: list[str]) -> Stage:
    """Run one command, shown; SystemExit with its code where it fails."""
    print(f"\n$ python {' '.join(command)}", flush=True)
    start = time.perf_counter()
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, str(REPOSITORY / command[0]), *command[1:]])
    _, status, usage = os.wait4(pid, 0)  # wait4 gives the peak memory of this one process
    if status != 0:
        raise SystemExit(f"demo stopped: {name} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return Stage(name, time.perf_counter() - start, usage.ru_maxrss * unit / 1e9)


def main() -> int:
    """Run all stages, print what each took and where the report lies."""
    options = options_of(DemoOptions)
    done = [run_stage(name, command) for name, command in stages(options).items()]
    write_json(options.out / "stages.json", [asdict(stage) for stage in done])
    print(f"\n{'stage':<12} {'seconds':>8} {'peak memory':>12}")
    for stage in done:
        print(f"{stage.name:<12} {stage.seconds:8.1f} {stage.peak_memory_gb:9.2f} GB")
    print(f"{'all':<12} {sum(stage.seconds for stage in done):8.1f}")
    print(f"\nreport: {(options.out / 'report' / 'report.html').resolve()}")
    runs = f"--checkpoints_dir {options.out / 'checkpoints'} --dataroot {options.out / 'data'}"
    print(f"paint labels and see both methods' images: {sys.executable} scripts/paint.py --name spade gmm {runs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
