from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataloaders.io.spec import Label
from dataloaders.labelmaps.classes import contrast_means, inlined, read_classes, structure_classes, tissue_classes
from dataloaders.labelmaps.schemes import read_scheme
from models.gmm.scheme import LabelScheme


def test_tissue_of_freesurfer_ids() -> None:
    classes = tissue_classes()
    ids = np.array([0, 24, 4, 43, 3, 42, 10, 47, 2, 41, 7, 16, 77, 1004, 2030, 530, 258], np.int32)
    names = [classes.labels[i].name for i in classes.of_values(ids)]
    assert names == (
        ["background"] + ["csf"] * 3 + ["grey_matter"] * 4 + ["white_matter"] * 6 + ["grey_matter"] + ["background"] * 2
    )


def test_tissue_of_other_numberings_is_refused_with_the_table_that_fits() -> None:
    message = (
        r"labels that are no tissue by FreeSurfer's ids or by name: (label_)?1, (label_)?2, (label_)?3; .*"
        r"--segmenter.scheme csf-gm-wm or gm-wm-csf for label maps, --label_map csf-gm-wm or gm-wm-csf in prepare_data.py"
    )
    with pytest.raises(ValueError, match=message):
        tissue_classes().of_scheme(LabelScheme.from_values((0, 1, 2, 3)))
    with pytest.raises(ValueError, match=message):
        tissue_classes().of_labels(tuple(Label(i, f"label_{i}" if i else "background", (i,)) for i in range(4)))
    with pytest.raises(ValueError, match="no tissue by FreeSurfer's ids or by name: 1, 2, 3"):
        tissue_classes().of_values(np.array([0, 1, 2, 3], np.int32))
    with pytest.raises(ValueError, match=r"by name: 5 \(liver\); .*--segmenter.scheme a table of their names"):
        tissue_classes().of_scheme(read_scheme("totalsegmentator", (0, 5)))
    seeds = tissue_classes().of_scheme(LabelScheme.seeds((10, 21, 30, 41)))
    assert dict(zip(seeds.values, seeds.outputs, strict=True)) == {0: 0, 10: 1, 21: 2, 30: 3, 41: 0}


def test_structures_are_those_of_the_manual_tables() -> None:
    """Names as in Neuromorphometrics' fused table."""
    classes = structure_classes()
    names = {label.name for label in classes.labels}
    assert len(names) == 33
    assert {"left cerebral cortex", "right inf lat vent", "left ventral dc", "brain stem", "external csf"} < names
    assert all(name.replace("left", "right") in names for name in names)
    table = classes.of_labels((Label(0, "background"), Label(1, "left insula", (65,)), Label(2, "optic chiasm", (69,))))
    by_name = tuple(replace(label, source=()) for label in classes.labels)
    assert classes.of_labels(by_name).tolist() == list(range(33))  # each its own, whatever FreeSurfer calls so
    cortex = next(label.id for label in classes.labels if label.name == "left cerebral cortex")
    assert table.tolist() == [0, cortex, 0]


def test_every_structure_has_the_tissue_of_its_ids() -> None:
    """Also the cerebellum's exterior, as which FreeSurfer knows something outside the brain."""
    tissue, structures = tissue_classes(), structure_classes().labels
    expected = tissue.of_values(np.array([label.source[-1] for label in structures], np.int32)).tolist()
    assert tissue.of_labels(structures).tolist() == expected
    assert expected.count(0) == 1


NO_STRUCTURE = {30, 62, 72, 85}  # of SynthSeg's maps: vessels, cavum septi, optic chiasm


def test_every_id_of_the_maps_and_tables_at_hand_has_a_structure_or_is_known_to_have_none() -> None:
    classes = structure_classes()
    maps = (2, 3, 4, 5, 7, 8, *range(10, 19), 24, 25, 26, 28, 30, *range(41, 45), 46, 47, *range(49, 55), 57, 58)
    maps += (60, 62, 72, 85, 136, 137, 163, 164, 77, *range(250, 256))
    scheme = classes.of_scheme(LabelScheme.from_values((0, *maps)))
    none = {value for value, output in zip(scheme.values, scheme.outputs, strict=True) if not output}
    assert none == {0} | NO_STRUCTURE
    sided = {name for name in {label.name for label in classes.labels} if name.startswith(("left", "right"))}
    manual = [*sided, "left insula", "3rd ventricle", "4th ventricle", "brain stem", "cerebellar vermis"]
    rest = ["5th ventricle", "optic chiasm", "left vessel", "right basal forebrain", "left cerebral exterior"]
    labels = tuple(Label(i, name, (900 + i,)) for i, name in enumerate(["background", *manual, *rest]))
    table = classes.of_labels(labels)
    assert {label.name for label, found in zip(labels, table, strict=True) if not found} == {"background", *rest}


def test_the_corpus_callosum_is_white_matter_of_the_nearer_side() -> None:
    classes = structure_classes()
    ids = np.zeros((8, 3, 3), np.int32)
    ids[:3], ids[3:5], ids[5:] = 2, 252, 41
    of = {label.name: label.id for label in classes.labels}
    found = classes.of_values(ids)
    left, right = of["left cerebral white matter"], of["right cerebral white matter"]
    assert found[:, 1, 1].tolist() == [left] * 4 + [right] * 4
    alone = classes.of_values(np.full((2, 2, 2), 252, np.int32) * np.array([1, 0])[:, None, None] + 0)
    assert set(np.unique(alone)) <= {0, left}


def test_labels_of_prepared_folders_are_found_by_name_alias_and_source() -> None:
    labels = (
        Label(0, "background", (0,)),
        Label(1, "White Matter", (9999,)),
        Label(2, "lesion", ()),
        Label(3, "label_24", (24,)),
        Label(4, "something", (2, 3)),  # of two classes, so of none
    )
    assert tissue_classes().of_labels(labels).tolist() == [0, 3, 3, 1, 0]
    strict = read_classes("auto", (Label(0, "background", (0,)), Label(1, "liver", (5,))))
    with pytest.raises(ValueError, match="labels without a class: spleen; the classes are background, liver"):
        strict.of_labels((*strict.labels, Label(2, "spleen", (1,))))
    with pytest.raises(ValueError, match="labels without a class: 7"):
        strict.of_values(np.array([0, 5, 7], np.int32))


def test_a_table_of_classes_needs_no_file_later(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"brain": [2, 3, "lesion"], "fluid": [24, "csf"], "background": [5]}))
    text = inlined("--classes", str(path), ())
    path.unlink()
    assert inlined("--classes", text, ()) == text
    classes = read_classes(text, ())
    assert [label.name for label in classes.labels] == ["background", "brain", "fluid"]
    scheme = classes.of_scheme(LabelScheme.from_values((0, 2, 3, 5, 24)))
    assert dict(zip(scheme.values, scheme.outputs, strict=True)) == {0: 0, 24: 2, 2: 1, 3: 1, 5: 0}
    assert classes.of_labels((Label(0, "background"), Label(1, "lesion"), Label(2, "CSF"))).tolist() == [0, 1, 2]


def test_contrasts_are_rows_of_low_and_high_by_intensity_class() -> None:
    classes = tissue_classes()
    scheme = classes.of_scheme(LabelScheme.from_values((0, 2, 3, 24, 530)))
    rows = contrast_means("mr", classes.labels, scheme, (1.0, 2.0))
    assert rows.shape == (6, 5)
    at = {value: scheme.classes[i] for i, value in enumerate(scheme.values)}
    assert rows[:2, at[3]].tolist() == [90, 135]  # T1w
    assert rows[2:4, at[24]].tolist() == [180, 250]  # T2w
    assert rows[:, at[530]].tolist() == [1, 2] * 3  # not named
    deep = classes.of_scheme(LabelScheme.from_values((0, 2, 3, 10, 42, 49)))
    for left, right in (
        ("left thalamus", "right thalamus"),
        ("Thalamus_L", "Thalamus_R"),
        ("lh.Thalamus", "rh.Thalamus"),
    ):
        sided = {10: left, 49: right}
        names = tuple(sided.get(value, name) for value, name in zip(deep.values, deep.names, strict=True))
        text = '{"a": {"grey_matter": [80, 90], "thalamus": [5, 6]}}'
        own = contrast_means(text, classes.labels, replace(deep, names=names), (1.0, 2.0))
        columns = [deep.classes[deep.values.index(value)] for value in (3, 10, 42, 49)]
        assert own[:, columns].tolist() == [[80, 5, 80, 5], [90, 6, 90, 6]]
    assert contrast_means("any", classes.labels, scheme, (1.0, 2.0)) is None
    for text, message in (
        ('{"a": {"bone": [1, 2]}}', "a: no class bone; there are background, csf"),
        ('{"a": {"csf": [9, 2]}}', "must be low and high"),
        ("{}", "names no contrast"),
    ):
        with pytest.raises(ValueError, match=message):
            contrast_means(text, classes.labels, scheme, (1.0, 2.0))
    with pytest.raises(ValueError, match="--contrasts flair: must be any, mr or an existing"):
        inlined("--contrasts", "flair", ("any", "mr"))
