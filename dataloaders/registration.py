"""Bringing one brain onto another: SimpleITK rigid, then affine, then dipy's SyN.

Chosen by measurement on two MS patients (8 degrees, 3-5 % and 6 mm apart): SimpleITK's affine took 10-15 s to a brain Dice
of .953 (dipy's 360 s to .954), SyN another 26 s to .979 without a folded voxel (demons 40 s, .970; B-splines 18 s, .954).

Scans are volumes of which all but the brain is 0.
SimpleITK counts in LPS millimetres, nibabel and dipy in RAS: A_ras = D A_lps D with D = diag(-1, -1, 1, 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk  # noqa: N813 (its own convention)
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.io.geometry import off_grid, spacing, to_ras
from dataloaders.io.nifti import Volume

Alignment = Literal["none", "affine", "deformable"]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
BINS, SHRINK = 50, [4, 2]
SAMPLED, ENOUGH = 0.1, 20_000  # share of the voxels that the metric reads, and the least number of them
SYN_ITERATIONS = [20, 10, 0]  # from coarse to fine
SYN_SMALLEST = 12  # voxels
N4_ITERATIONS = 50
SAME_SPACE_DICE = 0.85  # two brains in MNI space overlap by about .89, unregistered ones seldom by .8


@dataclass(frozen=True)
class Transform:
    """The way from a fixed grid into a moving scan.

    affine: (4, 4), mm RAS of the fixed space -> mm RAS of the moving one. shape, grid: of the fixed scan. mapping: dipy's
    DiffeomorphicMap, which contains the affine; None where the affine is all.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, ...]
    grid: NDArray[np.float64]
    mapping: Any = None

    def carry(self, data: NDArray, affine: NDArray) -> NDArray[np.float32]:
        """`data` of the moving scan (on any grid in its space) on the fixed grid, linearly; 0 outside the moving scan."""
        values, to_grid = np.ascontiguousarray(data, np.float32), np.linalg.inv(affine)
        if self.mapping is None:
            matrix = to_grid @ self.affine @ self.grid  # fixed voxel -> moving voxel
            return ndimage.affine_transform(values, matrix, output_shape=self.shape, order=1)
        moved = self.mapping.transform(values, image_world2grid=to_grid, out_shape=self.shape, out_grid2world=self.grid)
        return moved.astype(np.float32)


def same_space(fixed: Volume, moving: Volume) -> bool:
    """Whether both lie on one grid and their brains (voxels above 0) already overlap: nothing to register."""
    if off_grid(moving.data.shape, moving.affine, fixed.data.shape, fixed.affine, ""):
        return False
    return dice(_head(fixed.data), _head(moving.data)) >= SAME_SPACE_DICE


def register(fixed: Volume, moving: Volume, method: Alignment = "deformable") -> Transform:
    """Find `moving` in `fixed`; both brain-extracted and of one contrast (T1w). ValueError for empty or sheared scans.

    One thread and a regular sample of the voxels, so the same scans always give the same transform.
    """
    if method == "none":
        return Transform(np.eye(4), fixed.data.shape, fixed.affine)
    still, loose = (Volume(*to_ras(scan.data, scan.affine)) for scan in (fixed, moving))
    with _one_thread(), itk_in_one_line("registration"):
        affine = _affine(itk_image(still), itk_image(loose))
    mapping = _syn(still, loose, affine) if method == "deformable" else None
    return Transform(affine, fixed.data.shape, fixed.affine, mapping)


@contextmanager
def itk_in_one_line(what: str) -> Iterator[None]:
    """ITK's errors, several lines with names of its source files, as a ValueError of one line that says what failed."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"{what} failed: {str(error).strip().splitlines()[-1].strip()}") from None


def bias_field(
    image: NDArray, mask: NDArray[np.bool_], shrink: Sequence[int], mm: Sequence[float] = (1.0, 1.0, 1.0)
) -> NDArray[np.float32]:
    """The smooth bias field that N4 (Tustison et al., IEEE TMI 2010) finds inside `mask`: image / field is corrected.

    image, mask: (I, J, K). shrink: of the voxels along each axis one of so many is looked at. 3 × 50 iterations. ValueError
    where N4 would leave the image as it is without a word, because most masked voxels are not above 0, or where it fails.
    """
    inside = image[mask]
    if inside.size == 0 or np.median(inside) <= 0:
        found = f"they go from {inside.min():g} to {inside.max():g}" if inside.size else "there are none"
        raise ValueError(f"N4 needs intensities above 0 in the brain or head, {found}; add the offset that is missing")
    positive = np.maximum(image, 0).astype(np.float32)
    scan, within = (sitk.GetImageFromArray(np.ascontiguousarray(data)) for data in (positive, mask.astype(np.uint8)))
    for picture in (scan, within):
        picture.SetSpacing([float(size) for size in mm[::-1]])  # SimpleITK counts axes the other way round
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([N4_ITERATIONS] * 3)
    with itk_in_one_line("N4"):
        corrector.Execute(*(sitk.Shrink(picture, list(shrink[::-1])) for picture in (scan, within)))
    field: NDArray[np.float32] = np.exp(sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(scan)))
    return field


@contextmanager
def _one_thread() -> Iterator[None]:
    """SimpleITK on one thread: the order of its sums, and so the last digits, would depend on chance."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """2 |A ∩ B| / (|A| + |B|); 1 for two empty masks."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def _head(data: NDArray) -> NDArray[np.bool_]:
    return data > 0.01 * np.percentile(data, 99.5)


def lps_to_ras(matrix: NDArray) -> NDArray[np.float64]:
    """A (4, 4) transform of LPS points as one of RAS points; its own inverse."""
    return LPS @ matrix @ LPS


def as_matrix(transform: sitk.Transform) -> NDArray[np.float64]:
    """(4, 4) LPS matrix of a SimpleITK transform that is affine."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(point))) - origin for point in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = np.stack(columns, 1), origin
    return matrix


def itk_image(scan: Volume) -> sitk.Image:
    """A RAS volume as SimpleITK's image, in LPS."""
    size = spacing(scan.affine)
    directions = (LPS @ scan.affine)[:3, :3] / size
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3:
        raise ValueError("the scan's axes are not at right angles to each other; resample it first")
    if not scan.data.any():
        raise ValueError("an empty scan cannot be registered")
    image = sitk.GetImageFromArray(np.ascontiguousarray(scan.data.astype(np.float32).transpose(2, 1, 0)))
    image.SetSpacing([float(mm) for mm in size])
    image.SetOrigin([float(mm) for mm in (LPS @ scan.affine)[:3, 3]])
    image.SetDirection(directions.ravel().tolist())
    return image


def _affine(fixed: sitk.Image, moving: sitk.Image) -> NDArray[np.float64]:
    """RAS matrix, fixed -> moving points: centres of mass, six parameters, then twelve."""
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    # Moments also turn the head onto its axes, which can go wrong by 180 degrees; only their shift is used.
    rigid = sitk.Euler3DTransform(sitk.Euler3DTransform(start))
    rigid.SetRotation(0, 0, 0)
    found = _optimise(fixed, moving, rigid)
    affine = sitk.AffineTransform(3)
    matrix = as_matrix(found)
    center = np.array(rigid.GetCenter())
    affine.SetCenter(center.tolist())
    affine.SetMatrix(matrix[:3, :3].ravel().tolist())
    affine.SetTranslation((matrix[:3, 3] + matrix[:3, :3] @ center - center).tolist())
    return lps_to_ras(as_matrix(_optimise(fixed, moving, affine)))


def _optimise(fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform) -> sitk.Transform:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    voxels = [np.prod(fixed.GetSize()) / shrink**3 for shrink in SHRINK]
    shares = [float(min(1, max(SAMPLED, ENOUGH / n))) for n in voxels]
    method.SetMetricSamplingPercentagePerLevel(shares, seed=1)  # without a seed the clock jitters the regular sample
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-3, numberOfIterations=100, relaxationFactor=0.5
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(SHRINK)
    method.SetSmoothingSigmasPerLevel([2, 1])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(fixed, moving)


def _syn(fixed: Volume, moving: Volume, affine: NDArray) -> Any:
    """dipy's symmetric diffeomorphic registration by local cross-correlation, started at the affine."""
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration  # slow to import
    from dipy.align.metrics import CCMetric

    smallest = min(*fixed.data.shape, *moving.data.shape)
    # Each level halves the scans, and the metric looks 4 voxels around: few slices allow fewer levels.
    levels = max(1, sum(smallest // 2**level >= SYN_SMALLEST for level in range(len(SYN_ITERATIONS))))
    search = SymmetricDiffeomorphicRegistration(CCMetric(3), level_iters=SYN_ITERATIONS[-levels:])
    search.verbosity = 0
    still, loose = (scan.data.astype(np.float64) / max(float(scan.data.max()), 1e-9) for scan in (fixed, moving))
    return search.optimize(
        still, loose, static_grid2world=fixed.affine, moving_grid2world=moving.affine, prealign=affine
    )
