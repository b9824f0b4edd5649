"""Is the set of generated images like the set of real ones? Distances and coverage between two sets of features.

Features are arrays (n, d) and (m, d) of any extractor (metrics.extractors, metrics.radiomics); a number is only
comparable with numbers of the same extractor at the same n. `real` and `fake` are always named, because their order is
confused in the wild. No value depends on the order of the rows, beyond rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

METRICS = ("frechet", "kid", "precision", "recall", "density", "coverage")
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
PRECISION_K, DENSITY_K = 3, 5  # neighbours, as in the two papers
SPLITS, TRIES = 10, 200  # of the people, for floors; how many are looked for
FLOOR_SIZE = 1000  # samples of a half, so that floors of large sets cost no more than the rest
_CHUNK = 2**23  # numbers in one block of a distance or kernel matrix: 64 MiB
_SHARED_KERNEL = 10_000  # up to so many samples, one kernel matrix costs less than one for each subset
_ROUNDING = 1e-12  # relative error of a squared distance; float32 features cannot tell anything closer


def distribution_metrics(*, real: ArrayLike, fake: ArrayLike, seed: int = 0) -> dict[str, float | None]:
    """Every metric of METRICS and `kid_std`; None where there are fewer samples than the metric needs."""
    x, y = _checked(real, fake, "distribution metrics", 1, 1)
    fewest = min(len(x), len(y))
    values: dict[str, float | None] = dict.fromkeys((*METRICS, "kid_std"))
    if fewest >= 2:
        values["frechet"] = frechet_distance(x, y)
        mean, spread = kid(real=x, fake=y, seed=seed)
        values |= {"kid": mean, "kid_std": None if np.isnan(spread) else spread}
    if fewest > PRECISION_K:
        values["precision"], values["recall"] = precision_recall(real=x, fake=y)
    if len(x) > DENSITY_K:
        values["density"], values["coverage"] = density_coverage(real=x, fake=y)
    return values


# -- Fréchet distance, without a matrix square root ------------------------------------------------------------------


def frechet_distance(real: NDArray, fake: NDArray) -> float:
    """|mu_x - mu_y|² + tr(C_x) + tr(C_y) - 2 tr((C_x C_y)^½) of Gaussians fitted to features (n, d) and (m, d).

    With centred features X, Y scaled by 1/sqrt(n-1), 1/sqrt(m-1), the last trace is the nuclear norm of X Yᵀ: exact
    for n < d, where eigenvalue and square-root formulas suffer from the rank deficiency of C. Heusel et al., NeurIPS
    2017, eq. 6. Needs at least two samples on each side.
    """
    if len(real) < 2 or len(fake) < 2:
        raise ValueError(f"the Fréchet distance needs two samples a side, got {len(real)} and {len(fake)}")
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    x = (real - real.mean(0)) / np.sqrt(len(real) - 1)
    y = (fake - fake.mean(0)) / np.sqrt(len(fake) - 1)
    mean_term = float(((real.mean(0) - fake.mean(0)) ** 2).sum())
    if min(len(x), len(y)) > x.shape[1]:
        # More samples than features: X Yᵀ has the singular values of R_x R_yᵀ, which is only d × d.
        x, y = np.linalg.qr(x, mode="r"), np.linalg.qr(y, mode="r")
    trace_root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return max(0.0, mean_term + float((x**2).sum() + (y**2).sum() - 2 * trace_root))


def frechet_of_moments(mean: NDArray, covariance: NDArray, fake: NDArray) -> float:
    """As `frechet_distance`, with the real set given by mean (d,) and covariance (d, d), as pytorch-fid saves them."""
    fake = np.asarray(fake, np.float64)
    if mean.shape != fake.shape[1:] or covariance.shape != (fake.shape[1],) * 2:
        raise ValueError(f"moments {mean.shape} and {covariance.shape} do not fit features {fake.shape}")
    if len(fake) < 2:
        raise ValueError(f"the Fréchet distance needs two samples, got {len(fake)}")
    y = (fake - fake.mean(0)) / np.sqrt(len(fake) - 1)
    scales, axes = np.linalg.eigh(np.asarray(covariance, np.float64))
    root = axes * np.sqrt(np.clip(scales, 0, None))  # covariance = root rootᵀ, so the trace is a nuclear norm again
    trace_root = np.linalg.svd(root.T @ y.T, compute_uv=False).sum()
    mean_term = float(((mean - fake.mean(0)) ** 2).sum())
    return max(0.0, mean_term + float(np.trace(covariance) + (y**2).sum() - 2 * trace_root))


# -- kernel distance ----------------------------------------------------------------------------------------------


def kid(*, real: ArrayLike, fake: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """Kernel distance: mean and standard deviation of the unbiased MMD² over 100 subsets of min(1000, n, m) samples.

    Kernel (x·y/d + 1)³, subsets without replacement; Bińkowski et al., ICLR 2018. Lower is better. Unbiased: around 0
    for equal distributions whatever n, so negative values are right and kept. The standard deviation is the one
    between subsets, not an interval; NaN where every subset would be all samples. Needs two samples a side.
    """
    x, y = _checked(real, fake, "KID", 2, 2)
    # Subsets are drawn by position; in an order of their own the rows give the same subsets however they came.
    x, y = x[_own_order(x)], y[_own_order(y)]
    size = min(KID_SUBSET_SIZE, len(x), len(y))
    draws = 1 if len(x) == len(y) == size else KID_SUBSETS
    rng = np.random.default_rng(seed)
    rows, columns = (np.stack([rng.choice(len(z), size, replace=False) for _ in range(draws)]) for z in (x, y))
    groups = 1 if max(len(x), len(y)) <= _SHARED_KERNEL else draws
    parts = zip(np.array_split(rows, groups), np.array_split(columns, groups), strict=True)
    values = np.concatenate([_mmd2(x, y, *part) for part in parts])
    return float(values.mean()), float(values.std()) if draws > 1 else float("nan")


def _mmd2(x: NDArray, y: NDArray, rows: NDArray, columns: NDArray) -> NDArray[np.float64]:
    """Unbiased MMD² (K,) of K subsets, given by their positions (K, size) in x and in y."""
    size = rows.shape[1]
    (x, in_x), (y, in_y) = _members(x, rows), _members(y, columns)
    within_x, within_y = _kernel_sums(x, x, in_x, in_x), _kernel_sums(y, y, in_y, in_y)
    # A sample is no pair with itself.
    within_x -= in_x @ _kernel((x**2).sum(1), x.shape[1])
    within_y -= in_y @ _kernel((y**2).sum(1), y.shape[1])
    return (within_x + within_y) / (size * (size - 1)) - 2 * _kernel_sums(x, y, in_x, in_y) / size**2


def _members(features: NDArray, subsets: NDArray) -> tuple[NDArray, NDArray[np.float64]]:
    """The u samples used in any subset (K, size), and (K, u) with 1 where a subset has the sample, else 0."""
    used, position = np.unique(subsets, return_inverse=True)
    member = np.zeros((len(subsets), len(used)))
    np.put_along_axis(member, position.reshape(subsets.shape), 1.0, axis=1)
    return features[used], member


def _kernel_sums(x: NDArray, y: NDArray, in_x: NDArray, in_y: NDArray) -> NDArray[np.float64]:
    """Sum over all pairs of each subset (K,), kernel rows in chunks."""
    sums = np.zeros(len(in_x))
    for part in _chunks(len(x), len(y)):
        sums += (in_x[:, part] * (_kernel(x[part] @ y.T, x.shape[1]) @ in_y.T).T).sum(1)
    return sums


def _kernel(products: NDArray, d: int) -> NDArray:
    base = products / d + 1
    return base * base * base  # NumPy's ** 3 is several times slower


# -- neighbourhoods -----------------------------------------------------------------------------------------------


def precision_recall(*, real: ArrayLike, fake: ArrayLike, k: int = PRECISION_K) -> tuple[float, float]:
    """Share of fake samples in the real manifold, and of real samples in the fake one; both 0..1, higher is better.

    A manifold is the union of closed balls around its samples, each reaching to the k-th nearest other sample of its
    set. Kynkäänniemi et al., NeurIPS 2019, eq. 1-3. Needs k + 1 samples a side.
    """
    x, y = _checked(real, fake, f"precision and recall with k={k}", k + 1, k + 1, k)
    x, y = _centred(x, y)
    radii_x, radii_y = _radii(x, k), _radii(y, k)
    in_real, in_fake = np.zeros(len(y), bool), np.zeros(len(x), bool)
    for part in _chunks(len(x), len(y)):
        distances = _squared_distances(x[part], y, -_ROUNDING)
        in_real |= (distances <= radii_x[part, None]).any(0)
        in_fake[part] = (distances <= radii_y).any(1)
    return float(in_real.mean()), float(in_fake.mean())


def density_coverage(*, real: ArrayLike, fake: ArrayLike, k: int = DENSITY_K) -> tuple[float, float]:
    """How many real balls a fake sample lies in, by k (0..n/k, about 1), and the share of real balls with one (0..1).

    Balls as in `precision_recall`, around real samples only. Naeem et al., ICML 2020, eq. 5 and 6. Higher is better,
    but a density above 1 means fake samples crowd where real ones do. Needs k + 1 real samples and one fake.
    """
    x, y = _checked(real, fake, f"density and coverage with k={k}", k + 1, 1, k)
    x, y = _centred(x, y)
    radii = _radii(x, k)
    inside = np.zeros(len(x), np.int64)  # fake samples in each real ball
    for part in _chunks(len(x), len(y)):
        inside[part] = (_squared_distances(x[part], y, -_ROUNDING) <= radii[part, None]).sum(1)
    return float(inside.sum() / (k * len(y))), float((inside > 0).mean())


def _radii(x: NDArray, k: int) -> NDArray[np.float64]:
    """Squared distance (n,) of every sample to its k-th nearest other."""
    radii = np.empty(len(x))
    for part in _chunks(len(x), len(x)):
        distances = _squared_distances(x[part], x, _ROUNDING)
        distances[np.arange(len(distances)), np.arange(part.start, part.stop)] = np.inf
        radii[part] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


def _squared_distances(x: NDArray, y: NDArray, rounding: float) -> NDArray[np.float64]:
    """|x|² + |y|² - 2 x·y (n, m), moved up or down by its rounding error.

    Radii are rounded up and distances down, so that a sample on the sphere is in the ball, and copies are at zero.
    """
    distances = x @ y.T
    distances *= -2
    distances += (1 + rounding) * (x**2).sum(1)[:, None]
    distances += (1 + rounding) * (y**2).sum(1)
    return distances


def _centred(x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """Both sets less one common point: the same distances, less cancellation in their formula."""
    centre = (x.mean(0) + y.mean(0)) / 2
    return x - centre, y - centre


# -- floors, equal n ----------------------------------------------------------------------------------------------


def splits_by_patient(patients: Sequence[str], seed: int = 0) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Indices of two halves that share no patient, the smaller one first, for up to 10 ways of parting the patients.

    People in a random order, up to where the samples are parted most equally; of splits that were found those whose
    smaller half has 80 % of the largest such half. Which patients go together does not depend on the order of samples.
    Empty for a single patient.
    """
    names, of_sample, counts = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    found: dict[bytes, NDArray[np.bool_]] = {}
    for _ in range(TRIES if len(names) > 1 else 0):
        order = rng.permutation(len(names))
        twice = 2 * np.cumsum(counts[order])[:-1]
        first = np.zeros(len(names), bool)
        first[order[: 1 + np.abs(twice - len(of_sample)).argmin()]] = True
        surplus = 2 * int(counts[first].sum()) - len(of_sample)
        first ^= surplus > 0 or (surplus == 0 and not first[0])  # the smaller half; of equal ones always the same
        found[first.tobytes()] = first[of_sample]
    least = 0.8 * max((int(half.sum()) for half in found.values()), default=0)
    halves = [half for half in found.values() if half.sum() >= least][:SPLITS]
    return [(np.flatnonzero(half), np.flatnonzero(~half)) for half in halves]


def floors(
    features: ArrayLike, patients: Sequence[str], seed: int = 0, fake: ArrayLike | None = None
) -> dict[str, dict[str, Any]]:
    """Every metric between two halves of the real data, by patient: what a perfect generator would get at this n.

    By metric of METRICS, of all `splits_by_patient`: `value`, their mean, `range`, the lowest and the highest (None where
    a half is too small), `splits`, how many there were, and `n`: samples of the two halves, equally many in all splits and
    1000 at most. The smaller half stands as `fake`. Nothing for a single patient. fake: generated samples of the same
    slices; then `matched` is what those of the smaller halves get against the same real halves: what may be set beside
    the floor.
    """
    x, people, other = np.asarray(features), np.asarray(patients), None if fake is None else np.asarray(fake)
    if len(x) != len(people):
        raise ValueError(f"{len(x)} features but {len(people)} patients")
    order = _own_order(x)
    x, people, other = x[order], people[order], None if other is None else other[order]
    halves = splits_by_patient(people.tolist(), seed)
    if not halves:
        return {}
    n, rng = min(FLOOR_SIZE, *(len(smaller) for smaller, _ in halves)), np.random.default_rng(seed)
    real, matched = [], []
    for pair in halves:
        a, b = (rng.choice(half, n, replace=False) for half in pair)
        real.append(distribution_metrics(real=x[b], fake=x[a], seed=seed))
        if other is not None:
            matched.append(distribution_metrics(real=x[b], fake=other[a], seed=seed))
    found = {}
    for kind in METRICS:
        (value, spread), (beside, _) = _over_splits(real, kind), _over_splits(matched, kind)
        found[kind] = {"value": value, "range": spread, "splits": len(halves), "n": [n, n], "matched": beside}
    return found


def _over_splits(rows: Sequence[dict[str, float | None]], kind: str) -> tuple[float | None, list[float] | None]:
    """Mean, and lowest and highest value; None where there is none."""
    values = [value for row in rows if (value := row[kind]) is not None]
    return (float(np.mean(values)), [min(values), max(values)]) if values else (None, None)


def same_size(*, real: ArrayLike, fake: ArrayLike, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Both sets with min(n, m) samples, the larger one a random subset, in its order.

    The Fréchet distance falls with n whatever the images, and the neighbourhood metrics change with it: compare only
    values at equal n, real as fake, method with method, and a value with its floor.
    """
    x, y = np.asarray(real), np.asarray(fake)
    n = min(len(x), len(y))
    return subsample(x, n, seed), subsample(y, n, seed)


def subsample(features: ArrayLike, n: int, seed: int = 0) -> NDArray:
    """n of the samples, chosen by the seed and independently of their order; they stay in their order."""
    x = np.asarray(features)
    if not 0 < n <= len(x):
        raise ValueError(f"cannot take {n} of {len(x)} samples")
    if n == len(x):
        return x
    return x[np.sort(_own_order(x)[np.random.default_rng(seed).choice(len(x), n, replace=False)])]


# -- shared -------------------------------------------------------------------------------------------------------


def _checked(
    real: ArrayLike, fake: ArrayLike, what: str, least_real: int, least_fake: int, k: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as float64 (n, d); ValueError for other shapes, too few samples, numbers that are not finite, k < 1."""
    x, y = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.shape[1] == 0:
        raise ValueError(f"features must be (n, d) and (m, d): real is {x.shape}, fake {y.shape}")
    if k < 1:
        raise ValueError(f"k={k}: at least one neighbour is needed")
    for name, z, least in (("real", x, least_real), ("fake", y, least_fake)):
        if len(z) < least:
            raise ValueError(f"{what}: at least {least} {name} samples are needed, got {len(z)}")
        if not np.isfinite(z).all():
            raise ValueError(f"{what}: {np.count_nonzero(~np.isfinite(z).all(1))} {name} samples are not finite")
    return x, y


def _own_order(features: NDArray) -> NDArray[np.intp]:
    """An order of rows that depends on their values only, and not on where they stand: that of their hashes."""
    rows = np.ascontiguousarray(features, "<f8") + 0.0  # -0 becomes 0
    return np.argsort(np.array([hashlib.blake2b(row, digest_size=16).hexdigest() for row in rows]), kind="stable")


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices over rows so that a block (rows, columns) has bounded memory."""
    step = max(1, _CHUNK // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
