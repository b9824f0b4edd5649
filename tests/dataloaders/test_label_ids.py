"""What ids of label maps mean to a trained run: by name before by number, and never by chance."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dataloaders.io.manifest import Manifest
from dataloaders.io.spec import Channel, DataSpec, Label
from dataloaders.labelmaps.ids import classes_of_ids
from dataloaders.labelmaps.labels import labels_with, names_of, read_label_table

SPEC = DataSpec(
    (
        Label(0, "background", (0,)),
        Label(1, "liver", (5,)),
        Label(2, "left_kidney", (2,)),
        Label(3, "right_kidney", (3, 30)),
        Label(4, "label_9", (9,)),
        Label(5, "body_unlabelled"),
    ),
    (Channel("CT", "HU"),),
    (8, 8),
    axis="axial",
)


@pytest.fixture
def map_(tmp_path: Path) -> Path:
    """A label map, of which only the header is looked at."""
    nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_filename(tmp_path / "a_dseg.nii.gz")
    return tmp_path / "a_dseg.nii.gz"


def sources(path: Path, ids: set[int], **options: object) -> dict[str, list[int]]:
    """Class -> ids of the map that become it."""
    table = classes_of_ids(path, dict.fromkeys(ids | {0}, 7), SPEC, **options).table
    return {label.name: [i for i in label.source if i in ids] for label in table.labels[1:]}


def test_ids_of_the_training_are_read_as_such(map_: Path) -> None:
    reading = classes_of_ids(map_, {0: 9, 5: 1, 30: 1}, SPEC)  # what ids are taken for is said, for the eye to catch
    assert reading.how == "as ids of the training's label maps: 5 liver, 30 right_kidney"
    found = sources(map_, {5, 30, 9})
    assert found == {"liver": [5], "left_kidney": [], "right_kidney": [30], "label_9": [9], "body_unlabelled": []}


def test_ids_that_fit_both_ways_are_the_trainings_and_it_is_said(map_: Path) -> None:
    reading = classes_of_ids(map_, {0: 9, 5: 1, 2: 1}, SPEC)
    assert (reading.table.labels[1].source, reading.table.labels[2].source) == ((5,), (2,))
    (note,) = reading.notes
    assert "as ids of the training's label maps" in note
    assert "--label_ids class would read them as the run's class ids 0 to 5" in note
    assert not classes_of_ids(map_, {0: 9, 2: 1, 3: 1}, SPEC).notes  # both readings are one


def test_a_table_beside_the_map_beats_ids_that_fit(map_: Path, tmp_path: Path) -> None:
    """Without it 2 and 3 would be exchanged, and nobody would notice."""
    (tmp_path / "dseg.tsv").write_text(
        "index\tname\tcolor\n0\tBackground\t#000000\n2\tRight Kidney\t#000001\n3\tLeft kidney\tn/a\n"
    )
    assert sources(map_, {2, 3})["left_kidney"] == [3]
    assert sources(map_, {2, 3})["right_kidney"] == [2]
    assert sources(map_, {2, 3}, label_ids="source")["left_kidney"] == [2]


def test_a_table_that_is_given_beats_the_one_beside(map_: Path, tmp_path: Path) -> None:
    (tmp_path / "dseg.tsv").write_text("index\tname\n2\tright_kidney\n")
    (tmp_path / "table.json").write_text('{"left_kidney": 2, "liver": [7, 8]}')
    found = sources(map_, {2, 7, 8}, given=read_label_table(tmp_path / "table.json"))
    assert (found["left_kidney"], found["right_kidney"], found["liver"]) == ([2], [], [7, 8])


def test_classes_without_names_keep_their_ids_beside_a_table(map_: Path, tmp_path: Path) -> None:
    (tmp_path / "dseg.tsv").write_text("index\tname\n5\tleft_kidney\n9\tspleen\n")
    reading = classes_of_ids(map_, {5: 1, 9: 1}, SPEC)
    assert reading.table.labels[2].source == (5,)
    assert reading.table.labels[4].source == (9,)
    assert reading.how == "by name, with dseg.tsv (classes without names by id)"


def test_unknown_ids_are_refused_with_counts_names_and_advice(map_: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"a_dseg\.nii\.gz: no class of the run has the source ids 4 \(12 voxels\)"
    ) as error:
        classes_of_ids(map_, {0: 100, 5: 3, 4: 12}, SPEC)
    for part in ("--unknown_labels background", "--label_map FILE", "liver", "--label_ids class"):
        assert part in str(error.value)
    (tmp_path / "dseg.tsv").write_text("index\tname\n5\tpancreas\n2\tleft_kidney\n")
    with pytest.raises(ValueError, match=r"names 5 pancreas \(3 voxels\)") as error:
        classes_of_ids(map_, {0: 100, 5: 3, 2: 3}, SPEC)
    assert "--label_ids class" not in str(error.value)
    assert "--label_ids source, without a table, reads them as in the training's label maps" in str(error.value)


def test_unknown_ids_can_be_dropped_but_not_all(map_: Path) -> None:
    reading = classes_of_ids(map_, {0: 100, 5: 3, 4: 12}, SPEC, lenient=True)
    assert reading.notes[0] == "dropped to background, being no class of the run: 4 (12 voxels)"
    with pytest.raises(ValueError, match="nothing else is in the map"):
        classes_of_ids(map_, {0: 100, 4: 12}, SPEC, lenient=True)
    with pytest.raises(ValueError, match="holds background only"):
        classes_of_ids(map_, {0: 100}, SPEC)


def test_class_ids_are_read_where_the_user_says_so(map_: Path) -> None:
    assert sources(map_, {1, 2, 5}, label_ids="class")["liver"] == [1]
    assert sources(map_, {1, 2, 5}, label_ids="class")["body_unlabelled"] == [5]


def named(map_: Path) -> tuple[dict[int, str], str]:
    labels, where = labels_with(map_) or ((), "")
    return names_of(labels), where


def test_names_beside_of_every_kind(tmp_path: Path) -> None:
    """segment.py's record, BIDS tables from particular to general and up to the subjects, results of a segmenter."""
    anat = tmp_path / "root" / "sub-1" / "anat"
    anat.mkdir(parents=True)
    map_ = anat / "sub-1_desc-x_dseg.nii.gz"
    assert labels_with(map_) is None
    (tmp_path / "dseg.tsv").write_text("index\tname\n1\ttoo_far_up\n")
    assert labels_with(map_) is None
    (tmp_path / "root" / "dseg.tsv").write_text("index\tname\n1\tgeneral\n")
    (tmp_path / "root" / "desc-y_dseg.tsv").write_text("index\tname\n1\tother\n")
    assert named(map_) == ({0: "background", 1: "general"}, "dseg.tsv")
    (tmp_path / "root" / "desc-x_dseg.tsv").write_text("index\tname\n1\tparticular\n")
    assert named(map_) == ({0: "background", 1: "particular"}, "desc-x_dseg.tsv")
    (anat / "sub-1_desc-x_dseg.json").write_text(json.dumps({"LabelMap": {"background": 0, "grey_matter": 2}}))
    assert named(map_) == ({0: "background", 2: "grey_matter"}, "sub-1_desc-x_dseg.json")
    Manifest(SPEC, ()).save(tmp_path / "results")
    names, where = named(tmp_path / "results" / "predictions" / "case.nii.gz")
    assert (names[1], where) == ("liver", "manifest.json")
