"""How long the evaluation takes, against scikit-image's SSIM and PSNR alone on the same files in the same run.

python benchmarks/benchmark_evaluate.py                       # 1,000 slices of 256², ten patients
python benchmarks/benchmark_evaluate.py --slices 100 --size 512
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tyro
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dataloaders.io.png import read_png, write_png
from evaluation.evaluate import evaluate_pairs
from evaluation.folders import Folders
from evaluation.request import Request


@dataclass(frozen=True)
class Options:
    """Benchmark of the evaluation: every metric that needs no download."""

    slices: int = 1000
    """Number of slices."""
    size: int = 256
    """Their edge in pixels."""
    patients: int = 10
    """Number of patients that share the slices."""


def write_folders(root: Path, options: Options) -> None:
    """Smooth images of nested ellipses with noise, and their labels."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1 : 1 : options.size * 1j, -1 : 1 : options.size * 1j]
    for index in range(options.slices):
        radius = np.hypot(rows * rng.uniform(1, 1.2), columns * rng.uniform(1.1, 1.3))
        label = np.digitize(radius, [0.3, 0.6, 0.8, 1.0]).astype(np.uint8)
        label = np.where(label == 4, 0, label + 1).astype(np.uint8)
        clean = np.array([0, 9000, 30000, 45000, 20000])[label]
        name = f"p{index * options.patients // options.slices:03d}_z{index:05d}.png"
        for kind, spread in (("real", 900), ("generated", 1500)):
            image = clean + rng.normal(0, spread, clean.shape)
            write_png(root / kind / name, image.clip(0, 65535).astype(np.uint16))
        write_png(root / "labels" / name, label)


def baseline(root: Path) -> float:
    """CPU seconds for reading the files and scikit-image's two metrics."""
    start = time.process_time()
    for path in sorted((root / "real").iterdir()):
        real, fake = (read_png(folder / path.name).astype(float) for folder in (root / "real", root / "generated"))
        structural_similarity(
            real, fake, data_range=65535, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        peak_signal_noise_ratio(real, fake, data_range=65535)
    return time.process_time() - start


def main() -> None:
    """Print seconds, the ratio and the peak memory."""
    options = tyro.cli(Options, description=Options.__doc__)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_folders(root, options)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        two = baseline(root)
        start, cpu = time.perf_counter(), time.process_time()
        pairs = Folders(root / "real", root / "generated", root / "labels").pairs()
        result = evaluate_pairs(pairs, root / "out", Request())
        ours, cpu = time.perf_counter() - start, time.process_time() - cpu
    known = sum(entry["value"] is not None for entry in result["metrics"].values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{options.slices} slices of {options.size}²: {known} metrics in {ours:.1f} s, {cpu:.1f} s of CPU")
    print(f"scikit-image's SSIM and PSNR alone: {two:.1f} s of CPU; ratio {two / cpu:.2f}")
    print(f"peak memory {peak / 1e6:.2f} GB, of which {before / 1e6:.2f} GB before the first metric")


if __name__ == "__main__":
    main()
