"""Tissues by intensity and place: a Gaussian mixture whose weights come from the MNI152 tissue maps, laid over the scan."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.io.geometry import spacing
from dataloaders.io.nifti import Volume, read_volume, write_volume
from pipeline.commands import ToolFailed
from pipeline.tools.base import Job, Outcome, Tool, package_version

TEMPLATE_MM = 2
BLUR_MM = 4.0  # of the maps: an affine registration does not match gyri
FLOOR = 0.05  # of each tissue's share everywhere, so that intensities may overrule the atlas
ITERATIONS, TOLERANCE = 50, 1e-4
PERCENTILES = (0.5, 99.5)


class Atlas(Tool):
    """Affine registration (SimpleITK) of the template in nilearn, then expectation maximisation.

    Other errors than the HMRF's: the maps keep deep grey matter grey, and a poorly registered scan shows at its edges.
    """

    name = "atlas"
    kind = "segment"
    wants = "brain"
    table = "ascending.toml"
    licence = "Apache-2.0 (SimpleITK), BSD-3-Clause (nilearn); template: ICBM"
    citation = (
        "Ashburner & Friston, NeuroImage 2005, doi 10.1016/j.neuroimage.2005.02.018; Fonov et al., NeuroImage 2011"
    )
    get = "comes with medsis"

    def find(self, settings: Mapping[str, Any]) -> Path | str | None:
        """Built in."""
        return "SimpleITK" if package_version("simpleitk") and package_version("nilearn") else None

    def version(self, found: Path | str) -> str:
        """Of the library that registers."""
        return package_version("simpleitk") or "unknown"

    def run(self, job: Job) -> Outcome:
        """Voxels that are not 0 are brain. ToolFailed where registration or the mixture breaks down."""
        start = time.monotonic()
        brain = read_volume(job.image)
        inside = brain.data > 0
        values = brain.data[inside].astype(np.float64)
        if len(np.unique(values)) < 3:
            raise ToolFailed(f"{job.image.name}: fewer than three intensities, so no three tissues")
        values = np.clip(values, *np.percentile(values, PERCENTILES))
        shares = tissue_priors(brain, job.threads)[:, inside]
        labels = np.zeros(brain.data.shape, np.uint8)
        labels[inside] = mixture(values, shares).argmax(0) + 1
        path = job.folder / "labels.nii.gz"
        write_volume(path, labels, brain.affine)
        return Outcome(path, self.version(""), "SimpleITK", time.monotonic() - start)


def mixture(values: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Posteriors (3, n) of CSF, GM, WM for intensities (n,) with prior shares (3, n): EM with one Gaussian each.

    ToolFailed where the means do not rise from CSF to WM, as they do on T1w.
    """
    weights, previous = shares, np.inf
    for _ in range(ITERATIONS):
        total = weights.sum(1)
        means = weights @ values / total
        spreads = np.sqrt((weights * (values - means[:, None]) ** 2).sum(1) / total) + 1e-6 * np.ptp(values)
        joint = shares * np.exp(-(((values - means[:, None]) / spreads[:, None]) ** 2) / 2) / spreads[:, None]
        evidence = joint.sum(0) + 1e-300
        weights = joint / evidence
        cost = -float(np.log(evidence).mean())
        if abs(previous - cost) < TOLERANCE:
            break
        previous = cost
    if not means[0] < means[1] < means[2]:
        raise ToolFailed("the tissues' intensities do not rise from CSF to white matter; is this a T1w scan?")
    return weights


def tissue_priors(brain: Volume, threads: int) -> NDArray[np.float64]:
    """Shares (3, I, J, K) of CSF, GM, WM, their sum 1, from the MNI152 maps on the grid of a brain."""
    import SimpleITK as sitk  # noqa: N813 (its usual name; slow to import)
    from nilearn import datasets  # slow to import

    from dataloaders.registration import itk_in_one_line

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    template = datasets.load_mni152_template(resolution=TEMPLATE_MM)
    maps = [
        load(resolution=TEMPLATE_MM) for load in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    ]
    grey, white = (np.clip(image.get_fdata(), 0, 1) for image in maps)
    fixed = _image(brain.data, brain.affine)
    with itk_in_one_line("registration to MNI152"):
        transform = register(fixed, _image(template.get_fdata(), template.affine))
    moved = []
    for share in (grey, white):
        blurred = ndimage.gaussian_filter(share, BLUR_MM / 2.355 / TEMPLATE_MM)
        out = sitk.Resample(_image(blurred, template.affine), fixed, transform, sitk.sitkLinear, 0.0)
        moved.append(np.asarray(sitk.GetArrayFromImage(out), np.float64).transpose(2, 1, 0))
    shares = np.stack([np.clip(1 - moved[0] - moved[1], 0, 1), *moved]) + FLOOR
    return shares / shares.sum(0)


def _image(data: NDArray, affine: NDArray) -> Any:
    """A SimpleITK image: LPS, so the first two axes of scanner coordinates change sign."""
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(np.ascontiguousarray(np.asarray(data, np.float32).transpose(2, 1, 0)))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    mm = spacing(affine)
    image.SetSpacing([float(x) for x in mm])
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / mm).ravel().tolist())
    return image


def register(fixed: Any, moving: Any) -> Any:
    """Rigid, then affine transform from points of `fixed` to points of `moving`, by mutual information."""
    import SimpleITK as sitk  # noqa: N813

    kind = sitk.CenteredTransformInitializerFilter.MOMENTS
    rigid = sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform(), kind)
    rigid = _optimised(fixed, moving, rigid)
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    return _optimised(fixed, moving, affine)


def _optimised(fixed: Any, moving: Any, start: Any) -> Any:
    import SimpleITK as sitk  # noqa: N813

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.1, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 100, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([3.0, 1.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    return start
