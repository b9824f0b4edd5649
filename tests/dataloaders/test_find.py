"""Which files make a case: looked for by names only, so empty files do."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataloaders.io.find import files_in, find_files
from dataloaders.labelmaps.maps import LabelMaps
from dataloaders.prepare.sources import find_bids, find_pairs
from dataloaders.segmenter.scans import find_scans


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_folders_patterns_and_lists(tmp_path: Path) -> None:
    """Hidden files and folders never count."""
    touch(tmp_path, "b.nii.gz", "a.nii", "._a.nii", "x/c.mgz", "x/._d.nii", "x/e.txt", ".git/annex/objects/k.nii")
    a, b, c = (tmp_path / name for name in ("a.nii", "b.nii.gz", "x/c.mgz"))
    assert find_files(tmp_path, below=True) == [a, b, c]
    assert find_files(str(tmp_path / "*.nii*")) == find_files(tmp_path, notes=(notes := [])) == [a, b]
    assert notes == [f"{tmp_path}: not read, since only .nii.gz, .nii, .mgz, .mgh files are: 1 sub-folders (x/)"]
    (tmp_path / "list.txt").write_text(f"\ufeff# maps\n{c}\n\n{tmp_path}/no.nii\n{a}\n", encoding="utf-8")
    assert find_files(tmp_path / "list.txt") == [c, tmp_path / "no.nii", a]
    assert find_files(tmp_path / "nowhere") == find_files(tmp_path / "x/e.txt") == []
    with pytest.raises(ValueError, match=r"^--labels .*nowhere: no such folder$"):
        files_in(tmp_path / "nowhere", "", "--labels")


@pytest.mark.parametrize(
    ("image", "label", "ids"),
    [
        ("{}/ct.nii.gz", "{}/seg.nii.gz", ["s0011", "s0058"]),  # as TotalSegmentator
        ("{}/T1w/T1w_acpc.nii.gz", "{}/T1w/aparc+aseg.nii.gz", ["100307", "100408"]),  # as HCP
        ("{}/mri/orig.mgz", "{}/mri/aseg.mgz", ["bert", "fsaverage"]),  # as FreeSurfer
        ("{}/ct.nii.gz", "labels/{}.nii.gz", ["a", "b"]),
    ],
)
def test_one_folder_a_patient(tmp_path: Path, image: str, label: str, ids: list[str]) -> None:
    for case in ids:
        touch(tmp_path, image.format(case), label.format(case))
    patterns = [str(tmp_path / name.replace("{}", "*")) for name in (image, label)]
    found = find_pairs(patterns[0], patterns[1], "CT", None)
    assert found.faults == []
    assert [case.id for case in found.cases] == ids
    assert [case.images[0] for case in found.cases] == [tmp_path / image.format(case) for case in ids]
    assert [case.masks["label"] for case in found.cases] == [tmp_path / label.format(case) for case in ids]


def test_one_folder_given_twice_is_one_line(tmp_path: Path) -> None:
    touch(tmp_path, "a_ct.nii.gz", "a_seg.nii.gz")
    with pytest.raises(ValueError, match=r"name the same files \(.*a_ct.nii.gz, …\); give a quoted pattern for each"):
        find_pairs(str(tmp_path), str(tmp_path), "CT", None)


def test_sessions_count_where_they_differ(tmp_path: Path) -> None:
    touch(tmp_path, "a/1/ct.nii.gz", "a/2/ct.nii.gz", "b/1/ct.nii.gz")
    for pattern in ("*/*/ct.nii.gz", "**/ct.nii.gz"):
        found = find_pairs(str(tmp_path / pattern), None, "CT", None)
        assert [case.id for case in found.cases] == ["a_1", "a_2", "b_1"]


def bids(root: Path, *names: str) -> Path:
    return touch(root, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in names))


@pytest.mark.parametrize(
    ("names", "wanted", "taken", "noted"),
    [
        (("T1w", "run-2_T1w"), (), "T1w", "run-2_T1w"),
        (("run-2_T1w", "run-10_T1w"), (), "run-10_T1w", "run-2_T1w"),
        (("acq-b_T1w", "acq-a_T1w"), (), "acq-a_T1w", "acq-b_T1w"),
        (("ce-gadolinium_T1w", "T1w"), (), "T1w", "ce-gadolinium_T1w"),
        (("rec-norm_T1w", "T1w"), (), "T1w", "rec-norm_T1w"),
        (("run-1_T1w", "run-2_T1w"), ("run=1",), "run-1_T1w", ""),
        (("acq-a_T1w", "acq-b_T1w"), ("acq=b",), "acq-b_T1w", ""),
        (("acq-a_T1w", "T1w"), ("acq=",), "T1w", ""),
    ],
)
def test_one_of_several_scans_is_taken(
    tmp_path: Path, names: tuple[str, ...], wanted: tuple[str, ...], taken: str, noted: str
) -> None:
    found = find_bids(bids(tmp_path, *names), [], None, wanted=wanted)
    assert found.faults == []
    assert [case.images[0].name for case in found.cases] == [f"sub-01_{taken}.nii.gz"]
    told = f"sub-01: sub-01_{taken}.nii.gz is taken, not sub-01_{noted}.nii.gz; --bids_filter chooses"
    assert found.notes == ([told] if noted else [])


def test_a_label_map_goes_with_its_own_scan(tmp_path: Path) -> None:
    root = bids(tmp_path, "run-1_T1w", "run-2_T1w", "run-1_dseg")
    (case,) = find_bids(root, [], None).cases
    assert case.images[0].name == "sub-01_run-1_T1w.nii.gz"
    found = find_bids(touch(root, "x"), [], None, wanted=["run=2"])
    assert not found.cases[0].masks
    touch(root, "derivatives/atlas/sub-01/anat/sub-01_run-2_space-MNI152NLin6Asym_dseg.nii.gz")
    touch(root, "derivatives/atlas/sub-01/anat/sub-01_run-2_dseg.nii.gz")
    (case,) = find_bids(root, [], None, wanted=["run=2"]).cases
    assert case.masks["label"].name == "sub-01_run-2_dseg.nii.gz"


def test_copies_and_unwanted_modalities_do_not_matter(tmp_path: Path) -> None:
    root = bids(tmp_path, "T1w", "run-1_T2w", "run-2_T2w", "echo-1_MEGRE", "T1w_defacemask")
    touch(root, "sourcedata/sub-01/anat/sub-01_T1w.nii.gz", "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz")
    touch(root, "sub-02/anat/sub-02_T1w.nii.gz", "sourcedata/sub-03/anat/sub-03_T1w.nii.gz")
    found = find_bids(root, ["T1w"], None)
    assert (found.faults, found.notes) == ([], [])
    assert [case.images[0].relative_to(root).parts[0] for case in found.cases] == ["sub-01", "sub-02"]
    assert find_bids(root, [], None).channels == ("T1w",)


def test_what_is_excluded_is_not_looked_at(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"sub-0{i}/ses-{s}/anat/sub-0{i}_ses-{s}_T1w.nii.gz" for i in (1, 2) for s in (1, 2)))
    touch(root, "sub-03/anat/sub-03 copy_T1w.nii.gz", "sub-04/anat/sub-04_T2w.nii.gz")
    assert find_bids(root, [], None).faults
    found = find_bids(root, [], None, exclude=["sub-03 copy", "sub-04", "sub-02_ses-1"])
    assert [case.id for case in found.cases] == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-2"]
    assert [case.patient for case in found.cases] == ["sub-01", "sub-01", "sub-02"]
    assert not found.faults + [note for note in found.notes if note.startswith("exclude ")]
    found = find_bids(root, [], None, exclude=["sub-03 copy", "sub-04", "sub-2", "sub-01_ses-1"])
    assert "exclude sub-2: no such subject or case" in found.notes


def test_label_maps_and_scans_of_one_name_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{who}/mri/{what}.mgz" for who in ("bert", "fsaverage") for what in ("aseg", "orig")))
    maps = LabelMaps(sorted(tmp_path.glob("*/mri/aseg.mgz")))
    assert [maps.name(i) for i in range(2)] == ["bert", "fsaverage"]
    scans, _ = find_scans(sorted(tmp_path.glob("*/mri/orig.mgz")), (), ["T1w"])
    assert [scan.name("dseg") for scan in scans] == ["bert/mri/orig_dseg", "fsaverage/mri/orig_dseg"]
    (alone,), _ = find_scans([tmp_path / "bert/mri/orig.mgz"], (), ["T1w"])
    assert alone.name("dseg") == "orig_dseg"


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (("a_ct", "b_ct", "a_seg"), "b_ct.nii.gz: no label for case 'b'"),
        (("a_ct", "a_seg", "b_seg"), "b_seg.nii.gz: no image for case 'b'"),
        (("-a_ct", "-a_seg"), "is not allowed"),
        (("a\udcff_ct", "a\udcff_seg"), "is not allowed"),
        (("a_ct", "xa_seg"), "for unpaired training prepare --images and --labels each by itself"),
        (("sub/a_ct", "a_ct", "a_seg"), "no label for case"),
        ((), "no .nii.gz, .nii, .mgz, .mgh files"),
    ],
)
def test_what_is_wrong_with_pairs(tmp_path: Path, names: tuple[str, ...], fault: str) -> None:
    touch(tmp_path, *(f"{name}.nii.gz" for name in names))
    found = find_pairs(str(tmp_path / "**/*_ct.nii.gz"), str(tmp_path / "*_seg.nii.gz"), "CT", None)
    assert fault in "\n".join(found.faults)
    assert str(found.faults).encode("utf-8", "backslashreplace")
