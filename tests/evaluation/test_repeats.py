"""Floors: second scans that were moved, what they get by the same code, and when a method has passed them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dataloaders.io.console import collected
from dataloaders.io.files import file_sha256
from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Geometry, Manifest, affine_rows
from dataloaders.io.nifti import read_volume, write_volume
from dataloaders.io.png import read_png
from dataloaders.io.spec import Channel, DataSpec
from evaluation.evaluate import evaluate_pairs, evaluate_results
from evaluation.floors import add_floors, passed
from evaluation.folders import Folders
from evaluation.pairs import ManifestPairs
from evaluation.repeats import pairs_of, scan_files, write_results
from evaluation.request import Request
from evaluation.tables import format_table
from scripts.repeats import RepeatsOptions, repeats
from tests.dataloaders.test_registration import lopsided, moved, turn
from tests.launch import prepared
from tests.toy_results import good_and_bad

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PAIRED = "mae,ssim,slice_jump_ratio,label_mean_error_relative,efficientnet_lite0_distance"


def test_a_second_scan_comes_to_lie_on_the_first(tmp_path: Path) -> None:
    """The second scan is turned, moved and twice as bright: registered and in its own window it is the first again."""
    head = lopsided()
    again = moved(head, turn(6, (3, -4, 2)))
    for name, data in (("sub-1", head.data), ("sub-2", 2 * again.data)):
        write_volume(tmp_path / "bids" / name / f"{name}_T1w.nii.gz", data.astype(np.float32), head.affine)
    write_volume(tmp_path / "labels" / "sub-1_dseg.nii.gz", (head.data > 0).astype(np.uint8), head.affine)
    scans = {"images": str(tmp_path / "bids/sub-1/*_T1w.nii.gz"), "labels": str(tmp_path / "labels/*_dseg.nii.gz")}
    prepared("pairs", tmp_path / "data", **scans, channel="T1w", clean="none", split=(0, 0, 1))
    table = tmp_path / "second.csv"
    table.write_text("first,second\nsub-1,sub-2\n")
    o = RepeatsOptions(dataroot=tmp_path / "data", scans=tmp_path / "bids", table=table)
    pairs, out = repeats(o)
    assert (pairs, out) == ([("sub-1", "sub-2")], tmp_path / "data" / "repeats")
    errors = []
    for item in Manifest.load(out).cases[0].slices:
        real, fake = (read_png(out / path).astype(float) for path in (*item.images, *item.generated))
        errors.append(np.abs(real - fake)[real > 0].mean() / real[real > 0].mean())
    assert np.median(errors) < 0.12
    with pytest.raises(ValueError, match="there are files already"):
        repeats(o)
    with pytest.raises(ValueError, match=r"has no sub-9_T1w\.nii\.gz"):
        write_results(tmp_path / "data", tmp_path / "bids", [("sub-1", "sub-9")], tmp_path / "f")


def test_a_scan_is_told_by_its_content_and_not_by_its_name_alone(tmp_path: Path) -> None:
    """SynthRAD's files have one name in all folders; copies of other content lie beside BIDS scans."""
    channel = Channel("T1w")

    def case(name: str, file: str) -> Case:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        return Case(name, name, "test", (), (), sources={"T1w": {"file": path.name, "sha256": file_sha256(path)}})

    cases = {name: case(name, f"{name}/mr.nii.gz") for name in ("1BA001", "1BA002", "1BA003")}
    cases |= {name: case(name, f"{name}/anat/{name}_T1w.nii.gz") for name in ("sub-1", "sub-2")}
    copy = tmp_path / "derivatives" / "sub-1_T1w.nii.gz"
    copy.parent.mkdir()
    copy.write_text("stripped")

    def found(first: str, second: str) -> list[str]:
        return [path.parts[-2] for path in scan_files(cases, first, second, channel, tmp_path)]

    assert found("1BA002", "1BA003") == ["1BA002", "1BA003"]
    assert [path.read_text() for path in scan_files(cases, "sub-1", "sub-2", channel, tmp_path)] == ["sub-1", "sub-2"]
    with pytest.raises(
        ValueError, match=r"1BA001 = nobody: nobody was not prepared, and mr\.nii\.gz, which does not name"
    ):
        found("1BA001", "nobody")
    cases["again"] = replace(cases["sub-1"], id="again")
    with pytest.raises(ValueError, match="are the same scan"):
        found("sub-1", "again")
    del cases["sub-1"]
    with pytest.raises(ValueError, match=r"has 2 files sub-1_T1w\.nii\.gz: "):
        found("sub-2", "sub-1")
    (tmp_path / "1BA002" / "mr.nii.gz").write_text("changed")
    with pytest.raises(ValueError, match=r"has no mr\.nii\.gz of the content that was prepared"):
        found("1BA002", "1BA003")


@pytest.mark.parametrize(
    ("channel", "options"), [("CT", {"hu_offset": -1024.0}), ("T1w", {"clean": "body", "window": ("mr",)})]
)
def test_second_scans_are_prepared_as_the_first_ones_were(
    channel: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan that needs no moving becomes what prepare_data.py makes of it: units, window, no table."""
    head = lopsided()
    table = np.zeros(head.data.shape, bool)
    table[1:4, 1:4] = True  # beside the head
    for name, gain in (("sub-1", 1), ("sub-2", 1.5)):
        scan = np.where(head.data > 0, 1000 + gain * head.data, 0) + 900 * gain * table
        write_volume(tmp_path / "scans" / f"{name}.nii.gz", scan.astype(np.float32), head.affine)
        write_volume(tmp_path / "labels" / f"{name}.nii.gz", (head.data > 0).astype(np.uint8), head.affine)
    folders = {"images": str(tmp_path / "scans"), "labels": str(tmp_path / "labels")}
    data = tmp_path / "data"
    prepared("pairs", data, **folders, channel=channel, split=(0, 0, 1), **options)
    monkeypatch.setattr("evaluation.repeats.register", lambda *_: SimpleNamespace(affine=np.eye(4)))
    (made,) = write_results(data, tmp_path / "scans", [("sub-1", "sub-2")], tmp_path / "out").cases
    wanted = [read_png(data / item.images[0]) for item in Manifest.load(data).cases[1].slices]
    for item, image in zip(made.slices, wanted, strict=True):
        assert np.abs(read_png(tmp_path / "out" / item.generated[0]).astype(int) - image).max() <= 1


def test_what_second_scans_cannot_be_prepared_with_is_refused(tmp_path: Path) -> None:
    of = Case("a", "a", "test", (Window(0, 1),), (), sources={"body": {}})
    plain = Manifest(DataSpec((), (Channel("CT", "HU"),), (32, 32), axis="axial"), (of,))
    mr = replace(plain, spec=replace(plain.spec, channels=(Channel("T1w"),)))
    for manifest, options, said in (
        (mr, {"n4": True}, "--n4"),
        (mr, {"fill": "lesion", "window": ["auto"]}, "--fill or --window wm"),
        (mr, {"window": ["wm"]}, "--fill or --window wm"),
        (plain, {}, "masks of the body"),
    ):
        replace(manifest, provenance={"options": options}).save(tmp_path)
        with pytest.raises(ValueError, match=f"was prepared with {said}, which second scans cannot be"):
            write_results(tmp_path, tmp_path, [("a", "b")], tmp_path / "out")
    mr.save(tmp_path)
    with pytest.raises(ValueError, match="made of plain slices"):
        write_results(tmp_path, tmp_path, [("a", "b")], tmp_path / "out")


def test_who_has_a_second_scan(tmp_path: Path) -> None:
    people = {"a_ses-2": "a", "a_ses-1": "a", "a_ses-3": "a", "b": "b"}
    assert pairs_of(people) == [("a_ses-1", "a_ses-2")]
    with pytest.raises(ValueError, match="none of 2 cases is a second scan of a person who has another; name them by"):
        pairs_of({"a": "a", "b": "b"})
    table = tmp_path / "t.tsv"
    for text, said in (
        ("one\ttwo\na\tb\n", r"t\.tsv: .*has the columns one, two; needed are first and second"),
        ("first\tsecond\nc\tb\n", "first 'c' is no case; there are a"),
        ("first\tsecond\nb\t\n", "names no second scan of b"),
        ("first\tsecond\n", "names no second scan"),
        ("first\tsecond\nb\tb\n", "first and second are both b"),
        ("first\tsecond\nb\tx\nb\ty\n", "names b as first more than once"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=said):
            pairs_of(people | {"a": "a"}, table)
    table.write_text("first\tsecond\nb\tnot-prepared\n")
    assert pairs_of(people, table) == [("b", "not-prepared")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return good_and_bad(tmp_path_factory.mktemp("runs"), size=(64, 72), channels=("T1w",), patients=3, slices=3)


@pytest.mark.slow
def test_the_floor_is_what_the_second_scans_get_by_the_same_code(folders: list[Path], tmp_path: Path) -> None:
    good, bad = folders
    alone = evaluate_results(good, PAIRED)
    assert not any("floor" in entry or "floor_passed" in entry for entry in alone["metrics"].values())
    assert alone["settings"]["repeats"].startswith("none: ")
    against = evaluate_results(bad, PAIRED, repeats=good)
    for key in PAIRED.split(","):
        entry, own = against["metrics"][f"{key}/T1w"], alone["metrics"][f"{key}/T1w"]
        assert entry["floor"] == {"of": "second scan", "value": own["value"], "ci95": None, "n_patients": 3}, key
        assert entry["floor_passed"] is False, key
    assert against["settings"]["repeats"] == "3 people"
    better = evaluate_pairs(ManifestPairs(good, Manifest.load(good)), tmp_path, Request(PAIRED, repeats=bad))
    assert all(better["metrics"][f"{key}/T1w"]["floor_passed"] for key in PAIRED.split(","))
    assert ", passed" in format_table(better)
    rows = (tmp_path / "summary.csv").read_text().splitlines()
    row = dict(zip(rows[0].split(","), next(line for line in rows if line.startswith("ssim,")).split(","), strict=True))
    assert (row["floor_n"], row["floor_passed"]) == ("3", "True")


def test_second_scans_that_do_not_fit_cost_the_floor_alone(folders: list[Path], tmp_path: Path) -> None:
    """Of a folder that was named, they are refused before anything is scored."""
    (other,) = good_and_bad(tmp_path, size=(64, 72), channels=("CT",), patients=1, slices=2)[:1]
    said = "classes, channels, axis, slice size or pixel size are not those of"
    with collected() as warnings:
        result = evaluate_results(folders[0], "mae", repeats=other)
    assert [line for line in warnings if said in line and "run scripts/repeats.py again" in line]
    assert result["settings"]["repeats"].startswith("none: ")
    assert result["settings"]["repeats"].endswith(str(folders[0]))
    assert result["metrics"]["mae/T1w"]["value"] is not None
    assert "floor" not in result["metrics"]["mae/T1w"]
    pairs = ManifestPairs(folders[0], Manifest.load(folders[0]))
    pairs.items = None  # type: ignore[method-assign, assignment]  # nothing is read
    with pytest.raises(ValueError, match=said):
        evaluate_pairs(pairs, tmp_path / "out", Request("mae", repeats=other))


def test_second_scans_of_data_that_were_prepared_otherwise_do_not_fit(folders: list[Path], tmp_path: Path) -> None:
    manifest = Manifest.load(folders[0])
    pairs, spec, case = ManifestPairs(folders[0], manifest), manifest.spec, manifest.cases[0]
    assert isinstance(pairs.beside(folders[1]), ManifestPairs)
    affine = affine_rows(np.eye(4))
    for stale, said in (
        (replace(manifest, spec=replace(spec, size=(64, 64))), "slice size or pixel size are not those of"),
        (replace(manifest, spec=replace(spec, axis="coronal")), "axis, slice size or"),
        (
            replace(manifest, cases=(replace(case, windows=(Window(0, 7),)),)),
            f"the grid or windows of {case.id} are not",
        ),
        (
            replace(manifest, cases=(replace(case, geometry=Geometry(affine, (1, 1, 1), affine, (1, 1, 1), (0, 0))),)),
            f"the grid or windows of {case.id} are not",
        ),
        (replace(manifest, cases=(replace(case, id="other"),)), "has none of the cases of"),
    ):
        stale.save(tmp_path)
        with pytest.raises(ValueError, match=said):
            pairs.beside(tmp_path)


def test_volumes_of_one_person_by_their_names(tmp_path: Path) -> None:
    head = lopsided()
    again = moved(head, turn(4, (2, -2, 1)))
    for kind, noise in (("real", 0.0), ("generated", 30.0)):
        for name, scan in (("sub-1_a", head), ("sub-1_b", again)):
            data = scan.data + noise * np.random.default_rng(0).standard_normal(scan.data.shape) * (scan.data > 0)
            write_volume(tmp_path / kind / f"{name}.nii.gz", data.astype(np.float32), scan.affine)
    o = RepeatsOptions(real=tmp_path / "real", out=tmp_path / "second", patient_regex="(sub-[0-9]+)")
    assert repeats(o)[0] == [("sub-1_a", "sub-1_b")]
    laid = read_volume(tmp_path / "second" / "sub-1_a.nii.gz").data
    inside = head.data > 0
    assert np.abs(laid - head.data)[inside].mean() < 0.5 * np.abs(again.data - head.data)[inside].mean()
    pairs = Folders(tmp_path / "real", tmp_path / "generated", window=(0, float(head.data.max()))).pairs()
    result = evaluate_pairs(pairs, tmp_path / "out", Request("mae", repeats=tmp_path / "second"))
    entry = result["metrics"]["mae/image"]
    assert entry["floor"]["n_patients"] == 1
    assert 0 < entry["floor"]["value"] < np.abs(again.data - head.data).mean()
    with pytest.raises(ValueError, match="has no volume of a name that is scored"):
        pairs.beside(tmp_path / "out")


@pytest.mark.parametrize(
    ("metric", "entry", "expected"),
    [
        ("ssim", {"value": 0.9, "floor": {"value": 0.8}}, True),
        ("mae", {"value": 0.9, "floor": {"value": 0.8}}, False),
        ("slice_jump_ratio", {"value": 1.05, "floor": {"value": 0.9}}, True),
        ("slice_jump_ratio", {"value": 0.7, "floor": {"value": 1.1}}, False),
        ("radiomics_kid", {"value": 0.5, "floor": {"of": "other people", "value": 0.1, "matched": 0.05}}, True),
        ("radiomics_kid", {"value": 0.0, "floor": {"of": "other people", "value": 0.1, "matched": None}}, None),
        ("mae", {"value": None, "floor": {"value": 0.8}}, None),
        ("mae", {"value": 1.0, "floor": None}, None),
        ("diversity_ssim", {"value": 1.0, "floor": {"value": 0.8}}, None),
    ],
)
def test_when_a_floor_is_passed(metric: str, entry: dict[str, Any], expected: bool | None) -> None:
    assert passed(metric, entry) is expected
    metrics = {f"{metric}/T1w": {**entry}}
    add_floors(metrics, {})
    assert metrics[f"{metric}/T1w"].get("floor_passed") is expected


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    for options in ({"dataroot": tmp_path}, {"real": tmp_path}, {"out": tmp_path / "o"}):
        with pytest.raises(ValueError, match="give --dataroot DIR and --scans DIR, or --real DIR and --out DIR"):
            repeats(RepeatsOptions(**options))
