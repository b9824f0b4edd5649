"""Label schemes: the predecessors' lists, sides, look-up tables, and what must be refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from dataloaders.io.spec import Channel, DataSpec, Label
from models.gmm import freesurfer
from models.gmm.scheme import LabelScheme

LEFT = [2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 17, 18, 25, 26, 28, 30, 136, 137]
RIGHT = [41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 57, 58, 60, 62, 163, 164]
NEUTRAL = [0, 14, 15, 16, 24, 72, 85, 502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530]
SYNTHSEG = [*NEUTRAL, *LEFT, *RIGHT]


def partner_values(scheme: LabelScheme) -> dict[int, int]:
    return {value: scheme.values[scheme.partners[i]] for i, value in enumerate(scheme.values)}


def spec_of(*names: str) -> DataSpec:
    return DataSpec(tuple(Label(i, name) for i, name in enumerate(names)), (Channel("MR"),), (8, 8))


def test_freesurfer_table() -> None:
    names, partners = freesurfer.NAMES, freesurfer.PARTNERS
    assert [partners[value] for value in LEFT] == RIGHT
    for value, name in names.items():
        assert partners[partners[value]] == value
        side, *rest = name.split()
        assert names[partners[value]].split() == [{"left": "right", "right": "left"}.get(side, side), *rest]
    expected = {502: "extra-cerebral 502", 11146: "left cortex S_central", 3024: "left white matter precentral"}
    assert {value: names[value] for value in expected} == expected  # SynthSeg's, Destrieux', wmparc's
    found = {value: partners.get(value) for value in (1001, 16, 75, 11175, 3024, 5001)}
    assert found == {1001: 2001, 16: 16, 75: None, 11175: 12175, 3024: 4024, 5001: 5002}
    assert 14176 not in names
    assert freesurfer.in_order(reversed(SYNTHSEG)) == tuple(SYNTHSEG)


@pytest.mark.parametrize("n_neutral", [18, None])
def test_synthseg_lists(n_neutral: int | None) -> None:
    scheme = LabelScheme.from_lists(np.array(SYNTHSEG, np.int32), n_neutral_labels=n_neutral)
    assert (scheme.num_labels, scheme.num_classes, scheme.background) == (54, 54, 0)
    assert partner_values(scheme) == {**{n: n for n in NEUTRAL}, **dict(zip(LEFT + RIGHT, RIGHT + LEFT, strict=True))}
    assert scheme.outputs == scheme.values == LabelScheme.from_values(SYNTHSEG).values
    assert scheme.partners is not None
    assert [scheme.partners[i] for i in scheme.partners] == list(range(54))


def test_flip_without_lists_does_not_leave_left_on_the_right() -> None:
    """SynthSeg flipped without exchanging sides when n_neutral_labels was left out."""
    assert LabelScheme.from_lists([0, 7, 5, 901]).partners is None
    assert LabelScheme.from_lists([0, 2, 41, 3]).partners is None  # 42 is absent
    assert LabelScheme.from_lists([0, 17]).partners is None  # one side only, or both in one?
    assert LabelScheme.from_lists(range(8)).partners is None  # 1, 2, 3, ... is not FreeSurfer
    assert LabelScheme.from_lists([0, 3, 42, 2, 41]).partners == (0, 2, 1, 4, 3)
    assert LabelScheme.from_lists([0, 2, 3, 16]).partners == (0, 1, 2, 3)  # sides fused
    assert LabelScheme.from_lists([5, 6, 7], n_neutral_labels=3).partners == (0, 1, 2)
    named = LabelScheme.from_lists([0, 9, 1], names=["background", "Right-Kidney", "left_kidney"])
    assert named.partners == (0, 2, 1)


def test_from_values() -> None:
    scheme = LabelScheme.from_values([530, 41, 2, 0, 2, 25, 77])
    assert scheme.values == (0, 77, 530, 2, 25, 41, 57)  # 57, the right side's lesion, is added
    assert partner_values(scheme)[25] == 57
    assert scheme.names[4] == "left lesion"
    assert LabelScheme.from_values([9, 1, 0]).values == (0, 1, 9)
    assert LabelScheme.from_values([9, 1, 0]).names == ("background", "label 1", "label 9")
    assert LabelScheme.from_values([2, 3, 0, 14]).values == (0, 14, 2, 3)


def test_one_strange_id_costs_no_names_and_sides() -> None:
    with pytest.warns(UserWarning, match=r"label maps: 1999 are no ids of FreeSurfer.*no side"):
        scheme = LabelScheme.from_values([*SYNTHSEG, 1999])
    assert scheme.values == (*NEUTRAL, 1999, *LEFT, *RIGHT)
    assert scheme.names[18:20] == ("label 1999", "left cerebral white matter")
    assert partner_values(scheme)[2] == 41
    assert partner_values(scheme)[1999] == 1999


def test_other_numberings_are_not_taken_for_freesurfers() -> None:
    chest = [3, 5, 6, 10, 11, 18, 19, 20, 30, 31, 32, 33, 52, 63, 64]  # TotalSegmentator's, below the spleen
    neuromorphometrics = [4, 11, 23, 30, 31, 32, 35, 36, 100, 101, 102, 103, 104, 105, 106]
    for values in (chest, neuromorphometrics, list(range(2, 11)), [0, 1, 2, 3]):
        assert LabelScheme.from_values([0, *values]).names[-1].startswith("label ")
        assert LabelScheme.from_values([0, *values]).partners is None


def test_neutral_labels_that_pair_wrong_sides_are_refused() -> None:
    ascending = sorted(SYNTHSEG)
    with pytest.raises(ValueError, match=r"n_neutral_labels 18: pairs 2 \(left cerebral white matter\) with 2 .*, not with "
                       r"41 \(right cerebral white matter\); generation_labels must be"):  # fmt: skip
        LabelScheme.from_lists(ascending, n_neutral_labels=18)
    with pytest.raises(ValueError, match=r"pairs 3 \(left cerebral cortex\) with 4 .*, not with 3 "):
        LabelScheme.from_lists([0, 2, 3, 4], n_neutral_labels=2)  # of fused sides
    with pytest.raises(ValueError, match=r"pairs 1 \(kidney left\) with 3 \(lung left\), not with 2"):
        LabelScheme.from_lists([0, 1, 2, 3, 4], n_neutral_labels=1,
                               names=["background", "kidney left", "kidney right", "lung left", "lung right"])  # fmt: skip
    unknown = LabelScheme.from_lists([0, 1, 2, 3, 4], n_neutral_labels=1)
    assert unknown.partners == (0, 3, 4, 1, 2)  # nobody knows better
    assert LabelScheme.from_lists(ascending, n_neutral_labels=54).partners == (
        LabelScheme.from_lists(ascending).partners
    )


def test_from_spec() -> None:
    scheme = LabelScheme.from_spec(spec_of("background", "liver", "kidney_left", "kidney_right"))
    assert scheme.partners == (0, 1, 3, 2)
    assert LabelScheme.from_spec(spec_of("background", "csf", "grey_matter", "white_matter")).partners == (0, 1, 2, 3)
    assert LabelScheme.from_spec(spec_of("background", "label_3", "label_8")).partners is None
    assert LabelScheme.from_spec(spec_of("background", "left lung", "liver")).partners is None
    assert LabelScheme.from_spec(spec_of("background", "lh cortex", "rh-cortex")).partners == (0, 2, 1)


def test_feta_and_roles() -> None:
    feta = LabelScheme.feta()
    assert feta.partners == feta.values == tuple(range(8))
    roles = {name: feta.role(name) for name in ("cortex", "white_matter", "csf", "brain", "lesion")}
    assert roles == {"cortex": (2,), "white_matter": (3,), "csf": (1, 4), "brain": tuple(range(1, 8)), "lesion": ()}
    brain = LabelScheme.from_lists(SYNTHSEG, output_labels=[0 if v > 500 else v for v in SYNTHSEG], n_neutral_labels=18)
    values = {name: [brain.values[i] for i in brain.role(name)] for name in roles}  # type: ignore[arg-type]
    assert values["cortex"] == [3, 42]
    assert values["white_matter"] == [2, 41]
    assert values["csf"] == [14, 15, 24, 72, 4, 5, 43, 44]
    assert values["lesion"] == [25, 57]
    assert len(values["brain"]) == 54 - 12
    ours = LabelScheme.from_spec(spec_of("background", "csf", "grey_matter", "white_matter", "lesion"))
    assert [ours.role(r) for r in ("cortex", "white_matter", "csf", "lesion")] == [(2,), (3,), (1,), (4,)]


def test_seeds() -> None:
    scheme = LabelScheme.seeds([11, 10, 20, 30, 40, 41])
    assert scheme.values == (0, 10, 11, 20, 30, 40, 41)
    assert scheme.classes == tuple(range(7))
    assert scheme.ties[1] == scheme.ties[2]
    assert len(set(scheme.ties)) == 6
    assert scheme.outputs == (0, 1, 1, 2, 3, 0, 0)
    assert scheme.partners == tuple(range(7))
    assert scheme.role("white_matter") == (4,)
    with pytest.raises(ValueError, match="found 3"):
        LabelScheme.seeds([3, 10])


def test_add_lesion() -> None:
    scheme = LabelScheme.from_lists([0, 2, 41], [0, 1, 1]).add_lesion(output=77)
    assert scheme.values == (0, 2, 41, 42)
    assert scheme.classes == (0, 1, 1, 2)
    assert scheme.partners == (0, 2, 1, 3)
    assert scheme.outputs[-1] == 77
    assert scheme.role("lesion") == (3,)
    assert LabelScheme.seeds([10, 11]).add_lesion().ties == (0, 1, 1, 2)
    assert LabelScheme.from_lists([0, 7]).add_lesion().partners is None
    with pytest.raises(ValueError, match="77 more than once"):
        LabelScheme.from_lists([0, 77]).add_lesion(77)


@pytest.mark.parametrize("high", [85, 2**30])
def test_unknown_values_are_named_with_their_counts(high: int) -> None:
    """lab2im and SynthSeg made them background, or read past the end of a table."""
    scheme = LabelScheme.from_lists([0, 2, 90])
    label = torch.tensor([0] * 5 + [77] * 1234 + [high] * 20 + [2])
    message = f"generation_labels does not list: 77 (1,234 voxels), {high} (20 voxels)"
    with pytest.raises(ValueError, match=re.escape(message)):
        scheme.to_index(label)


def test_faults_of_lists() -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"generation_labels": []}, "is empty"),
        ({"generation_labels": [0, 4, 4]}, "lists 4 more than once"),
        ({"generation_labels": [0, -4]}, "found -4"),
        ({"generation_labels": [0, 1, 2], "generation_classes": [0, 1]}, "generation_classes has 2 entries for 3"),
        ({"generation_labels": [0, 1, 2], "generation_classes": [0, 4, 1]}, "complete from 0 to K-1: 2, 3 missing"),
        ({"generation_labels": [0, 1], "output_labels": [0]}, "output_labels has 1 entries for 2"),
        ({"generation_labels": SYNTHSEG, "n_neutral_labels": 17}, "an odd number"),
        ({"generation_labels": [0, 1], "n_neutral_labels": 3}, "must lie in 0..2"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            LabelScheme.from_lists(**arguments)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    scheme = LabelScheme.feta()
    for partners in ((1, 2, 0, 3, 4, 5, 6, 7), (0,) * 8, (0, 1)):
        with pytest.raises(ValueError, match="mutually"):
            replace(scheme, partners=partners)
    with pytest.raises(ValueError, match="ties has 1 entries for 8 classes"):
        replace(scheme, ties=(0,))


@pytest.mark.slow
def test_real_synthseg_maps(synthseg: Path, lists: dict[str, np.ndarray]) -> None:
    outputs = lists["synthseg_segmentation_labels"]
    for name, K in (("generation_classes", 48), ("generation_classes_contrast_specific", 25)):
        scheme = LabelScheme.from_lists(lists["generation_labels"], lists[name], outputs, 18)
        assert scheme.num_classes == K
    assert scheme == LabelScheme.from_lists(lists["generation_labels"], lists[name], outputs)  # sides by table
    label = torch.from_numpy(np.asarray(nib.load(synthseg / "training_seg_01.nii.gz").dataobj, np.int32))
    assert LabelScheme.from_values(np.unique(label)).values == scheme.values
    label = label[::3, ::3, ::3]
    index = scheme.to_index(label)
    expected = torch.zeros(label.shape)
    for value, output in zip(lists["generation_labels"], outputs, strict=True):
        expected[label == value] = float(output)
    assert torch.equal(scheme.output_table()[index.long()].float(), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(30,), (6, 5), (2, 3, 5)])
def test_index_and_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    scheme = LabelScheme.from_lists([0, 200, 17, 4], output_labels=[0, 1, 14175, 1])
    truth = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0))
    index = scheme.to_index(torch.tensor(scheme.values)[truth].to(dtype))
    assert index.dtype == torch.uint8
    assert torch.equal(index.long(), truth)
    assert torch.equal(scheme.output_table()[truth], torch.tensor([0, 1, 14175, 1], dtype=torch.int32)[truth])
