"""Toy data made by code: phantom heads with four tissues, and prepared folders of them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from numpy.typing import NDArray

from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Manifest, Slice, slice_name
from dataloaders.io.png import write_png
from dataloaders.io.spec import Channel, DataSpec, Label

LAS = np.diag([-1.0, 1.0, 2.0, 1.0])
NAMES = ("background", "csf", "grey_matter", "white_matter", "lesion")


def phantom(seed: int, shape: tuple[int, int, int] = (40, 48, 24)) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(labels 0..4, image): nested ellipsoids of random size with noise, all labels present."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radii = rng.uniform(0.9, 1.05, 3)
    distance = np.sqrt(sum((g / r) ** 2 for g, r in zip(grid, radii, strict=True)))
    label = np.digitize(-distance, [-0.9, -0.75, -0.55]).astype(np.int32)
    spot = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, rng.uniform(-0.25, 0.25, 3), strict=True))) < 0.15
    label[spot] = 4
    means = np.array([0, 60, 110, 160, 220]) * rng.uniform(0.95, 1.05)
    image = means[label] + np.where(label > 0, rng.normal(0, 6, shape), 0)
    return label, image.astype(np.float32)


def save_nifti(path: Path, data: NDArray, affine: NDArray | None = None) -> Path:
    """Write an array as NIfTI and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def oriented(codes: str, shape: tuple[int, ...], mm: tuple[float, ...] = (1.0, 1.0, 1.0)) -> NDArray[np.float64]:
    """Affine of a file of that shape whose axes have these codes and voxel sizes; its RAS corner is at (-10, 20, 30) mm."""
    ornt = axcodes2ornt(tuple(codes))
    ras = np.diag([0.0, 0, 0, 1])
    for axis, (to, _) in enumerate(ornt):
        ras[int(to), int(to)] = mm[axis]
    ras[:3, 3] = (-10, 20, 30)
    # inv_ornt_aff: from the reoriented voxel to the stored one
    return ras @ np.linalg.inv(inv_ornt_aff(ornt, shape))


def toy_spec(channels: int = 1, size: tuple[int, int] = (32, 32), labels: int = 5) -> DataSpec:
    """Spec of the toy data."""
    return DataSpec(
        tuple(Label(i, NAMES[i] if i < len(NAMES) else f"label_{i}", (i,)) for i in range(labels)),
        tuple(Channel(f"MR{c}") for c in range(channels)),
        size,
        axis="axial",
    )


def published(*flags: object) -> list[str]:
    """Flags of train.py with the preset as published of their --model, unless they have a preset."""
    words = [str(flag) for flag in flags]
    model = words[words.index("--model") + 1] if "--model" in words else "oasis"
    return words if "--preset" in words or model not in {"oasis", "spade"} else ["--preset", model, *words]


def prepared_folder(root: Path, patients: int = 4, slices: int = 6, channels: int = 1, size: int = 32) -> Path:
    """A prepared folder of phantoms: the last two patients are val and test, the others train."""
    cases = []
    for p in range(patients):
        split = "test" if p == patients - 1 else "val" if p == patients - 2 else "train"
        label, image = phantom(p, (size, size, slices + 4))
        window = Window(0.0, 255.0)
        items = []
        for z in range(2, slices + 2):
            name = f"{split}/labels/{slice_name(f'sub-{p:02d}', z)}"
            write_png(root / name, label[:, :, z].astype(np.uint8))
            images = []
            for c in range(channels):
                images.append(f"{split}/images/{slice_name(f'sub-{p:02d}', z, c)}")
                write_png(root / images[-1], window.encode(np.clip(image[:, :, z] * (1 - 0.3 * c), 0, 255)))
            ids, counts = np.unique(label[:, :, z], return_counts=True)
            histogram = {int(i): int(n) for i, n in zip(ids, counts, strict=True)}
            items.append(Slice(z, name, tuple(images), (), histogram))
        cases.append(Case(f"sub-{p:02d}", f"sub-{p:02d}", split, (window,) * channels, tuple(items)))
    Manifest(toy_spec(channels, (size, size)), tuple(cases), {"split": "patients"}).save(root)
    return root
