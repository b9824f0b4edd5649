"""Seeds: schemes, splitting, the BIDS tree, drawing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from dataloaders.io.nifti import read_ids, read_volume
from dataloaders.labelmaps.seeds import draw_subclasses, find_scheme, load_seeds, subcluster
from scripts.make_seeds import SeedOptions, SeedReport, make_seeds
from tests.dataloaders.test_prepare import reoriented, tree
from tests.launch import call
from tests.toy import phantom, save_nifti

SHAPE = (24, 28, 16)
AFFINE = np.array([[-0.5, 0, 0, 3], [0, 0.5, 0, -4], [0, 0, 1.5, 5], [0, 0, 0, 1.0]])


def save_case(anat: Path, name: str, seed: int, dtype: type = np.uint8, label_name: str = "T2w_dseg") -> None:
    label, image = phantom(seed, SHAPE)
    image[:2] += 7  # a strip outside the labels that is not 0: non-brain
    save_nifti(anat / f"{name}_T2w.nii.gz", image, AFFINE)
    save_nifti(anat / f"{name}_{label_name}.nii.gz", label.astype(dtype), AFFINE)


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good subjects, one of them with two sessions; labels without image; image without labels."""
    root = tmp_path_factory.mktemp("bids")
    save_case(root / "sub-01" / "anat", "sub-01_rec-irtk", 1, np.float32)
    for session in "ab":
        where = root / "sub-02" / f"ses-{session}" / "anat"
        save_case(where, f"sub-02_ses-{session}", ord(session), label_name="dseg")
    for name, ending in (("sub-03", "T2w_dseg"), ("sub-04", "T2w")):
        save_nifti(root / name / "anat" / f"{name}_{ending}.nii.gz", phantom(9, SHAPE)[0].astype(np.uint8), AFFINE)
    return root


KEYS = ("sub-01/anat/sub-01_rec-irtk_T2w", "sub-02/ses-a/anat/sub-02_ses-a_T2w", "sub-02/ses-b/anat/sub-02_ses-b_T2w")


def make(bids: Path, out: Path, **extra: object) -> SeedReport:
    return make_seeds(SeedOptions(bids_path=bids, out_path=out, **{"max_subclasses": 3, "num_workers": 1, **extra}))


@pytest.fixture(scope="module")
def made(bids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seeds") / "out"
    assert make(bids, out).made == len(KEYS)
    return out


# Schemes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("feta", {0: 4, 1: 1, 2: 2, 3: 3, 4: 1, 5: 3, 6: 2, 7: 3}),
        ("dhcp", {0: 4, 1: 1, 2: 2, 3: 3, 4: 4, 5: 1, 6: 3, 7: 2, 8: 3, 9: 2}),
        ("tissue", {0: 4, 1: 1, 2: 2, 3: 3}),
        ("gm-wm-csf", {0: 4, 1: 2, 2: 3, 3: 1}),
        ("freesurfer", {0: 4, 11146: 2, 12146: 2, 1004: 2, 3024: 3, 14101: 3, 5002: 3}),
    ],
)
def test_published_annotations(name: str, expected: dict[int, int]) -> None:
    labels = np.array(list(expected))
    scheme = find_scheme(name)
    assert scheme.apply(labels, np.ones(len(labels))).tolist() == list(expected.values())
    # Without intensity, unlabelled voxels are background; labelled ones stay what they are.
    dark = [0 if meta == 4 else meta for meta in expected.values()]
    assert scheme.apply(labels, np.zeros(len(labels))).tolist() == dark


def test_freesurfer_knows_adult_label_maps(shared_data: Path) -> None:
    scheme = find_scheme("freesurfer")
    for family in ("synthseg", "lab2im"):
        labels = np.load(shared_data / "labelmaps" / family / "generation_labels.npy").astype(np.int32)
        scheme.apply(labels, np.ones(len(labels)))
    # Both sides of a structure have one meta-label.
    pairs = np.array([[2, 41], [3, 42], [4, 43], [7, 46], [8, 47], [10, 49], [17, 53], [18, 54], [1035, 2035]])
    metas = scheme.apply(pairs, np.ones(pairs.shape))
    assert (metas[:, 0] == metas[:, 1]).all()
    assert metas[:, 0].tolist() == [3, 2, 1, 3, 2, 2, 2, 2, 2]


def test_voxels_that_are_not_finite_have_no_seed() -> None:
    image = np.array([np.nan, np.inf, np.nan, 1.0])
    assert find_scheme("feta").apply(np.array([0, 1, 2, 3]), image).tolist() == [0, 0, 0, 3]
    part = subcluster(np.array([np.nan, 1.0, 2.0, np.inf]), np.ones(4, bool), 2, 2)
    assert part.codes.tolist() == [0, 20, 21, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": []}', "table.json: names no ids"),
        ('{"a": [1.5]}', "table.json: expected"),
        ('{"a": [-1]}', "id -1 is not allowed: must be from 0"),
        ('{"a/b": [1]}', "'a/b' is not allowed"),
        ("{}", "table.json: names no ids"),
        (json.dumps({f"m{i}": [i] for i in range(1, 11)}), "10 meta-labels; 1 to 9"),
    ],
)
def test_bad_tables_say_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        find_scheme(str(path))


# Splitting


def test_two_gaussians_come_apart_in_order() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((40, 40, 40)) < 0.3
    image = np.where(truth, rng.normal(900, 20, truth.shape), rng.normal(100, 30, truth.shape))
    mask = np.ones(truth.shape, bool)
    mask[0] = False
    for factor in (1.0, -1.0):  # the darker one is 0, whichever is larger
        part = subcluster(factor * image, mask, 3, 2)
        assert (part.codes[0] == 0).all()
        expected = np.where(truth if factor > 0 else ~truth, 31, 30)
        assert (part.codes[1:] == expected[1:]).all()
        assert part.means == pytest.approx(sorted((factor * 100, factor * 900)), abs=1)
        assert sum(part.sizes) == mask.sum()
        assert part.notes == ()


def test_awkward_distributions_never_stop_it() -> None:
    rng = np.random.default_rng(2)
    for trial in range(15):
        size = int(rng.integers(3, 400))
        levels = rng.choice([1e-30, 1.0, 1e8]) * rng.normal(size=int(rng.integers(2, 9)))
        values = rng.choice(levels, size) + rng.choice([0.0, 1e-12])
        n = int(rng.integers(1, 9))
        part = subcluster(values, np.ones(size, bool), 1, n, seed=trial)
        assert sum(part.sizes) == size
        assert np.unique(part.codes).tolist() == [10 + c for c in range(len(part.means))]
        assert list(part.means) == sorted(part.means)


# The tree


def test_the_folder_is_laid_out_as_published(bids: Path, made: Path) -> None:
    for key in KEYS:
        source = nib.load(bids / f"{key}.nii.gz")
        for n in (1, 2, 3):
            for meta in (1, 2, 3, 4):
                image = nib.load(made / f"subclasses_{n}" / f"{key}_mlabel_{meta}.nii.gz")
                assert (image.get_data_dtype(), image.shape) == (np.uint8, SHAPE)
                assert np.array_equal(image.affine, source.affine)
                assert set(np.unique(image.dataobj)) <= {0, *range(10 * meta, 10 * meta + n)}
    assert json.loads((made / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert json.loads((made / "seeds.json").read_text())["cases"] == list(KEYS)
    record = json.loads((made / f"{KEYS[0]}_seeds.json").read_text())
    assert record["sources"]["label"] == "sub-01/anat/sub-01_rec-irtk_T2w_dseg.nii.gz"
    for meta in record["metas"]:
        assert [sum(split["sizes"]) for split in meta["splits"]] == [meta["voxels"]] * 3
    label, image = read_ids(bids / f"{KEYS[0]}_dseg.nii.gz"), read_volume(bids / f"{KEYS[0]}.nii.gz")
    metas = find_scheme("feta").apply(label.data, image.data)
    assert set(np.unique(metas)) == {0, 1, 2, 3, 4}
    case = load_seeds(made)[0]
    for n in (1, 3):  # every voxel of a meta-label has a seed
        codes = np.sum([read_volume(case.file(n, meta)).data for meta in case.clusters], axis=0)
        assert (codes // 10 == metas).all()
    assert not list(made.rglob(".tmp-*"))


@pytest.mark.slow
def test_workers_do_not_matter(bids: Path, made: Path, tmp_path: Path) -> None:
    assert make(bids, tmp_path / "out", num_workers=2).made == len(KEYS)
    assert tree(tmp_path / "out") == tree(made)


def test_only_what_is_damaged_or_changed_is_made_again(bids: Path, made: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "bids", tmp_path / "out"
    shutil.copytree(bids, source)
    shutil.copytree(made, out)
    broken = out / "subclasses_2" / f"{KEYS[1]}_mlabel_2.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-20])
    (out / f"{KEYS[2]}_seeds.json").unlink()  # as after a kill
    report = make(source, out)
    assert (report.made, report.kept) == (2, 1)
    assert tree(out) == tree(made)
    save_case(source / "sub-01" / "anat", "sub-01_rec-irtk", 77)
    report = make(source, out)
    assert (report.made, report.kept) == (1, 2)


# The command


def test_command_line(bids: Path, tmp_path: Path) -> None:
    arguments = ["--bids_path", bids, "--out_path", tmp_path / "out", "--max_subclasses", 1, "--num_workers", 1]
    done = call("scripts/make_seeds.py", *arguments)
    assert "3 made, 0 kept, 2 skipped, 0 failed" in done.stdout
    assert f"skipped: {bids}/sub-03/anat/sub-03_T2w_dseg.nii.gz: no image" in done.stdout
    assert "0 made, 3 kept" in call("scripts/make_seeds.py", *arguments).stdout
    for wrong in (["--max_subclasses", 11], ["--annotation", "nobody"]):
        done = call("scripts/make_seeds.py", *arguments, *wrong, code=2)
        assert f"error: {wrong[0]} {wrong[1]}" in done.stderr
    assert "no such folder" in call("scripts/make_seeds.py", "--bids_path", "no", *arguments[2:], code=2).stderr


def test_a_subject_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    root = tmp_path / "bids"
    label, image = phantom(0, SHAPE)
    ids = label.astype(np.uint8)
    faults = [  # of which file of sub-1, sub-2, ...: voxels, affine, what is said
        ("T2w_dseg", ids[:-1], AFFINE, r"sub-1_T2w_dseg.nii.gz: shape \(23, 28, 16\), the image has \(24, 28, 16\)"),
        ("T2w_dseg", ids + 6, AFFINE, r"does not list: 8 \(\d+ voxels\), 9 \(\d+ voxels\), 10"),
        ("T2w_dseg", ids, np.eye(4), "the affine differs from that of the image by up to"),
        ("T2w_dseg", label + np.float32(0.5), AFFINE, "must be whole numbers, found 0.5"),
        ("T2w", np.where(label == 1, np.nan, image), AFFINE, "voxels are NaN"),
    ]
    for i in range(1, 7):
        save_case(root / f"sub-{i}" / "anat", f"sub-{i}", i)
    for i, (ending, data, affine, _) in enumerate(faults, 1):
        save_nifti(root / f"sub-{i}/anat/sub-{i}_{ending}.nii.gz", data, affine)
    arguments = ["--bids_path", root, "--out_path", tmp_path / "out", "--max_subclasses", 1, "--num_workers", 1]
    done = call("scripts/make_seeds.py", *arguments, code=1)
    assert "1 made, 0 kept, 0 skipped, 5 failed" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("failed:")]
    for line, (*_, reason) in zip(lines, faults, strict=True):
        assert re.search(reason, line), line
    assert [case.key for case in load_seeds(tmp_path / "out")] == ["sub-6/anat/sub-6_T2w"]


# Drawing


def test_drawing_is_uniform_independent_and_repeatable(made: Path, tmp_path: Path) -> None:
    case = load_seeds(made)[0]
    generator = torch.Generator().manual_seed(0)
    drawn = np.array([draw_subclasses(case, generator) for _ in range(3000)])
    one, two = (draw_subclasses(case, torch.Generator().manual_seed(5)) for _ in range(2))
    assert one == two
    assert draw_subclasses(case, generator, 2, 2) == [2, 2, 2, 2]
    for meta in range(4):
        assert np.bincount(drawn[:, meta], minlength=4)[1:] == pytest.approx([1000] * 3, abs=110)  # 4 sigma
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.08
    for low, high in ((0, 2), (3, 2), (1, 4)):
        with pytest.raises(ValueError, match="has 1 to 3"):
            draw_subclasses(case, torch.Generator(), low, high)
    with pytest.raises(ValueError, match=r"make_seeds\.py"):
        load_seeds(tmp_path)
    (tmp_path / "seeds.json").write_text('{"cases": ["../../outside"]}')
    with pytest.raises(ValueError, match="is not allowed"):
        load_seeds(tmp_path)


@pytest.mark.slow
def test_fetal_atlas(shared_data: Path, tmp_path: Path) -> None:
    report = make(shared_data / "fetal", tmp_path / "out", max_subclasses=2)
    assert report.made == 1
    assert len(report.skipped) == 1
    assert "sub-sta30" in report.skipped[0]
    (case,) = load_seeds(tmp_path / "out")
    assert all(clusters == (1, 2) for clusters in case.clusters.values())
    image = read_volume(shared_data / "fetal" / f"{case.key}.nii.gz")
    two, one = (np.sum([read_volume(case.file(n, m)).data for m in case.clusters], axis=0).ravel() for n in (2, 1))
    assert np.unique(two).tolist() == [0, 10, 11, 20, 21, 30, 31, 40, 41]
    means = np.bincount(two, weights=image.data.ravel()) / np.maximum(1, np.bincount(two))
    assert all(means[10 * m + 1] > means[10 * m] + 200 for m in (1, 2, 3, 4))
    # Fluid is the brightest tissue of T2w, and at 21 weeks the unmyelinated white matter is brighter than grey matter.
    # Which way a tissue's single peak is cut is chance; the means of whole tissues are not.
    _, csf, grey, white, rim = (image.data.ravel()[one == 10 * m].mean() for m in range(5))
    assert csf > white > grey > rim


def test_label_maps_in_another_order_of_axes_make_the_same_seeds(tmp_path: Path) -> None:
    parts = []
    for name in ("plain", "turned"):
        where = tmp_path / name / "sub-1" / "anat"
        save_case(where, "sub-1", 1)
        (label,) = where.glob("*_dseg.nii.gz")
        if name == "turned":
            stored = nib.load(label)
            save_nifti(label, np.asarray(stored.dataobj).copy(), stored.affine + 1e-6)  # header noise, too
            reoriented(label, "PRI")
        make(tmp_path / name, tmp_path / f"{name}-out", max_subclasses=2)
        parts.append({k: v for k, v in tree(tmp_path / f"{name}-out").items() if k.endswith(".nii.gz")})
    assert parts[0]
    assert parts[0] == parts[1]
