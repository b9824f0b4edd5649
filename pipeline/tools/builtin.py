"""Segmenters that come with medsis: dipy's hidden Markov random field, and intensities with the MNI152 tissue maps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.io.nifti import Volume, read_volume, write_volume
from dataloaders.prepare.tissue import TissueError, hmrf_tissue
from pipeline.commands import ToolFailed
from pipeline.tools.base import Tool, ToolCall, package_version

TEMPLATE_MM = 2
BLUR_MM = 4.0  # of the maps: an affine registration does not match gyri
FLOOR = 0.05  # of each tissue's share everywhere, so that intensities may overrule the atlas
ITERATIONS, TOLERANCE = 50, 1e-4
PERCENTILES = (0.5, 99.5)


class BuiltIn(Tool):
    """A segmenter that needs no program."""

    @abstractmethod
    def labels(self, brain: Volume, threads: int) -> NDArray[np.uint8]:
        """CSF 1, grey 2, white matter 3, where voxels that are not 0 are brain. ToolFailed."""

    def find(self, settings: Mapping[str, Any]) -> str | None:
        """The package."""
        return self.package if package_version(self.package) else None

    def run(self, call: ToolCall) -> tuple[Path, dict[str, str]]:
        """In this process."""
        brain = read_volume(call.image)
        labels = self.labels(brain, call.threads)
        write_volume(call.folder / self.output, labels, brain.affine)
        return call.folder / self.output, self.about(self.located(call.settings))


class Hmrf(BuiltIn):
    """FSL FAST's algorithm, beta 0.1, on intensities clipped at the 0.5th and 99.5th percentile."""

    def labels(self, brain: Volume, threads: int) -> NDArray[np.uint8]:
        """By dipy."""
        try:
            return hmrf_tissue(brain.data, brain.data > 0)
        except TissueError as error:
            raise ToolFailed(str(error)) from None


class Atlas(BuiltIn):
    """A Gaussian mixture whose weights come from the MNI152 tissue maps, laid over the scan by an affine registration.

    Other errors than the HMRF's: the maps keep deep grey matter grey, and a poorly registered scan shows at its edges.
    """

    def labels(self, brain: Volume, threads: int) -> NDArray[np.uint8]:
        """Registration and expectation maximisation."""
        inside = brain.data > 0
        values = brain.data[inside].astype(np.float64)
        if len(np.unique(values)) < 3:
            raise ToolFailed("fewer than three intensities, so no three tissues")
        values = np.clip(values, *np.percentile(values, PERCENTILES))
        labels = np.zeros(brain.data.shape, np.uint8)
        labels[inside] = mixture(values, tissue_priors(brain, threads)[:, inside]).argmax(0) + 1
        return labels


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

    from dataloaders.registration import BrainScan, itk_image, itk_in_one_line

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    template = datasets.load_mni152_template(resolution=TEMPLATE_MM)
    maps = [
        load(resolution=TEMPLATE_MM) for load in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    ]
    grey, white = (np.clip(image.get_fdata(), 0, 1) for image in maps)
    fixed = itk_image(BrainScan(brain.data, brain.affine))
    with itk_in_one_line("registration to MNI152"):
        transform = register(fixed, itk_image(BrainScan(template.get_fdata(), template.affine)))
    moved = []
    for share in (grey, white):
        blurred = ndimage.gaussian_filter(share, BLUR_MM / 2.355 / TEMPLATE_MM)
        out = sitk.Resample(itk_image(BrainScan(blurred, template.affine)), fixed, transform, sitk.sitkLinear, 0.0)
        moved.append(np.asarray(sitk.GetArrayFromImage(out), np.float64).transpose(2, 1, 0))
    shares = np.stack([np.clip(1 - moved[0] - moved[1], 0, 1), *moved]) + FLOOR
    return shares / shares.sum(0)


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
