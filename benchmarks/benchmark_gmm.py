"""Speed and memory of the GMM generator, stage by stage, against a straight PyTorch version of the same steps.

    python benchmarks/benchmark_gmm.py                          # a phantom of 54 labels, two CPU threads
    python benchmarks/benchmark_gmm.py --labels map.nii.gz      # a real map, its middle 160³
    python benchmarks/benchmark_gmm.py --device cuda --batch 16

The baseline does what SynthSeg's layers do (gmm.md 1.4): integration at half size, full-size coordinates, grid_sample,
truncated convolutions. Both run in turn in the same process, so that ratios hold on a noisy machine; peak memory comes
from a process for each.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from benchmarks.measuring import in_process, seconds
from dataloaders.io.files import write_json
from dataloaders.labelmaps.maps import LabelMaps, as_indices
from dataloaders.labelmaps.schemes import read_scheme
from engine.device import keep_freed_memory, peak_memory_gb
from models.base import seeded_generator
from models.gmm import LabelScheme, Params, deform, paint, render_pair, sample_params
from models.gmm.artefacts import ARTEFACTS
from models.gmm.artefacts.fields import Masks
from models.gmm.intensity import acquire, apply_bias, mixture, tone
from models.gmm.options import GMM_PRESETS
from models.gmm.render import backward_coordinates, output_labels


@dataclass(frozen=True)
class Options:
    """Benchmark of the GMM generator."""

    labels: Path | None = None
    """Label map; by default a phantom of nested ellipsoids."""
    size: int = 160
    """Edge of the volume in voxels."""
    runs: int = 9
    """Timed runs of each, after two that are not."""
    threads: int = 2
    """CPU threads."""
    device: str = "cpu"
    """Where: cpu or cuda."""
    batch: int = 16
    """Volumes per call on a GPU."""
    slices: int = 32
    """Slices per call in 2-D."""
    out: Path | None = None
    """Also write the figures to this JSON file."""
    child: str = ""
    """Internal: measure memory of one version in this process."""
    indices: Path | None = None
    """Internal: the map as it was loaded, for that process."""


def phantom(size: int, labels: int = 54) -> Tensor:
    """Nested ellipsoids cut into sectors: (size, size, size) uint8 with `labels` values."""
    axis = torch.linspace(-1, 1, size)
    x, y, z = torch.meshgrid(axis, axis * 0.9, axis * 1.1, indexing="ij")
    shell = ((1 - (x**2 + y**2 + z**2).sqrt() / 0.95).clamp(min=0) * 6).long()
    sector = ((torch.atan2(y, x) + math.pi) / (2 * math.pi) * 9).long().clamp(max=8)
    return ((shell * 9 + sector + 1) * (shell > 0)).clamp(max=labels - 1).to(torch.uint8)


def load(options: Options) -> tuple[Tensor, LabelScheme]:
    """The map as label indices, (size, size, size), and its scheme."""
    if options.labels is None:
        index = phantom(options.size)
        return index, LabelScheme.from_values(range(54))
    maps = LabelMaps(options.labels)
    scheme = read_scheme("auto", maps[0].values.unique().tolist())
    index = as_indices(maps[0], scheme).values
    inside = (index > 0).nonzero()
    middle = (inside.amin(0) + inside.amax(0)) // 2
    start = [
        max(0, min(int(m) - options.size // 2, n - options.size)) for m, n in zip(middle, index.shape, strict=True)
    ]
    return index[tuple(slice(s, s + options.size) for s in start)].contiguous(), scheme


# --- the straight version -----------------------------------------------------------------------------------------------


def straight(labels: Tensor, params: Params, scheme: LabelScheme) -> tuple[Tensor, Tensor]:
    """The same steps with the usual PyTorch calls, as a careful user would write them; 2-D or 3-D, one sample."""
    n, shape = labels.ndim, tuple(labels.shape)
    mode = "trilinear" if n == 3 else "bilinear"
    moved = _straight_deform(labels, params, mode)
    if params.flip and params.partners is not None:
        moved = torch.tensor(params.partners, device=labels.device)[moved.flip(0).long()]
    index = moved.long()
    image = params.means.to(labels.device)[0][index]
    image = image + params.stds.to(labels.device)[0][index] * torch.randn(shape, device=labels.device)
    if params.bias is not None:
        bias = F.interpolate(params.bias[None].to(labels.device), shape, mode=mode, align_corners=True)
        image = image * bias[0, 0].exp()
    image = image.clamp(0, 300)
    image = (image - image.min()) / (image.max() - image.min() + 1e-7)
    if params.gamma is not None:
        image = image ** params.gamma.exp().item()
    image = _straight_blur(image[None, None], params.sigma[0])
    image = F.interpolate(image, params.low_shape[0], mode="nearest")
    image = F.interpolate(image, shape, mode=mode, align_corners=False)[0]
    return image, scheme.output_table().to(labels.device)[index]


def _straight_deform(labels: Tensor, params: Params, mode: str) -> Tensor:
    n, shape, device = labels.ndim, tuple(labels.shape), labels.device
    half = tuple(s // 2 for s in shape)
    axes = torch.meshgrid(*[torch.arange(s, dtype=torch.float32, device=device) for s in shape], indexing="ij")
    where = torch.stack(axes)
    scale = torch.tensor([2 / (s - 1) for s in shape], device=device).view(-1, *[1] * n)
    if params.velocity is not None:
        axes = torch.meshgrid(*[torch.linspace(-1, 1, s, device=device) for s in half], indexing="ij")
        identity = torch.stack(axes)
        field = F.interpolate(params.velocity[None].to(device), half, mode=mode, align_corners=True)[0] / 2**7
        for _ in range(7):
            grid = (identity + field * scale).flip(0).movedim(0, -1)[None]
            field = field + F.grid_sample(field[None], grid, padding_mode="border", align_corners=True)[0]
        where = where + F.interpolate(field[None], shape, mode=mode, align_corners=True)[0]
    if params.affine is not None:
        affine = params.affine.float().to(device)
        centre = torch.tensor([(s - 1) / 2 for s in shape], device=device).view(-1, *[1] * n)
        where = torch.einsum("ij,j...->i...", affine[:, :n], where - centre) + centre
        where = where + affine[:, n].view(-1, *[1] * n)
    grid = (where * scale - 1).flip(0).movedim(0, -1)[None]
    return F.grid_sample(labels[None, None].float(), grid, mode="nearest", align_corners=True)[0, 0]


def _straight_blur(image: Tensor, sigma: tuple[float, ...]) -> Tensor:
    convolution = F.conv3d if len(sigma) == 3 else F.conv2d
    for axis, s in enumerate(sigma):
        taps = torch.arange(-7, 8, dtype=torch.float32, device=image.device)  # 15 taps, as for 8 mm
        kernel = torch.exp(-0.5 * (taps / max(s, 1e-3)) ** 2)
        view = [1, 1, *[1] * len(sigma)]
        view[2 + axis] = 15
        padding = [7 if a == axis else 0 for a in range(len(sigma))]
        image = convolution(image, (kernel / kernel.sum()).view(view), padding=padding)
    return image


# --- measuring ----------------------------------------------------------------------------------------------------------


def median(work: Callable[[int], object], options: Options) -> float:
    """Median seconds of a call, given the number of the run."""
    return statistics.median(seconds(work, options.runs, torch.device(options.device)))


def draw(labels: Tensor, scheme: LabelScheme, number: int) -> Params:
    """Parameters of one sample of the SynthSeg preset."""
    return sample_params(labels, seeded_generator(0, number), options=GMM_PRESETS["synthseg"](), scheme=scheme)


def stages(labels: Tensor, scheme: LabelScheme, options: Options) -> dict[str, float]:
    """Seconds of each stage, over the same samples as the whole."""
    params = [draw(labels, scheme, i) for i in range(options.runs + 2)]
    moved = [deform(labels, p) for p in params]
    device = labels.device
    grain = torch.randn(1, *labels.shape, device=device)
    bias = [p.bias if p.bias is not None else torch.zeros(1, *[2] * labels.ndim) for p in params]
    image = grain.mul(20).add(100)

    work: dict[str, Callable[[int], object]] = {
        "draw parameters": lambda i: draw(labels, scheme, i),
        "integrate velocity": lambda i: backward_coordinates(params[i], device),
        "look labels up (with the above)": lambda i: deform(labels, params[i]),
        "grain": lambda i: torch.randn(1, *labels.shape, device=device),
        "mixture": lambda i: mixture(moved[i], params[i].means.to(device), params[i].stds.to(device), grain),
        "bias field": lambda i: apply_bias(image, bias[i].to(device)),
        "range and gamma": lambda i: tone(image, params[i].gamma, "minmax"),
        "acquisition": lambda i: acquire(image[0], params[i].low_shape[0], params[i].sigma[0], params[i].out_shape),
        "output labels": lambda i: output_labels(moved[i], scheme),
        "paint, whole": lambda i: paint(moved[i], params[i]),
    }
    return {name: median(call, options) for name, call in work.items()}


def compare(labels: Tensor, scheme: LabelScheme, options: Options, batch: int = 1) -> tuple[float, float]:
    """Seconds a sample of ours and of the straight version, parameters included, in turn, in calls of `batch` samples."""

    def of(render: Callable[..., object]) -> float:
        def call(run: int) -> None:
            for i in range(run * batch, (run + 1) * batch):
                render(labels, draw(labels, scheme, i), scheme)

        return median(call, options) / batch

    return of(render_pair), of(straight)


def artefact_seconds(labels: Tensor, options: Options) -> dict[str, float]:
    """Seconds of each fetal artefact on a volume; cortex and white matter are two shells of the map."""
    masks = Masks(cortex=labels % 9 == 1, white_matter=labels % 9 == 2, brain=labels > 0)
    image = torch.rand(1, *labels.shape, device=labels.device)
    found = {}
    for name, kind in ARTEFACTS.items():
        drawn = [
            kind.sample(seeded_generator(name, i), tuple(labels.shape), (1.0,) * 3) for i in range(options.runs + 2)
        ]
        found[name] = median(lambda i, drawn=drawn: drawn[i](image, masks), options)  # type: ignore[misc]
    return found


def memory(which: str, labels: Tensor, options: Options) -> float:
    """Peak memory in GB of a process that makes three volumes, or only imports."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "map.npy", labels.numpy())
        words = ("--child", which, "--indices", Path(folder) / "map.npy", "--threads", options.threads)
        return float(in_process(__file__, *words))


def child(options: Options) -> None:
    """The process whose memory is measured."""
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if options.child != "import":
        assert options.indices is not None
        labels = torch.from_numpy(np.load(options.indices))
        scheme = LabelScheme.from_values(range(int(labels.max()) + 1))
        for number in range(3):
            params = draw(labels, scheme, number)
            if options.child == "ours":
                render_pair(labels, params, scheme)
            else:
                straight(labels, params, scheme)
    print(peak_memory_gb(torch.device("cpu")))


def main() -> int:
    """Command line."""
    options = tyro.cli(Options, description=__doc__)
    if options.child:
        child(options)
        return 0
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    labels, scheme = load(options)
    labels = labels.to(options.device)
    figures: dict[str, object] = {"threads": options.threads, "device": options.device, "size": options.size}
    ours, plain = compare(labels, scheme, options)
    print(
        f"3-D {options.size}³, SynthSeg preset: {ours:.3f} s a volume, straight {plain:.3f} s: {plain / ours:.1f} times"
    )
    figures |= {"volume_s": ours, "volume_straight_s": plain}
    table = stages(labels, scheme, options)
    for name, value in table.items():
        print(f"    {name:32s} {1000 * value:7.1f} ms")
    flat = labels[:, :, options.size // 2]
    flat = torch.nn.functional.pad(flat, [(256 - options.size) // 2] * 4) if options.size < 256 else flat[:256, :256]
    flat = flat.contiguous()
    ours2, plain2 = (value * 1000 for value in compare(flat, scheme, options, options.slices))
    print(
        f"2-D 256², batch of {options.slices}: {ours2:.2f} ms a slice, straight {plain2:.2f} ms: {plain2 / ours2:.1f} times"
    )
    figures |= {"stages_s": table, "slice_ms": ours2, "slice_straight_ms": plain2}
    fetal = artefact_seconds(labels, options)
    for name, value in fetal.items():
        print(f"    artefact {name:23s} {1000 * value:7.1f} ms")
    figures["artefacts_s"] = fetal
    if options.device == "cpu":
        peaks = {which: memory(which, labels, options) for which in ("import", "ours", "straight")}
        print("peak memory of the process: " + ", ".join(f"{name} {value:.2f} GB" for name, value in peaks.items()))
        figures["peak_gb"] = peaks
    else:
        rate = 1 / compare(labels, scheme, options, options.batch)[0]
        print(
            f"batches of {options.batch}: {rate:.0f} volumes a second, peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB"
        )
        figures["volumes_per_s"] = rate
    if options.out:
        write_json(options.out, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
