"""Volumes through a network: windows, neighbours, orientations and grids."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from config import Config, starting_values
from dataloaders.io.intensity import robust_unit, shown
from dataloaders.io.pictures import hex_color, label_colors
from dataloaders.io.spec import DataSpec, Label
from dataloaders.segmenter.task import SHOWN
from engine.segmentation import Predictor, box_of
from models.segmenter.options import SegmenterConfig
from scripts.segment import SegmentOptions, implausible, parse, segment
from tests.toy import phantom, save_nifti, toy_spec

LIMITS = torch.tensor([0.1, 0.35, 0.55, 0.85])  # intensities between the phantom's labels


class Threshold:
    """A network that knows the answer: the class is the number of LIMITS below the middle slice's intensity."""

    def __init__(self, spec: DataSpec, stack: int = 1) -> None:
        self.spec, self.stack = spec, stack

    def logits(self, image: Tensor) -> Tensor:
        middle = image[:, self.stack // 2]
        return 20 * torch.nn.functional.one_hot(torch.bucketize(middle.contiguous(), LIMITS), 5).movedim(-1, 1).float()


class Position:
    """A 2.5-D network whose logit is the slice after less the slice before: finds out whether neighbours are in order."""

    spec = toy_spec(labels=2)

    def logits(self, image: Tensor) -> Tensor:
        rising = image[:, 2] - image[:, 0]
        return torch.stack([torch.zeros_like(rising), rising], 1)


def config(**values: object) -> Config:
    o = replace(SegmenterConfig(features=(4, 4, 4, 4, 4), patch=(16,)), **values)
    return replace(starting_values("segmenter"), name="x", dataroot=Path("x"), segmenter=o)


def spec(mm: tuple[float, float, float] = (1.0, 1.0, 1.0), axis: str = "axial") -> DataSpec:
    rows = {"axial": (mm[1], mm[0], mm[2]), "coronal": (mm[2], mm[0], mm[1]), "sagittal": (mm[2], mm[1], mm[0])}[axis]
    return replace(toy_spec(), spacing=rows[:2], slice_spacing=rows[2], axis=axis)


def predictor(dims: int = 3, axis: str = "axial", mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Predictor:
    stack = 1 if dims == 3 else 3
    return Predictor(Threshold(spec(mm, axis), stack), config(dims=dims), torch.device("cpu"))


def smooth_phantom(shape: tuple[int, int, int] = (40, 48, 24)) -> tuple[NDArray, NDArray[np.float32]]:
    """Labels 0..4 and an image that says them exactly."""
    label, _ = phantom(1, shape)
    return label, (np.array([0.0, 60, 110, 170, 240], np.float32))[label]


def test_structures_are_counted_together_as_tissue() -> None:
    """Probabilities of the structures of a tissue add up, whatever their own order of size."""
    named = ("background", "left putamen", "right putamen", "brain stem", "3rd ventricle")
    network = Threshold(spec(), 1)
    network.spec = replace(network.spec, labels=tuple(Label(i, name) for i, name in enumerate(named)))
    merged = Predictor(network, config(dims=3), torch.device("cpu"), tissue=True)
    assert [label.name for label in merged.spec.labels] == ["background", "csf", "grey_matter", "white_matter"]
    image = torch.rand(1, 1, 4, 4, 4)
    whole, own = merged.logits(image).softmax(1), network.logits(image).softmax(1)
    expected = torch.stack([own[:, 0], own[:, 4], own[:, 1] + own[:, 2], own[:, 3]], 1)
    assert torch.allclose(whole, expected, atol=1e-5)
    assert merged.config.segmenter.classes == "tissue"


@pytest.mark.parametrize(("dims", "axis"), [(3, "axial"), (2, "axial"), (2, "coronal"), (2, "sagittal")])
def test_windows_are_put_together_where_they_came_from(dims: int, axis: str) -> None:
    """Volumes of any size, none a multiple of the window."""
    image = np.random.default_rng(0).random((1, 37, 21, 18), np.float32)
    found = predictor(dims, axis).probabilities(image)
    assert np.allclose(found.sum(0), 1, atol=1e-5)
    assert np.array_equal(found.argmax(0), torch.bucketize(torch.from_numpy(image[0]), LIMITS).numpy())


def test_neighbours_are_before_and_after() -> None:
    ramp = np.broadcast_to(np.linspace(0.1, 1, 12, dtype=np.float32), (1, 16, 16, 12))
    for axis, volume in (("axial", ramp), ("coronal", ramp.swapaxes(2, 3)), ("sagittal", ramp.swapaxes(1, 3))):
        network = Position()
        network.spec = replace(network.spec, axis=axis)
        label = Predictor(network, config(dims=2), torch.device("cpu")).label(np.ascontiguousarray(volume))
        assert (label == 1).all()


def test_specks_and_noise_in_air_do_not_move_the_windows() -> None:
    """A faint voxel far off, a bright one, a marker beside the head, noise of one per cent: the box stays where it was."""
    _, inner = smooth_phantom()
    image = np.pad(inner, 20)
    clean = box_of(shown(robust_unit(image)[None]))
    far = image.copy()
    far[1, 1, 1], far[-2, 3, -2] = 5, 240
    far[-4:-2, 1:3, 1:3] = 200
    noisy = np.abs(image + np.random.default_rng(0).normal(0, 2.4, image.shape)).astype(np.float32)
    for other in (far, noisy):
        assert box_of(shown(robust_unit(other)[None])) == clean
    specks = 0.2 * (np.random.default_rng(1).random(image.shape) < 0.02)
    loud = np.maximum(robust_unit(noisy), specks).astype(np.float32)
    found = predictor().label(loud[None])  # of a class's brightness
    assert not found[:16].any()
    assert found[20:-20, 20:-20, 20:-20].any()
    assert all(side.stop - side.start < size - 10 for side, size in zip(clean, image.shape, strict=True))


ORIENTATIONS = {
    "RAS": np.eye(4),
    "LPI": np.diag([-1.0, -1.0, -1.0, 1.0]),
    "turned": np.array([[0, 0, -1.0, 3], [1.0, 0, 0, -7], [0, 1.0, 0, 2], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_segmentations_lie_in_the_space_of_their_scan(name: str, tmp_path: Path) -> None:
    """The network sees RAS whatever the file's axes, and what it finds goes back to the file's voxels exactly."""
    label, image = smooth_phantom()
    path = save_nifti(tmp_path / "scan.nii.gz", image, ORIENTATIONS[name])
    o = SegmentOptions(input=(path,), output=tmp_path / "out", posteriors=tmp_path / "out", vol=tmp_path / "v.csv")
    report = segment(o, predictor(), {"name": "x", "weights_sha256": "0"})
    assert (report.made, report.faults) == (1, [])
    found = nib.load(tmp_path / "out" / "scan_dseg.nii.gz")
    assert np.array_equal(np.asarray(found.dataobj), label)
    assert np.array_equal(found.affine, ORIENTATIONS[name])
    posteriors = nib.load(tmp_path / "out" / "scan_probseg.nii.gz").get_fdata()
    assert np.array_equal(posteriors.argmax(-1), label)
    header, row = (tmp_path / "v.csv").read_text().splitlines()
    assert header == "scan,csf,grey_matter,white_matter,lesion,total"
    assert float(row.split(",")[2]) == (label == 2).sum()
    assert (tmp_path / "out" / "scan_qc.png").stat().st_size > 1000


def test_volumes_are_in_mm3_and_thick_slices_come_back(tmp_path: Path) -> None:
    label, image = smooth_phantom()
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    path = save_nifti(tmp_path / "scan.nii.gz", image, affine)
    o = SegmentOptions(input=(path,), output=tmp_path / "out.nii.gz", pictures=False, vol=tmp_path / "v.csv")
    segment(o, predictor(mm=(1.5, 1.5, 1.5)), {"name": "x", "weights_sha256": "0"})
    found = nib.load(tmp_path / "out.nii.gz")
    assert found.shape == label.shape
    assert (np.asarray(found.dataobj) == label).mean() > 0.9
    volume = float((tmp_path / "v.csv").read_text().splitlines()[1].split(",")[3])
    assert volume == pytest.approx((label == 3).sum() * 3, rel=0.15)
    assert (tmp_path / "out.json").is_file()


def test_faults_cost_their_own_scan_and_a_repeated_call_does_the_rest(tmp_path: Path) -> None:
    _, image = smooth_phantom()
    for i in range(3):
        save_nifti(tmp_path / "in" / f"sub-{i}" / "anat" / f"sub-{i}_T1w.nii.gz", image)
    broken = tmp_path / "in" / "sub-1" / "anat" / "sub-1_T1w.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    o = SegmentOptions(input=(tmp_path / "in",), output=tmp_path / "out", pictures=False, vol=tmp_path / "v.csv")
    model = {"name": "x", "weights_sha256": "0"}
    report = segment(o, predictor(), model)
    assert (report.made, report.kept) == (2, 0)
    assert len(report.faults) == 1
    assert str(broken) in report.faults[0]
    assert len((tmp_path / "v.csv").read_text().splitlines()) == 3
    assert not list((tmp_path / "out" / "sub-1").glob("**/*"))
    broken.write_bytes(whole)
    assert (segment(o, predictor(), model).made, segment(o, predictor(), model).kept) == (1, 3)
    assert '"DatasetType": "derivative"' in (tmp_path / "out" / "dataset_description.json").read_text()
    made = tmp_path / "out" / "sub-0" / "anat" / "sub-0_desc-T1w_dseg.nii.gz"
    assert made.is_file()
    # half-written: without made_from, which is written last, the scan is made again
    record = made.with_name(made.name.replace("nii.gz", "json"))
    record.write_text(json.dumps({"schema": json.loads(record.read_text())["schema"]}))
    assert segment(replace(o, shard="1/3"), predictor(), model).kept == 1
    assert len((tmp_path / "v.csv").read_text().splitlines()) == 3
    assert segment(o, predictor(), model).made == 1
    other = segment(o, predictor(), {"name": "x", "weights_sha256": "1"})
    assert len(other.faults) == 3
    assert "give --overwrite" in other.faults[0]
    assert segment(replace(o, overwrite=True), predictor(), {"name": "x", "weights_sha256": "1"}).made == 3


def test_the_table_beside_segmentations_has_the_colours_of_the_training(tmp_path: Path) -> None:
    """Those that a table gave the training's labels, through the weight file's metadata; others are drawn apart."""
    save_nifti(tmp_path / "in/sub-0/anat/sub-0_T1w.nii.gz", smooth_phantom()[1])
    labels = tuple(replace(label, color="#1234ab" if label.id == 2 else "") for label in spec().labels)
    read = DataSpec.from_dict(json.loads(json.dumps(replace(spec(), labels=labels).to_dict())))
    o = SegmentOptions(input=(tmp_path / "in",), output=tmp_path / "out", pictures=False)
    segment(o, Predictor(Threshold(read), config(dims=3), torch.device("cpu")), {})
    rows = (tmp_path / "out" / "dseg.tsv").read_text().splitlines()
    drawn = hex_color(label_colors(spec().labels)[1])
    assert rows[:3] == ["index\tname\tcolor", "0\tbackground\t#000000", f"1\tcsf\t{drawn}"]
    assert rows[3].endswith("\t#1234ab")


def test_bids_uris_lead_to_the_scans(tmp_path: Path) -> None:
    _, image = smooth_phantom()
    for i in (1, 2):
        save_nifti(tmp_path / f"bids{i}/sub-{i}/anat/sub-{i}_T1w.nii.gz", image)
    out = tmp_path / "derivatives/out"
    for i in (1, 2):  # the second call adds its data set to what the first wrote
        o = SegmentOptions(input=(tmp_path / f"bids{i}",), output=out, pictures=False)
        assert segment(o, predictor(), {}).made == 1
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    for i in (1, 2):
        (uri,) = json.loads((out / f"sub-{i}/anat/sub-{i}_desc-T1w_dseg.json").read_text())["Sources"]
        kind, name, path = uri.split(":")
        assert kind == "bids"
        assert (out / links[name] / path).resolve() == tmp_path / f"bids{i}/sub-{i}/anat/sub-{i}_T1w.nii.gz"


def test_refusals_leave_everything_as_it_was(tmp_path: Path) -> None:
    scan = save_nifti(tmp_path / "a.nii.gz", smooth_phantom()[1])
    (tmp_path / "notes").write_text("mine")
    before, x = {path.name: path.read_bytes() for path in tmp_path.iterdir()}, tmp_path / "x"
    for options, message in (
        ({"output": scan}, "--output .*a.nii.gz: is a scan of --input, which would be replaced"),
        ({"output": x, "posteriors": scan}, "--posteriors .* which would be replaced"),
        ({"output": x, "resample": scan}, "--resample .* which would be replaced"),
        ({"output": tmp_path / "notes"}, "--output .*notes: is a file; name a folder, or"),
        ({"output": tmp_path / "b.nii", "input": (scan, x)}, "--output .*b.nii: one file for 2 scans; name a folder"),
        ({"output": x, "input": (tmp_path / "no*.nii.gz",)}, r"--input .*no\*.nii.gz: no scan and no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            segment(SegmentOptions(**{"input": (scan,)} | options), predictor(), {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_segmentation_made_by_hand_is_not_replaced(tmp_path: Path) -> None:
    """Whatever lies where an output would go, without a record; a process that was killed left its claim."""
    _, image = smooth_phantom()
    scan = save_nifti(tmp_path / "a.nii.gz", image)
    o = SegmentOptions(input=(scan,), output=tmp_path / "out")
    for name in ("a_dseg.nii.gz", "a_dseg.json", "a_qc.png"):
        own = tmp_path / "out" / name
        own.parent.mkdir(exist_ok=True)
        own.write_bytes(b'{"by": "hand"}')
        (fault,) = segment(o, predictor(), {}).faults
        assert fault.endswith(f" {own}: no record of this command is beside it; move it away, or give --overwrite")
        assert own.read_bytes() == b'{"by": "hand"}'
        assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
        assert segment(replace(o, overwrite=True), predictor(), {}).made == 1
        shutil.rmtree(tmp_path / "out")
    with mock.patch("scripts.segment.save_overlay", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        segment(o, predictor(), {})
    assert (tmp_path / "out" / "a_dseg.nii.gz").is_file()
    assert segment(o, predictor(), {}).made == 1
    assert segment(o, predictor(), {}).kept == 1


def test_synthsegs_options_crop_ct_and_qc(tmp_path: Path) -> None:
    """CT is clipped to the brain's window; a crop is a box in the centre; quality is a table."""
    label, image = smooth_phantom()
    hu = np.where(label == 0, -1000, image / 3).astype(np.float32)
    hu[label == 1] = 1000  # bone
    path = save_nifti(tmp_path / "scan.nii.gz", hu)
    words = ["--i", str(path), "--o", str(tmp_path / "out"), "--ct", "--crop", "12", "--qc", str(tmp_path / "q.csv")]
    o = parse([*words, "--no-qc"])
    assert (o.ct, o.crop, o.qc, o.pictures) == (True, (12,), tmp_path / "q.csv", False)
    assert parse(["--i", "x", "--o", "y", "--qc", "--ct"]).qc is None  # the picture, as before
    network = predictor()
    network.crop = o.crop
    segment(o, network, {})
    found = np.asarray(nib.load(tmp_path / "out" / "scan_dseg.nii.gz").dataobj)
    middle = tuple(slice((size - 12) // 2, (size - 12) // 2 + 12) for size in label.shape)
    inside = np.zeros(label.shape, bool)
    inside[middle] = True
    assert not found[~inside].any()
    wanted = torch.bucketize(torch.from_numpy(robust_unit(np.clip(hu, 0, 80))), LIMITS).numpy()
    assert np.array_equal(found[middle], wanted[middle])
    assert len(np.unique(found[middle])) > 2
    header, row = (tmp_path / "q.csv").read_text().splitlines()
    assert header == "scan,background,csf,grey_matter,white_matter,lesion,implausible"
    values = [float(text) for text in row.split(",")[1:-1] if text]
    assert len(values) > 2
    assert all(0.9 < value <= 1 for value in values)
    other = segment(replace(o, crop=()), predictor(), {})
    assert "give --overwrite" in other.faults[0]
    for wrong in (["--crop", "0"], ["--crop", "4", "4"], ["--qc", "x.txt"]):
        with pytest.raises(ValueError, match="must "):
            parse(["--i", "x", "--o", "y", *wrong])


def test_scans_that_are_not_like_the_training_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label, image = smooth_phantom()
    path = save_nifti(tmp_path / "scan.nii.gz", image, np.diag([4.0, 4.0, 4.0, 1.0]))
    ml = {name: (label == i).sum() * 0.064 for i, name in enumerate(("csf", "grey_matter", "white_matter"), 1)}
    whole = float((label > 0).sum() * 0.064)
    fits = {name: (0.9 * v, 1.1 * v) for name, v in ml.items()} | {SHOWN: (0.9 * whole, 1.1 * whole)}
    o = SegmentOptions(input=(path,), output=tmp_path / "out", pictures=False, qc=tmp_path / "q.csv")
    mm = (4.0, 4.0, 4.0)
    segment(o, predictor(mm=mm), {}, fits)
    assert capsys.readouterr().err == ""
    smaller = {name: (low / 3, high / 3) for name, (low, high) in fits.items()}
    segment(replace(o, output=tmp_path / "other"), predictor(mm=mm), {}, smaller)
    said = capsys.readouterr().err
    assert f"warning: {path}: " in said
    assert re.search(rf"{SHOWN} [\d,]+ ml \(in training {0.3 * whole:,.0f} to {1.1 / 3 * whole:,.0f}\)", said)
    assert "skull stripped or not" in said
    assert "skull stripped or not" in (tmp_path / "q.csv").read_text()
    assert implausible({SHOWN: 1000.0, "lesion": 0.0}, {SHOWN: (1.0, 2.0), "lesion": (2.0, 9.0)}) == ""  # few ml


def test_a_defect_costs_its_scan_and_keeps_its_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        save_nifti(tmp_path / "in" / f"{name}.nii.gz", smooth_phantom()[1])
    network, o = predictor(), SegmentOptions(input=(tmp_path / "in",), output=tmp_path / "out", pictures=False)
    found = network.probabilities(np.zeros((1, 40, 48, 24), np.float32))
    with mock.patch.object(network, "probabilities", side_effect=[IndexError("of ours"), found]):
        report = segment(o, network, {})
    assert (report.made, report.faults) == (1, [f"{tmp_path / 'in' / 'a.nii.gz'}: of ours"])
    assert "IndexError: of ours" in capsys.readouterr().err
