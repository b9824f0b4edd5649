"""Brain tissue on T1w without trained weights: intensities where they decide, anatomy where they mislead.

1. N4 within the brain; the MNI152 template laid over it (SimpleITK affine, dipy SyN, at 2 mm).
2. Cerebrospinal fluid is as dark as the darkest tenth of where the template has lateral ventricles: brains that were
   stripped tightly have too little of it for a mixture to find. Grey and white matter are two Gaussians of a mixture with
   fluid, and with partial volume of fluid and grey matter at their mean, whose weights come from the template's maps.
3. Between these means lie two limits. Manual protocols draw the cortex up to the pia, so that more than a third of the way
   from fluid to grey matter is grey; half of the way from grey to white matter is white.
4. Structures that look like another tissue (thalamus and pallidum: grey matter nearly as bright as white matter; brain stem
   and cerebellar white matter: darker than the cerebrum's) have a place and a brightness of their own: `structures.toml`.
5. Where the template has no grey matter near, what looks like it is white matter (lesions) or the rim of a ventricle; so
   are islands that white matter surrounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit, logsumexp

from dataloaders.io import geometry
from dataloaders.io.files import read_toml
from dataloaders.io.nifti import Volume
from dataloaders.io.schema import decode
from dataloaders.prepare.tissue import TissueError, refuse_collapse

CSF, GREY, WHITE = 1, 2, 3
VENTRICLES = "lateral ventricle"  # of structures.toml
GRID_MM = 2  # of registration and template
FWHM_MM = 3.5  # of the template's tissue maps, since gyri do not match
NEAR_MM = 7.0  # FWHM of the map that says whether grey matter is near
FLUID_LIMIT, WHITE_LIMIT = 0.35, 0.5  # of the way from fluid to grey matter, and from grey to white matter
FLOOR = 0.02  # of every tissue's share, everywhere
FLUID_PERCENTILE = 10
NO_GREY, NO_CORTEX = (0.06, 0.26), 0.35  # of grey matter around: where lesions begin and end; islands end
STRUCTURE_SPREAD = 1.5  # of a structure's intensities, relative to those of its core
ITERATIONS, SAMPLE = 30, 200_000


@dataclass(frozen=True)
class Structure:
    """Share 0..1 of a structure, by place in MNI152 space: a logistic function of a Gaussian mixture's log density.

    gaussians: rows of weight, x, y, z of the mean (mm, the right half; the left one is its mirror image), and xx, yy, zz,
    xy, xz, yz of the covariance (mm²). The logistic function is 1/2 at log density `level`.
    """

    name: str
    tissue: int
    steepness: float
    level: float
    gaussians: tuple[tuple[float, ...], ...]

    def share(self, points: NDArray) -> NDArray[np.float32]:
        """At points (n, 3), mm."""
        folded = np.column_stack([np.abs(points[:, 0]), points[:, 1:]])
        parts = []
        for weight, x, y, z, xx, yy, zz, xy, xz, yz in self.gaussians:
            root = np.linalg.cholesky([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
            distance = (np.linalg.solve(root, (folded - (x, y, z)).T) ** 2).sum(0)
            parts.append(np.log(weight) - 1.5 * np.log(2 * np.pi) - np.log(np.diag(root)).sum() - distance / 2)
        return expit(self.steepness * (logsumexp(parts, axis=0) - self.level)).astype(np.float32)


@dataclass(frozen=True)
class Anatomy:
    """What the template says of a brain's voxels, each (n,) with values 0..1.

    grey, white: shares of the tissues. near: of grey matter in a wider neighbourhood. structures: shares of each.
    """

    grey: NDArray[np.float32]
    white: NDArray[np.float32]
    near: NDArray[np.float32]
    structures: dict[str, NDArray[np.float32]]

    def share_of(self, *tissues: int) -> NDArray[np.float32]:
        """Of all structures of these tissues together, (n,)."""
        return np.sum([self.structures[s.name] for s in structures() if s.tissue in tissues], axis=0)


@dataclass(frozen=True)
class Levels:
    """Mean, spread and weight (4,) of fluid, fluid with grey matter, grey and white matter."""

    means: NDArray[np.float64]
    spreads: NDArray[np.float64]
    weights: NDArray[np.float64]

    def between(self, a: int, b: int, share: float) -> float:
        """The intensity at `share` of the way from class a to b."""
        return float(self.means[a] + share * (self.means[b] - self.means[a]))

    def density(self, values: NDArray) -> NDArray[np.float64]:
        """Of intensities (n,) in the mixture."""
        parts = zip(self.weights, self.means, self.spreads, strict=True)
        return np.sum([weight * gaussian(values, mean, spread) for weight, mean, spread in parts], axis=0)


def gaussian(values: NDArray, mean: float, spread: float) -> NDArray[np.float64]:
    """The normal density, but for the factor that all have in common."""
    return np.exp(-(((values - mean) / spread) ** 2) / 2) / spread


@cache
def structures() -> tuple[Structure, ...]:
    """Those of structures.toml."""
    path = Path(__file__).with_name("structures.toml")
    return tuple(decode(Structure, row, str(path)) for row in read_toml(path, "table of structures")["structure"])


def atlas_tissue(
    t1: NDArray, affine: NDArray, mask: NDArray[np.bool_], lesion: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """CSF 1, grey matter 2, white matter 3, background 0, of a T1w scan (I, J, K); lesion voxels are white matter.

    TissueError for an empty mask, for intensities that do not rise from fluid to white matter, and where a tissue is
    missing.
    """
    from dataloaders.lesions.preparing import n4_field  # SimpleITK is slow to import

    if len(np.unique(t1[mask])) < len(Levels.__annotations__):
        raise TissueError("the brain mask is empty" if not mask.any() else "too few intensities to tell tissues apart")
    box = geometry.bounding_box(mask, 2)  # what is cut off is not registered, corrected or searched
    inside = mask[box]
    corner = affine @ np.array([*(s.start for s in box), 1.0])
    grid = np.column_stack([affine[:, :3], corner])
    positive = np.where(inside, np.maximum(t1[box], 0), 0).astype(np.float32)
    try:
        corrected = positive / n4_field(positive, inside)
        anatomy = locate(corrected, grid, inside)
    except ValueError as error:
        raise TissueError(str(error)) from None
    values = np.clip(corrected[inside], *np.percentile(corrected[inside], [0.1, 99.9])).astype(np.float64)
    labels = np.zeros(inside.shape, np.uint8)
    labels[inside] = by_intensity_and_place(values, anatomy)
    labels = without_islands(labels, inside, anatomy)
    if lesion is not None:
        labels[lesion[box] & inside] = WHITE
    refuse_collapse(labels, inside)
    out = np.zeros(t1.shape, np.uint8)
    out[box] = labels
    return out


@cache
def template() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """MNI152 T1w (I, J, K) at 2 mm, and its affine."""
    from nilearn import datasets  # slow to import

    image = datasets.load_mni152_template(resolution=GRID_MM)
    return image.get_fdata().astype(np.float32), np.asarray(image.affine, np.float64)


@cache
def template_maps() -> NDArray[np.float32]:
    """On the template's grid: grey matter, white matter, grey matter widely blurred, and the share of each structure."""
    from nilearn import datasets

    image, affine = template()
    grey, white = (
        np.clip(load(resolution=GRID_MM).get_fdata(), 0, 1).astype(np.float32)
        for load in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    blurred = [
        ndimage.gaussian_filter(share, fwhm / 2.355 / GRID_MM)
        for share, fwhm in ((grey, FWHM_MM), (white, FWHM_MM), (grey, NEAR_MM))
    ]
    points = np.indices(image.shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    return np.stack(blurred + [structure.share(points).reshape(image.shape) for structure in structures()])


def locate(brain: NDArray, affine: NDArray, inside: NDArray[np.bool_]) -> Anatomy:
    """Lay the template over a stripped brain. ValueError where registration fails."""
    from dataloaders.registration import register

    image, own = template()
    shape, coarse = geometry.regrid(brain.shape, affine, (GRID_MM,) * 3)
    small = Volume(geometry.resample(brain, affine, shape, coarse), coarse)
    transform = register(small, Volume(image, own))
    moved = [geometry.resample(transform.carry(m, own), coarse, brain.shape, affine)[inside] for m in template_maps()]
    names = [structure.name for structure in structures()]
    return Anatomy(moved[0], moved[1], moved[2], dict(zip(names, moved[3:], strict=True)))


def tissue_levels(values: NDArray[np.float64], anatomy: Anatomy) -> Levels:
    """Step 2 by expectation maximisation, for intensities (n,). TissueError where means do not rise, as on T1w."""
    within = values[anatomy.structures[VENTRICLES] > 0.5]
    fluid = float(np.percentile(within if len(within) else values, FLUID_PERCENTILE if len(within) else 1))
    free = np.flatnonzero(anatomy.share_of(GREY, WHITE) < 0.2)
    chosen = free[:: max(1, len(free) // SAMPLE)]
    values, grey, white = values[chosen], anatomy.grey[chosen], anatomy.white[chosen]
    rest = np.clip(1 - grey - white, 0, 1)
    shares = np.stack([rest, (rest + grey) / 2, grey, white]).astype(np.float64) + FLOOR
    middle, high = np.percentile(values, [50, 90])
    levels = Levels(np.array([fluid, (fluid + middle) / 2, middle, high]), np.full(4, (high - fluid) / 6), np.ones(4))
    for _ in range(ITERATIONS):
        levels = _improved(levels, values, shares)
    if not (np.isfinite(levels.means).all() and (np.diff(levels.means) > 0).all()):
        raise TissueError(
            "intensities do not rise from fluid to grey and white matter; is this a T1w image of a brain?"
        )
    return levels


def _improved(levels: Levels, values: NDArray[np.float64], shares: NDArray[np.float64]) -> Levels:
    """One step of EM: fluid stays where it is, partial volume in the middle between fluid and grey matter."""
    prior = levels.weights[:, None] * shares
    prior /= prior.sum(0)
    joint = prior * np.stack([gaussian(values, m, s) for m, s in zip(levels.means, levels.spreads, strict=True)])
    joint /= joint.sum(0) + 1e-300
    total = joint.sum(1) + 1e-9
    found, precision, fluid = joint @ values / total, total / levels.spreads**2, levels.means[0]
    # Weighted least squares of grey matter's mean from its own voxels and from half of those of partial volume.
    pulled = precision[2] * found[2] + precision[1] * (found[1] - fluid / 2) / 2
    grey = pulled / (precision[2] + precision[1] / 4)
    means = np.array([fluid, (fluid + grey) / 2, grey, found[3]])
    spreads = np.sqrt((joint * (values - means[:, None]) ** 2).sum(1) / total) + 1e-6 * np.ptp(values)
    spreads[0] = min(spreads[0], max(abs(grey - fluid) / 4, spreads[0] / 10))
    expected = (shares / (levels.weights[:, None] * shares).sum(0)).sum(1)
    return Levels(means, spreads, total / expected / (total / expected).sum())


def by_intensity_and_place(values: NDArray[np.float64], anatomy: Anatomy) -> NDArray[np.uint8]:
    """Steps 2 to 4: labels (n,)."""
    levels = tissue_levels(values, anatomy)
    labels = (CSF + (values > levels.between(0, 2, FLUID_LIMIT))).astype(np.uint8)
    labels[values > levels.between(2, 3, WHITE_LIMIT)] = WHITE
    solid = values > levels.between(0, 2, 0.5)
    known = [s for s in structures() if s.tissue != CSF]
    best = np.clip(1 - anatomy.share_of(GREY, WHITE), FLOOR, 1) * levels.density(values)
    for structure in known:
        share = anatomy.structures[structure.name]
        core = values[(share > 0.5) & solid]
        if not len(core):
            continue
        middle = float(np.median(core))
        spread = max(1.4826 * float(np.median(np.abs(core - middle))), levels.spreads[3] / 2)
        weight = share * gaussian(values, middle, STRUCTURE_SPREAD * spread)
        labels[weight > best] = structure.tissue
        best = np.maximum(best, weight)
    return labels


def without_islands(labels: NDArray[np.uint8], inside: NDArray[np.bool_], anatomy: Anatomy) -> NDArray[np.uint8]:
    """Step 5: grey matter far from any, fluid far from grey matter and ventricles, and islands in white matter."""

    def volume(values: NDArray) -> NDArray[np.float32]:
        out = np.zeros(inside.shape, np.float32)
        out[inside] = values
        return out

    near, ventricle = volume(anatomy.near), volume(anatomy.structures[VENTRICLES])
    nuclei = volume(anatomy.share_of(GREY)) > 0.1
    out = labels.copy()
    doubtful = (labels == GREY) | ((labels == CSF) & (ndimage.maximum_filter(ventricle, 5) < 0.1))
    deep = inside & (near < NO_GREY[1]) & ~nuclei & doubtful
    out[ndimage.binary_propagation(deep & (near < NO_GREY[0]), mask=deep)] = (
        WHITE  # what begins deep, and not the cortex
    )
    walls = (out == WHITE) | nuclei | ((out == CSF) & (ventricle > 0.05))
    out[surrounded(walls) & inside & (near < NO_CORTEX) & ~nuclei & (out == GREY)] = WHITE
    return out


def surrounded(walls: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels that are no wall but that walls enclose in a plane along any of the axes."""
    out = np.zeros_like(walls)
    for axis in range(3):
        planes, found = np.moveaxis(walls, axis, 0), np.moveaxis(out, axis, 0)
        for i in range(len(planes)):
            found[i] |= ndimage.binary_fill_holes(planes[i]) & ~planes[i]
    return out
