from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from dataloaders.io.geometry import (
    off_grid,
    plane,
    plane_shape,
    regrid,
    resample,
    spacing,
    stitch,
    to_ras,
    window_plane,
)
from dataloaders.io.manifest import Geometry

ORIENTATIONS = ("RAS", "LAS", "LPS", "LIA", "PSR")


def volume_in(codes: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(RAS data, the same reoriented, its affine)."""
    data = np.random.default_rng(0).normal(size=(12, 14, 10)).astype(np.float32)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = [-5, 7, 9]
    to = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    image = nib.Nifti1Image(data, affine).as_reoriented(to)
    return data, np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_slices_go_back_to_the_source_bit_for_bit(codes: str, axis: str) -> None:
    ras, source, affine = volume_in(codes)
    grid, grid_affine = to_ras(source, affine)
    assert np.array_equal(grid, ras)
    count, rows, columns = plane_shape(grid.shape, axis)
    crop = ((rows - 32) // 2, (columns - 32) // 2)
    slices = {i: window_plane(plane(grid, axis, i), crop, (32, 32), 0) for i in range(count)}
    geometry = Geometry(affine, source.shape, grid_affine, grid.shape, crop)
    back, back_affine = stitch(geometry, axis, slices, fill=0)
    assert np.array_equal(back, source)
    assert np.array_equal(back_affine, affine)


def test_display_is_radiological() -> None:
    """Axial: front up, the patient's right on the left. Coronal and sagittal: head up; sagittal: front on the left."""
    marks = np.zeros((4, 5, 6))
    marks[3, 4, 5] = 1  # most right, front, head
    for axis, index in (("axial", 5), ("coronal", 4), ("sagittal", 3)):
        assert plane(marks, axis, index)[0, 0] == 1


def test_regrid_keeps_centre_and_field_of_view() -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    shape, new = regrid((20, 30, 10), affine, (2.0, 1.5, 3.0))
    assert shape == (10, 20, 10)
    assert spacing(new) == pytest.approx([2.0, 1.5, 3.0])
    centre = new @ [*((np.array(shape) - 1) / 2), 1]
    assert centre[:3] == pytest.approx((affine @ [9.5, 14.5, 4.5, 1])[:3])


@pytest.mark.parametrize("labels", [False, True])
def test_rounding_at_the_border_costs_no_plane_of_voxels(labels: bool) -> None:
    """A turned affine gives coordinates such as -1e-16, which lie in the first voxel and not outside of the scan."""
    ones = np.ones((9, 8, 7), np.float32)
    shift = np.eye(4)
    shift[:3, 3] = -1e-9
    shape, affine = regrid(ones.shape, np.eye(4), (1.0, 1.0, 0.5))
    assert resample(ones, np.eye(4), shape, affine @ shift, labels=labels)[:, :, 1:-1].min() == pytest.approx(1)


def test_labels_are_never_blended() -> None:
    """The predecessor resized {0, 30} to {0, 12, 19, 30}."""
    label = np.zeros((12, 12, 12), np.int32)
    label[4:9, 4:9, 4:9] = 30
    shape, affine = regrid(label.shape, np.eye(4), (1.7, 1.7, 1.7))
    assert set(np.unique(resample(label, np.eye(4), shape, affine, labels=True))) == {0, 30}


def test_the_ends_of_a_resampled_volume_do_not_fade() -> None:
    """A body that reaches the end of the scan keeps its intensity there: the grid's outermost planes go on."""
    shape, affine = regrid((6, 6, 9), np.eye(4), (1.0, 1.0, 3.0))
    geometry = Geometry(np.eye(4), (6, 6, 9), affine, shape, (0, 0))
    back, _ = stitch(geometry, "axial", dict.fromkeys(range(3), np.full((6, 6), 40.0, np.float32)), fill=-1024)
    assert np.allclose(back, 40)


def test_grids_are_compared_in_voxels() -> None:
    rng = np.random.default_rng(0)
    shape, affine = (256, 256, 200), np.diag([-1.0, 1, 0.5, 1])
    noisy = affine.copy()
    noisy[:3, :3] += rng.uniform(-5e-6, 5e-6, (3, 3))
    assert off_grid(shape, noisy, shape, affine, "b") == ""
    noisy[0, 3] += 0.1
    assert off_grid(shape, noisy, shape, affine, "b") == "the affine differs from that of b by up to 0.1 voxels"
    assert off_grid((256, 256, 1), affine, shape, affine, "b") == "shape (256, 256, 1), b has (256, 256, 200)"
    # a turn that moves only the far corners
    turned = affine @ np.array([[1, -0.01, 0, 0], [0.01, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert "by up to 2.5" in off_grid(shape, turned, shape, affine, "b")


def test_missing_slices_and_cropped_margins_are_filled() -> None:
    grid = np.ones((8, 8, 4), np.float32)
    geometry = Geometry(np.eye(4), grid.shape, np.eye(4), grid.shape, (2, 2))
    back, _ = stitch(geometry, "axial", {1: np.full((4, 4), 5.0, np.float32)}, fill=-7)
    assert (back[:, :, [0, 2, 3]] == -7).all()
    assert (back[2:6, 2:6, 1] == 5).all()
    assert (back == 5).sum() == 16


def test_resampling_follows_world_coordinates() -> None:
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in (20, 22, 18)), indexing="ij")
    ramp = x + 2 * y - z
    shape, affine = regrid(ramp.shape, np.eye(4), (2, 2, 2))
    coarse = resample(ramp, np.eye(4), shape, affine)
    i, j, k = 4, 5, 3
    world = affine @ [i, j, k, 1]
    assert coarse[i, j, k] == pytest.approx(world[0] + 2 * world[1] - world[2], abs=1e-3)
