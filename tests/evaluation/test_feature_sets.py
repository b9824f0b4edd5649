"""Distribution metrics of a results folder: right values under the right names, floors, reasons."""

from __future__ import annotations

import numpy as np

from evaluation.metrics.distribution import distribution_metrics, split_by_patient
from evaluation.metrics.feature_sets import INCEPTION, RADIOMICS, of_extractor, set_entries
from evaluation.metrics.radiomics import FEATURE_NAMES, standardise


def filled(n: int, patients: int, d: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)), rng.normal(2.0, 1.2, size=(n, d)), [f"p{i % patients}" for i in range(n)]


def every(extractor: str) -> set[str]:
    return {metric.key for metric in of_extractor(extractor).values()}


def test_inceptions_metrics_have_the_fields_names_and_values() -> None:
    real, fake, of = filled(40, 4, 8)
    entries = set_entries(INCEPTION, real, fake, of, every(INCEPTION))
    expected = distribution_metrics(real=real, fake=fake)
    assert set(entries) == {"fid", "kid", "precision", "recall", "density", "coverage"}
    assert {key: entry["value"] for key, entry in entries.items()} == {
        metric.key: expected[kind] for kind, metric in of_extractor(INCEPTION).items()
    }
    assert entries["kid"]["sd_over_subsets"] == expected["kid_std"]
    split = split_by_patient(of)
    assert split is not None
    assert entries["fid"]["floor"]["n"] == [len(part) for part in split]
    assert entries["fid"]["floor"]["value"] < entries["fid"]["value"]
    assert entries["fid"]["better"] == "lower"
    assert entries["coverage"]["better"] == "higher"
    assert "below 2048 trust KID more" in entries["fid"]["note"]


def test_radiomics_are_standardised_by_the_real_set_and_never_called_fid() -> None:
    real, fake, of = filled(30, 3, len(FEATURE_NAMES))
    entries = set_entries(RADIOMICS, real, fake, of, every(RADIOMICS))
    assert all(key.startswith("radiomics_") for key in entries)
    x, y, _ = standardise(real=real, fake=fake)
    assert entries["radiomics_frechet"]["value"] == distribution_metrics(real=x, fake=y)["frechet"]
    assert "no weights" in entries["radiomics_kid"]["extractor"]


def test_too_few_slices_and_one_patient_are_said() -> None:
    entry = set_entries(RADIOMICS, *filled(1, 1, len(FEATURE_NAMES)), every(RADIOMICS))["radiomics_frechet"]
    assert entry["value"] is None
    assert entry["reason"] == "1 slice(s) are too few"
    entry = set_entries(INCEPTION, *filled(12, 1, 8), every(INCEPTION))["kid"]
    assert entry["floor"] is None
    assert "cannot be split by patient" in entry["note"]
