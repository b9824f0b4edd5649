"""Memory of training people: closed forms, and toy generators that copy and that do not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation import privacy
from tests.toy import phantom

PEOPLE, SLICES = 12, 3
TRAINING = np.repeat(np.arange(PEOPLE) < PEOPLE // 2, SLICES)
PERSON = np.repeat([f"sub-{p:02d}" for p in range(PEOPLE)], SLICES)


@pytest.fixture(scope="module")
def scans() -> list[tuple[NDArray, NDArray]]:
    """Label map (H, W) and real image (1, H, W) in [0, 1] of the slices of all people."""
    heads = [phantom(p, (32, 32, 12)) for p in range(PEOPLE)]
    return [(label[..., z], image[None, ..., z] / 255) for label, image in heads for z in range(5, 5 + SLICES)]


def vectors(images: list[NDArray], scans: list[tuple[NDArray, NDArray]]) -> NDArray:
    found = [privacy.aligned(image, label) for image, (label, _) in zip(images, scans, strict=True)]
    assert all(vector is not None for vector in found)
    return np.stack(found)  # type: ignore[arg-type]


def judged(copies: NDArray, scans: list[tuple[NDArray, NDArray]]) -> tuple[privacy.Membership, privacy.Membership]:
    """Of a generator that makes the scan itself where `copies`, else label means with noise; and the control."""
    rng = np.random.default_rng(1)
    painted = [privacy.painted(image, label) for label, image in scans]
    honest = [image + rng.normal(0, 0.02, image.shape) for image in painted]
    made = [image if copy else own for (_, image), own, copy in zip(scans, honest, copies, strict=True)]
    fake, real, reference = (vectors(images, scans) for images in (made, [image for _, image in scans], painted))
    test = privacy.membership("pixels", privacy.closeness(fake, real, reference), PERSON, TRAINING)
    return test, privacy.membership("how hard", -np.linalg.norm(reference - real, axis=1), PERSON, TRAINING)


def test_auc_by_hand() -> None:
    assert privacy.auc([3, 1], [2, 0]) == 0.75  # 3 > 2, 3 > 0, 1 > 0 of four pairs
    assert privacy.auc([1], [1]) == 0.5
    assert privacy.auc([0, 0], [1, 2, 3]) == 0
    scores, person = np.array([5, 1, 3, 3, 2.0]), np.array(["a", "a", "b", "c", "c"])  # people: 3, 3 against 2.5
    test = privacy.membership("x", scores, person, np.array([True, True, True, False, False]))
    assert (test.auc, test.slices, test.interval) == (1.0, pytest.approx(3.5 / 6), None)
    assert test.least == pytest.approx(1 / 3)
    assert test.gap == 0.5


def test_a_memoriser_is_found_and_an_honest_generator_is_not(scans: list[tuple[NDArray, NDArray]]) -> None:
    test, control = judged(TRAINING, scans)
    assert (test.auc, test.interval, test.p_value) == (1.0, (1.0, 1.0), pytest.approx(1 / math.comb(12, 6)))
    assert "Remembers" in privacy.verdict([test], [control], None, {})
    test, control = judged(np.zeros(len(scans), bool), scans)
    assert 0.2 < test.auc < 0.8
    said = privacy.verdict([test], [control], None, {})
    assert "No sign of memory" in said
    assert "discriminator was not tested" in said


def test_groups_that_differ_anyway_are_no_memory(scans: list[tuple[NDArray, NDArray]]) -> None:
    """Scans of held-out people with more noise are harder for everybody: the reference takes it out, or says so."""
    rng = np.random.default_rng(0)
    harder = [
        (label, image if own else image + rng.normal(0, 0.1, image.shape))
        for (label, image), own in zip(scans, TRAINING, strict=True)
    ]
    test, control = judged(np.zeros(len(scans), bool), harder)
    assert control.differs
    assert control.auc == 1
    assert "Remembers" not in privacy.verdict([test], [control], None, {})


def test_too_few_people_are_said() -> None:
    test = privacy.membership(
        "pixels", np.array([3.0, 2, 1, 0]), np.array([*"abcd"]), np.array([True, True, False, False])
    )
    assert test.auc == 1
    assert privacy.verdict([test], [test], None, {}).startswith("Cannot be told: 2 training against 2 held-out people")


def test_alignment_forgives_place_gain_and_offset_and_refuses_what_it_cannot_align() -> None:
    label, image = (volume[..., 6] for volume in phantom(0, (32, 32, 12)))
    moved = np.roll(image, (1, 0), (0, 1))[None] * 2 + 30
    vector = privacy.aligned(image[None], label)
    assert vector is not None
    assert np.linalg.norm(vector) == pytest.approx(1)
    np.testing.assert_allclose(privacy.aligned(moved, np.roll(label, (1, 0), (0, 1))), vector, atol=1e-5)
    assert privacy.aligned(np.ones((1, 32, 32)), label) is None
    assert privacy.aligned(image[None], label * (np.arange(32) < 3)) is None
    twice = privacy.mirrored(privacy.mirrored(vector[None]))
    np.testing.assert_array_equal(twice[0], vector)


def test_the_nearest_of_fewer_people_is_its_mean_over_all_draws() -> None:
    rows = np.random.default_rng(0).random((4, 5))
    for people in (1, 2, 5):
        drawn = [rows[:, list(some)].min(axis=1) for some in itertools.combinations(range(5), people)]
        np.testing.assert_allclose(privacy.nearest_of(rows, people), np.mean(drawn, axis=0))
    rows[0, :3] = np.nan
    np.testing.assert_allclose(privacy.nearest_of(rows[:1], 2), rows[:1, 3:].min(axis=1))
    assert np.isnan(privacy.nearest_of(rows[:1], 3)).all()


def test_copies_of_training_scans_are_nearer_than_real_scans_are(scans: list[tuple[NDArray, NDArray]]) -> None:
    """For the label maps of held-out people the scans of training people come out."""
    real = vectors([image for _, image in scans], scans)
    made = real.copy()
    made[~TRAINING] = real[TRAINING] + np.random.default_rng(0).normal(0, 0.001, real[TRAINING].shape)
    people = privacy.People(PERSON, TRAINING)
    ratios = [people.log_ratio(privacy.distances(x, real), PERSON)[~TRAINING] for x in (made, real)]
    found = privacy.nearness(*ratios, PERSON[~TRAINING])
    assert found.nearer
    assert found.ratio < 0.9 < found.floor < 1.1
    assert not privacy.nearness(ratios[1], ratios[1], PERSON[~TRAINING]).nearer
