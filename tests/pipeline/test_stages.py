from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from dataloaders.io.files import read_json
from dataloaders.io.manifest import Manifest
from dataloaders.io.nifti import read_volume
from dataloaders.io.png import read_png
from evaluation.metrics.segmentation import dice
from pipeline import scores
from pipeline.context import Excluded
from pipeline.project import Project
from pipeline.rules.images import harmonise, n4
from tests.pipeline.conftest import Fakes, go, undone
from tests.pipeline.heads import MM, affine, head, study
from tests.toy import save_nifti

pytestmark = pytest.mark.slow

Copied = Callable[..., Path]


def test_a_gan_paints_the_labels_of_the_gmm(tmp_path: Path, with_gan: Path) -> None:
    project, _ = go(with_gan)
    assert undone(project) == {}
    work = tmp_path / "work"
    for case in ("sub-01", "sub-03"):
        gmm, gan = work / "synthesise" / "hmrf_bet" / case, work / "paint" / "hmrf_bet_gan" / case
        pairs = zip(Manifest.load(gmm).cases[0].slices, Manifest.load(gan).cases[0].slices, strict=True)
        for a, b in pairs:
            np.testing.assert_array_equal(read_png(gmm / a.label), read_png(gan / b.label))
            assert (gan / b.images[0]).is_file()
    table = read_json(work / "evaluate" / "scores.json")
    assert set(table["real"]) == {"hmrf_bet", "hmrf_bet_gan"}
    assert set(table["synthetic"]["hmrf_bet"]) == {"hmrf_bet", "hmrf_bet_gan"}
    real = Manifest.load(work / "real" / "hmrf_bet")
    assert {(case.id, case.split) for case in real.cases} == {("sub-01", "train"), ("sub-02", "val")}


def test_given_masks_and_drawn_references(tmp_path: Path, tools: Fakes) -> None:
    """A mask that came with a case is taken by every stripper; drawn labels are the reference where the study says so."""
    text = study(tmp_path, '[evaluate]\nreference = "labels"\n').read_text()
    cases = ""
    for i in range(3):
        image, tissue = head(i)
        ours = np.array([0, 3, 1, 2], np.uint8)[tissue]
        for name, data in {"t1": image, "brain": (tissue > 0).astype(np.uint8), "reference": ours}.items():
            save_nifti(tmp_path / f"{i}_{name}.nii.gz", data, affine(flip=True))
        brain = f'brain = "{i}_brain.nii.gz"\n' if i else ""
        cases += f'[[case]]\nid = "c{i}"\nt1 = "{i}_t1.nii.gz"\n{brain}reference = "{i}_reference.nii.gz"\n'
    text = text.replace('[[input]]\nsource = "bids"\n', cases).replace("sub-03", "c2")
    path = tmp_path / "study.toml"
    path.write_text(text)
    project, _ = go(path)
    assert undone(project) == {}
    assert project.records["strip/bet/c0"].tool["name"] == "bet"
    assert project.records["strip/bet/c1"].tool["name"] == "given"
    assert len([call for call in tools.calls if call[0] == "brainextractor"]) == 1
    reference = read_volume(tmp_path / "work" / "reference" / "c2" / "reference.nii.gz").data
    mask = read_volume(tmp_path / "work" / "strip" / "bet" / "c2" / "brain_mask.nii.gz").data
    np.testing.assert_array_equal(reference > 0, mask > 0)
    assert project.records["reference/c2"].facts["from"] == ["labels"]
    page = (tmp_path / "work" / "report" / "report.html").read_text()
    assert "Reference: labels that were given with the cases." in page
    real = read_json(tmp_path / "work" / "evaluate" / "scores.json")["real"]["hmrf_bet"]
    assert real["dice"]["reference"]["mean"]["value"] > 0.8


def test_labels_that_came_with_scans_are_one_more_segmenter_and_the_reference(tmp_path: Path, tools: Fakes) -> None:
    """Ids beyond a byte, fluid that nobody drew, a scan without labels."""
    extra = '[segment]\ntools = ["hmrf", "labels"]\n[tissue]\ntables = { labels = "names.tsv" }\n'
    path = study(
        tmp_path,
        extra + 'fluid_is_rest = ["labels"]\n[evaluate]\nreference = "labels_bet"\ntissues = ["GM", "WM"]\n',
        patients=4,
    )
    (tmp_path / "names.tsv").write_text("index\tname\n11\tcsf\n1300\tgrey_matter\n1400\twhite_matter\n")
    for i in (0, 2, 3):
        tissue = head(i)[1]
        drawn = np.array([0, 0, 1300, 1400], np.int16)[tissue]
        name = f"sub-{i + 1:02d}"
        save_nifti(tmp_path / f"bids/derivatives/drawn/{name}/anat/{name}_dseg.nii.gz", drawn, affine(flip=bool(i % 2)))
    project, _ = go(path)
    left = {name: r.reason for name, r in project.records.items() if r.state not in ("done", "blocked")}
    assert left == {"segment/labels/sub-02": "no labels came with this scan"}
    work = tmp_path / "work"
    for case, turn in (("sub-03", np.s_[:]), ("sub-04", np.s_[::-1, ::-1])):
        found = read_volume(work / "tissue" / "labels_bet" / case / "tissue.nii.gz").data
        truth = np.array([0, 3, 1, 2], np.uint8)[head(int(case[-1]) - 1)[1]][turn]
        brain = read_volume(work / "strip" / "bet" / case / "brain_mask.nii.gz").data
        assert dice(truth, found, [3])[3] > 0.85  # nobody drew any
        np.testing.assert_array_equal(found > 0, brain > 0)
    reference = read_volume(work / "reference" / "sub-04" / "reference.nii.gz").data
    np.testing.assert_array_equal(reference, read_volume(work / "tissue/labels_bet/sub-04/tissue.nii.gz").data)
    table = read_json(work / "evaluate" / "scores.json")
    assert set(table["real"]) == {"hmrf_bet", "labels_bet"}
    real = table["real"]["hmrf_bet"]["dice"]["reference"]
    assert real["mean"]["value"] == pytest.approx((real["GM"]["value"] + real["WM"]["value"]) / 2)
    page = (work / "report" / "report.html").read_text()
    assert "Reference: labels that were given with the cases. Mean over patients, then over GM and WM" in page
    assert "no drawn reference" not in page


def test_the_report_shows_what_was_predicted_with_what_and_how_long_it_took(finished: Path) -> None:
    page = (finished / "work" / "report" / "report.html").read_text()
    real = page[page.index("Dice on real held-out scans") : page.index("Train tool")]
    for caption in ("scan", "reference", "network trained on hmrf_bet"):
        assert f"<figcaption>{caption}</figcaption>" in real
    tools = page[page.index("<h2>Tools") : page.index("<h2>Time")]
    assert all(citation in tools for citation in ("Smith, Hum. Brain Mapp.", "Zhang et al.", "Isensee et al."))
    times = read_json(finished / "work" / "report" / "report.json")["times"]
    assert list(times)[:2] == ["harmonise", "strip"]
    assert times["strip"]["units"] == 3
    records = [read_json(path) for path in (finished / "work" / "strip").rglob("record.json")]
    assert all(record["cpu_seconds"] > 0 for record in records)


def test_a_crop_can_be_undone(finished: Path) -> None:
    project = Project.load(finished / "study.toml")
    work = finished / "work"
    image = read_volume(work / "harmonise" / "sub-02" / "image.nii.gz")
    mask = read_volume(work / "strip" / "bet" / "sub-02" / "brain_mask.nii.gz").data > 0
    brain = read_volume(work / "crop" / "bet" / "sub-02" / "brain.nii.gz")
    facts = project.records["crop/bet/sub-02"].facts
    box = tuple(slice(s, s + n) for s, n in zip(facts["start"], facts["shape"], strict=True))
    back = np.zeros(image.data.shape, np.float32)
    back[box] = brain.data
    np.testing.assert_array_equal(back > 0, mask)
    np.testing.assert_allclose(back[mask & (image.data > 5)], image.data[mask & (image.data > 5)])
    np.testing.assert_allclose(brain.affine @ [0, 0, 0, 1], image.affine @ [*facts["start"], 1])
    source = np.array(project.records["harmonise/sub-02"].facts["source"]["affine"])
    assert np.linalg.det(source[:2, :2]) > 0
    assert source[0, 0] < 0  # the scan is LPS, the work is RAS


def test_n4_takes_a_smooth_field_away() -> None:
    image, tissue = head(1)
    shaded = (image * np.exp(np.linspace(-0.3, 0.3, len(image)))[:, None, None]).astype(np.float32)
    before, after = (data[tissue == 3] for data in (shaded, n4(shaded, np.array(MM))))
    assert after.std() / after.mean() < 0.5 * before.std() / before.mean()


def test_a_scan_without_orientation_is_excluded(tmp_path: Path) -> None:
    bare = nib.Nifti1Image(head(0)[0], None)
    bare.to_filename(tmp_path / "t1.nii.gz")
    context = SimpleNamespace(unit=SimpleNamespace(settings={}), case=SimpleNamespace(t1=tmp_path / "t1.nii.gz"))
    with pytest.raises(Excluded, match=r"nothing of orientation .* set a code if its axes go to L, A, S"):
        harmonise(context)  # type: ignore[arg-type]


def test_a_brain_larger_than_a_slice_is_excluded(copied: Copied, tools: Fakes) -> None:
    path = copied()
    path.write_text(path.read_text().replace("size = 64", "size = 32"))
    project, _ = go(path)
    assert project.records["slices/bet/sub-03"].state == "excluded"
    assert "of the brain lie outside 32 x 32 pixels" in project.records["slices/bet/sub-03"].reason
    assert project.records["report"].state == "done"


def test_consensus_is_the_vote_and_where_two_maps_differ_the_intensity_decides() -> None:
    """Neither tool is the reference: the order of the maps changes nothing but the edge of the brain."""
    maps = [np.array(row, np.uint8) for row in ([1, 1, 0, 3, 2], [1, 2, 0, 2, 2], [2, 2, 0, 1, 3])]
    np.testing.assert_array_equal(
        scores.consensus(maps, np.zeros(5)), [1, 2, 0, 3, 2]
    )  # of three different ones, the first map's
    np.testing.assert_array_equal(scores.consensus(maps[:1], np.zeros(5)), maps[0])
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 4, (20, 20, 20)).astype(np.uint8)
    image = np.array([0.0, 100.0, 150.0, 40.0])[truth] + rng.normal(0, 5, truth.shape)
    a, b, wrong = truth.copy(), truth.copy(), rng.random(truth.shape)
    a[wrong < 0.1] = 1 + a[wrong < 0.1] % 3
    b[wrong > 0.9] = 1 + b[wrong > 0.9] % 3
    assert (a != b).mean() > 0.15
    for maps in ([a, b], [b, a]):
        np.testing.assert_array_equal(scores.consensus(maps, image), truth)
    a[0, 0, 0] = 0
    assert scores.consensus([a, b], image)[0, 0, 0] == 0
    assert scores.consensus([b, a], image)[0, 0, 0] == b[0, 0, 0]
    np.testing.assert_array_equal(scores.consensus([a, a], image), a)


def test_means_are_over_patients_then_tissues() -> None:
    cases = {
        "a1": {"GM": 1.0, "WM": 0.5, "CSF": None, "mean": 0.75},
        "a2": {"GM": 0.0, "WM": 0.5, "CSF": None, "mean": 0.25},
        "b": {"GM": 0.9, "WM": 0.7, "CSF": 0.2, "mean": 0.6},
    }
    table = scores.pooled(cases, {"a1": "a", "a2": "a", "b": "b"})
    assert table["GM"]["value"] == pytest.approx(0.7)
    assert table["WM"]["value"] == pytest.approx(0.6)
    assert table["CSF"] == {"value": pytest.approx(0.2), "ci95": None, "patients": 1}
    assert table["mean"]["value"] == pytest.approx(0.5)
    assert scores.tissue_dice(np.array([1, 2]), np.array([1, 1])) == {
        "GM": pytest.approx(2 / 3),
        "WM": 0.0,
        "CSF": None,
        "mean": pytest.approx(1 / 3),
    }


def test_nnunets_form_on_disk(finished: Path) -> None:
    folder = finished / "work" / "dataset" / "hmrf_bet" / "raw" / "Dataset101_hmrf_bet"
    assert read_json(folder / "dataset.json") == {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "GM": 1, "WM": 2, "CSF": 3},
        "numTraining": 8,
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
    }
    names = [f"sub-0{i}_{k:05d}" for i in (1, 2) for k in range(4)]
    assert sorted(path.name for path in (folder / "imagesTr").iterdir()) == [f"{name}_0000.png" for name in names]
    assert sorted(path.name for path in (folder / "labelsTr").iterdir()) == [f"{name}.png" for name in names]
    assert read_png(folder / "labelsTr" / f"{names[0]}.png").max() == 3


@pytest.mark.parametrize(
    ("stage", "mode", "reason"),
    [
        ("train", "diverge", "training diverged: its last loss is nan"),
        ("predict", "partial", "nnUNetv2_predict left no labels/000_"),
    ],
)
def test_what_nnunet_does_not_do_is_a_failure(stage: str, mode: str, reason: str, copied: Copied, tools: Fakes) -> None:
    tools.mode(f"nnUNetv2_{stage}", mode)
    record = go(copied(stage))[0].records[f"{stage}/hmrf_bet"]
    assert (record.state, record.reason.startswith(reason)) == ("failed", True), record.reason
