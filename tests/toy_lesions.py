"""Phantom MS patients: CSF, cortex, white matter, bright lesions on FLAIR that are dark on T1w; as arrays and as BIDS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.lesions.preparing import Tissue
from tests.toy import save_nifti

LAS = np.array([[-1.0, 0, 0, 20], [0, 1, 0, -24], [0, 0, 1, -14], [0, 0, 0, 1]])
T1W, FLAIR = (0, 60, 150, 220), (0, 20, 105, 90)  # background, CSF, grey, white
SHAPE = (44, 52, 30)


@dataclass
class Patient:
    """Arrays (I, J, K) on a LAS grid of 1 mm; tissue is that under the lesions too."""

    t1: NDArray[np.float32]
    flair: NDArray[np.float32]
    tissue: NDArray[np.uint8]
    lesion: NDArray[np.bool_]

    @property
    def white(self) -> NDArray[np.bool_]:
        return (self.tissue == 3) & ~self.lesion

    @property
    def masks(self) -> Tissue:
        return Tissue(self.white, (self.tissue == 2) & ~self.lesion, (self.tissue == 1) & ~self.lesion)


def patient(seed: int = 0, lesions: int = 6, shape: tuple[int, int, int] = SHAPE) -> Patient:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    distance = np.sqrt(((grid / np.array([0.9, 0.92, 0.95])[:, None, None, None]) ** 2).sum(0))
    tissue = np.where(distance < 0.72, 3, np.where(distance < 0.88, 2, np.where(distance < 1.0, 1, 0))).astype(np.uint8)
    ventricle = np.sqrt(((grid / np.array([0.12, 0.3, 0.25])[:, None, None, None]) ** 2).sum(0)) < 1
    tissue[ventricle] = 1
    lesion = np.zeros(shape, bool)
    places = np.argwhere((tissue == 3) & (ndimage.distance_transform_edt(tissue == 3) > 3))
    for place in places[rng.integers(0, len(places), lesions)]:
        off = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")) - place[:, None, None, None]
        lesion |= (off**2).sum(0) <= rng.uniform(1.5, 3.0) ** 2
    lesion &= tissue == 3
    images = []
    for means, change in ((T1W, -70), (FLAIR, 45)):
        image = np.array(means, float)[tissue] + change * lesion
        image = ndimage.gaussian_filter(image, 0.4) + (tissue > 0) * ndimage.gaussian_filter(
            rng.normal(0, 6, shape), 0.5
        )
        images.append(np.where(tissue > 0, np.maximum(image, 1), 0).astype(np.float32))
    return Patient(images[0], images[1], tissue, lesion)


def bids(root: Path, patients: int = 3, lesions: int = 6) -> Path:
    """sub-1..n with T1w, FLAIR, lesion mask and dseg, and `root/labels.json` that names its tissues."""
    for i in range(1, patients + 1):
        p, name = patient(i, lesions), f"sub-{i}"
        save_nifti(root / name / "anat" / f"{name}_T1w.nii.gz", p.t1, LAS)
        save_nifti(root / name / "anat" / f"{name}_FLAIR.nii.gz", p.flair, LAS)
        marks = root / "derivatives" / "marks" / name / "anat"
        save_nifti(marks / f"{name}_label-lesion_mask.nii.gz", p.lesion.astype(np.uint8), LAS)
        for path in (root / "tissue" / f"{name}.nii.gz", marks / f"{name}_dseg.nii.gz"):
            save_nifti(path, p.tissue, LAS)
    (root / "labels.json").write_text('{"csf": 1, "grey_matter": 2, "white_matter": 3}')
    return root
