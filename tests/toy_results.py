"""Toy results folders as test.py writes them: elliptic phantom heads with a few labels, two channels, some patients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Manifest, Slice, slice_name
from dataloaders.io.png import write_png
from dataloaders.io.spec import Channel, DataSpec, Label

LABELS = ("background", "csf", "grey_matter", "white_matter", "lesion")
MEANS = {"T1w": (0.0, 250.0, 550.0, 800.0, 500.0), "CT": (-1000.0, 5.0, 38.0, 30.0, 20.0)}
WINDOWS = {"T1w": Window(0.0, 1000.0), "CT": Window(-1024.0, 3071.0)}
UNITS = {"T1w": "a.u.", "CT": "HU"}

Fake = Callable[[NDArray, NDArray, np.random.Generator], NDArray]  # (real, label, rng) -> generated, physical units


def phantom(patient: int, index: int, size: tuple[int, int] = (48, 40)) -> NDArray[np.uint8]:
    """(H, W) label map: nested ellipses that change with patient and slice; every third slice has a lesion."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    y = (rows - size[0] / 2 + 0.5) / (size[0] * (0.42 + 0.01 * (patient % 3)))
    x = (columns - size[1] / 2 + 0.5) / (size[1] * (0.45 - 0.01 * (index % 3)))
    radius = np.hypot(x, y)
    label = np.select([radius < 0.25, radius < 0.6, radius < 0.85, radius < 1], [1, 3, 2, 1], 0).astype(np.uint8)
    if index % 3 == 0:
        label[np.hypot(y, x - 0.45) < 0.12] = 4
    return label


def real_image(label: NDArray, channel: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Physical units: the label's mean, with noise inside the body only."""
    spread = 0.02 * WINDOWS[channel].width
    return np.array(MEANS[channel])[label] + rng.normal(0, spread, label.shape) * (label > 0)


def noisy(amount: float, shift: float = 0.0) -> Fake:
    """A method that returns the real image plus noise and an offset inside the body, as shares of its intensities."""

    def fake(real: NDArray, label: NDArray, rng: np.random.Generator) -> NDArray:
        scale = np.ptp(real)
        return real + (rng.normal(0, amount, real.shape) + shift) * scale * (label > 0)

    return fake


def identity(real: NDArray, label: NDArray, rng: np.random.Generator) -> NDArray:
    """A perfect method."""
    return real


def write_results(
    folder: Path,
    fake: Fake,
    *,
    name: str = "toy",
    method: str = "oasis",
    patients: int = 2,
    slices: int = 3,
    channels: tuple[str, ...] = ("T1w", "CT"),
    size: tuple[int, int] = (48, 40),
    log: bool = False,
) -> Path:
    """Write a results folder; the real images do not depend on `fake`, so folders can be compared."""
    cases = [_write_case(folder, fake, patient, slices, channels, size) for patient in range(patients)]
    spec = DataSpec(
        tuple(Label(i, label, (i,)) for i, label in enumerate(LABELS)),
        tuple(Channel(channel, UNITS[channel]) for channel in channels),
        size,
    )
    provenance = {"kind": "results", "name": name, "method": method, "checkpoint": "best", "images_seen": 1200}
    provenance |= {"split": "test", "seconds_per_slice": 0.01, "environment": {"torch": "2"}}
    provenance["config"] = {"model": method, "seed": 1, method: {"width": 16}}
    Manifest(spec, tuple(cases), provenance).save(folder)
    if log:
        _write_log(folder / "training_log.jsonl")
    return folder


def _write_case(folder: Path, fake: Fake, patient: int, slices: int, channels: tuple[str, ...], size: tuple) -> Case:
    case_id, written = f"sub-{patient:02d}", []
    for index in range(slices):
        label = phantom(patient, index, size)
        label_path = f"label/{slice_name(case_id, index)}"
        write_png(folder / label_path, label)
        images, generated = [], []
        for c, channel in enumerate(channels):
            real = real_image(label, channel, np.random.default_rng([patient, index, c]))
            made = fake(real, label, np.random.default_rng([7, patient, index, c]))
            for list_, kind, values in ((images, "groundtruth", real), (generated, "generated", made)):
                list_.append(f"{kind}/{slice_name(case_id, index, c)}")
                write_png(folder / list_[-1], WINDOWS[channel].encode(values))
        histogram = {int(i): int(n) for i, n in zip(*np.unique(label, return_counts=True), strict=True)}
        written.append(Slice(index, label_path, tuple(images), tuple(generated), histogram))
    return Case(case_id, case_id, "test", tuple(WINDOWS[channel] for channel in channels), tuple(written))


def _write_log(path: Path) -> None:
    records = []
    for step in range(1, 7):
        losses = {"generator/segmentation": 2 / step, "discriminator/real": 1 / step}
        records.append({"kind": "train", "images": 100 * step, "step": step, "losses": losses})
        records.append({"kind": "eval", "images": 100 * step, "metrics": {"wasserstein": 0.1 / step}})
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def good_and_bad(root: Path, **options: Any) -> list[Path]:
    """Results of a better and a worse method on the same slices, in the folders that test.py would choose."""
    good = write_results(root / "good" / "best", noisy(0.02), name="good", log=True, **options)
    return [good, write_results(root / "bad" / "best", noisy(0.2), name="bad", method="gmm", **options)]
