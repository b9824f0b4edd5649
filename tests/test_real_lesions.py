"""Real MS lesions: the published masks and fillings give the figures that were measured on this patient before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from dataloaders.io import geometry
from dataloaders.io.nifti import read_volume
from dataloaders.lesions.filling import fill_slices, fill_volume
from dataloaders.lesions.preparing import Tissue, fill_zone, find_lesions, hyperintense, white_mode
from dataloaders.prepare import tissue
from evaluation.metrics.lesion_regions import (
    RANGE_PERCENTILE,
    border_distance,
    contrast,
    radial_profile,
    regions,
    score_regions,
)

pytestmark = pytest.mark.slow


class Patient:
    """sub-07 with tissue of its own T1w scan."""

    def __init__(self, data: Path) -> None:
        anat = data / "ms" / "sub-07" / "anat"
        t1 = read_volume(anat / "sub-07_T1w.nii.gz")
        marks = data / "ms" / "derivatives" / "lesions" / "sub-07" / "anat"
        self.lesion = read_volume(marks / "sub-07_label-lesion_mask.nii.gz").data > 0
        self.t1 = t1.data.astype(np.float32)
        self.flair = read_volume(anat / "sub-07_FLAIR.nii.gz").data.astype(np.float32)
        self.brain = tissue.brain_mask(self.t1, geometry.spacing(t1.affine))
        ids = tissue.hmrf_tissue(self.t1, self.brain, self.lesion)
        csf, grey, white = ((ids == i) & ~self.lesion for i in tissue.BRAIN_TISSUE)
        self.tissue = Tissue(white, grey, csf)
        self.bright = hyperintense(self.flair, self.tissue.grey)


@pytest.fixture(scope="module")
def patient(shared_data: Path) -> Patient:
    return Patient(shared_data)


def test_published_masks_are_mostly_cortex(patient: Patient) -> None:
    mean, deviation = patient.flair[patient.tissue.grey].mean(), patient.flair[patient.tissue.grey].std()
    assert patient.bright[patient.brain].mean() == pytest.approx(0.145, abs=0.005)
    for alpha, recall, precision in ((0.5, 0.83, 0.007), (1.1, 0.65, 0.015), (1.7, 0.49, 0.041), (2.7, 0.25, None)):
        band = patient.flair > mean + alpha * deviation
        assert band[patient.lesion].mean() == pytest.approx(recall, abs=0.02)
        if precision is not None:
            assert patient.lesion[band].mean() == pytest.approx(precision, abs=0.003)


def test_baselines_without_a_model(patient: Patient) -> None:
    """What a generator must beat: PSNR 12.8 dB and SSIM .558 in the lesions (range: the brain's 99.9th percentile)."""
    near = tuple(slice(max(s.start - 8, 0), s.stop + 8) for s in ndimage.find_objects(patient.lesion.astype(int))[0])
    data_range = float(np.percentile(patient.flair[patient.brain], RANGE_PERCENTILE))
    published = fill_slices(patient.flair, patient.bright, patient.tissue.white)
    masks = {"lesion": patient.lesion[near]}
    score = score_regions(patient.flair[near], published[near], masks, data_range)["lesion"]
    assert score.psnr == pytest.approx(12.8, abs=0.3)
    assert score.ssim == pytest.approx(0.558, abs=0.03)
    zone = fill_zone(patient.lesion, patient.tissue)
    ours = fill_volume(patient.flair, zone, patient.tissue.white, patient.bright)
    assert (ours != patient.flair)[patient.brain].mean() < 0.006
    assert (published != patient.flair)[patient.brain].mean() > 0.3
    score = score_regions(patient.flair[near], ours[near], masks, data_range)["lesion"]
    assert score.psnr < 12.8  # it takes more of the lesion away


def test_filled_lesions_have_the_contrast_of_white_matter(patient: Patient) -> None:
    white, distance = patient.tissue.white, border_distance(patient.lesion)
    zone = fill_zone(patient.lesion, patient.tissue)
    for image, real_contrast in ((patient.t1, -0.21), (patient.flair, 0.38)):
        assert contrast(image, patient.lesion, white, distance) == pytest.approx(real_contrast, abs=0.03)
        filled = fill_volume(image, zone, white, patient.bright)
        assert abs(contrast(filled, patient.lesion, white, distance)) < 0.06
        assert white_mode(image[white]) == pytest.approx(np.median(image[white]), rel=0.05)
        profile = radial_profile(filled, patient.lesion, white, distance)
        assert all(abs(value - 1) < 0.1 for value in profile.values()), profile
    assert regions(patient.lesion, patient.brain)["rim"].sum() > patient.lesion.sum()


def test_found_lesions_overlap_the_radiologists(patient: Patient) -> None:
    """Without a mask: coarse, but most of the real load is in it and nothing in CSF."""
    found = find_lesions(patient.flair, patient.tissue)
    assert not (found & patient.tissue.csf).any()
    assert found[patient.lesion].mean() > 0.2
    assert found.sum() < 0.03 * patient.brain.sum()
