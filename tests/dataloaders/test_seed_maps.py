"""Label maps with seeds: intensities follow the seeds, output labels the map, and both move together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloaders.io.files import file_sha256
from dataloaders.labelmaps.generated_files import read_params
from dataloaders.labelmaps.image_generator import ImageGenerator
from dataloaders.labelmaps.maps import read_label_map_file
from dataloaders.labelmaps.seed_maps import SeedMaps
from dataloaders.labelmaps.seeds import load_seeds
from models.gmm.scheme import LabelScheme
from scripts.make_seeds import SeedOptions, make_seeds
from tests.launch import call
from tests.scripts.test_generate import assert_replayed
from tests.toy import save_nifti

SEEDS_RECORD = "sub-01/anat/sub-01_T2w_seeds.json"
AFFINE = np.diag([-1.0, 1, 1, 1])


def halves() -> tuple[np.ndarray, np.ndarray]:
    """Two tissues (FeTA's white matter and cortex); within each, the image has a dark and a bright half."""
    label = np.zeros((16, 20, 12), np.uint8)
    label[2:14, 2:10, 2:10], label[2:14, 10:18, 2:10] = 3, 2
    image = np.zeros(label.shape, np.float32)
    image[label > 0] = 100
    image[8:14][label[8:14] > 0] = 200
    noise = np.random.default_rng(0).normal(0, 3, label.shape)
    return label, np.where(label > 0, image + noise, 0).astype(np.float32)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("seeded")
    label, image = halves()
    save_nifti(root / "bids/sub-01/anat/sub-01_T2w.nii.gz", image, AFFINE)
    for name in ("sub-00", "sub-01"):  # the first has labels only
        save_nifti(root / f"bids/{name}/anat/{name}_T2w_dseg.nii.gz", label, AFFINE)
    make_seeds(SeedOptions(bids_path=root / "bids", out_path=root / "seeds", max_subclasses=2))
    return root / "bids", root / "seeds"


def test_each_voxel_is_a_pair_of_label_and_seed(tree: tuple[Path, Path]) -> None:
    maps = SeedMaps(*tree, LabelScheme.feta(), (2, 2))
    assert [label_map.name for label_map in maps] == ["sub-01_T2w_dseg"]  # sub-00 has no seeds
    label, _ = halves()
    label = label[::-1]  # RAS
    drawn = maps.draw(0, torch.Generator().manual_seed(0)).values
    scheme = maps.drawn
    outputs = scheme.output_table()[drawn.int()].numpy()
    assert np.array_equal(outputs, label)
    classes = torch.tensor(scheme.classes)[drawn.int()].numpy()
    white = label == 3
    assert len(np.unique(classes[white])) == 2  # dark and bright half
    bright = np.zeros_like(white)
    bright[:8] = True  # the source's upper half, mirrored
    assert len(np.unique(classes[white & bright])) == len(np.unique(classes[white & ~bright])) == 1
    assert len({scheme.ties[k] for k in np.unique(classes[white])}) == 1
    assert scheme.role("cortex") == tuple(i for i, out in enumerate(scheme.outputs) if out == 2)


def test_seeds_of_another_grid_are_refused(tree: tuple[Path, Path], tmp_path: Path) -> None:
    bids, seeds = (Path(shutil.copytree(path, tmp_path / path.name)) for path in tree)
    moved = AFFINE.copy()
    moved[0, 3] = 3
    save_nifti(bids / "sub-01/anat/sub-01_T2w_dseg.nii.gz", halves()[0], moved)
    maps = SeedMaps(bids, seeds, LabelScheme.feta())
    with pytest.raises(ValueError, match=r"mlabel_1.nii.gz: seeds in RAS axes: .*dseg.nii.gz by up to 3 voxels"):
        maps.draw(0, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("content", ["{}", "[]", '{"cases": "ab"}'])
def test_an_index_that_is_none_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "seeds.json").write_text(content)
    with pytest.raises(ValueError, match=r"seeds.json: was not written by make_seeds.py, or is damaged: "):
        load_seeds(tmp_path)


def test_a_written_sample_is_replayed_to_the_bit(tree: tuple[Path, Path], tmp_path: Path) -> None:
    bids, seeds = tree
    flags = ("--labels", bids, "--seeds", seeds, "--out", tmp_path, "--n", 3, "--preset", "fetal")
    call("scripts/generate.py", *flags, "--subclasses", 2, 2)
    generator = ImageGenerator(bids, seeds=seeds, preset="fetal")
    for record in assert_replayed(generator, bids, tmp_path):
        assert record["subclasses"] == [2, 2, 2, 2]
        assert record["seeds"] == {"case": "sub-01/anat/sub-01_T2w", "sha256": file_sha256(seeds / SEEDS_RECORD)}
    params = read_params(next((tmp_path / "params").iterdir()))
    source = read_label_map_file(bids / record["map"]["file"])
    for maps, given, message in (
        (generator, {}, "give subclasses of the record"),
        (generator, {"subclasses": (3, 1, 1, 1)}, r"must be 4 numbers, 1 to 2"),
        (ImageGenerator(bids), {"subclasses": (2, 2, 2, 2)}, "these label maps have no seeds"),
    ):
        with pytest.raises(ValueError, match=message):
            maps.replay(source, params, **given)


@pytest.mark.slow
def test_seeds_made_again_with_other_intensities_are_noticed(tree: tuple[Path, Path], tmp_path: Path) -> None:
    bids, seeds = (Path(shutil.copytree(path, tmp_path / path.name)) for path in tree)
    flags = ("--labels", bids, "--seeds", seeds, "--out", tmp_path / "out", "--n", 2)
    call("scripts/generate.py", *flags)
    assert "0 made, 2 kept" in call("scripts/generate.py", *flags).stdout
    index = (seeds / "seeds.json").read_bytes()
    save_nifti(bids / "sub-01/anat/sub-01_T2w.nii.gz", halves()[1][::-1].copy(), AFFINE)
    make_seeds(SeedOptions(bids_path=bids, out_path=seeds, max_subclasses=2))
    assert (seeds / "seeds.json").read_bytes() == index
    assert "seeds" in call("scripts/generate.py", *flags, code=2).stderr
