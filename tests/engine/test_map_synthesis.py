"""Label maps without images to volumes, through the command that users type: python test.py --labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

import config as options
from dataloaders.io.intensity import Window
from dataloaders.io.spec import Channel, DataSpec, Label
from dataloaders.labelmaps.labels import ClassTable
from dataloaders.labelmaps.map_slices import slice_map
from dataloaders.labelmaps.maps import read_label_map_file
from engine.checkpoint import Weights, load_weights, save_weights, weights_path
from engine.trained import TrainedRun
from models import build_method
from tests.launch import call, left_by_the_dead
from tests.toy import LAS, NAMES, phantom, save_nifti

SOURCES = ((0,), (4,), (3,), (2,), (99,))  # of the ids 0 to 4 of a phantom
FLAGS = ["--name", "run", "--gpu_ids", "-1"]


def source_ids(label: NDArray) -> NDArray[np.int16]:
    """A phantom's labels as the ids of its data set."""
    return np.array([ids[0] for ids in SOURCES], np.int16)[label]


def make_run(runs: Path, model: str, spec: DataSpec, windows: list[list[float]], **changes: object) -> None:
    """Weights of an untrained network: as good as any to see where its images go."""
    tiny = replace(
        options.OasisConfig(), channels_G=4, channels_D=4, spade_hidden=4, z_dim=4, spectral_gain=1.0, **changes
    )
    config = replace(options.starting_values(model), name="run", dataroot=Path("data"), oasis=tiny)
    config = replace(config, gmm=replace(config.gmm, priors="random"))
    torch.manual_seed(1)
    method = build_method(config, spec).eval()
    released = Weights(method.release(), options.to_dict(config), spec.to_dict(), 8, windows)
    save_weights(weights_path(runs / "run", "best"), released)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of three phantoms, their label maps, and a 2.5-D OASIS of these data."""
    home = tmp_path_factory.mktemp("home")
    for i in range(3):
        label, image = phantom(i)
        save_nifti(home / "images" / f"p{i}.nii.gz", image, LAS)
        save_nifti(home / "maps" / f"p{i}.nii.gz", source_ids(label), LAS)
    (home / "table.json").write_text(json.dumps({name: ids[0] for name, ids in zip(NAMES, SOURCES, strict=True)}))
    arguments = ["--format", "pairs", "--images", home / "images", "--labels", home / "maps", "--channel", "T1w"]
    arguments += ["--label_map", home / "table.json", "--size", 64, "--split", 0.4, 0.3, 0.3, "--min_foreground", 1e-9]
    call("scripts/prepare_data.py", *arguments, "--window", "0,255", "--workers", 1, "--out", home / "data")
    spec = DataSpec.from_dict(json.loads((home / "data" / "manifest.json").read_text())["spec"])
    make_run(home / "runs", "oasis", spec, [[0.0, 255.0]], neighbours=1, slice_position=True)
    make_run(home / "gmms", "gmm", spec, [[0.0, 255.0]])
    return home


def synthesise(
    home: Path, labels: Path, out: Path, *extra: object, runs: str = "gmms", code: int = 0
) -> tuple[str, str]:
    """stdout and stderr of the command."""
    where = ["--checkpoints_dir", home / runs, "--labels", labels, "--out", out]
    done = call("test.py", *FLAGS, *where, *extra, code=code)
    return done.stdout, done.stderr


def volume(path: Path) -> NDArray[np.float32]:
    return np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_map_becomes_what_test_py_makes_of_the_same_prepared_map(home: Path, tmp_path: Path) -> None:
    """The same noise, neighbours and positions; by file and by folder; the map's own shape, affine and type."""
    where = ["--checkpoints_dir", home / "runs", "--dataroot", home / "data", "--results_dir", tmp_path / "results"]
    call("test.py", *FLAGS, *where, "--metrics", "none")
    (prepared,) = (tmp_path / "results" / "run" / "best" / "volumes").glob("*.nii.gz")
    alone = home / "maps" / f"{prepared.name.partition('_')[0]}.nii.gz"
    synthesise(home, home / "maps", tmp_path / "out", runs="runs")
    made = tmp_path / "out" / prepared.name
    assert np.ptp(volume(made)) > 1
    assert np.abs(volume(made) - volume(prepared)).max() < 0.01
    own, found = nib.load(alone), nib.load(made)
    assert (found.shape, found.get_data_dtype()) == (own.shape, np.float32)
    assert np.array_equal(found.affine, own.affine)
    assert all(found.header[code] == own.header[code] for code in ("qform_code", "sform_code"))
    synthesise(home, alone, tmp_path / "alone", "--batch_size", 3, runs="runs")
    assert np.abs(volume(tmp_path / "alone" / prepared.name) - volume(made)).max() < 0.01


def test_another_grid_and_orientation_come_back_as_they_were(home: Path, tmp_path: Path) -> None:
    """Half the voxel size, axes permuted and flipped, .mgz: the image of the original map, interpolated."""
    label, _ = phantom(0)
    fine = source_ids(label).repeat(2, 0).repeat(2, 1).repeat(2, 2).astype(np.int32)
    half = np.diag([0.5, 0.5, 0.5, 1.0])
    half[:3, 3] = -0.25
    affine = LAS @ half
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("PIR"))
    turned = nib.orientations.apply_orientation(fine, turn)
    turned_affine = affine @ nib.orientations.inv_ornt_aff(turn, fine.shape)
    (tmp_path / "maps").mkdir()
    nib.MGHImage(turned, turned_affine).to_filename(tmp_path / "maps" / "p0.mgz")
    synthesise(home, home / "maps" / "p0.nii.gz", tmp_path / "plain")
    synthesise(home, tmp_path / "maps" / "p0.mgz", tmp_path / "turned")
    found = nib.load(tmp_path / "turned" / "p0_T1w.nii.gz")
    assert (found.shape, nib.aff2axcodes(found.affine)) == (turned.shape, ("P", "I", "R"))
    assert np.allclose(found.affine, turned_affine, atol=1e-5)
    plain = volume(tmp_path / "plain" / "p0_T1w.nii.gz")
    expected = ndimage.affine_transform(
        plain, np.linalg.inv(LAS) @ found.affine, output_shape=found.shape, order=1, mode="nearest"
    )
    assert np.abs(found.get_fdata() - expected).max() < 0.01


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Two good maps of one name, one with an id that no class has, one that is no NIfTI, and one that is missing."""
    label, _ = phantom(5)
    good = source_ids(label)
    for place in ("a/seg", "b/seg"):
        save_nifti(tmp_path / "maps" / f"{place}.nii.gz", good, LAS)
    save_nifti(tmp_path / "maps" / "unknown.nii.gz", np.where(good == 2, 77, good).astype(np.int16), LAS)
    (tmp_path / "maps" / "broken.nii.gz").write_bytes(b"no NIfTI")
    return tmp_path / "maps"


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz")}


def test_a_bad_map_costs_that_map_alone(home: Path, maps: Path, tmp_path: Path) -> None:
    (maps / "cut.mgz").write_bytes((maps / "a" / "seg.nii.gz").read_bytes()[:50])
    out, err = synthesise(home, maps, tmp_path / "out", code=1)
    assert files(tmp_path / "out") == {"a/seg_T1w.nii.gz", "b/seg_T1w.nii.gz"}
    assert "2 made, 0 kept, 3 failed" in out
    bad, cut, unknown = sorted(err.strip().splitlines())
    assert "maps/cut.mgz: " in cut
    assert "maps/broken.nii.gz: named .gz but not compressed" in bad
    count = int((phantom(5)[0] == 3).sum())
    assert f"unknown.nii.gz: no class of the run has the source ids 77 ({count} voxels); --unknown_labels" in unknown
    assert (volume(tmp_path / "out/a/seg_T1w.nii.gz") != volume(tmp_path / "out/b/seg_T1w.nii.gz")).any()  # own noise
    out, _ = synthesise(home, maps, tmp_path / "out2", "--unknown_labels", "background", code=1)
    assert "unknown.nii.gz: dropped to background, being no class of the run: 77" in out
    assert "unknown_T1w.nii.gz" in files(tmp_path / "out2")


def test_a_second_call_makes_only_what_is_missing(home: Path, maps: Path, tmp_path: Path) -> None:
    (maps / "broken.nii.gz").unlink()
    (maps / "unknown.nii.gz").unlink()
    synthesise(home, maps, tmp_path / "whole")
    out = tmp_path / "out"
    assert "1 made, 0 kept" in synthesise(home, maps, out, "--shard", "1/2")[0]
    assert files(out) == {"b/seg_T1w.nii.gz"}
    before = (out / "b/seg_T1w.nii.gz").stat().st_mtime_ns
    assert "1 made, 1 kept" in synthesise(home, maps, out)[0]
    assert (out / "b/seg_T1w.nii.gz").stat().st_mtime_ns == before
    for file in files(out):
        assert np.array_equal(volume(out / file), volume(tmp_path / "whole" / file))
    (out / "a/seg_T1w.nii.gz").rename(left_by_the_dead(out / "a/seg_T1w.nii.gz"))
    assert "1 made, 1 kept" in synthesise(home, maps, out)[0]
    assert not list(out.rglob(".tmp-*"))
    save_nifti(maps / "later" / "seg.nii.gz", source_ids(phantom(6)[0]), LAS)  # more maps change nothing for the others
    assert "1 made, 2 kept" in synthesise(home, maps, out)[0]


def test_another_reading_of_the_ids_makes_only_what_it_changes(home: Path, maps: Path, tmp_path: Path) -> None:
    """A refusal binds nobody: the advice is taken in the same folder. A table under which nothing changes keeps all."""
    (maps / "broken.nii.gz").unlink()
    out = tmp_path / "out"
    synthesise(home, maps / "unknown.nii.gz", out, code=1)
    assert "2 made, 0 kept, 1 failed" in synthesise(home, maps, out, "--seed", 1, code=1)[0]
    table = {name: [i] for (i,), name in zip(SOURCES, NAMES, strict=True)}
    table["white_matter"].append(77)
    (tmp_path / "table.json").write_text(json.dumps(table))
    assert "1 made, 2 kept" in synthesise(home, maps, out, "--seed", 1, "--label_map", tmp_path / "table.json")[0]
    found = volume(out / "unknown_T1w.nii.gz")
    _, err = synthesise(home, maps, out, "--seed", 1, code=1)
    assert f"no class of the run has the source ids 77 ({int((phantom(5)[0] == 3).sum())} voxels)" in err
    _, err = synthesise(home, maps, out, "--seed", 1, "--unknown_labels", "background", code=1)
    assert "its ids were other classes in" in err
    assert np.array_equal(volume(out / "unknown_T1w.nii.gz"), found)


def test_images_never_lie_among_the_label_maps(home: Path, maps: Path) -> None:
    assert "would be taken for label maps" in synthesise(home, maps, maps / "out", code=2)[1]
    assert not (maps / "out").exists()


def test_bids_maps_by_their_table_become_a_derivative(home: Path, tmp_path: Path) -> None:
    """Ids of the table, which are others than those of the training, and a list as --labels."""
    label, _ = phantom(5)
    map_ = save_nifti(tmp_path / "in/sub-1/anat/sub-1_dseg.nii.gz", label.astype(np.int16), LAS)
    (tmp_path / "in" / "dseg.tsv").write_text("index\tname\n" + "".join(f"{i}\t{n}\n" for i, n in enumerate(NAMES)))
    (tmp_path / "list.txt").write_text(f"# one\n{map_}\n")
    out, _ = synthesise(home, tmp_path / "list.txt", tmp_path / "out")
    assert "note: labels read by name, with dseg.tsv" in out
    assert files(tmp_path / "out") == {"sub-1/anat/sub-1_desc-synth_T1w.nii.gz"}
    assert json.loads((tmp_path / "out" / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    record = json.loads((tmp_path / "out/records/sub-1/anat/sub-1_desc-synth.json").read_text())
    assert record["classes"]["2"] == "grey_matter"
    save_nifti(tmp_path / "sub-1.nii.gz", source_ids(label), LAS)
    synthesise(home, tmp_path / "sub-1.nii.gz", tmp_path / "by_id")
    same = volume(tmp_path / "by_id/sub-1_T1w.nii.gz") - volume(tmp_path / "out/sub-1/anat/sub-1_desc-synth_T1w.nii.gz")
    assert not same.any()


LABELS = tuple(Label(i, name, SOURCES[i]) for i, name in enumerate(NAMES))
SPEC = DataSpec(LABELS, (Channel("CT", "HU"),), (16, 16), (2.0, 2.0), 2.0, "axial")


def test_nothing_of_a_map_is_lost_without_a_word(tmp_path: Path) -> None:
    """A body wider than the window is centred and cut, a voxel below the run's resolution vanishes, and both are said."""
    label = np.zeros((50, 20, 6), np.int16)
    label[5:45, 5:15] = 3
    label[10, 10, 2] = 99
    map_ = read_label_map_file(save_nifti(tmp_path / "a.nii.gz", label))
    sliced = slice_map(map_, ClassTable(SPEC.labels), SPEC, "a", ())
    small, cut = sliced.notes
    assert small == "too small for voxels of 2 x 2 x 2 mm, so not in the image: lesion"
    assert cut == "20 % of the labelled voxels lie outside the run's 16 x 16 pixels, so are background in the image"
    (batch,) = sliced.batches(8)
    assert batch.indices == [0, 1, 2]
    assert (batch.label[1] == 2).sum() == 16 * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--dataroot or --labels: give one of them"),
        ("--labels m --dataroot d --out o", "--dataroot and --labels: give one of them"),
        ("--labels m", "--labels: give --out"),
        ("--dataroot d --out o", "--out: goes with --labels"),
        ("--labels m --out o --metrics mae_body", "--metrics: goes with --dataroot"),
        ("--labels m --out o --label_map t.csv --label_ids class", "--label_map and --label_ids"),
    ],
)
def test_options_that_do_not_go_together(arguments: str, message: str) -> None:
    err = call("test.py", "--name", "run", *arguments.split(), code=2).stderr
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("model", "advice"), [("segmenter", "scripts/segment.py"), ("lesion", "scripts/add_lesions.py")]
)
def test_runs_that_make_no_images_of_labels_say_what_does(home: Path, tmp_path: Path, model: str, advice: str) -> None:
    config = replace(options.starting_values(model), name="run", dataroot=Path("data"))
    save_weights(
        weights_path(tmp_path / "runs" / "run", "best"), Weights({}, options.to_dict(config), SPEC.to_dict(), 1)
    )
    assert advice in synthesise(tmp_path, home / "maps", tmp_path / "out", runs="runs", code=2)[1]


def test_a_run_on_png_slices_says_what_it_lacks(home: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "gmm", replace(SPEC, axis=None), [[0.0, 1.0]])
    _, err = synthesise(tmp_path, home / "maps", tmp_path / "out", runs="runs", code=2)
    assert "direction and pixel size nobody knows" in err


def test_training_keeps_the_typical_window_in_its_weights(home: Path, tmp_path: Path) -> None:
    where = ["--dataroot", home / "data", "--checkpoints_dir", tmp_path, "--gpu_ids", -1]
    call("train.py", "--name", "g", "--model", "gmm", *where)
    assert load_weights(tmp_path / "g", "best").windows == [[0.0, 255.0]]


def test_weights_without_windows_take_them_from_their_training_data_or_say_so(home: Path) -> None:
    run = TrainedRun.of(home / "gmms" / "run", "best")
    old = replace(run, weights=replace(run.weights, windows=()))
    assert replace(old, config=replace(run.config, dataroot=home / "data")).windows() == (Window(0.0, 255.0),)
    with pytest.raises(ValueError, match="of an earlier version, do not say which units"):
        old.windows()


def test_one_slice(tmp_path: Path) -> None:
    """A slice in the run's direction is one, whatever its thickness; others are refused."""
    label = np.full((8, 8, 1), 3, np.int16)
    map_ = read_label_map_file(save_nifti(tmp_path / "a.nii.gz", label, np.diag([2.0, 2.0, 9.0, 1.0])))
    sliced = slice_map(map_, ClassTable(SPEC.labels), SPEC, "a", ())
    assert [item.index for item in sliced.case.slices] == [0]
    assert sliced.case.geometry.source_shape == (8, 8, 1)
    map_ = read_label_map_file(save_nifti(tmp_path / "b.nii.gz", label.transpose(2, 0, 1)))
    with pytest.raises(ValueError, match="is one slice, but not an axial one"):
        slice_map(map_, ClassTable(SPEC.labels), SPEC, "b", ())
