"""Label tables: built-in ones by name, BIDS' dseg.tsv, tissues as TOML, names in headers."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dataloaders.io.spec import Channel, DataSpec, Label
from dataloaders.labelmaps.labels import TABLES, names_with, read_label_map, table_names, tissue_rows
from models.gmm.labels import LabelScheme


def ids_of(path: Path | str, found: tuple[int, ...] | None = None) -> dict[str, tuple[int, ...]]:
    return {label.name: label.source for label in read_label_map(path, found)}


def test_bids_tables(tmp_path: Path) -> None:
    path = tmp_path / "dseg.tsv"
    path.write_bytes(
        b"\xef\xbb\xbfindex\tname\tabbreviation\n0\tBackground\tBG\n4\tcsf\tC\n11\tcsf\tC\n40\tgrey_matter\tG\n"
    )
    assert read_label_map(path) == (
        Label(0, "background", (0,)), Label(1, "csf", (4, 11)), Label(2, "grey_matter", (40,))
    )  # fmt: skip
    path.write_text("number\tname\n1\ta\n")
    with pytest.raises(ValueError, match=r"dseg.tsv: needs the columns id \(or index\) and name, found"):
        read_label_map(path)
    path.write_text("index\tname\n1\ta\n2\n")
    with pytest.raises(ValueError, match=r"dseg.tsv: line 3: index '2', name ''; must be a whole number"):
        read_label_map(path)


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
    with pytest.raises(ValueError, match=r"--label_map totalseg: must be an existing .json, .*totalsegmentator"):
        read_label_map("totalseg")


def test_every_built_in_table_knows_its_sides() -> None:
    for name in table_names():
        labels = read_label_map(name)
        spec = DataSpec(labels, (Channel("image"),), (8, 8))
        assert LabelScheme.from_spec(spec).partners is not None, name


def test_tables_of_tissues_are_label_maps() -> None:
    found = ids_of(TABLES / "freesurfer.toml")
    assert set(found) == {"background", "GM", "WM", "CSF"}
    assert {3, 42, 1000, 11101, 12175} <= set(found["GM"])
    assert {2, 3024, 4035, 13101, 14175, 5001} <= set(found["WM"])
    assert {0, 165} <= set(found["background"])
    assert (11101, "GM", "cortical parcels (Destrieux)") in tissue_rows(TABLES / "freesurfer.toml")


def test_names_in_headers(shared_data: Path, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.to_filename(tmp_path / "bare.nii")
    assert names_with(tmp_path / "bare.nii") is None
    xml = '<LabelTable><Label Key="1" Red="0"><![CDATA[spleen]]></Label>\n<Label Key="7">gut &amp; co</Label>'
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, xml.encode()))
    image.to_filename(tmp_path / "named.nii")
    assert names_with(tmp_path / "named.nii") == ({1: "spleen", 7: "gut & co"}, "its header")
    for path, table in (("ct/case01_seg", "totalsegmentator"), ("mr-body/case01_seg", "totalsegmentator-mr")):
        file = shared_data / f"{path}.nii.gz"
        if file.is_file():
            names = {number: name for name, (number,) in ids_of(table).items() if number}
            assert names_with(file) == (names, "its header")
