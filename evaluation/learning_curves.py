"""How many real patients synthetic images are worth: learning curves, fitted and inverted (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics import DRAWS, MIN_PATIENTS

MIN_TRAININGS = 3  # draws of patients, and numbers of patients, that an interval and a curve need
FEW = "too few draws or test patients"
EXPONENTS = np.geomspace(0.05, 4, 200)  # below the first a power law is a logarithm, above the last a step

Array = NDArray[np.float64]


def fit_power_law(n: Sequence[float], y: Array) -> tuple[Array, Array, Array]:
    """(a, b, c) of the least-squares curves a - b n^-c with b >= 0, c one of EXPONENTS, for each row of y (R, len(n)).

    The inverse power law of learning curves (Figueroa et al., BMC Med. Inform. Decis. Mak. 2012); exact in a and b.
    """
    x = np.asarray(n, np.float64)[:, None] ** -EXPONENTS
    mean_x, mean_y = x.mean(0), y.mean(1, keepdims=True)
    centred, squares = x - mean_x, ((x - mean_x) ** 2).sum(0)
    products = (y - mean_y) @ centred
    slope = np.minimum(products / squares, 0)  # more patients never harm: b = -slope >= 0
    best = (slope**2 * squares - 2 * slope * products).argmin(1)  # squared error, but for a constant of the row
    b = -slope[np.arange(len(y)), best]
    return mean_y[:, 0] + b * mean_x[best], b, EXPONENTS[best]


def power_law(n: Any, curve: tuple[Array, Array, Array]) -> Array:
    """Values (R, len(n)) of fitted curves."""
    a, b, c = (part[:, None] for part in curve)
    return a - b * np.asarray(n, np.float64)[None, :] ** -c


def patients_of(values: Array, curve: tuple[Array, Array, Array], low: float, high: float) -> Array:
    """At what n each curve (R) reaches the values (R, K); `low` or `high` for what lies beyond."""
    a, b, c = (part[:, None] for part in curve)
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.where(values < a, ((a - values) / b) ** (-1 / c), np.inf)
    n = np.where((b == 0) & (values <= a), low, n)  # where patients add nothing, neither do images
    return np.clip(n, low, high)


def resampled(scores: Array, draws: Array, people: Array) -> Array:
    """Means (R, K) of scores (draws, K, people) under weights (R, draws) and (R, people)."""
    return np.einsum("rd,dkp,rp->rk", draws, scores, people, optimize=True)


def weights(count: int, rng: np.random.Generator) -> Array:
    """Shares (DRAWS + 1, count): all alike first, then those of bootstrap samples."""
    chosen = rng.multinomial(count, np.full(count, 1 / count), DRAWS) / count
    return np.concatenate([np.full((1, count), 1 / count), chosen])


def learning_curves(
    n: Sequence[int], scores: Mapping[str, Array], first: str, alone: Collection[str] = ()
) -> dict[str, Any]:
    """What arms reach with n patients, and how many more patients `first` would need for as much.

    n: rising, at least three numbers. scores: arm -> (draws, len(n), test people), the same people in each, in the metric's
    unit, higher is better; a draw holds the same patients in all arms. alone: arms that train on images made from the n
    patients and on none of theirs, so that what they are worth is not beside n but in place of them. Returns ``curves``:
    per arm the means, their intervals and a, b, c; ``rise``: what `first` gains from the smallest to the largest n, and its
    interval; ``worth``: per other arm and n but the largest the number of patients ``worth`` (above 0 is a gain), its
    interval, and whether either end lies at the edge of what was measured, and nothing where the rise is not above 0: what
    adds nothing is no measure. Intervals are 95 % percentiles of a bootstrap over draws and test people, together for all
    arms; None for fewer than three draws or five people.
    """
    trainings, _, patients = scores[first].shape
    rng = np.random.default_rng(0)
    draws, people = weights(trainings, rng), weights(patients, rng)
    enough = trainings >= MIN_TRAININGS and patients >= MIN_PATIENTS
    means = {arm: resampled(values, draws, people) for arm, values in scores.items()}
    fits = {arm: fit_power_law(n, values) for arm, values in means.items()}
    curves = {
        arm: {
            "means": values[0].tolist(),
            "intervals": _intervals(values[1:]) if enough else None,
            "fit": [float(part[0]) for part in fits[arm]],
        }
        for arm, values in means.items()
    }
    rise = means[first][:, -1] - means[first][:, 0]
    least = _intervals(rise[1:, None])[0] if enough else None
    worth = []
    # The ends may rise while the fit is flat, by a dip between them; a flat curve has no inverse.
    rises = (least[0] if least else rise[0]) > 0 and fits[first][1][0] > 0
    for arm in [arm for arm in scores if arm != first and rises]:
        equal = patients_of(power_law(n, fits[arm]), fits[first], n[0], n[-1])
        ends = _intervals(equal[1:])
        for k, count in enumerate(n[:-1]):
            low, high = ends[k] if enough else (float(equal[0, k]),) * 2
            own = 0 if arm in alone else count  # real patients that the arm has itself
            worth.append(
                {
                    "arm": arm,
                    "n": count,
                    "alone": arm in alone,
                    "worth": float(equal[0, k]) - own,
                    "interval": [low - own, high - own] if enough else None,
                    "least": n[0] - own,  # at either of these the true number lies beyond
                    "most": n[-1] - own,
                }
            )
    about = {
        "n": list(n),
        "draws": trainings,
        "patients": patients,
        "rise": {"value": float(rise[0]), "interval": least},
    }
    return about | {"curves": curves, "worth": worth}


def _intervals(values: Array) -> list[list[float]]:
    return np.percentile(values, [2.5, 97.5], axis=0).T.tolist()


def worth_sentences(learned: Mapping[str, Any]) -> list[str]:
    """One for each worth, or why there is none."""
    if learned["worth"]:
        return [worth_sentence(item) for item in learned["worth"]]
    first, n, rise = next(iter(learned["curves"])), learned["n"], learned["rise"]
    ends = f"{rise['interval'][0]:+.3f} to {rise['interval'][1]:+.3f}" if rise["interval"] else FEW
    return [
        f"no number of patients: from {n[0]} to {n[-1]} of them {first} gains {rise['value']:+.3f} (95 %: {ends}), which is "
        "no scale to measure on; train for longer, or with a larger network"
    ]


def worth_sentence(item: Mapping[str, Any]) -> str:
    """``both-gan: with 2 real patients, synthetic images are worth 1.3 real patients (95 % 0.4 to 14 or more)``, of an arm
    alone ``synthetic-gan: made from 2 real patients, synthetic images alone are worth 1.3 real patients (…)``.
    """

    def said(value: float) -> str:
        if value <= item["least"]:
            return f"{value:.1f} or less"
        return f"{value:.1f} or more" if value >= item["most"] else f"{value:.1f}"

    ends = " to ".join(map(said, item["interval"])) if item["interval"] else FEW
    who = f"{item['n']} real patient{'s' * (item['n'] > 1)}"
    images = f"made from {who}, synthetic images alone" if item["alone"] else f"with {who}, synthetic images"
    return f"{item['arm']}: {images} are worth {said(item['worth'])} real patients (95 %: {ends})"
