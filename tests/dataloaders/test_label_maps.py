"""Label maps from files, folders, lists and arrays; axes and affine there and back."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dataloaders.labelmaps.maps import LabelMaps, read_label_map_file
from tests.toy import oriented, save_nifti


def volume(seed: int = 0, shape: tuple[int, ...] = (9, 7, 5)) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 6, shape).astype(np.int16)


@pytest.mark.parametrize("codes", ["RAS", "LIA", "PSR", "LPS", "SAR"])
@pytest.mark.parametrize(
    ("start", "size", "factor"), [((0, 0, 0), None, 1), ((2, 1, 1), (4, 3, 2), 1), ((-2, 0, 1), (6, 4, 3), 2)]
)
def test_maps_are_in_ras_axes_and_windows_go_back_to_the_files(
    codes: str, start: tuple, size: tuple | None, factor: int, tmp_path: Path
) -> None:
    """Every voxel centre of the window has the world position that it has in the RAS map."""
    data, affine = volume(), oriented(codes, (9, 7, 5), (1.0, 2.0, 3.0))
    if codes == "LIA":  # oblique
        affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, -0.15, 0.1)) @ affine
    label_map = read_label_map_file(save_nifti(tmp_path / "map.nii.gz", data, affine))
    assert (label_map.name, label_map.values.dtype) == ("map", torch.int32)
    assert nib.aff2axcodes(label_map.affine) == ("R", "A", "S")
    assert label_map.spacing == pytest.approx(tuple(nib.affines.voxel_sizes(label_map.affine)))
    values = label_map.values.numpy()
    out = values.shape if size is None else size
    marks = np.arange(np.prod(out)).reshape(out)
    (found, two), back = label_map.to_source_axes([marks, np.stack([marks, -marks], -1)], start, (factor,) * 3)
    assert nib.aff2axcodes(back) == tuple(codes)
    assert np.array_equal(two[..., 1], -found)
    for voxel in np.ndindex(found.shape):
        mine = np.array(np.unravel_index(found[voxel], out))
        ras = np.array(start) + (mine + 0.5) * factor - 0.5
        assert np.allclose(back @ [*voxel, 1], label_map.affine @ [*ras, 1], atol=1e-5)
    if size is None:
        assert np.allclose(back, affine, atol=1e-5)
        assert np.array_equal(label_map.to_source_axes([values], start, (1, 1, 1))[0][0], data)


def test_sources(tmp_path: Path) -> None:
    first = save_nifti(tmp_path / "maps" / "b.nii.gz", volume(1))
    second = save_nifti(tmp_path / "maps" / "deep" / "a.nii", volume(2, (4, 5, 6)))
    nib.MGHImage(volume(3).astype(np.int32), np.eye(4)).to_filename(tmp_path / "maps" / "c.mgz")
    one = LabelMaps(first)
    assert (len(one), one.name(0)) == (1, "b")
    assert np.array_equal(LabelMaps(str(first))[0].values.numpy(), volume(1))
    folder = LabelMaps(tmp_path / "maps")
    assert [folder.name(i) for i in range(len(folder))] == ["b", "c", "a"]
    assert np.array_equal(folder[1].values.numpy(), volume(3))
    listing = tmp_path / "list.txt"
    listing.write_text(f"# two\n{second}\n\n{first}\n")
    assert [label_map.name for label_map in LabelMaps(listing)] == ["a", "b"]
    mixed = LabelMaps([second, volume(5), torch.from_numpy(volume(6)[0])])
    assert [mixed.name(i) for i in range(3)] == ["a", "map1", "map2"]
    assert [tuple(label_map.values.shape) for label_map in mixed] == [(4, 5, 6), (9, 7, 5), (7, 5)]
    assert np.array_equal(mixed[1].values.numpy(), volume(5))
    assert mixed[2].spacing == (1.0, 1.0)
    assert LabelMaps(volume(), array_spacing=(1.0, 2.0, 0.5))[0].spacing == (1.0, 2.0, 0.5)
    assert LabelMaps(volume(1).astype(np.float64))[0].values.dtype == torch.int32


def test_one_map_in_two_files_is_refused(tmp_path: Path) -> None:
    """x.nii beside x.nii.gz would be drawn twice as often; in two folders they are two maps."""
    save_nifti(tmp_path / "a.nii.gz", volume())
    nib.save(nib.load(tmp_path / "a.nii.gz"), tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"both a.nii and a.nii.gz; remove one"):
        LabelMaps(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "a.nii").rename(tmp_path / "b" / "a.nii")
    assert len(LabelMaps(tmp_path)) == 2
