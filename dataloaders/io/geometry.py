"""Grids: RAS orientation, resampling, display planes, and the way back to the source scan.

A prepared slice looks as on a radiology workstation. From a RAS volume v[x, y, z] (x to the patient's right, y to the
front, z to the head): axial rows run front to back and columns from the patient's right to left; coronal and sagittal
rows run head to foot; sagittal columns front to back.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from dataloaders.io.manifest import Geometry
from dataloaders.io.spec import Axis

GRID_TOLERANCE = 0.02  # voxels that any corner of two grids may lie apart: header noise, far below what can be seen

# For each slicing axis: the array axis that is sliced, then those shown as rows and columns; both are shown reversed
# (from high to low coordinate).
PLANES: dict[Axis, tuple[int, int, int]] = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
ACROSS = {axis: across for axis, (across, *_) in PLANES.items()}


def to_ras(data: NDArray, affine: NDArray) -> tuple[NDArray, NDArray[np.float64]]:
    """Permute and flip the axes to RAS order (no resampling). Returns data and its new affine."""
    orientation = nib.orientations.io_orientation(affine)
    moved = nib.orientations.apply_orientation(data, orientation)
    return moved, affine @ nib.orientations.inv_ornt_aff(orientation, data.shape)


def off_grid(shape: Sequence[int], affine: NDArray, other: Sequence[int], target: NDArray, name: object) -> str:
    """Why the grid (`shape`, `affine`) is not the one (`other`, `target`) of `name`, for people; '' where it is.

    Two grids are one where shapes are equal and no corner lies more than GRID_TOLERANCE voxels from the other's.
    """
    if tuple(shape) != tuple(other):
        return f"shape {tuple(shape)}, {name} has {tuple(other)}"
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape), [1]))).T
    apart = float(np.abs(np.linalg.inv(target) @ affine @ corners - corners)[:3].max())
    return "" if apart <= GRID_TOLERANCE else f"the affine differs from that of {name} by up to {apart:.3g} voxels"


def same_axes(affine: NDArray, target: NDArray) -> bool:
    """Whether the voxels of two grids are stored in one order: first axis to the left, second to the front, …"""
    return nib.aff2axcodes(affine) == nib.aff2axcodes(target)


def onto_axes(data: NDArray, affine: NDArray, target: NDArray) -> tuple[NDArray, NDArray[np.float64]]:
    """Data and affine with the axes in the order of the grid `target`: moved exactly, nothing is resampled."""
    turn = nib.orientations.io_orientation(np.linalg.inv(target) @ affine)
    return nib.orientations.apply_orientation(data, turn), affine @ nib.orientations.inv_ornt_aff(turn, data.shape)


def onto_grid(data: NDArray, affine: NDArray, shape: Sequence[int], target: NDArray, name: object) -> NDArray:
    """Data with the axes in the order of the grid (`shape`, `target`) of `name`; ValueError saying why it is not on it."""
    moved, own = onto_axes(data, affine, target)
    if fault := off_grid(moved.shape, own, shape, target, name):
        raise ValueError(fault)
    return moved


def _moved(data: NDArray, affine: NDArray, shape: Sequence[int], target: NDArray) -> NDArray | None:
    """Data on the grid (`shape`, `target`) where that has other axes and nothing else, so that no voxel is interpolated."""
    moved, own = onto_axes(data, affine, target)
    same = moved.shape == tuple(shape) and np.allclose(np.linalg.inv(own) @ target, np.eye(4), atol=1e-4)
    return np.ascontiguousarray(moved) if same else None


def spacing(affine: NDArray) -> NDArray[np.float64]:
    """Voxel size in mm along each array axis, (3,)."""
    return nib.affines.voxel_sizes(affine)


def voxel_volume(affine: NDArray) -> float:
    """Of a voxel, in mm³, also where axes are sheared."""
    return abs(float(np.linalg.det(affine[:3, :3])))


def bounding_box(mask: NDArray[np.bool_], margin: ArrayLike = 0) -> tuple[slice, ...]:
    """The box of a mask with a margin in voxels, for all axes or each, within the volume; ValueError for an empty mask."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        raise ValueError("the brain mask is empty")
    margins = np.broadcast_to(margin, mask.ndim).astype(int).tolist()
    return tuple(
        slice(max(0, s.start - m), min(n, s.stop + m)) for s, m, n in zip(found[0], margins, mask.shape, strict=True)
    )


def regrid(shape: Sequence[int], affine: NDArray, new_spacing: Sequence[float]) -> tuple[tuple[int, ...], NDArray]:
    """Shape and affine of the grid with `new_spacing` (mm) that covers the same field of view, sharing its centre."""
    old = spacing(affine)
    target = np.asarray(new_spacing, float)
    new_shape = np.maximum(1, np.rint(np.asarray(shape) * old / target)).astype(int)
    scale = np.diag([*(target / old), 1.0])
    # The centres of both grids coincide: centre_old = (shape - 1) / 2 voxels.
    scale[:3, 3] = (np.asarray(shape) - 1) / 2 - (target / old) * (new_shape - 1) / 2
    return tuple(int(n) for n in new_shape), affine @ scale


def resample(
    data: NDArray,
    affine: NDArray,
    shape: Sequence[int],
    target: NDArray,
    labels: bool = False,
    fill: float = 0.0,
    smooth: bool = True,
    mode: str = "grid-constant",
) -> NDArray:
    """Bring `data` onto the grid (`shape`, `target` affine) through world coordinates.

    Labels by nearest neighbour, images linearly; where the new voxels are larger the image is smoothed first with a
    Gaussian of sigma (f - 1) / 2 old voxels (f: ratio of spacings along the axis), which keeps aliasing down. smooth: False
    for images on the way back to the grid that they were resampled from. mode: of `ndimage.affine_transform`, outside of the
    source; by default `fill`, towards which the outermost half voxels fade; rounding at the border costs no plane of
    voxels. Equal grids are returned as they are, and those of other axes alone are moved exactly.
    """
    matrix = np.linalg.inv(affine) @ target  # target voxel -> source voxel
    if tuple(shape) == data.shape and np.allclose(matrix, np.eye(4), atol=1e-4):
        return data
    if (moved := _moved(data, affine, shape, target)) is not None:
        return moved
    if smooth and not labels:
        step = np.abs(matrix[:3, :3]).max(axis=1)  # source voxels per target voxel along each source axis
        data = ndimage.gaussian_filter(data.astype(np.float32), np.maximum(0.0, (step - 1) / 2))
    order = 0 if labels else 1
    return ndimage.affine_transform(data, matrix, output_shape=tuple(shape), order=order, mode=mode, cval=fill)


def plane(volume: NDArray, axis: Axis, index: int) -> NDArray:
    """Slice `index` of a RAS volume as displayed, (rows, columns)."""
    across, rows, columns = PLANES[axis]
    moved = volume.transpose(across, rows, columns)[index]
    return moved[::-1, ::-1]


def plane_shape(shape: Sequence[int], axis: Axis) -> tuple[int, int, int]:
    """(number of slices, rows, columns) of a RAS grid."""
    across, rows, columns = PLANES[axis]
    return shape[across], shape[rows], shape[columns]


def plane_spacing(affine: NDArray, axis: Axis) -> tuple[float, float, float]:
    """(between slices, between rows, between columns) in mm of a RAS grid.

    Between slices is how far their planes are apart, which in a sheared grid (a tilted gantry) is less than the step from
    one voxel to the next.
    """
    across, rows, columns = PLANES[axis]
    mm = spacing(affine)
    normal = np.cross(affine[:3, rows], affine[:3, columns])
    between = abs(affine[:3, across] @ normal) / np.linalg.norm(normal)
    return round(float(between), 6), float(mm[rows]), float(mm[columns])


def window_plane(image: NDArray, crop: tuple[int, int], size: tuple[int, int], fill: float) -> NDArray:
    """The part of a displayed plane that starts at `crop` and has `size`, padded with `fill` where it leaves the plane."""
    out = np.full(size, fill, image.dtype)
    source, target = _overlap(image.shape, crop, size)
    out[target] = image[source]
    return out


def put_plane(volume: NDArray, axis: Axis, index: int, image: NDArray, crop: tuple[int, int]) -> None:
    """Write what `window_plane` cut back into its slice of a RAS volume."""
    full = plane(volume, axis, index)  # a view: assignments reach the volume
    source, target = _overlap(full.shape, crop, image.shape)
    full[source] = image[target]


def _overlap(
    shape: Sequence[int], crop: tuple[int, int], size: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Index ranges of the common part: in the full plane, and in the window."""
    source, target = [], []
    for full, start, length in zip(shape, crop, size, strict=True):
        low, high = max(start, 0), max(min(start + length, full), max(start, 0))
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    return (source[0], source[1]), (target[0], target[1])


def field_of_view(geometry: Geometry | None, axis: Axis | None, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a prepared slice of `size` that show the scan's own plane, without the padding around it.

    The whole slice where nothing is known of a scan. ValueError where the slice lies outside of the scan.
    """
    if geometry is None or axis is None:
        return slice(0, size[0]), slice(0, size[1])
    plane_size = plane_shape(geometry.grid_shape, axis)[1:]
    _, view = _overlap(plane_size, geometry.crop, size)
    if any(part.stop <= part.start for part in view):
        raise ValueError(
            f"slices of {size} pixels from {geometry.crop} on lie outside of the scan's planes {plane_size}"
        )
    return view


def stack_slices(
    geometry: Geometry | None, axis: Axis, slices: Mapping[int, NDArray], mm: Sequence[float]
) -> tuple[NDArray, NDArray[np.float64]]:
    """Slices of one case as the volume of their window, in RAS axes, from the first index to the last, with its affine.

    slices: slice index -> (H, W) as displayed. Missing indices are 0. mm: voxel size along RAS axes where there is
    no geometry.
    """
    across, rows, columns = PLANES[axis]
    first = next(iter(slices.values()))
    start, count = min(slices), max(slices) - min(slices) + 1
    stack = np.zeros((count, *first.shape), first.dtype)
    for index, image in slices.items():
        stack[index - start] = image[::-1, ::-1]
    volume = np.ascontiguousarray(stack.transpose(np.argsort((across, rows, columns))))
    if geometry is None:
        return volume, np.diag([*mm, 1.0])
    shift = np.eye(4)
    shift[across, 3] = start
    shift[rows, 3] = geometry.grid_shape[rows] - geometry.crop[0] - first.shape[0]
    shift[columns, 3] = geometry.grid_shape[columns] - geometry.crop[1] - first.shape[1]
    return volume, np.array(geometry.grid_affine) @ shift


def stitch(
    geometry: Geometry, axis: Axis, slices: Mapping[int, NDArray], fill: float, labels: bool = False
) -> tuple[NDArray, NDArray[np.float64]]:
    """Put slices back into a volume on the source grid.

    slices: slice index -> (H, W) in physical units (or label ids). Voxels without a slice, or outside the slices'
    window, get `fill`. Where the prepared grid is the source grid in another orientation, voxels are moved exactly;
    where it was resampled, they are interpolated (linear, labels nearest). Returns (I, J, K) and its affine.
    """
    grid_affine, source_affine = np.array(geometry.grid_affine), np.array(geometry.source_affine)
    first = next(iter(slices.values()))
    grid = np.full(geometry.grid_shape, fill, first.dtype)
    for index, image in slices.items():
        put_plane(grid, axis, index, image, geometry.crop)
    # Both grids cover the same field of view, at whose ends constant padding would fade the outermost planes.
    shape = geometry.source_shape
    return resample(grid, grid_affine, shape, source_affine, labels, smooth=False, mode="nearest"), source_affine
