"""Toy heads: three tissues in a skull, as large as a real brain, on a coarse grid; and studies of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.toy import save_nifti

MM = (3.0, 3.0, 4.0)
SHAPE = (56, 64, 40)
MEANS = np.array([0, 60, 110, 160], np.float32)  # background, CSF, GM, WM
SCALP = 250.0


def affine(flip: bool = False) -> NDArray[np.float64]:
    """RAS, or LPS as clinical scans are."""
    signs = (-1, -1, 1) if flip else (1, 1, 1)
    matrix = np.diag([*(s * mm for s, mm in zip(signs, MM, strict=True)), 1.0])
    matrix[:3, 3] = [-s * mm * n / 2 for s, mm, n in zip(signs, MM, SHAPE, strict=True)]
    return matrix


def head(seed: int, skull: bool = True) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """(T1w, tissues 1 CSF, 2 GM, 3 WM): a ventricle inside of white matter, grey matter and CSF around; 1.2 litres."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*((np.arange(n) - n / 2) * mm for n, mm in zip(SHAPE, MM, strict=True)), indexing="ij")
    radii = np.array([64.0, 76.0, 58.0]) * rng.uniform(0.96, 1.04, 3)
    folds = 1 + 0.03 * np.sin(grid[0] / 6 + seed) * np.cos(grid[1] / 7)
    distance = np.sqrt(sum((g / r) ** 2 for g, r in zip(grid, radii, strict=True))) * folds
    tissue = np.digitize(-distance, [-1.0, -0.92, -0.72]).astype(np.uint8)
    tissue[distance < 0.22] = 1
    image = MEANS[tissue]
    image += np.where(tissue > 0, rng.normal(0, 5, SHAPE), 0)
    if skull:
        image[(distance > 1.16) & (distance < 1.26)] = SCALP
    return np.maximum(image, 0).astype(np.float32), tissue


def bids(root: Path, patients: int = 3, skull: bool = True, first: int = 0) -> Path:
    """A BIDS folder of toy heads, every other one LPS. first: number of patients that are left out."""
    for i in range(first, patients):
        name = f"sub-{i + 1:02d}"
        image, _ = head(i, skull)
        save_nifti(root / name / "anat" / f"{name}_T1w.nii.gz", image, affine(flip=bool(i % 2)))
    return root


STUDY = """
name = "toy"
time_limit = 60
[[input]]
source = "bids"
[split]
test = ["sub-03"]
[harmonise]
n4 = false
spacing = [0.0, 0.0, 0.0]
[slices]
size = 64
[synthesise]
train = 8
test = 4
[nnunet]
device = "cpu"
plan = "small"
patch = 32
features = [4, 8, 16]
epochs = 1
iterations = 2
val_iterations = 1
workers = 0
"""


def study(root: Path, extra: str = "", patients: int = 3, text: str = STUDY) -> Path:
    """A study file with its data beside it. extra: more TOML, or lines of a table that is there already, as `[strip] …`."""
    bids(root / "bids", patients)
    path = root / "study.toml"
    if "[segment]" not in extra:  # a toy has no anatomy for the atlas to find
        text = text.replace("[synthesise]", '[segment]\ntools = ["hmrf"]\n[synthesise]')
    if "[strip]" not in extra:
        text = text.replace("[synthesise]", '[strip]\ntools = ["bet"]\n[synthesise]')
    path.write_text(text.replace("sub-03", f"sub-{patients:02d}") + extra)
    return path
