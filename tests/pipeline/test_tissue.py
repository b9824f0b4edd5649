from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataloaders.labelmaps.label_tables import TABLES
from dataloaders.labelmaps.labels import count_labels
from pipeline.study import QualityOptions
from pipeline.tissue import gate, read_table, tissue_facts
from pipeline.tools import TOOLS
from tests.pipeline.heads import head

# What mri_synthseg without parcellation writes.
SYNTHSEG = [2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28]
SYNTHSEG += [41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60]
GM, WM, CSF = 1, 2, 3


def ids_of(path: Path) -> dict[int, int]:
    return {i: label.id for label in read_table(path).labels for i in label.source}


IDS = {  # FreeSurfer's; 16, the brain stem, is grey matter in the original
    GM: [3, 42, 1000, 1035, 2017, 8, 47, 10, 49, 9, 48, 11, 50, 17, 53, 18, 54, 26, 58, 28, 60, 80],
    WM: [2, 41, 7, 46, 251, 255, 5001, 5002, 77, 78, 79, 85, 99, 16],
    CSF: [4, 43, 5, 44, 14, 15, 72, 24, 30, 62, 31, 63],
    0: [165, 258, 259],
}


def test_every_segmenter_has_a_table_and_every_table_a_use() -> None:
    tables = {tool.table: ids_of(TABLES / tool.table) for tool in TOOLS.values() if tool.kind == "segment"}
    assert set(tables) == {path.name for path in TABLES.glob("*.toml")}
    freesurfer = tables["freesurfer.toml"]
    assert {tissue: [i for i in ids if freesurfer[i] == tissue] for tissue, ids in IDS.items()} == IDS
    assert not set(SYNTHSEG) - set(freesurfer)
    # Classes rise from CSF to white matter; the original takes FAST's 1, 2, 3 for WM, GM, CSF.
    for name in ("fast", "hmrf", "atlas"):
        assert tables[TOOLS[name].table] == {1: CSF, 2: GM, 3: WM}


def test_unknown_ids_are_counted_not_swallowed() -> None:
    labels = np.array([[0, 3, 2], [502, 502, 24], [165, 0, 900]], np.int32)
    table = read_table(TABLES / "freesurfer.toml")
    np.testing.assert_array_equal(table.apply(labels), [[0, GM, WM], [0, 0, CSF], [0, 0, 0]])
    assert table.unknown(count_labels(labels)) == {502: 2, 900: 1}


def test_any_label_table_can_be_one_of_tissues(tmp_path: Path) -> None:
    """By BIDS' column mapping, by names of tissues, by FreeSurfer's names."""
    table = tmp_path / "dseg.tsv"
    table.write_text("index\tname\tmapping\n1\tDeep\t9\n2\tRim\t8\n3\tCore\t2\n4\tWater\t3\n9\tSkull\t4\n0\tx\tn/a\n")
    with pytest.raises(ValueError, match=r"dseg.tsv: line 6: 'bone'; must be csf, grey_matter"):
        read_table(table)
    table.write_text(table.read_text().replace("\t4\n0\tx", "\t0\n0\tbackground"))
    assert ids_of(table) == {1: GM, 2: GM, 3: WM, 4: CSF, 9: 0, 0: 0}
    (tmp_path / "lut.txt").write_text("4 CSF 1 1 1 0\n5 Left-Thalamus 0 118 14 0\n6 white_matter 2 2 2 0\n")
    assert ids_of(tmp_path / "lut.txt") == {4: CSF, 5: GM, 6: WM}


def test_the_gate_names_what_is_wrong() -> None:
    image, phantom = head(0, skull=False)
    tissue = np.array([0, CSF, GM, WM], np.uint8)[phantom]
    small, rim, thin = tissue.copy(), tissue.copy(), tissue.copy()
    small[tissue.shape[0] // 4 :] = 0
    rim[:, :, ::6] = 0
    thin[(tissue == CSF) & (np.arange(tissue.shape[2]) > 8)] = GM
    for found, start in (
        (tissue, None),
        (np.zeros_like(tissue), "the segmentation is empty"),
        (np.where(tissue == WM, GM, tissue), "no WM"),  # FAST's collapse, two subjects of the original
        (np.where(tissue > 0, CSF, 0), "no GM and no WM"),
        (np.array([0, WM, GM, CSF])[tissue], "T1w does not rise from CSF to GM to WM"),  # the original's FAST map
        (small, "the brain has"),
        (rim, "the largest part is"),
        (thin, "CSF is"),
    ):
        faults = gate(tissue_facts(found.astype(np.uint8), image, voxel_ml=0.036), QualityOptions(fraction=(0.05, 0.7)))
        assert faults == [] if start is None else any(fault.startswith(start) for fault in faults), (start, faults)
