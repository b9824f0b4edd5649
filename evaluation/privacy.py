"""Does a generator remember its training people? Nearest scans at equal numbers of people, and membership tests.

Legend: S generated slices, R real slices, P people, D numbers of an aligned slice or a feature vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from torch.nn import functional

from dataloaders.io.files import markdown_table
from evaluation.statistics import DRAWS, MIN_PATIENTS, PairedDifference, bootstrap_interval, paired_difference

FOLDER, FILE = "privacy", "privacy.json"  # in a run folder
SIDE = 64  # pixels of an aligned slice
LEAST_LABELLED = 0.02  # share of the slice; a smaller body has no features of its own
KINDS = ("pixels", "features")  # of distances
COPY = 1e-3  # a smaller distance is a copy's
LEVEL = 0.05  # of the verdict, shared by the tests of what the generator makes
LIMITS = (
    "The label maps are people's anatomy: an image shows that of its map, remembered or not.",
    "Said of people, on average over their slices: not of a single remembered finding, a rare implant, or other draws.",
    "Training and held-out people must be alike (split by lot): other scanners or ages among one of them look like memory.",
    "Stronger attacks (gradients, many models trained with and without a person) may find what these do not.",
    "It is no proof of anonymity, which is a question of law.",
)


def aligned(image: NDArray, label: NDArray, side: int = SIDE) -> NDArray[np.float32] | None:
    """An image (C, H, W) on the bounding box of its labels, stretched to side × side, as a vector of length 1; (D,).

    Each channel has its mean taken off and is divided by its norm, so that gain, offset, place and size of a head do not
    count: the distance of two slices is sqrt(2 - 2 r), r being Pearson's correlation, averaged over channels. None where
    labels cover less than 2 % of the slice, or a channel is constant.
    """
    inside = label > 0
    if inside.mean() < LEAST_LABELLED:
        return None
    box = tuple(slice(places.min(), places.max() + 1) for places in np.nonzero(inside))
    x = torch.from_numpy(np.ascontiguousarray(image[(slice(None), *box)], np.float32))[None]
    stretched = functional.interpolate(x, (side, side), mode="bilinear", antialias=True)[0].flatten(1)
    centred = stretched - stretched.mean(1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    if bool((norm < 1e-6).any()):
        return None
    return (centred / norm / math.sqrt(len(image))).flatten().numpy()


def painted(image: NDArray, label: NDArray) -> NDArray[np.float32]:
    """The image (C, H, W) with each label's own mean in its place: how well labels alone can describe this scan.

    Its error is how hard the scan is for any generator, whoever was trained on: what membership scores are relative to, as
    in difficulty calibration (Watson et al., ICLR 2022, who take a second model's loss).
    """
    counts = np.maximum(np.bincount(label.ravel()), 1)
    means = [(np.bincount(label.ravel(), channel.ravel()) / counts)[label] for channel in image]
    return np.stack(means).astype(np.float32)


def closeness(fake: NDArray, real: NDArray, reference: NDArray) -> NDArray[np.float64]:
    """Log (error of the painted reference / error of the generated image), (S,), of vectors (S, D) against the real ones."""
    errors = [np.maximum(np.linalg.norm(x - real, axis=1), COPY) for x in (reference, fake)]
    return np.log(errors[0]) - np.log(errors[1])


def mirrored(vectors: NDArray) -> NDArray:
    """Aligned slices (S, D), left and right exchanged."""
    return vectors.reshape(len(vectors), -1, SIDE, SIDE)[..., ::-1].reshape(len(vectors), -1)


def distances(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Euclidean distances (S, R) of rows (S, D) and (R, D)."""
    x, y = (torch.from_numpy(np.ascontiguousarray(rows, np.float64)) for rows in (a, b))
    return torch.cdist(x, y).numpy()


def nearest_of(minima: NDArray, people: int) -> NDArray[np.float64]:
    """Expected distance (S,) to the nearest scan of that many people drawn from all P, given each person's own (S, P).

    With d_1 ≤ … ≤ d_P the nearest of m people drawn at random is d_k in C(P - k, m - 1) of C(P, m) draws. More people
    have nearer scans by chance alone; this compares two groups of different size as if they were of one. NaN: a person
    who does not count. NaN where there are fewer than `people`.
    """
    result = np.full(len(minima), np.nan)
    for i, row in enumerate(minima):
        known = np.sort(row[np.isfinite(row)])
        if 0 < people <= len(known):
            chances = [math.comb(len(known) - k, people - 1) for k in range(1, len(known) + 1)]
            result[i] = known @ np.array(chances, np.float64) / math.comb(len(known), people)
    return result


@dataclass(frozen=True)
class People:
    """Real slices to be near to. person: (R,) of each slice; training: (R,) whether the generator has seen it."""

    person: NDArray
    training: NDArray[np.bool_]

    def log_ratio(self, apart: NDArray, person: NDArray) -> NDArray[np.float64]:
        """Log (nearest training / nearest held-out scan), (S,), of slices at distances `apart` (S, R).

        person: (S,) whose label map each slice has; that person's own scans do not count. Equal numbers of people.
        """
        sides = []
        for training in (True, False):
            names = np.unique(self.person[self.training == training])
            minima = np.stack([apart[:, self.person == name].min(axis=1) for name in names], axis=1)
            sides.append(np.where(names[None] == person[:, None], np.nan, minima))
        fewest = min(int(np.isfinite(side).sum(axis=1).min()) for side in sides)
        near, far = (nearest_of(side, fewest) for side in sides)
        return np.log(np.maximum(near, COPY) / np.maximum(far, COPY))


@dataclass(frozen=True)
class Nearness:
    """Nearest training over nearest held-out scan: below 1 is nearer to training people. Geometric means over people.

    ratio: with a bootstrap interval by person; floor: the same of the real slices in the generated ones' place, which
    no generator made; quantiles: 5, 50, 95 % of the slices; against: log ratio less that of the floor, in pairs.
    """

    ratio: float
    interval: tuple[float, float] | None
    floor: float
    quantiles: tuple[float, float, float]
    against: PairedDifference

    @property
    def nearer(self) -> bool:
        """Whether generated slices are nearer to training people than real ones are."""
        return self.against.p_value is not None and self.against.p_value < LEVEL and self.against.mean < 0


def nearness(generated: NDArray, real: NDArray, person: NDArray) -> Nearness:
    """Of log ratios (S,) of generated slices and of the real slices with the same label maps; person: (S,)."""
    ours, floor = (np.array([*by_person(values, person).values()]) for values in (generated, real))
    interval = bootstrap_interval(ours)
    return Nearness(
        math.exp(ours.mean()),
        (math.exp(interval[0]), math.exp(interval[1])) if interval else None,
        math.exp(floor.mean()),
        tuple(np.exp(np.percentile(generated, (5, 50, 95))).tolist()),
        paired_difference(ours, floor),
    )


def by_person(values: NDArray, person: NDArray) -> dict[str, float]:
    """Mean over each person's slices."""
    return {str(name): float(values[person == name].mean()) for name in np.unique(person)}


def auc(members: Iterable[float], others: Iterable[float]) -> float:
    """How often a member has the larger score, ties counting half: 0.5 is chance, 1 tells them all."""
    x, y = (np.asarray([*values], np.float64) for values in (members, others))
    return float((x[:, None] > y).mean() + (x[:, None] == y).mean() / 2)


@dataclass(frozen=True)
class Membership:
    """A test whether scores tell training from held-out people; a larger score speaks for training.

    gap: mean score of training people less that of others. auc: people as units; interval: 95 %, bootstrap over both
    groups' people, None for fewer than five of either.
    p_value: one-sided, of the rank test (exact for small groups without ties). slices: AUC of single slices.
    least: the smallest p-value that so many people can give. detectable: the AUC from which it falls below the level.
    """

    what: str
    gap: float
    auc: float
    interval: tuple[float, float] | None
    p_value: float
    slices: float
    training: int
    held_out: int

    @property
    def least(self) -> float:
        """1 / number of ways to choose the training people."""
        return 1 / math.comb(self.training + self.held_out, self.training)

    @property
    def differs(self) -> bool:
        """Whether the groups differ either way, for scores that no generator has a part in."""
        return 2 * min(self.p_value, 1 - self.p_value + self.least) < LEVEL

    def detectable(self, z: float = 1.96) -> float:
        """By the normal approximation of the rank test; z of the level."""
        n, m = self.training, self.held_out
        return min(1.0, 0.5 + z * math.sqrt((n + m + 1) / (12 * n * m)))


def membership(what: str, scores: NDArray, person: NDArray, training: NDArray[np.bool_], seed: int = 0) -> Membership:
    """Of scores (S,) of slices, those of a person averaged."""
    inside, outside = (
        np.array([*by_person(scores[side], person[side]).values()]) for side in (training, np.logical_not(training))
    )
    interval = None
    if min(len(inside), len(outside)) >= MIN_PATIENTS:
        rng = np.random.default_rng(seed)
        draws = [auc(*(rng.choice(side, len(side)) for side in (inside, outside))) for _ in range(DRAWS)]
        interval = tuple(np.percentile(draws, [2.5, 97.5]).tolist())
    p = float(mannwhitneyu(inside, outside, alternative="greater").pvalue)
    pooled = auc(scores[training], scores[~training])
    gap = float(inside.mean() - outside.mean())
    return Membership(what, gap, auc(inside, outside), interval, p, pooled, len(inside), len(outside))


def verdict(
    tests: Sequence[Membership],
    controls: Sequence[Membership],
    judge: Membership | None,
    near: Mapping[str, Nearness],
) -> str:
    """What the numbers say, in plain sentences.

    tests: of what the generator makes; controls: of how hard the scans are, which no generator has a part in; judge: of the
    discriminator; near: by kind of distance, of images made from the label maps of people who were not trained on.
    """
    best, count = min(tests, key=lambda test: test.p_value), len(tests)
    sizes = f"{best.training} training against {best.held_out} held-out people"
    p = min(1.0, best.p_value * count)
    error = f"by {best.what}: errors {math.exp(-best.gap):.2f} times those of others, AUC {best.auc:.2f}, p {_p(p)}, {sizes}"
    if best.least * count >= LEVEL:
        said = f"Cannot be told: {sizes} are too few for any result to stand out (AUC {best.auc:.2f})."
    elif p >= LEVEL:
        said = (
            "No sign of memory: the run makes training people's scans no better than others' "
            f"(AUC {best.auc:.2f}, {sizes}); an AUC below {best.detectable():.2f} would not have been seen."
        )
    elif any(control.differs for control in controls):
        unlike = max(controls, key=lambda control: abs(control.auc - 0.5))
        said = (
            f"Memory cannot be ruled out: the run makes its training people's scans better ({error}), but the groups "
            f"differ without any generator (AUC {unlike.auc:.2f} by {unlike.what}); only people split by lot, or planted "
            "ones (--canaries), can tell memory from likeness."
        )
    else:
        said = (
            f"Remembers: the run makes its training people's scans better than others' ({error}), and nothing else tells "
            "the groups apart; share it only as you would share those scans."
        )
    if nearer := [kind for kind, found in near.items() if found.nearer]:
        kinds = " and ".join(nearer)
        said += f" Images of other people's label maps are nearer to training scans than real ones are (by {kinds})."
    if judge is None:
        return said + " Its discriminator was not tested: there is no state of it beside these weights, or it has none."
    tells = judge.p_value < LEVEL
    return said + (
        f" Its discriminator {'tells' if tells else 'does not tell'} training from held-out scans (AUC {judge.auc:.2f})"
        + ("; do not share the state files." if tells else ".")
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def as_rows(tests: Iterable[Membership], near: Mapping[tuple[str, str], Nearness]) -> list[dict[str, Any]]:
    """One row a number, for JSON and tables: measure, value, its interval, p, what chance or no generator gives, people."""
    rows: list[dict[str, Any]] = []
    for t in tests:
        low, high = t.interval or (None, None)
        row = {"measure": f"AUC by {t.what}", "value": t.auc, "low": low, "high": high, "p": t.p_value}
        row |= {"without": 0.5, "people": f"{t.training} / {t.held_out}"}
        rows.append(row | {"slices": f"AUC {t.slices:.3f}; gap {t.gap:.3f}"})
    for (labels, kind), n in near.items():
        low, high = n.interval or (None, None)
        row = {"measure": ratio_name(kind, labels), "value": n.ratio}
        row |= {"low": low, "high": high, "p": n.against.p_value, "without": n.floor, "people": str(n.against.patients)}
        rows.append(row | {"slices": "5, 50, 95 %: " + ", ".join(f"{q:.3f}" for q in n.quantiles)})
    return rows


def ratio_name(kind: str, labels: str) -> str:
    """What the ratio of nearest scans is called; labels: whose label maps the generated slices have."""
    return f"nearest training / held-out, {kind}, {labels} label maps"


HEAD = ("measure", "value [95 %]", "p", "chance, or real scans", "people", "slices")


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of `as_rows` under `HEAD`."""
    interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    p = "too few" if row["p"] is None else _p(row["p"])
    return [
        *(row["measure"], f"{row['value']:.3f}{interval}", p, f"{row['without']:.3f}"),
        *(row["people"], row["slices"]),
    ]


def as_lines(result: Mapping[str, Any]) -> list[str]:
    """Verdict, table and limits of what is written as JSON, in Markdown."""
    return [
        result["verdict"],
        "",
        markdown_table(HEAD, map(cells, result["measures"])),
        "",
        "What this does not say:",
        "",
        *(f"- {text}" for text in result["limits"]),
    ]
