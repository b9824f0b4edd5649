"""Distribution metrics: closed forms, plain implementations of the definitions, torchmetrics and prdc."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from evaluation.metrics import distribution
from evaluation.metrics.distribution import (
    density_coverage,
    distribution_metrics,
    floors,
    frechet_distance,
    frechet_of_moments,
    kid,
    precision_recall,
    splits_by_patient,
)
from evaluation.metrics.feature_sets import INCEPTION, RADIOMICS, of_extractor, set_entries
from evaluation.metrics.radiomics import FEATURE_NAMES, standardise


def samples(n: int, d: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


# -- plain implementations ----------------------------------------------------------------------------------------


def plain_kid(real: np.ndarray, fake: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    within = [
        sum(kernel(a, b) for a, b in itertools.permutations(z, 2)) / (len(z) * (len(z) - 1)) for z in (real, fake)
    ]
    between = sum(kernel(a, b) for a, b in itertools.product(real, fake)) / (len(real) * len(fake))
    return sum(within) - 2 * between


# -- KID ----------------------------------------------------------------------------------------------------------


def test_kid_equals_its_definition_and_torchmetrics() -> None:
    reference = pytest.importorskip("torchmetrics.image.kid")
    torch = pytest.importorskip("torch")
    real, fake = samples(25, 6), samples(25, 6, 1, 1.3, 0.2)
    value, spread = kid(real=real, fake=fake)
    assert value == pytest.approx(plain_kid(real, fake), rel=1e-12)
    assert value == pytest.approx(float(reference.poly_mmd(*map(torch.from_numpy, (real, fake)))), rel=1e-9)
    assert np.isnan(spread)  # there is only one subset of 25 out of 25


def test_kid_takes_the_mean_over_subsets_of_the_larger_set() -> None:
    """Each subset has all 12 fake samples and 12 of the 60 real ones; the mean is near the value of all."""
    real, fake = samples(60, 4), samples(12, 4, 1, 1.2, 0.5)
    mean, spread = kid(real=real, fake=fake)
    assert spread > 0
    assert abs(mean - plain_kid(real, fake)) < 4 * spread / 10
    assert kid(real=real, fake=fake) == (mean, spread)
    assert kid(real=real, fake=fake, seed=1) != (mean, spread)


@pytest.mark.parametrize(("n", "m"), [(30, 30), (150, 40), (40, 150)])
def test_kid_does_not_depend_on_order_nor_on_how_it_is_computed(
    n: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fake = samples(n, 5), samples(m, 5, 1, 1.4)
    expected = kid(real=real, fake=fake)
    rng = np.random.default_rng(3)
    assert kid(real=rng.permutation(real), fake=rng.permutation(fake)) == pytest.approx(expected, nan_ok=True)
    monkeypatch.setattr(distribution, "_CHUNK", 64)  # several blocks
    assert kid(real=real, fake=fake) == pytest.approx(expected, nan_ok=True)
    monkeypatch.setattr(distribution, "_SHARED_KERNEL", 0)  # one kernel matrix for each subset
    assert kid(real=real, fake=fake) == pytest.approx(expected, nan_ok=True)


# -- neighbourhoods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_copies_are_perfect_even_far_from_the_origin(offset: float) -> None:
    features = samples(60, 16) + offset
    assert precision_recall(real=features, fake=features) == (1, 1)
    # A ball holds its own centre's copy and, on its sphere, the k-th neighbour's.
    assert density_coverage(real=features, fake=features, k=5) == (pytest.approx(6 / 5), 1)


def test_points_on_a_line_are_counted_by_hand() -> None:
    """Real 0, 1, 2, 3 with k = 1: balls of radius 1 from -1 to 4, borders included."""
    real, fake = np.arange(4.0)[:, None], np.array([[-1.0], [0.5], [4.0], [4.1]])
    assert precision_recall(real=real, fake=fake, k=1)[0] == 0.75
    # -1: one ball; 0.5: two; 4: one; 4.1: none. Real balls hit: of 0, of 1 and of 3.
    assert density_coverage(real=real, fake=fake, k=1) == (1.0, 0.75)


@pytest.mark.parametrize("k", [3, 5])
def test_agrees_with_the_authors_of_density_and_coverage(k: int) -> None:
    reference = pytest.importorskip("prdc")
    real, fake = samples(400, 4), samples(300, 4, 1, 0.8, 0.3)
    expected = reference.compute_prdc(real_features=real, fake_features=fake, nearest_k=k)
    values = (*precision_recall(real=real, fake=fake, k=k), *density_coverage(real=real, fake=fake, k=k))
    assert values == pytest.approx([expected[name] for name in ("precision", "recall", "density", "coverage")])


def test_metrics_with_too_few_samples_are_none_not_zero() -> None:
    values = distribution_metrics(real=samples(5, 3), fake=samples(5, 3, 1))
    assert values["density"] is values["coverage"] is values["kid_std"] is None
    assert None not in [values[name] for name in ("frechet", "kid", "precision", "recall")]
    assert set(distribution_metrics(real=samples(1, 3), fake=samples(9, 3)).values()) == {None}


# -- halves, floors, equal n --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "ways", "fewest"),
    [
        ([5, 5], 1, 5),
        ([1, 100], 1, 1),
        ([5, 4, 3], 2, 4),
        ([7, 1, 1, 1], 1, 3),
        ([1] * 9, 10, 4),
        ([8, 7, 6, 5, 4], 5, 12),
    ],
)
def test_halves_share_no_patient_and_are_about_equal(sizes: list[int], ways: int, fewest: int) -> None:
    patients = np.random.default_rng(0).permutation(np.repeat([f"p{i}" for i in range(len(sizes))], sizes))
    for seed in range(3):
        halves = splits_by_patient(list(patients), seed)
        groups = {frozenset({frozenset(patients[a]), frozenset(patients[b])}) for a, b in halves}
        assert len(halves) == len(groups) >= ways  # each way of parting them once
        for a, b in halves:
            assert fewest <= len(a) <= len(b)
            assert sorted([*a, *b]) == list(range(len(patients)))
            assert not set(patients[a]) & set(patients[b])


def test_one_patient_has_no_halves_and_no_floor() -> None:
    assert splits_by_patient(["a"] * 10) == []
    assert floors(samples(10, 3), ["a"] * 10) == {}


def test_floors_are_the_metrics_between_halves_over_all_splits() -> None:
    """Three people with 20, 20 and 21 samples: the smaller half is always one of them, the larger one cut to its size."""
    features, patients = samples(61, 4), [f"p{i // 20}" for i in range(60)] + ["p2"]
    result = floors(features, patients)
    assert {tuple(floor["n"]) for floor in result.values()} == {(20, 20)}
    assert {floor["splits"] for floor in result.values()} == {3}
    for kind, floor in result.items():
        assert floor["range"][0] <= floor["value"] <= floor["range"][1], kind
    assert result["kid"]["range"][0] < result["kid"]["range"][1]
    order = np.random.default_rng(1).permutation(61)
    assert floors(features[order], [patients[i] for i in order]) == result
    with pytest.raises(ValueError, match="61 features but 60 patients"):
        floors(features, patients[:60])


def test_of_two_people_there_is_one_split() -> None:
    features = samples(40, 4)
    result = floors(features, ["p0"] * 20 + ["p1"] * 20)
    expected = distribution_metrics(real=features[20:], fake=features[:20])
    for kind, floor in result.items():
        assert floor["value"] == pytest.approx(expected[kind])
        assert floor["range"] == [floor["value"]] * 2
        assert floor["splits"] == 1


def test_halves_of_large_sets_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "FLOOR_SIZE", 12)
    assert floors(samples(61, 4), [f"p{i // 10}" for i in range(61)])["kid"]["n"] == [12, 12]


def test_generated_samples_are_set_beside_the_floor_at_its_size() -> None:
    """Of the smaller half's slices, against the same real half; copies of the real ones get the floor itself."""
    features, patients = samples(61, 4), [f"p{i // 10}" for i in range(61)]
    for floor in floors(features, patients, fake=features).values():
        assert floor["matched"] == floor["value"]
    moved = floors(features, patients, fake=features + 2)
    assert moved["frechet"]["matched"] == pytest.approx(4 * 4 + moved["frechet"]["value"], rel=0.1)
    assert floors(features, patients)["kid"]["matched"] is None


# -- frechet ------------------------------------------------------------


def test_frechet_of_the_same_of_a_shift_and_of_a_scale() -> None:
    """0 with fewer samples than features too; the shift's squared length; tr(C) (1 - s)² for Y = s X about the mean."""
    few, features = samples(20, 64), samples(400, 6)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + 3) == pytest.approx(6 * 9)
    features -= features.mean(0)
    trace = np.cov(features, rowvar=False).trace()
    assert frechet_distance(features, 2.5 * features) == pytest.approx(trace * 1.5**2)


@pytest.mark.parametrize(("n", "m", "d"), [(10, 14, 32), (300, 200, 16), (8, 200, 16), (200, 8, 16)])
def test_any_shape_symmetry_and_order(n: int, m: int, d: int) -> None:
    x, y = samples(n, d), samples(m, d, 1) * 1.3 + 0.2
    value = frechet_distance(x, y)
    assert value > 0
    assert frechet_distance(y, x) == pytest.approx(value)
    assert frechet_distance(x[::-1], y) == pytest.approx(value)


@pytest.mark.parametrize("m", [400, 5])
def test_frechet_agrees_with_pytorch_fid(m: int) -> None:
    """Of two sets, and of the moments of one; fewer samples than features leave its square root few digits."""
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    x, y = samples(500, 12), samples(m, 12, 1) @ np.diag(np.linspace(0.5, 2, 12)) + 0.1
    moments, others = ((z.mean(0), np.cov(z, rowvar=False)) for z in (x, y))
    expected = pytest.approx(fid_score.calculate_frechet_distance(*moments, *others), rel=1e-6 if m > 12 else 1e-3)
    assert frechet_distance(x, y) == expected
    assert frechet_of_moments(*moments, y) == expected


def test_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="two samples a side, got 1 and 5"):
        frechet_distance(samples(1, 4), samples(5, 4))


# -- feature sets ------------------------------------------------------------


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
    assert entries["fid"]["floor"]["n"] == [20, 20]
    assert entries["fid"]["floor"]["splits"] == 3
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
