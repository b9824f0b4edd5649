"""scripts/generate.py from label maps to folders, through the command that users type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from dataloaders.io.geometry import stitch
from dataloaders.io.manifest import Manifest
from dataloaders.io.png import read_png
from dataloaders.labelmaps.generated_files import SampleLedger, read_params, read_record
from dataloaders.labelmaps.image_generator import ImageGenerator
from dataloaders.labelmaps.maps import read_label_map_file
from dataloaders.labelmaps.schemes import read_scheme
from models.gmm.scheme import LabelScheme
from tests.launch import Done, call
from tests.toy import phantom, prepared_folder, save_nifti

SHAPE = (14, 16, 10)
PSR = np.array([[0, 0, -1.5, 9], [-1.0, 0, 0, 5], [0, 2.0, 0, -4], [0, 0, 0, 1]])  # left-right is the last but one


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    for i, affine in enumerate((np.diag([1.0, 1.0, 2.0, 1.0]), PSR)):
        label = phantom(i, SHAPE)[0].astype(np.uint8)
        save_nifti(tmp_path / "maps" / f"m{i}.nii.gz", label, affine)
    return tmp_path / "maps"


def run(maps: Path, out: Path, *extra: object, code: int = 0) -> Done:
    return call("scripts/generate.py", "--labels", maps, "--out", out, "--n", 4, *extra, code=code)


def samples(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "samples.json").read_text())["samples"]


def voxels(path: Path) -> NDArray:
    return np.asarray(nib.load(path).dataobj)


def assert_replayed(generator: ImageGenerator, maps: Path, out: Path, form: str = "json") -> list[dict[str, Any]]:
    """Each sample comes again from its file in `params`, to the bit; what these record."""
    records = [(read_record(path), read_params(path)) for path in sorted((out / "params").glob(f"*.{form}"))]
    for record, params in records:
        source = read_label_map_file(maps / record["map"]["file"])
        image, labels = generator.replay(source, params, subclasses=record.get("subclasses") or ())
        np.testing.assert_array_equal(voxels(out / record["images"][0]), image)
        np.testing.assert_array_equal(voxels(out / record["labels"][0]), labels)
    return [record for record, _ in records]


def content(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, which names its folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "manifest.json")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def times(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*.*") if p.name not in ("samples.json", ".lock")}


def test_volumes(maps: Path, tmp_path: Path) -> None:
    """The second call writes nothing, and more samples are added."""
    out, flags = tmp_path / "out", ("--channels", 2, "--gamma_std", 0.3)
    assert "4 made, 0 kept, 0 missing; 4 whole" in run(maps, out, *flags).stdout
    made = samples(out)
    assert [sample["number"] for sample in made] == [0, 1, 2, 3]
    assert {sample["map"]["file"] for sample in made} == {"m0.nii.gz", "m1.nii.gz"}
    for sample in made:
        source = nib.load(maps / sample["map"]["file"])
        label = nib.load(out / sample["labels"][0])
        assert sample["labels"] == [f"labels/{sample['case']}.nii.gz"]
        assert sample["images"] == [f"images/{sample['case']}_{c:04d}.nii.gz" for c in range(2)]
        assert sample["case"] == f"{sample['map']['file'][:2]}_s{sample['number']:05d}"
        for name in sample["images"]:
            image = nib.load(out / name)
            assert image.shape == label.shape == source.shape
            assert image.get_data_dtype() == np.float32
            for affine in (image.affine, label.affine):
                np.testing.assert_allclose(affine, source.affine, atol=1e-5)
            assert 0 <= image.get_fdata().min() < image.get_fdata().max() <= 1
        assert set(np.unique(label.get_fdata())) <= set(range(5))
    settings = json.loads((out / "settings.json").read_text())["settings"]
    assert settings["gamma_std"] == 0.3
    assert settings["bias_field_std"] == [0.7]  # of the preset
    assert str(tmp_path) not in json.dumps([made, settings])
    before = times(out)
    assert "0 made, 4 kept" in run(maps, out, *flags).stdout
    assert before == times(out)
    assert "2 made, 4 kept, 0 missing; 6 whole" in run(maps, out, *flags, "--n", 6).stdout


def test_a_sample_is_that_of_the_image_generator(maps: Path, tmp_path: Path) -> None:
    run(maps, tmp_path / "out", "--seed", 7, "--size", 12, 12, 8)
    generator = ImageGenerator(maps, preset="synthseg", seed=7, output_shape=[12, 12, 8])
    for sample in samples(tmp_path / "out"):
        expected = generator.sample(sample["number"])
        found = nib.load(tmp_path / "out" / sample["images"][0])
        np.testing.assert_array_equal(np.asarray(found.dataobj), expected.image)
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)


@pytest.mark.slow
def test_anatomies_are_made_once_and_painted(maps: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "0 made, 0 kept, 0 missing; 0 whole" in run(maps, out, "--anatomies", 3, "--n", 0).stdout  # the maps alone
    files = sorted((out / "anatomies").glob("*.nii.gz"))
    assert [file.name for file in files] == [f"anatomy{k:05d}.nii.gz" for k in range(3)]
    before = times(out / "anatomies")
    assert len([path for path in before if path.suffix == ".safetensors"]) == 2
    grids = [nib.load(path) for path in sorted(maps.iterdir())]
    for file in files:
        image = nib.load(file)
        assert any(image.shape == g.shape and np.allclose(image.affine, g.affine, atol=1e-5) for g in grids)
        assert set(np.unique(image.dataobj)) <= set(range(5))
    for shard in ("1/2", "0/2"):  # in any order, and with worker processes, the same
        run(maps, tmp_path / "shards", "--anatomies", 3, "--shard", shard, "--num_workers", int(shard == "1/2"))
    assert "4 made" in run(maps, out, "--anatomies", 3).stdout
    assert before == times(out / "anatomies")
    painted, shared = (content(folder / "images") for folder in (out, tmp_path / "shards"))
    assert painted == shared
    assert {name[:12] for name in painted} <= {f"anatomy{k:05d}" for k in range(3)}
    assert "--anatomies.count: was 3, now 2" in run(maps, out, "--anatomies", 2, code=2).stderr
    assert "--n 0: only with --anatomies" in run(maps, tmp_path / "no", "--n", 0, code=2).stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "stop"), [("none", KeyboardInterrupt), ("axial", OSError(28, "No space left on device"))]
)
def test_a_stopped_run_leaves_no_half_sample(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, stop: BaseException
) -> None:
    out = tmp_path / "out"
    write, count = SampleLedger.save, []

    def failing(*arguments: object) -> None:
        count.append(1)
        if len(count) == 3:
            raise stop
        write(*arguments)

    monkeypatch.setattr(SampleLedger, "save", failing)
    done = run(maps, out, "--slices", mode, code=130 if stop is KeyboardInterrupt else 2)
    assert done.stderr.startswith("interrupted" if stop is KeyboardInterrupt else "error: [Errno 28] No space")
    assert [sample["number"] for sample in samples(out)] == [0, 1]
    listed = {file for sample in samples(out) for file in [*sample["images"], *sample["labels"], sample["params"]]}
    names = {"samples.json", "settings.json", ".lock"} | ({"manifest.json"} if mode != "none" else set())
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == listed | names
    monkeypatch.undo()
    assert "2 made, 2 kept" in run(maps, out, "--slices", mode).stdout
    run(maps, tmp_path / "fresh", "--slices", mode)
    assert content(out) == content(tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "coronal"])
def test_shards_and_workers_make_the_same(maps: Path, tmp_path: Path, mode: str) -> None:
    run(maps, tmp_path / "whole", "--slices", mode)
    for shard in ("1/2", "0/2"):
        run(maps, tmp_path / "shards", "--slices", mode, "--shard", shard)
    assert content(tmp_path / "shards") == content(tmp_path / "whole")
    if mode == "none":
        run(maps, tmp_path / "workers", "--num_workers", 2)
        assert content(tmp_path / "workers") == content(tmp_path / "whole")
    else:
        whole, shards = (Manifest.load(tmp_path / name) for name in ("whole", "shards"))
        assert (whole.spec, whole.cases) == (shards.spec, shards.cases)


@pytest.mark.parametrize("form", ["json", "safetensors"])
def test_parameters_make_the_image_again(maps: Path, tmp_path: Path, form: str) -> None:
    run(maps, tmp_path / "out", "--save_params", form, "--preset", "fetal", "--motion_prob", 0)
    generator = ImageGenerator(maps, scheme=LabelScheme.from_values(range(5)), seed=99)
    assert len(assert_replayed(generator, maps, tmp_path / "out", form)) == 4


def test_bids_names(tmp_path: Path) -> None:
    label = phantom(0, SHAPE)[0].astype(np.uint8)
    save_nifti(tmp_path / "in/sub-01/ses-a/anat/sub-01_ses-a_space-T1w_desc-aseg_dseg.nii.gz", label)
    save_nifti(tmp_path / "in/sub-02/anat/sub-02_dseg.nii.gz", label)
    save_nifti(tmp_path / "in/sub-02/anat/sub-02_T1w.nii.gz", label)
    out = tmp_path / "out"
    run(tmp_path / "in", out)
    description = json.loads((out / "dataset_description.json").read_text())
    assert (description["GeneratedBy"][0]["Name"], description["DatasetType"]) == ("medsis", "derivative")
    for sample in samples(out):
        one = sample["map"]["file"].startswith("sub-01")
        stem = "sub-01/ses-a/anat/sub-01_ses-a_space-T1w" if one else "sub-02/anat/sub-02"
        stem = f"{stem}_desc-synth{sample['number']:05d}"
        assert (sample["images"], sample["labels"]) == ([f"{stem}_image.nii.gz"], [f"{stem}_dseg.nii.gz"])
        assert (out / sample["images"][0]).is_file()
    run(tmp_path / "in", tmp_path / "two", "--channels", 2)
    assert len(list((tmp_path / "two").rglob("*_ch1image.nii.gz"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_slices_are_a_results_folder(maps: Path, tmp_path: Path, axis: str) -> None:
    """Their stacks are the volumes of the other mode, in the maps' own axes."""
    lists = {"--generation_labels": np.arange(5), "--output_labels": np.array([0, 0, 7, 3, 7])}
    flags: list[object] = ["--channels", 2]
    for flag, values in lists.items():
        np.save(tmp_path / f"{flag}.npy", values)
        flags += [flag, tmp_path / f"{flag}.npy"]
    run(maps, tmp_path / "volumes", *flags)
    out = tmp_path / "slices"
    assert "voxel sizes of the maps differ" in run(maps, out, *flags, "--slices", axis).stdout
    manifest = Manifest.load(out)
    assert manifest.spec.axis == axis
    assert [(label.id, label.source) for label in manifest.spec.labels] == [(0, (0,)), (1, (3,)), (2, (7,))]
    for case, sample in zip(manifest.cases, samples(tmp_path / "volumes"), strict=True):
        assert case.id == sample["case"]
        volume = nib.load(tmp_path / "volumes" / sample["labels"][0])
        expected = np.asarray(volume.dataobj)
        planes = {item.index: read_png(out / item.label) for item in case.slices}
        assert all(plane.any() and plane.shape == manifest.spec.size for plane in planes.values())
        ids, affine = stitch(case.geometry, manifest.spec.axis, planes, 0, labels=True)
        np.testing.assert_array_equal(np.array([0, 3, 7])[ids], expected)
        np.testing.assert_allclose(affine, volume.affine, atol=1e-5)
        for c in range(2):
            image = voxels(tmp_path / "volumes" / sample["images"][c])
            shown = {i.index: case.windows[c].decode(read_png(out / i.generated[c])) for i in case.slices}
            stack, _ = stitch(case.geometry, manifest.spec.axis, shown, -1.0)
            kept = stack >= 0
            assert kept[expected > 0].all()
            assert np.abs(stack - image)[kept].max() <= 0.5 / 65535 + 1e-6
        counts = {i: sum(item.histogram.get(i, 0) for item in case.slices) for i in (1, 2)}
        assert counts == {1: (expected == 3).sum(), 2: (expected == 7).sum()}


@pytest.mark.slow
@pytest.mark.parametrize("flat", [0, 1, 2])
def test_two_dimensional_maps(tmp_path: Path, flat: int) -> None:
    label = np.expand_dims(phantom(0, (16, 18, 9))[0].astype(np.uint8)[..., 5], flat)
    one = save_nifti(tmp_path / "map.nii.gz", label, np.diag([2.0, 3.0, 4.0, 1.0]))
    run(one, tmp_path / "out", "--channels", 2)
    for path in (tmp_path / "out").rglob("*.nii.gz"):
        assert nib.load(path).shape == label.shape
    axes = ("sagittal", "coronal", "axial")
    run(one, tmp_path / "slices", "--slices", axes[flat])
    assert [len(case.slices) for case in Manifest.load(tmp_path / "slices").cases] == [1] * 4
    error = run(one, tmp_path / "s", "--slices", axes[flat - 1], code=2).stderr
    assert f"give --slices {axes[flat]}" in error


def test_a_bad_map_costs_its_own_samples_only(maps: Path, tmp_path: Path) -> None:
    good = (maps / "m0.nii.gz").read_bytes()
    (maps / "m0.nii.gz").write_bytes(good[:100])
    done = run(maps, tmp_path / "out", code=1)
    assert done.stderr.count("\n") == 1
    assert "m0.nii.gz: truncated or damaged gzip file" in done.stderr
    made = samples(tmp_path / "out")
    assert {sample["map"]["file"] for sample in made} == {"m1.nii.gz"}
    assert f"{len(made)} made, 0 kept, {4 - len(made)} missing" in done.stdout
    (maps / "m0.nii.gz").write_bytes(good)  # mended: only what is missing is made, as if nothing had been wrong
    assert f"{4 - len(made)} made, {len(made)} kept" in run(maps, tmp_path / "out").stdout
    run(maps, tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--preset fitted", "give --priors FILE"),
        ("--shard 0/9", "only --n 4 samples"),
        ("--size 8 --output_shape 8", "are the same"),
        ("--size 8 8", "--size has 2 values"),
        ("--size 5000", "--size 5000: asks for 5000 x 5000 x 5000 voxels of a map of 14 x 16 x 10"),
        ("--subclasses 1 2", "--subclasses 1 2 needs --seeds"),
        ("--priors p.json --prior_means_file p.npy", "--priors and --prior_means_file cannot both be given"),
        ("--anatomies 2 --lesions masks", "--anatomies and --lesions cannot both be given"),
        ("--subjects_prob 1 2 3", "--subjects_prob 1 2 3: 3 values for 2 label maps"),
        ("--scheme freesurfer", "--scheme freesurfer: the maps hold 1"),
        ("--neutral_labels 3", "--neutral_labels needs --generation_labels"),
        ("--prior_means_file missing.npy", "missing.npy"),
        ("--labels missing", "missing: no such file or folder"),
    ],
)
def test_user_errors_are_one_line(maps: Path, tmp_path: Path, flags: str, message: str) -> None:
    error = run(maps, tmp_path / "out", *flags.split(), code=2).stderr
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_maps_from_a_list_and_priors_from_arrays(maps: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{maps / 'm0.nii.gz'}\n{maps / 'm1.nii.gz'}\n")
    means = np.array([[0, 50, 100, 150, 200], [0, 0, 0, 0, 0]])
    np.save(tmp_path / "means.npy", means)
    np.save(tmp_path / "stds.npy", np.zeros((2, 5)))
    still = "--no-flipping --scaling_bounds 0 --rotation_bounds 0 --shearing_bounds 0 --nonlin_std 0 --blur 0"
    still += " --bias_field_std 0 --gamma_std 0 --normalise window --resolution_mix 1 0 0 0 --background class"
    given = ["--prior_means_file", tmp_path / "means.npy", "--prior_stds_file", tmp_path / "stds.npy"]
    run(tmp_path / "list.txt", tmp_path / "out", *still.split(), *given, "--prior_distributions", "normal")
    for sample in samples(tmp_path / "out"):
        image, label = (voxels(tmp_path / "out" / sample[kind][0]) for kind in ("images", "labels"))
        np.testing.assert_array_equal(label, voxels(maps / sample["map"]["file"]))
        np.testing.assert_allclose(image, means[0][label] / 255, atol=1e-6)


def test_schemes_by_name() -> None:
    assert read_scheme("feta", ()).num_labels == 8
    assert read_scheme("seeds", [10, 11, 20]).outputs == (0, 1, 1, 2)
    assert read_scheme("freesurfer", [0, 2, 41]).partners == (0, 2, 1)
    kidneys = read_scheme("totalsegmentator", [0, 2, 3, 13])
    assert kidneys.values == kidneys.outputs == (0, 2, 3, 13)
    assert kidneys.partners == (0, 2, 1, 3)
    assert kidneys.names == ("background", "kidney_right", "kidney_left", "lung_middle_lobe_right")
    lobes = read_scheme("totalsegmentator", [0, 10, 5])
    assert (lobes.values, lobes.partners) == ((0, 5, 10, 12), (0, 1, 3, 2))  # with the lobe on the other side
    with pytest.raises(ValueError, match=r"--scheme csf-gm-wm: does not name 7 of the maps; all are in .*feta.*totals"):
        read_scheme("csf-gm-wm", [0, 1, 7])


def test_schemes_from_files(tmp_path: Path) -> None:
    table, scheme = tmp_path / "dseg.tsv", tmp_path / "scheme.json"
    table.write_text("index\tname\n0\tbackground\n4\tcsf\n9\tgrey_matter\n11\tcsf\n")
    fused = read_scheme(str(table), [0, 4, 9, 11])
    assert (fused.values, fused.classes, fused.outputs) == ((0, 4, 11, 9), (0, 1, 1, 2), (0, 4, 4, 9))
    assert fused.partners == (0, 1, 2, 3)  # no name has a side
    seeds = read_scheme("seeds", [10, 11, 20])
    scheme.write_text(json.dumps(seeds.to_dict()))
    assert read_scheme(str(scheme), ()) == seeds
    for sided in (
        {"left lung": 1, "right lung": [2]},
        {"values": [0, 1, 2], "names": ["air", "left x", "right x"]},
        {"values": [0, 1, 2], "n_neutral_labels": 1},
    ):
        scheme.write_text(json.dumps(sided))
        assert read_scheme(str(scheme), [0, 1, 2]).partners == (0, 2, 1)
    for bad in ({"names": []}, {"values": [0], "colour": 3}, {"values": [0, 0]}, {"values": [0], "partners": [3]}):
        scheme.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=r"--scheme .*scheme\.json"):
            read_scheme(str(scheme), ())
    prepared = read_scheme(str(prepared_folder(tmp_path / "data")), ())
    assert prepared.names == ("background", "csf", "grey_matter", "white_matter", "lesion")
