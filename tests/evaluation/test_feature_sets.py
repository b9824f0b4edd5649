"""Distribution metrics of a results folder: right values under the right names, floors, reasons."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics.distribution import distribution_metrics, split_by_patient
from evaluation.metrics.feature_sets import INCEPTION, RADIOMICS, FeatureSets, names
from evaluation.metrics.radiomics import FEATURE_NAMES, standardise


def filled(n: int, patients: int, d: int, extractor: str) -> tuple[FeatureSets, np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(n, d)), rng.normal(2.0, 1.2, size=(n, d))
    of = [f"p{i % patients}" for i in range(n)]
    sets = FeatureSets()
    for patient, x, y in zip(of, real, fake, strict=True):
        sets.add(extractor, 0, patient, x, y)
        sets.add(extractor, 1, patient, x, x)
    return sets, real, fake, of


def test_inceptions_metrics_have_the_fields_names_and_values() -> None:
    sets, real, fake, of = filled(40, 4, 8, INCEPTION)
    entries = sets.metrics(INCEPTION, 0, None)
    expected = distribution_metrics(real=real, fake=fake)
    assert set(entries) == {"fid", "kid", "precision", "recall", "density", "coverage"}
    assert {key: entry["value"] for key, entry in entries.items()} == {
        key: expected[metric] for key, metric in names(INCEPTION).items()
    }
    assert entries["kid"]["sd_over_subsets"] == expected["kid_std"]
    split = split_by_patient(of)
    assert split is not None
    assert entries["fid"]["floor"]["n"] == [len(part) for part in split]
    assert entries["fid"]["floor"]["value"] < entries["fid"]["value"]
    assert entries["fid"]["better"] == "lower"
    assert entries["coverage"]["better"] == "higher"
    assert "below 2048 trust KID more" in entries["fid"]["note"]


def test_channels_are_apart_and_only_wanted_metrics_are_computed() -> None:
    sets, *_ = filled(20, 2, 8, INCEPTION)
    assert list(sets.metrics(INCEPTION, 1, ("mae", "fid"))) == ["fid"]
    assert sets.metrics(INCEPTION, 1, None)["fid"]["value"] == pytest.approx(0, abs=1e-9)
    assert sets.metrics(INCEPTION, 2, None) == {}
    assert sets.metrics(RADIOMICS, 0, None) == {}


def test_radiomics_are_standardised_by_the_real_set_and_never_called_fid() -> None:
    sets, real, fake, _ = filled(30, 3, len(FEATURE_NAMES), RADIOMICS)
    entries = sets.metrics(RADIOMICS, 0, None)
    assert all(key.startswith("radiomics_") for key in entries)
    x, y, _ = standardise(real=real, fake=fake)
    assert entries["radiomics_frechet"]["value"] == distribution_metrics(real=x, fake=y)["frechet"]
    assert "no weights" in entries["radiomics_kid"]["extractor"]


def test_too_few_slices_and_one_patient_are_said() -> None:
    sets, *_ = filled(1, 1, len(FEATURE_NAMES), RADIOMICS)
    entry = sets.metrics(RADIOMICS, 0, None)["radiomics_frechet"]
    assert entry["value"] is None
    assert entry["reason"] == "1 slice(s) are too few"
    sets, *_ = filled(12, 1, 8, INCEPTION)
    entry = sets.metrics(INCEPTION, 0, None)["kid"]
    assert entry["floor"] is None
    assert "cannot be split by patient" in entry["note"]
