"""Label tables: built-in ones by name, BIDS' dseg.tsv, tissues as TOML, names in headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataloaders.io.pictures import label_colors
from dataloaders.io.spec import Channel, DataSpec, Label
from dataloaders.labelmaps.image_generator import ImageGenerator
from dataloaders.labelmaps.label_tables import BUILT_IN
from dataloaders.labelmaps.labels import read_label_table
from dataloaders.labelmaps.schemes import output_labels
from models.gmm.scheme import LabelScheme
from tests.toy import save_nifti


def ids_of(path: Path | str, found: tuple[int, ...] | None = None) -> dict[str, tuple[int, ...]]:
    return {label.name: label.source for label in read_label_table(path, found)}


def test_bids_tables(tmp_path: Path) -> None:
    path = tmp_path / "dseg.tsv"
    path.write_bytes(
        b"\xef\xbb\xbfindex\tname\tabbreviation\n0\tBackground\tBG\n4\tcsf\tC\n11\tcsf\tC\n40\tgrey_matter\tG\n"
    )
    assert read_label_table(path) == (
        Label(0, "background", (0,)), Label(1, "csf", (4, 11)), Label(2, "grey_matter", (40,))
    )  # fmt: skip
    path.write_text("number\tname\n1\ta\n")
    with pytest.raises(ValueError, match=r"dseg.tsv: needs the columns index \(or id, .*\) and name, found number"):
        read_label_table(path)
    path.write_text("index\tname\n1\ta\n2\n")
    with pytest.raises(ValueError, match=r"dseg.tsv: line 3: id '2', name ''; must be a whole number"):
        read_label_table(path)


COLOURED = {  # what programs write of two structures and the background; FreeSurfer's last column is 0 for opaque
    "dseg.tsv": "index\tname\tabbreviation\tmapping\tcolor\n0\tBackground\tBG\t0\tn/a\n"
    "10\tLeft Thalamus\tLT\t9\t#00760E\n49\tRight Thalamus\tn/a\t9\tn/a\n",
    "FreeSurferColorLUT.txt": "#$Id: v 1\n\n#No. Label Name:   R   G   B   A\n\n0   Unknown       0   0   0   0\n"
    "10  Left Thalamus         0   118 14  0\n49  Right Thalamus        0   0 0  0\n",
    "itksnap.txt": "################\n# ITK-SnAP Label Description File\n# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL\n"
    '    0     0    0    0        0  0  0    "Clear Label"\n   10     0  118   14        1  1  1    "Left Thalamus"\n'
    '   49     0    0    0      0.5  0  1    "Right Thalamus"\n',
    "slicer.ctbl": "# Color table file a.ctbl\n# 3 values\n0 Background 0 0 0 0\n10 Left_Thalamus 0 118 14 255\n"
    "49 Right_Thalamus 0 0 0 255\n",
    "slicer.csv": "LabelValue,Name,Color_R,Color_G,Color_B,Color_A,Type\n10,Left Thalamus,0,118,14,255,T\n"
    '49,"Right Thalamus",0,0,0,255,T\n',
}


@pytest.mark.parametrize("name", COLOURED)
def test_tables_of_other_programs_with_their_colours(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(COLOURED[name])
    background, left, right = read_label_table(tmp_path / name, {0, 10, 49})
    assert (background.id, background.name) == (0, "background")
    assert (left.name.replace("_", " "), left.source, left.color) == ("Left Thalamus", (10,), "#00760e")
    assert (right.name.replace("_", " "), right.source) == ("Right Thalamus", (49,))
    assert label_colors((background, left, right))[:2].tolist() == [[0, 0, 0], [0, 118, 14]]
    found = ["background", right.name] if name.endswith((".txt", ".ctbl")) else ["background", left.name, right.name]
    assert [
        label.name for label in read_label_table(tmp_path / name, {0, 49})
    ] == found  # colour tables list all there may be


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "index\tname\n1\ta\n2\tb\n1\tc\n", r"a.tsv: line 4: id 1 again, 'c'; line 2 says 'a'"),
        ("a.tsv", "index\tname\tcolor\n1\ta\t#ff00gg\n", r"a.tsv: line 2: color '#ff00gg'; must be #rrggbb"),
        ("a.tsv", "index\tname\tmapping\n1\ta\t12\n", r"a.tsv: line 2: mapping '12'; must be from 0 to 11"),
        ("a.csv", "LabelValue,Name,Color_R,Color_G,Color_B\n1,a,0,256,0\n", r"a.csv: line 2: colour 0 256 0; must be"),
        ("a.txt", '1 0 300 0 1 1 1 "a"\n', r"a.txt: line 1: colour 0 300 0"),
        ("a.txt", "one a 0 0 0 0\n", r"a.txt: line 1: id 'one', name 'a'; must be a whole number"),
        ("a.ctbl", "# Color procedural file x\n0.5 0 0 0\n", r"a.ctbl: line 2: '0.5 0 0 0'; must be id, name, red"),
        ("a.txt", "maps/one.nii.gz\n", r"a.txt: line 1: 'maps/one.nii.gz'; must be id, name, red"),
        ("a.json", '{"a": 1, "b": [2, 1]}', r"a.json: 'b': id 1 again, 'b'; 'a' says 'a'"),
        ("a.json", '{"1": "a", "2": "b", "1": "c"}', r"a.json: '1' is there twice"),
        ("a.json", '{"a": 1, "a": 2}', r"a.json: 'a' is there twice"),
        ("a.json", '{"1": null}', r"a.json: '1': name None is not allowed: must be text in one line"),
        ("a.json", '{"1": ""}', r"a.json: '1': name '' is not allowed"),
        ("a.json", '{"": 1}', r"a.json: '': name '' is not allowed"),
        ("a.csv", 'index,name\n1,"a\nb"\n', r"a.csv: line 3: name 'a\\nb' is not allowed"),
        ("a.tsv", f"index\tname\n{2**31}\ta\n", r"a.tsv: line 2: id 2147483648 is not allowed: must be from 0"),
        ("a.json", '{"a": -1}', r"a.json: 'a': id -1 is not allowed: must be from 0"),
        ("a.txt", "9 Stem 1 2 3\n10 Area 4 255 0 0\n", r"a.txt: line 2 has an opacity and line 1 has none; give it"),
        ("a.tsv", "\udcff\udcfe", r"a.tsv: is no text"),
    ],
)
def test_tables_with_faults_are_refused_by_row(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"--label_map .*{message}") as caught:
        read_label_table(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_quotes_in_cells_between_tabs(tmp_path: Path) -> None:
    path = tmp_path / "dseg.tsv"
    path.write_text('"index"\t"name"\n1\t"left cave\n2\t"right cave"\n3\tstem\n')
    assert ids_of(path) == {"background": (0,), '"left cave': (1,), "right cave": (2,), "stem": (3,)}


def test_built_in_tables_by_name() -> None:
    whole = ids_of("totalsegmentator")
    assert (len(whole), whole["background"], whole["costal_cartilages"]) == (118, (0,), (117,))
    assert ids_of("totalsegmentator", (0, 2, 3, 999)) == {"background": (0,), "kidney_right": (2,), "kidney_left": (3,)}
    assert len(ids_of("totalsegmentator-v1")) == 105
    assert ids_of("totalsegmentator-v1")["urinary_bladder"] == (104,)
    assert ids_of("totalsegmentator-mr")["lung_left"] == (10,)
    assert ids_of("aseg", (2, 41, 16)) == {
        "background": (0,), "left_cerebral_white_matter": (2,), "brain_stem": (16,), "right_cerebral_white_matter": (41,)
    }  # fmt: skip
    assert ids_of("destrieux", (12146,)).keys() == {"background", "right_cortex_S_central"}
    assert ids_of("wmparc", (3024,)).keys() == {"background", "left_white_matter_precentral"}
    assert ids_of("csf-gm-wm")["grey_matter"] == ids_of("gm-wm-csf")["white_matter"] == (2,)
    with pytest.raises(ValueError, match=r"--label_map totalseg: must be an existing .tsv, .*totalsegmentator"):
        read_label_table("totalseg")


def test_every_built_in_table_knows_its_sides() -> None:
    for name in BUILT_IN:
        labels = read_label_table(name)
        spec = DataSpec(labels, (Channel("image"),), (8, 8))
        assert LabelScheme.from_spec(spec).partners is not None, name


def test_the_table_beside_maps_names_what_is_generated_from_them(tmp_path: Path) -> None:
    """With its colours; several ids of one class on each side can be mirrored. A table that lacks an id is refused."""
    ids = np.zeros((8, 8, 8), np.uint8)
    ids[1], ids[2], ids[5], ids[6], ids[4] = 101, 103, 102, 104, 7
    save_nifti(tmp_path / "sub-1" / "sub-1_dseg.nii.gz", ids)
    rows = "101\tleft cortex\t#ff0000\n103\tleft cortex\tn/a\n102\tright cortex\tn/a\n104\tright cortex\t#00ff00\n"
    (tmp_path / "dseg.tsv").write_text(f"index\tname\tcolor\n{rows}")
    with pytest.raises(ValueError, match=r"sub-1_dseg.nii.gz: the table beside it or its header: does not name 7"):
        ImageGenerator(tmp_path)
    (tmp_path / "dseg.tsv").write_text(f"index\tname\tcolor\n{rows}7\tstem\tn/a\n")
    scheme = ImageGenerator(tmp_path).scheme
    assert [scheme.values[i] for i in scheme.partners] == [
        {101: 102, 103: 104, 102: 101, 104: 103}.get(i, i) for i in scheme.values
    ]
    assert [(label.name, label.color) for label in output_labels(scheme)] == [
        ("background", ""), ("stem", ""), ("left_cortex", "#ff0000"), ("right_cortex", "#00ff00")
    ]  # fmt: skip
    assert output_labels(scheme.add_lesion())[-1].name == "lesion"
