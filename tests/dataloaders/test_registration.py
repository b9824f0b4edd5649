"""Registration: LPS and RAS, recovered transforms, carried masks."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from dataloaders.io.nifti import Volume
from dataloaders.registration import (
    _optimise,
    as_matrix,
    dice,
    itk_image,
    itk_in_one_line,
    lps_to_ras,
    register,
    same_space,
)
from tests.toy_lesions import LAS, patient


def lopsided(seed: int = 0) -> Volume:
    """A head without symmetry, on a LAS grid."""
    p = patient(seed, lesions=0, shape=(40, 64, 36))
    image = p.t1.copy()
    image[28:34, 34:40, 15:22] *= 0.4
    image[10:16, 12:16, 8:14] *= 1.4
    return Volume(image, LAS)


def moved(scan: Volume, matrix: np.ndarray, order: int = 1) -> Volume:
    """The scan as it looks after its points x went to matrix @ x (mm, RAS), on its own grid."""
    pull = np.linalg.inv(scan.affine) @ np.linalg.inv(matrix) @ scan.affine
    return Volume(ndimage.affine_transform(scan.data, pull, order=order), scan.affine)


def turn(degrees: float, shift: tuple[float, float, float], scale: float = 1.0) -> np.ndarray:
    a = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] = scale * np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    matrix[:3, 3] = shift
    return matrix


def test_lps_and_ras_of_a_transform() -> None:
    """A_ras = D A_lps D: turning about the vertical axis is the same in both, shifts to the side and front change sign."""
    transform = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, 0.2, 0.3, (4.0, 5.0, 6.0))
    lps = as_matrix(transform)
    for point in np.random.default_rng(0).normal(size=(5, 3)) * 50:
        assert lps[:3, :3] @ point + lps[:3, 3] == pytest.approx(transform.TransformPoint(point.tolist()))
        ras = lps_to_ras(lps) @ [-point[0], -point[1], point[2], 1]
        expected = transform.TransformPoint(point.tolist())
        assert ras[:3] == pytest.approx([-expected[0], -expected[1], expected[2]])
    assert np.allclose(lps_to_ras(lps_to_ras(lps)), lps)


def test_a_known_transform_is_found() -> None:
    """9 degrees, 4 % and 4 mm, the moving scan on another grid: corners end within 1.5 mm."""
    fixed = lopsided()
    truth = turn(9, (3.0, -2.0, 2.0), 1.04)  # fixed -> moving points
    loose = moved(fixed, truth)
    moving = Volume(
        loose.data[::-1, :, ::-1],
        loose.affine @ np.array([[-1, 0, 0, 39], [0, 1, 0, 0], [0, 0, -1, 35], [0, 0, 0, 1.0]]),
    )
    found = register(fixed, moving, "affine")
    corners = np.array([[x, y, z, 1] for x in (-15, 15) for y in (-18, 18) for z in (-9, 9)]).T
    error = np.linalg.norm(((found.affine - truth) @ corners)[:3], axis=0)
    assert error.max() < 1.5, error
    back = found.carry(moving.data, moving.affine)
    inside = fixed.data > 0
    assert np.corrcoef(back[inside], fixed.data[inside])[0, 1] > 0.93
    assert np.array_equal(register(fixed, moving, "affine").affine, found.affine)  # reproducible


@pytest.mark.slow
def test_deformable_registration_carries_masks_onto_las_grids() -> None:
    fixed = lopsided()
    moving = moved(fixed, turn(5, (2.0, 1.0, 0.0)))
    bent = Volume(ndimage.map_coordinates(moving.data, _bend(moving.data.shape), order=1), moving.affine)
    mark = np.zeros(fixed.data.shape, np.float32)
    mark[18:26, 20:28, 12:18] = 1
    moving_mark = ndimage.map_coordinates(
        moved(Volume(mark, LAS), turn(5, (2.0, 1.0, 0.0))).data, _bend(mark.shape), order=1
    )
    scores = {}
    for method in ("affine", "deformable"):
        transform = register(fixed, bent, method)
        scores[method] = dice(transform.carry(moving_mark, bent.affine) > 0.5, mark > 0.5)
    assert scores["deformable"] > 0.75
    assert scores["deformable"] > scores["affine"] - 0.03


def _bend(shape: tuple[int, ...]) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij"))
    grid[1] += 2.0 * np.sin(grid[0] / shape[0] * np.pi)
    return grid


def test_nothing_to_register_in_one_space() -> None:
    a, b = lopsided(0), lopsided(1)
    assert same_space(a, b)
    assert not same_space(a, Volume(b.data, b.affine + np.eye(4) * 0.1))
    assert not same_space(a, Volume(np.roll(b.data, 14, 1), b.affine))
    transform = register(a, b, "none")
    assert np.array_equal(transform.carry(b.data, b.affine), b.data)
    assert np.array_equal(transform.affine, np.eye(4))


def test_what_itk_refuses_is_one_line() -> None:
    """Two heads a metre apart, and nothing that would bring them together first."""
    head = lopsided()
    away = Volume(head.data, head.affine.copy())
    away.affine[0, 3] -= 1000
    still, moving = itk_image(head), itk_image(away)
    with pytest.raises(RuntimeError, match="\n"):  # as it comes: a line of C++, then the reason
        _optimise(still, moving, sitk.Euler3DTransform())
    with pytest.raises(ValueError, match=r"^registration failed: \S.*$") as caught, itk_in_one_line("registration"):
        _optimise(still, moving, sitk.Euler3DTransform())
    assert "\n" not in str(caught.value)
