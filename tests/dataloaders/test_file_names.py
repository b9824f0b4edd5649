"""What file names say: patients, channels, slices."""

from __future__ import annotations

import pytest

from dataloaders.io.file_names import PatientRule, label_of, place_of, shows_channels


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("amos_0001", "amos_0002", "amos_0400"), (), False),  # numbers of patients
        (("amos_0000", "amos_0001"), (), False),
        (("img_0001",), (), False),
        (("a_0000", "a_0001", "b_0000", "b_0001"), (), True),  # two channels of two cases
        (("a_0000", "b_0000"), (), False),  # nobody says so, and nobody is harmed
        (("a_0000", "b_0000"), ("a", "b"), True),  # nnU-Net's label maps
        (("a_0000", "b_0000"), ("a_0000", "b_0000"), False),
        (("c1_0001", "c1_0002", "c2_0001", "c2_0002"), (), False),  # time points; channels begin with 0000
    ],
)
def test_four_digits_are_channels_only_where_the_folder_shows_it(
    names: tuple[str, ...], labels: tuple[str, ...], expected: bool
) -> None:
    assert shows_channels(names, labels) is expected


@pytest.mark.parametrize(
    ("name", "channels", "patient"),
    [
        ("sub-07_ses-1_T1w", False, "sub-07"),
        ("case_0012_0000", True, "case_0012"),
        ("amos_0001", False, "amos_0001"),
        ("p01_z0003_0000", False, "p01"),
        ("p01_z0003", False, "p01"),
        ("scan", False, "scan"),
    ],
)
def test_patients(name: str, channels: bool, patient: str) -> None:
    assert PatientRule(None, channels).patient(name) == patient


def test_places_and_labels() -> None:
    assert place_of("a_z0012_0001") == ("a_0001", 12)
    assert place_of("a_z9") == ("a", 9)
    assert place_of("a_0012") == ("a_0012", None)
    assert label_of("a_0000", {"a": 1, "a_0000": 2}) == 2
    assert label_of("a_0000", {"a": 1}) == 1
