"""White matter as the unit, grey matter's statistics, found lesions, and prepare_data.py --fill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from config import parse_train
from dataloaders.io.manifest import Manifest
from dataloaders.io.spec import Label
from dataloaders.lesions.loaders import CaseLoader, check_filled, lesion_loaders, with_lesions
from dataloaders.lesions.preparing import (
    Tissue,
    fill_zone,
    find_lesions,
    grey_statistics,
    hyperintense,
    n4_field,
    white_mode,
    white_window,
)
from dataloaders.prepare.check import check_folder
from dataloaders.slices import SliceDataset
from evaluation.metrics.lesions import match_lesions
from tests.launch import prepared
from tests.toy_lesions import bids, patient

LABELS = tuple(Label(i, n) for i, n in enumerate(("background", "csf", "grey_matter", "white_matter", "lesion")))


def test_white_matter_is_at_the_same_place_of_every_window() -> None:
    for scale in (1.0, 7.3):
        p = patient(0)
        image = p.t1 * scale
        mode = white_mode(image[p.white])
        assert mode == pytest.approx(220 * scale, rel=0.02)
        window = white_window(image, p.white)
        assert 2 * mode / window.width - 1 == pytest.approx(-0.2)
    values = np.random.default_rng(0).normal(100, 5, 5000)  # whose outliers do not move the mode
    assert white_mode(np.append(values, np.full(200, 900.0))) == pytest.approx(white_mode(values), abs=1.5)
    assert white_mode(np.full(5, 3.0)) == 3
    with pytest.raises(ValueError, match="no white matter"):
        white_mode(np.zeros(0))
    with pytest.raises(ValueError, match="above 0"):
        white_mode(np.full(5, -1.0))


def test_grey_statistics_leave_lesions_out() -> None:
    """Lesions are called grey matter or CSF by tissue classifiers; with them the thresholds move."""
    p = patient(1, lesions=12)
    label = np.where(p.lesion, 2, p.tissue)  # what a classifier makes of them
    clean = grey_statistics(p.flair, p.masks.grey)
    spoilt = grey_statistics(p.flair, label == 2)
    assert clean[0] == pytest.approx(105, abs=4)
    assert spoilt[0] > clean[0] + 0.5
    grey = p.masks.grey
    mean, deviation = p.flair[grey].mean(), p.flair[grey].std()
    assert np.array_equal(hyperintense(p.flair, grey, 1.4), p.flair > mean + 1.4 * deviation)
    with pytest.raises(ValueError, match="no grey matter"):
        grey_statistics(p.flair, np.zeros_like(p.lesion))


def test_lesions_are_found_in_white_matter_only() -> None:
    p = patient(2, lesions=8)
    label = np.where(p.lesion & (p.flair > 110), 2, p.tissue)  # classified as grey matter, as usual
    found = find_lesions(p.flair, Tissue.of(label, LABELS))
    assert not (found & (p.tissue != 3)).any()
    lesions = match_lesions(p.lesion, found)
    assert lesions.recall > 0.8
    assert lesions.precision > 0.8


def test_the_zone_to_fill_takes_the_white_matter_that_lesions_touch() -> None:
    p = patient(0)
    zone = fill_zone(p.lesion, p.masks)
    assert (zone & ~p.lesion).sum() > 0
    assert not (zone & ~p.lesion & (p.tissue != 3)).any()
    label = np.where(ndimage.binary_dilation(p.lesion), 2, p.tissue)  # the rim is called grey matter
    label = np.where(p.lesion, 4, np.where(p.tissue == 3, label, p.tissue))
    inner = ndimage.binary_dilation(p.lesion) & (ndimage.distance_transform_edt(p.tissue == 3) > 5)
    assert fill_zone(p.lesion, Tissue.of(label, LABELS))[inner].mean() > 0.95


def test_n4_takes_a_smooth_field_away() -> None:
    p = patient(0)
    bias = np.exp(0.25 * np.linspace(-1, 1, 44))[:, None, None]
    field = n4_field((p.t1 * bias).astype(np.float32), p.tissue > 0)
    assert field[p.tissue > 0].mean() == pytest.approx(1, abs=1e-4)
    before, after = (p.t1 * bias)[p.white], (p.t1 * bias / field)[p.white]
    assert after.std() / after.mean() < 0.6 * before.std() / before.mean()
    with pytest.raises(ValueError, match=r"N4 needs intensities above 0 .* they go from -9\d\d.* to -\d"):
        n4_field(p.t1 - 1000, p.tissue > 0)  # which N4 would leave as they are, and say nothing


# -- prepare_data.py --fill -----------------------------------------------------------------------------------------


def with_copies(root: Path, out: Path, **options: object) -> Manifest:
    source = bids(root / "bids") if not (root / "bids").is_dir() else root / "bids"
    tissue = {"label_map": source / "labels.json", "modalities": ("T1w", "FLAIR"), "test_patients": ("sub-3",)}
    return prepared("bids", out, source=source, **tissue, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lesions")


@pytest.fixture(scope="module")
def filled(root: Path) -> Path:
    with_copies(root, root / "filled", fill="lesion")
    return root / "filled"


@pytest.mark.slow
def test_prepared_copies_differ_in_lesions_only(filled: Path) -> None:
    assert check_folder(filled) == []
    manifest = Manifest.load(filled)
    assert all(case.grey is not None for case in manifest.cases)
    kept = with_lesions(manifest)  # to train on; the rest is as it was
    assert all(item.histogram.get(4, 0) > 0 for case in kept.split("train") for item in case.slices)
    assert kept.split("test") == manifest.split("test")
    assert sum(len(c.slices) for c in kept.split("train")) < sum(len(c.slices) for c in manifest.split("train"))
    dataset = SliceDataset(filled, manifest, "train", filled=True)
    changed = 0
    for sample in (dataset[i] for i in range(len(dataset))):
        lesion = sample.label == 4
        different = (sample.image != sample.source).any(0)
        assert different[lesion].mean() > 0.99 if lesion.any() else True
        inner = different & ~ndimage.binary_dilation(lesion)
        assert not (inner & (sample.label != 3)).any()  # white matter beside a lesion of the next slice
        assert (sample.slice.filled == sample.slice.images) == (not different.any())
        changed += int(different.any())
    assert changed
    white = np.concatenate([s.image[1][s.label == 3] for s in (dataset[i] for i in range(len(dataset)))])
    assert np.median(white) == pytest.approx(-0.2, abs=0.02)


@pytest.mark.slow
def test_published_filling_paints_over_everything_bright(root: Path) -> None:
    manifest = with_copies(root, root / "salem", fill="salem2019")
    dataset = SliceDataset(root / "salem", manifest, "train", filled=True)
    sample = dataset[len(dataset) // 4]
    different = (sample.image != sample.source).any(0)
    assert different[sample.label == 2].mean() > 0.2  # cortex too
    with pytest.raises(ValueError, match="needs --fill lesion"):
        check_filled(manifest, False, root / "salem")
    bare = replace(manifest, provenance={}, cases=tuple(replace(c, slices=c.slices[:1]) for c in manifest.cases))
    with pytest.raises(ValueError, match="prepare the data with --fill lesion"):
        check_filled(bare, False, root / "plain")
    slices = tuple(replace(item, filled=()) for item in manifest.cases[0].slices)
    with pytest.raises(ValueError, match="have no copy without lesions"):
        SliceDataset(root, replace(manifest, cases=(replace(manifest.cases[0], slices=slices),)), "train", filled=True)


@pytest.mark.slow
def test_without_a_mask_lesions_are_found(root: Path) -> None:
    manifest = with_copies(root, root / "found", fill="lesion", lesions=False)
    assert manifest.spec.labels[-1].name == "lesion"
    assert sum(item.histogram.get(4, 0) for case in manifest.cases for item in case.slices) > 50


def test_loaders_of_two_and_three_dimensions(filled: Path) -> None:
    manifest = Manifest.load(filled)
    base = ["--name", "a", "--dataroot", str(filled), "--model", "lesion", "--lesion.patch", "16", "--batch_size", "2"]
    flat, none = lesion_loaders(parse_train(base), manifest)
    assert none is None
    batch = next(flat.endless())
    assert batch.label.shape == (2, 64, 64)
    assert batch.source.shape == batch.real.shape
    assert batch.grey.shape == (2, 2)
    deep, _ = lesion_loaders(parse_train([*base, "--lesion.dims", "3"]), manifest)
    first, second = (next(deep.endless(start=4)) for _ in range(2))
    assert first.label.shape == (2, 16, 64, 64)
    assert first.real.shape == (2, 2, 16, 64, 64)
    assert (first.label == 4).flatten(1).any(1).all()
    assert bool((first.label == second.label).all())  # the same from the same position on
    with pytest.raises(ValueError, match="the case sub-1 has fewer slices"):
        lesion_loaders(parse_train([*base[:-4], "--lesion.patch", "48", "--lesion.dims", "3"]), manifest)


def test_whole_cases_come_in_one_batch(filled: Path) -> None:
    manifest = Manifest.load(filled)
    loader = CaseLoader(SliceDataset(filled, manifest, "train", filled=True))
    batches = list(loader.once())
    assert [set(b.cases) for b in batches] == [{"sub-1"}, {"sub-2"}]
    short = list(loader.once(limit=6))
    assert [len(b) for b in short] == [3, 3]
    assert short[0].indices == list(range(short[0].indices[0], short[0].indices[0] + 3))
