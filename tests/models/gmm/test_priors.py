"""Priors: every accepted form, moments and rules of the draws, and fitting to images."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.gmm.options import GmmConfig
from models.gmm.priors import (
    SYNTHSEG_MEANS,
    FittedPrior,
    GivenPriors,
    Prior,
    draw,
    draw_statistics,
    parse_prior,
    pool_subjects,
    priors_for,
    subject_statistics,
)
from models.gmm.scheme import LabelScheme

K = 3
ROWS = np.array([[10.0, 20, 30], [11, 22, 33], [100, 110, 120], [101, 112, 123]])
MANY = 20_000


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scheme(n: int = 4, classes: list[int] | None = None) -> LabelScheme:
    return LabelScheme.from_lists(range(n), classes, n_neutral_labels=n)


def statistics(prior: Prior, labels: LabelScheme, channels: int, **options: object) -> tuple[Tensor, Tensor]:
    return draw_statistics(GivenPriors(prior, prior), GmmConfig(**options), labels, channels, rng())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "uniform", "normal"),
    [
        (None, (0, 250), (125, 125 / 3**0.5)),
        (50, (75, 175), (125, 50)),
        (torch.tensor(50.0), (75, 175), (125, 50)),
        ([25, 225], (25, 225), (25, 225)),
        ((25.0, 225.0), (25, 225), (25, 225)),
        (np.array([25, 225]), (25, 225), (25, 225)),
    ],
)
def test_forms_that_are_the_same_for_every_class(
    value: object, uniform: tuple[float, float], normal: tuple[float, float]
) -> None:
    for kind, expected in (("uniform", uniform), ("normal", normal)):
        prior = parse_prior(value, kind, K, SYNTHSEG_MEANS)  # type: ignore[arg-type]
        assert prior.first.shape == prior.second.shape == (1, K)
        assert prior.first.dtype == torch.float32
        assert prior.first[0].tolist() == pytest.approx([expected[0]] * K)
        assert prior.second[0].tolist() == pytest.approx([expected[1]] * K)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (ROWS, "uniform", "expected 5 columns, one per class of generation_classes, got 3"),
        (ROWS[None], "uniform", "found (1, 4, 3)"),
        ([225, 25], "uniform", "low is above its high"),
        (-5, "normal", "negative"),
        ([[1, 2], [3]], "uniform", "must be a number"),
    ],
)
def test_faults(value: object, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_prior(value, kind, 5)  # type: ignore[arg-type]


def test_moments_of_draws() -> None:
    flat = draw(parse_prior([50, 150], "uniform", 50), MANY // 50, rng())
    assert 50 <= float(flat.min()) < 50.1 < 149.9 < float(flat.max()) <= 150
    assert float(flat.mean()) == pytest.approx(100, abs=1)
    assert float(flat.std()) == pytest.approx(100 / 12**0.5, rel=0.02)
    bell = draw(parse_prior([100, 10], "normal", 50), MANY // 50, rng())
    assert float(bell.mean()) == pytest.approx(100, abs=0.3)
    assert float(bell.std()) == pytest.approx(10, rel=0.02)
    below = draw(parse_prior([0, 10], "normal", 50), MANY // 50, rng())
    assert float(below.min()) == 0
    assert float((below == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(
        draw(parse_prior(None, "uniform", 5), 2, rng(3)), draw(parse_prior(None, "uniform", 5), 2, rng(3))
    )


def background_draws(rule: str) -> tuple[Tensor, Tensor]:
    ones = torch.full((1, 2), 200.0)
    labels = scheme(3, [1, 0, 1])  # value 0 is of class 1, and so is value 2
    prior = Prior("uniform", ones, ones)
    means, stds = statistics(prior, labels, MANY, background=rule)
    assert (means[:, 1] == 200).all()
    assert torch.equal(means[:, 0], means[:, 2])
    assert torch.equal(stds[:, 0], stds[:, 2])
    return means[:, 0], stds[:, 0]


def test_background_rules() -> None:
    mean, std = background_draws("class")
    assert (mean == 200).all()
    mean, std = background_draws("zero")
    assert (mean == 0).all()
    assert (std == 0).all()
    mean, std = background_draws("half")
    assert torch.equal(mean == 0, std == 0)
    assert float((mean == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert (mean[mean != 0] == 200).all()
    mean, std = background_draws("synthseg")
    zero, dark = mean == 0, (mean > 0) & (mean < 200)
    assert torch.equal(zero, std == 0)
    assert float(zero.float().mean()) == pytest.approx(0.05, abs=0.01)
    assert float(dark.float().mean()) == pytest.approx(0.25, abs=0.015)
    for value, high in ((mean, 15), (std, 5)):
        assert float(value[dark].max()) == pytest.approx(high, rel=0.01)
        assert float(value[dark].mean()) == pytest.approx(high / 2, rel=0.03)
    assert (std[mean == 200] == 200).all()


def test_ties() -> None:
    labels = LabelScheme.seeds([10, 11, 20, 40, 41])
    prior = parse_prior([80, 120], "uniform", 6)
    means, stds = statistics(prior, labels, MANY, tie_std=5)
    assert float((means[:, 1] - means[:, 2]).std()) == pytest.approx(5 * 2**0.5, rel=0.03)
    assert float((means[:, 1] - means[:, 3]).std()) == pytest.approx((2 * (40**2 / 12 + 25)) ** 0.5, rel=0.03)
    assert float((means[:, 4] - means[:, 5]).std()) == pytest.approx((2 * (40**2 / 12 + 25)) ** 0.5, rel=0.03)
    assert float((stds[:, 1] - stds[:, 2]).std()) == pytest.approx((2 * 40**2 / 12) ** 0.5, rel=0.03)
    wide, _ = statistics(prior, labels, MANY, tie_std=1000)
    assert (float(wide.min()), float(wide.max())) == (0, 225)
    same, _ = statistics(prior, labels, 9, tie_std=0)
    assert torch.equal(same[:, 1], same[:, 2])
    free, _ = statistics(prior, replace(labels, ties=None), 9)
    assert not torch.equal(free[:, 1], free[:, 2])


def exact_statistics(image: np.ndarray, classes: np.ndarray, k: int) -> tuple[float, float]:
    low, high = np.percentile(image, [2, 98])
    value = (np.clip(image, low, high) - low) / (high - low) * 255
    value = value[(classes == k) & ((value > 0) | (k == 0))]
    median = np.median(value)
    return float(median), 1.4826 * float(np.median(np.abs(value - median)))


@pytest.mark.parametrize("shape", [(64, 60), (24, 20, 22)])
def test_subject_statistics_against_the_definition(shape: tuple[int, ...]) -> None:
    label = torch.randint(0, 4, shape, generator=rng())
    noise = torch.randn(2, *shape, generator=rng(1))
    image = 300 * label + 40 * noise - 200  # any scale, negative values too
    centers, spreads = subject_statistics(image, label.to(torch.uint8), scheme(5, [0, 1, 2, 2, 3]))
    assert centers.shape == spreads.shape == (2, 4)
    classes = np.array([0, 1, 2, 2])[label.numpy()]
    for c in range(2):
        for k in range(3):
            median, spread = exact_statistics(image[c].double().numpy(), classes, k)
            assert float(centers[c, k]) == pytest.approx(median, abs=0.04 if k < 2 else 0.8)  # 2: gap in the middle
            assert float(spreads[c, k]) == pytest.approx(spread, abs=0.1 if k < 2 else 0.8)
    assert centers[:, 3].isnan().all()
    assert spreads[:, 3].isnan().all()
    low, high = (float(limit) for limit in np.percentile(image[0].numpy(), (2, 98)))
    window, _ = subject_statistics(image[:1], label, scheme(5, [0, 1, 2, 2, 3]), window=(low, high))
    assert torch.allclose(window[0, :3], centers[0, :3], atol=1e-3)


def correlated(S: int = 12, C: int = 2) -> tuple[Tensor, Tensor]:
    noise = torch.randn(S, C, K, generator=rng(5))
    brightness = torch.randn(S, 1, 1, generator=rng(6))
    return 120 + 20 * brightness + 3 * noise, 15 + 2 * noise


@pytest.mark.slow
def test_covariance_of_draws_is_that_of_the_subjects() -> None:
    medians, spreads = correlated()
    fitted = pool_subjects(medians, spreads)
    together, apart = (
        torch.stack([torch.cat(fitted.draw(g, covariance)).flatten() for _ in range(MANY)])
        for g, covariance in ((rng(), True), (rng(), False))
    )
    truth = torch.cat([medians, spreads], 1).flatten(1)
    expected = truth.T.cov()
    scale = expected.diag().sqrt()
    assert torch.allclose(together.mean(0), truth.mean(0), atol=0.5)
    assert float(((together.T.cov() - expected) / scale / scale[:, None]).abs().max()) < 0.05
    independent = apart.T.cov()
    assert float(((independent - expected.diag().diag()) / scale / scale[:, None]).abs().max()) < 0.05
    order = (together[:, 0] < together[:, 1]) == bool(medians[:, 0, 0].mean() < medians[:, 0, 1].mean())
    loose = (apart[:, 0] < apart[:, 1]) == bool(medians[:, 0, 0].mean() < medians[:, 0, 1].mean())
    assert order.float().mean() > loose.float().mean() + 0.02  # which tissue is brighter is kept more often


def test_pooling_over_subjects_that_lack_a_class() -> None:
    medians, spreads = correlated()
    medians[3:, 0, 1] = spreads[3:, 0, 1] = float("nan")
    fitted = pool_subjects(medians, spreads)
    assert float(fitted.mean_center[0, 1]) == pytest.approx(float(medians[:3, 0, 1].mean()))
    assert float(fitted.mean_spread[0, 1]) == pytest.approx(float(medians[:3, 0, 1].std()), rel=1e-5)
    total = (fitted.mean_deviations**2).sum(0) / (len(medians) - 1)
    assert torch.allclose(total.sqrt(), fitted.mean_spread, rtol=1e-4)
    medians[:, :, 2] = spreads[:, :, 2] = float("nan")
    with pytest.warns(UserWarning, match="no subject shows class 2; the mean of the other labels"):
        filled = pool_subjects(medians, spreads)
    with pytest.warns(UserWarning, match="no training slice shows c;"):
        pool_subjects(medians, spreads, "abc", what="training slice")
    assert torch.equal(filled.mean_center[:, 2], filled.mean_center[:, 1])
    assert not any(value.isnan().any() for value in vars(filled).values())
    medians[:, 1] = float("nan")
    with pytest.raises(ValueError, match=r"channels \[1\] show no class"):
        pool_subjects(medians, spreads)
    with pytest.raises(ValueError, match=r"two stacks"):
        pool_subjects(medians, spreads[:, 0])


def test_dict_and_back() -> None:
    fitted = pool_subjects(*correlated())
    data = json.loads(json.dumps(fitted.to_dict(["T1w", "T2w"], ["a", "b", "c"])))
    channels, names, again = FittedPrior.from_dict(data)
    assert (channels, names) == (("T1w", "T2w"), ("a", "b", "c"))
    assert all(torch.equal(value, getattr(fitted, key)) for key, value in vars(again).items())
    faults = ({"names": ["a"]}, "(2, 1)"), ({"std_center": [[1, 2], [3]]}, "std_center is not a table of numbers")
    for wrong, message in (*faults, ({"mean_center": [[float("nan")] * K] * 2}, "mean_center must be finite")):
        with pytest.raises(ValueError, match=re.escape(message)):
            FittedPrior.from_dict({**data, **wrong})
    with pytest.raises(ValueError, match="priors lack channels, mean_center"):
        FittedPrior.from_dict({k: v for k, v in data.items() if k not in ("channels", "mean_center")})


def test_published_priors(lists: dict[str, np.ndarray]) -> None:
    labels = LabelScheme.from_lists(lists["generation_labels"], lists["generation_classes_contrast_specific"], None, 18)
    priors = [parse_prior(lists[f"prior_{name}_t1"], "normal", labels.num_classes) for name in ("means", "stds")]
    means, _ = draw_statistics(GivenPriors(*priors), GmmConfig(), labels, 2000, rng())
    cortex, white = (means[:, labels.values.index(value)] for value in (3, 2))
    assert float(white.mean()) == pytest.approx(lists["prior_means_t1"][0, 2], abs=2)  # 129.5 and 96.3: T1
    assert float(cortex.mean()) == pytest.approx(lists["prior_means_t1"][0, 3], abs=2)
    with pytest.raises(ValueError, match="expected 48 columns"):
        parse_prior(lists["prior_means_t1"], "normal", 48)


def test_priors_find_their_classes_by_name_whatever_its_spelling() -> None:
    prior = pool_subjects(torch.tensor([[[0.0, 40.0, 90.0]]]), torch.ones(1, 1, 3))
    data = prior.to_dict(["T1w"], ["background", "label 7", "White_Matter"])
    scheme = LabelScheme.from_lists([0, 2, 7], names=["background", "white matter", "label_7"])
    assert priors_for(data, scheme, 1).mean_center.tolist() == [[0.0, 90.0, 40.0]]
    with pytest.raises(ValueError, match="no priors for cortex; there are priors for"):
        priors_for(data, LabelScheme.from_lists([0, 1], names=["background", "cortex"]), 1)
    with pytest.raises(ValueError, match="priors are of 1 channels"):
        priors_for(data, scheme, 2)
