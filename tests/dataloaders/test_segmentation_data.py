"""Training patches: the same whatever batches, workers and starts; each source; the mix; the grid."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config import Config, starting_values
from dataloaders.io.geometry import ACROSS, resample, stitch
from dataloaders.io.manifest import Manifest
from dataloaders.io.png import read_png, write_png
from dataloaders.io.schema import check
from dataloaders.labelmaps.classes import MR_CONTRASTS, read_classes, tissue_classes
from dataloaders.labelmaps.schemes import read_scheme
from dataloaders.segmenter.case_volumes import read_case
from dataloaders.segmenter.patches import STREAMS, Drawn, MixedVolumes, PatchDataset, neighbour_stack
from dataloaders.segmenter.task import SHOWN, SegmentationTask, tied
from models.gmm.options import GMM_PRESETS
from models.gmm.scheme import LabelScheme
from models.segmenter.options import SegmenterConfig
from scripts.generate import GenerateOptions, generate
from tests.launch import prepared
from tests.toy import phantom, save_nifti

LAS = np.array([[-1.5, 0, 0, 30], [0, 1, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1.0]])
SMALL = SegmenterConfig(features=(4, 4, 4, 4, 4), patch=(32,), depth=8, epoch_samples=12, val_samples=2)


def config(root: Path, batch_size: int = 3, workers: int = 0, **values: object) -> Config:
    return replace(
        starting_values("segmenter"),
        name="x",
        dataroot=root,
        batch_size=batch_size,
        num_workers=workers,
        segmenter=replace(SMALL, **values),
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    for i in range(3):
        label, image = phantom(i)
        save_nifti(home / "images" / f"p{i}.nii.gz", image, LAS)
        save_nifti(home / "labels" / f"p{i}.nii.gz", label.astype(np.uint8), LAS)
    for axis in ("axial", "coronal"):
        pairs = {part: str(home / part) for part in ("images", "labels")}
        prepared("pairs", home / axis, **pairs, axis=axis, split=(0.4, 0.3, 0.3))
    return home


Patch = tuple[str, torch.Tensor, torch.Tensor]  # case, image, label


def patches(task: SegmentationTask, count: int, start: int = 0) -> list[Patch]:
    batches = task.loader().endless(start)
    return list(islice(chain.from_iterable(zip(b.cases, b.real, b.label, strict=True) for b in batches), count))


def same(a: list, b: list) -> bool:
    return all(x[0] == y[0] and torch.equal(x[1], y[1]) and torch.equal(x[2], y[2]) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_patches_depend_on_nothing_but_their_number(home: Path, dims: int, share: float) -> None:
    values: dict = {"dims": dims, "real_fraction": share, "patch": (16,), "slices_per_volume": 2}
    whole = patches(SegmentationTask(config(home / "axial", **values)), 10)
    assert same(whole, patches(SegmentationTask(config(home / "axial", batch_size=5, **values)), 10))
    assert same(whole[4:], patches(SegmentationTask(config(home / "axial", batch_size=2, **values)), 6, start=4))
    assert not torch.equal(whole[0][1], whole[-1][1])
    sources = {name.startswith("gmm-") for name, *_ in whole}
    assert sources == {0.0: {True}, 0.5: {True, False}, 1.0: {False}}[share]
    assert whole[0][1].shape == (3 if dims == 2 else 1, *(16,) * dims)
    assert whole[0][2].max() < 5


class Counted:
    """A source whose volumes are filled with their number."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def draw(self, number: int) -> Drawn:
        self.asked.append(number)
        return Drawn(np.full((1, 8, 8, 4), number, np.float32), np.ones((8, 8, 4), np.int64), str(number))


def test_a_batch_is_of_many_volumes_and_each_is_drawn_once() -> None:
    """Sixteen slices of one volume in a row are two batches of one contrast: a network hardly learns from them."""
    source = Counted()
    o = SegmenterConfig(patch=(8,), depth=4, slices_per_volume=5)
    dataset = PatchDataset(source, o, seed=1)
    volumes = [int(dataset[0, number].image.max()) for number in range(STREAMS * 40)]
    assert len(source.asked) == len(set(source.asked))
    for start in range(0, len(volumes), 8):
        assert len(set(volumes[start : start + 8])) == 8
    uses = Counter(volumes)
    assert max(uses.values()) == 5
    drawn_in_turn = [len(set(volumes[: (turn + 1) * STREAMS])) for turn in range(40)]
    assert max(np.diff(drawn_in_turn)) <= 4  # never all streams at once: steps take the same time
    late = PatchDataset(Counted(), o, seed=1)
    assert [int(late[0, number].image.max()) for number in range(333, 400)] == volumes[333:400]


def test_the_mix_has_the_stated_share() -> None:
    real, synthetic = (SimpleNamespace(draw=f"{name} {{}}".format) for name in ("real", "synthetic"))
    mixed = MixedVolumes(real, synthetic, 0.25, seed=3)
    drawn = [mixed.draw(number) for number in range(400)]
    assert 0.19 < sum(name.startswith("real") for name in drawn) / 400 < 0.31
    assert drawn == [mixed.draw(number) for number in range(400)]
    assert all(name.endswith(f" {number}") for number, name in enumerate(drawn))


def test_a_case_comes_back_where_its_slices_came_from(home: Path) -> None:
    """The volume of a prepared case, moved to its source, is what the slices stitch to."""
    for axis in ("axial", "coronal"):
        data = Manifest.load(home / axis)
        case = data.cases[0]
        classes = read_classes("auto", data.spec.labels)
        volume = read_case(home / axis, case, data.spec, classes, (0,), ())
        slices = {item.index: read_png(home / axis / item.label) for item in case.slices}
        stitched, affine = stitch(case.geometry, data.spec.axis, slices, fill=0, labels=True)
        back = resample(volume.label, volume.affine, stitched.shape, affine, labels=True)
        assert np.array_equal(back, stitched)
        inside = volume.image[0][volume.label > 0]
        assert inside.mean() > 0.3  # the image lies where its labels are
        assert volume.image[0][volume.label == 0].mean() < 0.05


def test_neighbours_are_the_slices_beside() -> None:
    image = np.arange(2 * 4 * 5 * 6, dtype=np.float32).reshape(2, 4, 5, 6)
    for axis in ("axial", "coronal", "sagittal"):
        o = replace(SMALL, neighbours=1, axis=axis)
        across = ACROSS[o.axis] + 1
        last = image.shape[across] - 1
        stack = neighbour_stack(image, last, o)
        expected = [np.take(image[c], i, across - 1) for c in (0, 1) for i in (last - 1, last, last)]
        assert np.array_equal(stack, np.stack(expected))


def test_patches_lie_over_a_class(home: Path) -> None:
    aimed = patches(SegmentationTask(config(home / "labels", real_fraction=0.0, foreground=1.0, patch=(16,))), 12)
    assert all(label.any() for _, _, label in aimed)


def test_label_maps_alone_are_enough_and_validation_is_other_than_training(home: Path) -> None:
    task = SegmentationTask(config(home / "labels", real_fraction=0.0))
    assert [label.name for label in task.data.spec.labels] == ["background", *(f"label_{i}" for i in range(1, 5))]
    scans = task.validation()
    assert len(scans) == 2
    assert scans[0].image.shape == (1, 32, 32, 8)
    assert not np.array_equal(scans[0].image, scans[1].image)
    with pytest.raises(ValueError, match=r"--segmenter.real_fraction 1: --dataroot .* holds label maps without images"):
        SegmentationTask(config(home / "labels"))


def test_prepared_label_maps_alone_are_as_good_as_beside_images(home: Path, tmp_path: Path) -> None:
    halves = {"labels": str(home / "labels")}, {"images": str(home / "images")}
    for name, half in zip(("maps", "scans"), halves, strict=True):
        prepared("pairs", tmp_path / name, **half, split=(0.4, 0.3, 0.3))
    alone = SegmentationTask(config(tmp_path / "maps", real_fraction=0.0))
    assert [channel.name for channel in alone.data.spec.channels] == ["synthetic"]
    beside = SegmentationTask(config(home / "axial", real_fraction=0.0))
    assert same(patches(alone, 6), patches(beside, 6))
    with pytest.raises(ValueError, match=r"--segmenter.real_fraction 1: --dataroot .* holds label maps without images"):
        SegmentationTask(config(tmp_path / "maps"))
    with pytest.raises(ValueError, match="slices of the split 'train' have no label map"):
        SegmentationTask(config(tmp_path / "scans"))
    with pytest.raises(ValueError, match=r"--scheme .*scans: holds images without label maps"):
        read_scheme(str(tmp_path / "scans"), [0, 1])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_label_maps_of_one_slice_train_networks_of_two_dimensions(axis: int, tmp_path: Path) -> None:
    label, _ = phantom(0)
    flat = np.take(label, [label.shape[axis] // 2], axis).astype(np.uint8)
    save_nifti(tmp_path / "flat.nii.gz", flat, np.diag([1.0, 1.5, 2.0, 1.0]))
    values = {"real_fraction": 0.0, "foreground": 1.0, "patch": (32, 16)}
    task = SegmentationTask(config(tmp_path, **values))
    assert ACROSS[task.data.spec.axis or "axial"] == axis
    assert task.spacing == (1.0, 1.5, 2.0)
    for _, image, found in patches(task, 3):
        assert image.shape == (3, 32, 16)  # with a neighbour on each side, which is the slice itself
        assert torch.equal(image[0], image[2])
        assert found.shape == (32, 16)
        assert found.any()
    assert task.validation()[0].label.shape == tuple(1 if i == axis else (32, 16)[i - (axis < i)] for i in range(3))
    with pytest.raises(ValueError, match=r"--segmenter.dims 3: flat is a slice"):
        SegmentationTask(config(tmp_path, **values | {"dims": 3, "patch": (32,)}))


def test_what_training_scans_are_like_is_known(home: Path) -> None:
    """In ml, of label maps and of real scans; a brain without skull is as large as its classes."""
    ml = []
    for i in range(3):
        label, _ = phantom(i)
        ml.append([(label == k).sum() * 0.003 for k in (1, 2, 3, 4)])
    low, high = np.min(ml, 0), np.max(ml, 0)
    expected = SegmentationTask(config(home / "labels", real_fraction=0.0)).data.provenance["expected"]
    for k in range(4):
        assert expected[f"label_{k + 1}"] == pytest.approx([low[k], high[k]], rel=1e-4)
    assert expected[SHOWN] == pytest.approx([np.sum(ml, 1).min(), np.sum(ml, 1).max()], rel=1e-4)
    real = SegmentationTask(config(home / "axial", real_fraction=1.0)).data.provenance["expected"]
    assert real[SHOWN][0] <= real[SHOWN][1]
    assert real[SHOWN][0] == pytest.approx(sum(real[f"label_{k}"][0] for k in (1, 2, 3, 4)), rel=0.35)


def test_label_maps_are_what_their_scheme_says(tmp_path: Path) -> None:
    label = phantom(0)[0] % 4
    save_nifti(tmp_path / "maps" / "a.nii.gz", label.astype(np.uint8))
    brain = {"real_fraction": 0.0, "classes": "tissue", "tie_classes": True, "contrasts": "mr"}
    with pytest.raises(ValueError, match=r"by name: 1, 2, 3; .*--segmenter.scheme csf-gm-wm or gm-wm-csf"):
        SegmentationTask(config(tmp_path / "maps", **brain)).loader()
    for scheme, order in (("csf-gm-wm", (0, 1, 2, 3)), ("gm-wm-csf", (0, 2, 3, 1))):
        task = SegmentationTask(config(tmp_path / "maps", scheme=scheme, **brain))
        (generator,) = task._generators(0)
        assert [label.name for label in task.classes.labels] == ["background", "csf", "grey_matter", "white_matter"]
        assert dict(zip(generator.scheme.values, generator.scheme.outputs, strict=True)) == dict(enumerate(order))
    with pytest.raises(ValueError, match=r"--segmenter.scheme feat: must be auto, seeds, freesurfer"):
        SegmentationTask(config(tmp_path / "maps", scheme="feat", **brain))


def test_the_segmenter_takes_the_files_of_generate(tmp_path: Path) -> None:
    label = phantom(0)[0] % 4
    save_nifti(tmp_path / "maps" / "a.nii.gz", label.astype(np.uint8))
    lists = {"generation_labels": [0, 1, 2, 3], "generation_classes": [0, 1, 1, 2], "output_labels": [0, 5, 5, 0]}
    priors = {"prior_means_file": [[0.0, 50, 90], [1, 51, 91]], "prior_stds_file": [[0.0, 0, 0], [1, 1, 1]]}
    files = {name: tmp_path / f"{name}.npy" for name in lists | priors}
    for name, content in (lists | priors).items():
        np.save(files[name], content)
    options = {"real_fraction": 0.0, "neutral_labels": 4, **files}
    task = SegmentationTask(config(tmp_path / "maps", **options))
    (generator,) = task._generators(0)
    assert [label.source for label in task.classes.labels] == [(0,), (5,)]
    assert generator.scheme.classes == (0, 1, 1, 2)
    assert generator.scheme.outputs == (0, 1, 1, 0)
    assert generator.scheme.partners == (0, 1, 2, 3)
    assert generator.priors.means.first.tolist() == [[0, 50, 90]]
    assert set(patches(task, 3)[0][2].unique().tolist()) <= {0, 1}
    brain = options | {"classes": "auto", "tie_classes": True, "contrasts": "mr"}
    (of_preset,) = SegmentationTask(config(tmp_path / "maps", **brain))._generators(0)
    assert of_preset.scheme.ties is None
    assert of_preset.priors.means.first.tolist() == [[0, 50, 90]]
    np.save(files["generation_classes"], [0, 1, 3, 4])
    with pytest.raises(ValueError, match=r"^--segmenter.generation_classes must be complete"):
        SegmentationTask(config(tmp_path / "maps", **options))
    for wrong, message in (
        ({"output_labels": files["output_labels"]}, "--segmenter.output_labels needs --segmenter.generation_labels"),
        ({"generation_labels": files["output_labels"], "scheme": "feta"}, "--segmenter.scheme feta cannot both"),
    ):
        with pytest.raises(ValueError, match=message):
            SegmentationTask(config(tmp_path / "maps", real_fraction=0.0, **wrong))
    wrong = {"prior_stds_file": files["prior_stds_file"], "seeds": tmp_path, "real_fraction": 0.0}
    with pytest.raises(ValueError, match="seeds cannot both"):
        check(replace(SMALL, **wrong), "segmenter.")


def test_validation_is_whole_real_scans_on_the_grid(home: Path) -> None:
    task = SegmentationTask(config(home / "axial", spacing=(2.0,), dims=3))
    (scan,) = task.validation()
    assert np.allclose(np.sqrt((scan.affine[:3, :3] ** 2).sum(0)), 2.0)
    assert scan.case in {case.id for case in Manifest.load(home / "axial").split("val")}


@pytest.mark.parametrize("slices", ["none", "axial"])
def test_folders_of_generate_train_as_they_are(home: Path, tmp_path: Path, slices: str) -> None:
    gmm = replace(GMM_PRESETS["synthseg"](), target_res=(2.0,))
    out = tmp_path / slices
    generate(GenerateOptions(labels=home / "labels", out=out, n=3, slices=slices, gmm=gmm))
    task = SegmentationTask(config(home / "axial", real_fraction=0.0, results=(out,), dims=3, patch=(16,)))
    names = {name for name, *_ in patches(task, 6)}
    assert names <= {f"p{i}_s{k:05d}" for i in range(3) for k in range(3)}
    if slices == "axial":  # also as --dataroot itself: every tenth case validates, none of these trains
        alone = SegmentationTask(config(out, real_fraction=0.0, dims=3, patch=(16,)))
        held = {scan.case for scan in alone.validation()}
        assert len(held) == 1
        assert not held & {name for name, *_ in patches(alone, 12)}


def test_generated_slices_are_on_the_grid_of_their_labels(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "slices"
    flat = replace(GMM_PRESETS["synthseg"](), bias_field_std=(0.0,), gamma_std=0.0, resolution_mix=(1.0, 0.0, 0.0, 0.0))
    generate(GenerateOptions(labels=home / "labels", out=out, n=2, slices="axial", gmm=flat))
    task = SegmentationTask(config(home / "axial", real_fraction=0.0, results=(out,), dims=3))
    case = task._results()[0].read()
    spread = [case.image[0][case.label == k].std() for k in range(1, 5)]
    assert np.mean(spread) < 0.75 * case.image[0].std()  # each label is more alike than the whole: they coincide


def test_a_plain_folder_of_png_files(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("val", 1)):
        for i in range(count):
            label, image = phantom(i, (40, 48, 8))
            write_png(tmp_path / split / "labels" / f"s{i}.png", label[:, :, 4].astype(np.uint8))
            write_png(tmp_path / split / "images" / f"s{i}.png", np.clip(image[:, :, 4], 0, 255).astype(np.uint8))
    for share in (0.0, 1.0):
        task = SegmentationTask(config(tmp_path, real_fraction=share, neighbours=0))
        (_, image, label), *_ = patches(task, 3)
        assert image.shape == (1, 32, 32)
        assert label.shape == (32, 32)
    assert task.validation()[0].image.shape == (1, 48, 40, 1)


def test_lesions_become_the_class_that_takes_them(home: Path, tmp_path: Path) -> None:
    for i in range(3):
        label, _ = phantom(i)
        mask = np.zeros(label.shape, np.uint8)
        mask[18:22, 20:26, 10:14] = 1
        save_nifti(tmp_path / f"p{i}.nii.gz", mask, LAS)
    options = {"real_fraction": 0.0, "lesions": tmp_path, "dims": 3, "patch": (32, 32, 16), "foreground": 1.0}
    task = SegmentationTask(config(home / "labels", **options))
    assert task.data.spec.labels[-1].name == "lesion"
    assert any((label == 5).any() for _, _, label in patches(task, 4))


@pytest.mark.parametrize("classes", ["tissue", "structures"])
def test_lesions_of_heads_are_painted_as_such_and_learned_as_white_matter(tmp_path: Path, classes: str) -> None:
    x, y, _ = np.mgrid[:48, :56, :12]
    r = np.hypot(x - 23.5, y - 27.5)
    head = np.select([r < 10, r < 15, r < 19], [np.where(x < 24, 41, 2), np.where(x < 24, 42, 3), 24], 0)
    save_nifti(tmp_path / "maps" / "a.nii.gz", head.astype(np.uint8), np.eye(4))
    save_nifti(tmp_path / "masks" / "a.nii.gz", ((abs(x - 18) < 3) & (abs(y - 27) < 3)).astype(np.uint8), np.eye(4))
    brain = {"real_fraction": 0.0, "classes": classes, "tie_classes": True, "contrasts": "FLAIR", "rim": 1.0}
    brain["foreground"] = 0.0  # which is laid over lesions too
    tasks = [
        SegmentationTask(config(tmp_path / "maps", **brain, lesions=lesions)) for lesions in (tmp_path / "masks", None)
    ]
    healed, healthy = (patches(task, 6) for task in tasks)
    assert tasks[0].data.spec == tasks[1].data.spec
    assert all(torch.equal(a[2], b[2]) for a, b in zip(healed, healthy, strict=True))
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(healed, healthy, strict=True))
    (generator,) = tasks[0]._generators(0)
    means = generator.priors.means
    assert [means.first[0, -1], means.second[0, -1]] == MR_CONTRASTS["FLAIR"]["lesion"]


def test_labels_of_one_class_are_tied() -> None:
    """Their intensities are drawn about one mean; those of no class, and structures with contrasts of their own, are not."""
    scheme = tissue_classes().of_scheme(LabelScheme.from_values((0, 2, 41, 7, 3, 42, 530, 10, 49)))
    group = dict(zip(scheme.values, [tied(scheme, {"thalamus"}).ties[k] for k in scheme.classes], strict=True))
    together = [{0}, {2, 7, 41, 46}, {3, 42}, {530}, {10, 49}]  # 46: the other side of 7
    assert [{value for value in group if group[value] == group[min(values)]} for values in together] == together
