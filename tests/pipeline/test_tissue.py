from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataloaders.labelmaps.labels import TABLES
from pipeline.study import QualityOptions
from pipeline.tissue import bounding_box, gate, read_table, tissue_facts
from pipeline.tools import TOOLS
from tests.pipeline.heads import head

# What mri_synthseg without parcellation writes.
SYNTHSEG = [0, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28]
SYNTHSEG += [41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60]
GM, WM, CSF = 1, 2, 3
VOXEL_ML = 0.036


def facts_of(tissue: np.ndarray, image: np.ndarray) -> list[str]:
    return gate(tissue_facts(tissue, image, VOXEL_ML), QualityOptions())


def ours() -> tuple[np.ndarray, np.ndarray]:
    """A good map in this pipeline's ids (the phantom's are 1 CSF, 2 GM, 3 WM), and its T1w."""
    image, tissue = head(0, skull=False)
    return np.array([0, CSF, GM, WM], np.uint8)[tissue], image


def test_every_segmenter_has_a_table() -> None:
    for tool in TOOLS.values():
        if tool.kind == "segment":
            assert read_table(TABLES / tool.table).ids


@pytest.mark.parametrize(
    ("ids", "tissue"),
    [
        ([3, 42, 1000, 1035, 2017, 8, 47, 10, 49, 9, 48, 11, 50, 17, 53, 18, 54, 26, 58, 28, 60, 80], GM),
        ([2, 41, 7, 46, 251, 255, 5001, 5002, 77, 78, 79, 85, 99], WM),
        ([16], WM),  # the brain stem, grey matter in the original
        ([4, 43, 5, 44, 14, 15, 72, 24, 30, 62, 31, 63], CSF),
        ([165, 258, 259], 0),
    ],
)
def test_freesurfers_ids(ids: list[int], tissue: int) -> None:
    table = read_table(TABLES / "freesurfer.toml")
    assert [table.ids[i] for i in ids] == [tissue] * len(ids)


def test_all_of_synthsegs_labels_are_known() -> None:
    table = read_table(TABLES / "freesurfer.toml")
    assert not [i for i in SYNTHSEG if i and i not in table.ids]


@pytest.mark.parametrize("tool", ["fast", "hmrf", "atlas"])
def test_classes_rise_from_csf_to_white_matter(tool: str) -> None:
    """The original takes FAST's 1, 2, 3 for WM, GM, CSF."""
    table = read_table(TABLES / TOOLS[tool].table)
    assert table.ids == {1: CSF, 2: GM, 3: WM}


def test_unknown_ids_are_counted_not_swallowed() -> None:
    table = read_table(TABLES / "freesurfer.toml")
    labels = np.array([[0, 3, 2], [502, 502, 24], [165, 0, 900]], np.int32)
    tissue, unknown = table.apply(labels)
    np.testing.assert_array_equal(tissue, [[0, GM, WM], [0, 0, CSF], [0, 0, 0]])
    assert unknown == {502: 2, 900: 1}


def test_tables_with_faults_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    for text, message in {
        "[GM]\na = [1]\n[WM]\nb = [1]": r"id 1 is both 'a' and 'b'",
        "[GREY]\na = [1]": r"section 'GREY': must be one of GM, WM, CSF, none",
        '[GM]\na = ["5-2"]': r"a = \['5-2'\]: must be positive ids",
        "[GM]\na = [0]": r"must be positive ids",
        "[GM]\na = [1]": r"no id becomes WM, CSF",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_table(path)


def test_a_good_map_passes_the_gate() -> None:
    assert facts_of(*ours()) == []


def test_the_gate_names_what_is_wrong() -> None:
    tissue, image = ours()
    assert facts_of(np.zeros_like(tissue), image) == ["the segmentation is empty"]
    assert facts_of(np.where(tissue == WM, GM, tissue), image) == [
        "no WM"
    ]  # FAST's collapse, two subjects of the original
    assert facts_of(np.where(tissue > 0, CSF, 0).astype(np.uint8), image) == ["no GM and no WM"]
    exchanged = np.array([0, WM, GM, CSF], np.uint8)[tissue]  # GM and WM exchanged, as the original's FAST map does
    assert any("T1w does not rise from CSF to GM to WM" in fault for fault in facts_of(exchanged, image))
    small = tissue.copy()
    small[tissue.shape[0] // 4 :] = 0
    assert any(fault.startswith("the brain has") for fault in facts_of(small, image))
    rim = tissue.copy()
    rim[:, :, ::6] = 0
    assert any(fault.startswith("the largest part is") for fault in facts_of(rim, image))
    thin = np.where((tissue == CSF) & (np.arange(tissue.shape[2]) > 8), GM, tissue).astype(np.uint8)
    assert any(fault.startswith("CSF is") for fault in facts_of(thin, image))


def test_boxes_stay_in_the_volume() -> None:
    mask = np.zeros((10, 10, 10), bool)
    mask[0:4, 5:10, 3] = True
    box = bounding_box(mask, np.array([2, 2, 5]))
    assert [(s.start, s.stop) for s in box] == [(0, 6), (3, 10), (0, 9)]
    with pytest.raises(ValueError, match="the brain mask is empty"):
        bounding_box(np.zeros((3, 3, 3), bool), np.zeros(3))
