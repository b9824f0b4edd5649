"""Priors of class means and standard deviations: their forms, drawing from them, and fitting them to images.

Forms and rules follow lab2im and SynthSeg (Billot et al., Med. Image Anal. 2023); intensities are on the scale 0 to 255.
Legend: C channels, K intensity classes, N labels, R row pairs, S subjects (or, in shapes, spatial axes `*S`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dataloaders.io.spec import plain_name
from models.gmm.intensity import FULL_SCALE
from models.gmm.options import GmmConfig
from models.gmm.scheme import LabelScheme

Kind = Literal["uniform", "normal"]
PriorForm: TypeAlias = ArrayLike | Tensor | None  # None, r, [a, b], (2, K), (2R, K)

SYNTHSEG_MEANS = (125.0, 125.0)  # centre and half range: uniform in 0..250
SYNTHSEG_STDS = (15.0, 15.0)  # uniform in 0..30
MAX_TIED_MEAN = 225.0
BINS = 4096  # of histograms over [-1, 1]: half a bin is 0.5 HU in the CT window
MAD_TO_STD = 1.4826
# Of a coin in [0, 1): from where on the background is 0, and from where on it is dark
ZERO_AND_DARK = {"class": (2.0, 2.0), "zero": (-1.0, 2.0), "half": (0.5, 2.0), "synthseg": (0.95, 0.7)}


@dataclass(frozen=True)
class Prior:
    """Distribution of the means, or of the standard deviations, of K classes.

    first, second: (R, K) float32, low and high (uniform) or mean and standard deviation (normal). R row pairs stand for
    modalities or data sets.
    """

    kind: Kind
    first: Tensor
    second: Tensor


def parse_prior(
    value: PriorForm, kind: Kind, num_classes: int, default: tuple[float, float] = SYNTHSEG_MEANS, name: str = "prior"
) -> Prior:
    """A prior from any of the forms that lab2im and SynthSeg take.

    value: None: uniform in centre ± half range of `default`, or normal with the mean and the variance of that uniform
    distribution (the predecessors used N(0, 250) here, half of whose draws are below 0). A number r: uniform in
    centre ± r, or N(centre, r²). [a, b]: uniform in a..b, or N(a, b²), for every class. Array (2, K): low and high, or
    mean and standard deviation, by class. Array (2R, K): R such row pairs, one below the other.
    default: (centre, half range). name: what errors call it.
    ValueError for other shapes, a low above its high, a negative spread, values that are not finite.
    """
    if kind not in ("uniform", "normal"):
        raise ValueError(f"prior_distributions must be uniform or normal, found {kind!r}")
    center, half_range = default
    if value is None:
        value = half_range if kind == "uniform" else half_range / 3**0.5
    try:
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, [a, b], or an array of 2 (or 2R) rows by {num_classes}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite")
    if array.ndim == 0:
        r = float(array)
        array = np.array([center - r, center + r] if kind == "uniform" else [center, r], dtype=np.float32)
    if array.shape == (2,):
        array = np.repeat(array[:, None], num_classes, axis=1)
    if array.ndim != 2 or len(array) % 2 or not len(array):
        raise ValueError(f"{name} must have shape (2,), (2, K) or (2R, K) with K={num_classes}, found {array.shape}")
    if array.shape[1] != num_classes:
        raise ValueError(
            f"{name}: expected {num_classes} columns, one per class of generation_classes, got {array.shape[1]}"
        )
    rows = torch.from_numpy(array.copy())
    first, second = rows[0::2], rows[1::2]
    if kind == "uniform" and (first > second).any():
        raise ValueError(f"{name}: rows are low and high of a uniform distribution, but some low is above its high")
    if kind == "normal" and (second < 0).any():
        raise ValueError(f"{name}: rows are mean and standard deviation, but some standard deviation is negative")
    return Prior(kind, first, second)


def draw(prior: Prior, channels: int, generator: torch.Generator, specific: bool = False) -> Tensor:
    """One value per channel and class, (C, K) float32; values below 0 become 0.

    specific: channel c uses row pair c; otherwise every channel uses a row pair drawn at random.
    """
    rows, columns = prior.first.shape
    row = torch.arange(channels) if specific else torch.randint(rows, (channels,), generator=generator)
    first, second = prior.first[row], prior.second[row]
    if prior.kind == "uniform":
        value = first + (second - first) * torch.rand(channels, columns, generator=generator)
    else:
        value = first + second * torch.randn(channels, columns, generator=generator)
    return value.clamp(min=0)


@dataclass(frozen=True)
class GivenPriors:
    """Priors of class means and standard deviations that are given as tables (see `parse_prior` for their forms)."""

    means: Prior
    stds: Prior


def default_priors(options: GmmConfig, num_classes: int, kind: Kind) -> GivenPriors:
    """The random priors of the options, alike for all classes; normal ones have the moments of the uniform range."""
    ranges = (options.prior_means, SYNTHSEG_MEANS[0]), (options.prior_stds, SYNTHSEG_STDS[0])
    halves = [(c, r[0]) if len(r) == 1 else ((r[0] + r[1]) / 2, (r[1] - r[0]) / 2) for r, c in ranges]
    return GivenPriors(*(parse_prior(None, kind, num_classes, half) for half in halves))


def draw_statistics(
    given: GivenPriors | None, options: GmmConfig, scheme: LabelScheme, channels: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every label of one image: two (C, N) float32 tensors.

    given: None for the options' own ranges. With mix_prior_and_random the means and, independently, the standard deviations
    of each channel come with probability 1/2 from these instead. All randomness is from the CPU `generator`. ValueError
    where a prior does not have K columns or, with channel-specific statistics, one row pair per channel.
    """
    K, specific, drawn = scheme.num_classes, options.specific_channels, []
    priors = default_priors(options, K, options.prior_distributions) if given is None else given
    random = default_priors(options, K, "uniform")
    for prior, plain in ((priors.means, random.means), (priors.stds, random.stds)):
        rows, columns = prior.first.shape
        if columns != K:
            raise ValueError(f"prior: expected {K} columns, one per class of generation_classes, got {columns}")
        if specific and rows != channels:
            raise ValueError(
                f"use_specific_stats_for_channel needs one row pair for each of {channels} channels "
                f"({2 * channels} rows), got {rows} ({2 * rows} rows)"
            )
        value = draw(prior, channels, generator, specific)
        if options.mix_prior_and_random and given is not None:
            other = draw(plain, channels, generator)
            value = torch.where(torch.rand(channels, 1, generator=generator) < 0.5, other, value)
        drawn.append(value)
    return to_labels(drawn[0], drawn[1], scheme, options, generator)


def to_labels(
    means: Tensor, stds: Tensor, scheme: LabelScheme, options: GmmConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """From classes to labels, with tied means and the rule for the background: two (C, K) -> two (C, N).

    Ties (fetalsyngen): the first class of a tissue gives its mean, and every class gets
    clamp(mean of its tissue + tie_std·N(0, 1), 0, 225); standard deviations stay their own.
    options.background, for each channel and for the class of value 0 (with every label of that class):
    "class": as any class. "zero": mean and std 0. "half": 0 with probability 1/2.
    "synthseg": 0 with probability 0.05, mean uniform in 0..15 and std in 0..5 with probability 0.25, else as any class.
    """
    means, stds = means.clone(), stds.clone()
    if scheme.ties is not None:
        first = torch.tensor([scheme.ties.index(tissue) for tissue in scheme.ties])
        noise = torch.randn(means.shape, generator=generator)
        means = (means[:, first] + options.tie_std * noise).clamp(0, MAX_TIED_MEAN)
    coin, mean, std = torch.rand(3, len(means), generator=generator)
    zero_from, dark_from = ZERO_AND_DARK[options.background]
    if scheme.background is not None:
        k = scheme.classes[scheme.background]
        dark, zero = coin > dark_from, coin > zero_from
        means[:, k] = torch.where(dark, 15 * mean, means[:, k]).masked_fill(zero, 0)
        stds[:, k] = torch.where(dark, 5 * std, stds[:, k]).masked_fill(zero, 0)
    return means[:, scheme.classes], stds[:, scheme.classes]


# -- fitting ------------------------------------------------------------------------------------------------------


def label_histograms(label: Tensor, image: Tensor, num_labels: int) -> Tensor:
    """Intensity histograms by label. label (H, W) int64, image (C, H, W) in [-1, 1] -> counts (C, N, BINS) int64."""
    level = ((image + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    index = label * BINS + level  # (C, H, W)
    counts = [torch.bincount(channel.flatten(), minlength=num_labels * BINS) for channel in index]
    return torch.stack(counts).view(len(image), num_labels, BINS)


def histogram_moments(counts: Tensor, robust: bool) -> tuple[Tensor, Tensor]:
    """Centre and spread of each histogram. counts (C, N, BINS) -> two (C, N) tensors; NaN where a label is empty.

    robust: median and 1.4826·MAD; otherwise mean and standard deviation.
    """
    centers = (torch.arange(BINS, device=counts.device, dtype=torch.float64) + 0.5) * (2 / BINS) - 1
    total = counts.sum(-1)
    if robust:
        median = _weighted_median(centers.expand(counts.shape), counts)
        deviation = (centers - median[..., None]).abs()
        order = deviation.argsort(-1)
        mad = _weighted_median(deviation.gather(-1, order), counts.gather(-1, order))
        center, spread = median, MAD_TO_STD * mad
    else:
        weight = counts / total.clamp(min=1)[..., None]
        center = (weight * centers).sum(-1)
        spread = (weight * (centers - center[..., None]) ** 2).sum(-1).sqrt()
    empty = total == 0
    return center.masked_fill(empty, float("nan")).float(), spread.masked_fill(empty, float("nan")).float()


def _weighted_median(values: Tensor, counts: Tensor) -> Tensor:
    """Lower median of sorted `values` (..., n) with multiplicities `counts` (..., n) -> (...)."""
    cumulative = counts.cumsum(-1)
    half = (cumulative[..., -1:] + 1) // 2
    position = torch.searchsorted(cumulative, half.clamp(min=1)).clamp(max=values.shape[-1] - 1)
    return values.gather(-1, position).squeeze(-1)


def subject_statistics(
    image: Tensor,
    label_index: Tensor,
    scheme: LabelScheme,
    robust: bool = True,
    clip: tuple[float, float] = (2.0, 98.0),
    window: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Centre and spread of every class in one image: two (C, K) float32 tensors; NaN where a class is not seen.

    image: (C, *S), any units. Each channel is clipped to `window`, or to the percentiles `clip` of all its voxels, and
    rescaled to 0..255; voxels that are 0 then do not count, but those of the background class do.
    label_index: (*S) label indices of the scheme. robust: median and 1.4826·MAD, otherwise mean and standard deviation.
    Values are read from histograms of 4096 bins: within 0.04 of the exact centre, 0.1 of the exact spread.
    ValueError for shapes that differ, and for channels that are constant between the percentiles or not finite.
    """
    if image.shape[1:] != label_index.shape:
        raise ValueError(f"image {tuple(image.shape)} and label map {tuple(label_index.shape)} differ in shape")
    num_classes = scheme.num_classes
    background = -1 if scheme.background is None else scheme.classes[scheme.background]
    classes = torch.tensor(scheme.classes, device=label_index.device)[label_index.long()]
    centers, spreads = [], []
    for c, channel in enumerate(image):
        low, high = np.percentile(channel.cpu().numpy(), clip) if window is None else window
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise ValueError(f"channel {c}: cannot rescale an image between {low:g} and {high:g}")
        value = ((channel.float() - float(low)) / float(high - low)).clamp(0, 1)
        unseen = (value == 0) & (classes != background)
        counted = classes.masked_fill(unseen, num_classes)  # one class more, dropped below
        counts = label_histograms(counted, 2 * value[None] - 1, num_classes + 1)[:, :num_classes]
        center, spread = histogram_moments(counts, robust)  # in -1..1
        centers.append((center[0] + 1) * (FULL_SCALE / 2))
        spreads.append(spread[0] * (FULL_SCALE / 2))
    return torch.stack(centers), torch.stack(spreads)


@dataclass(frozen=True)
class FittedPrior:
    """Normal priors of class means and standard deviations, as found in S subjects.

    mean_center, mean_spread, std_center, std_spread: (C, K), mean and standard deviation over subjects of the class
    means and of the class standard deviations.
    mean_deviations, std_deviations: (S, C, K), what each subject deviates from the centre; 0 where it lacks the class,
    and the others scaled up so that the sum of squares over S - 1 is the variance.
    """

    mean_center: Tensor
    mean_spread: Tensor
    std_center: Tensor
    std_spread: Tensor
    mean_deviations: Tensor
    std_deviations: Tensor

    def draw(self, generator: torch.Generator, covariance: bool = True) -> tuple[Tensor, Tensor]:
        """Class means and standard deviations of a new subject, two (C, K) tensors, values below 0 become 0.

        covariance: centre + Σ_s w_s·deviation_s / √(S-1) with weights w_s from N(0, 1) that all classes and channels
        share. It has the subjects' covariance, so the contrast between tissues stays that of the modality: T1-like
        stays T1-like. Without: every class for itself, as lab2im does. `to_labels` turns classes into labels.
        """
        S = len(self.mean_deviations)
        if covariance:
            weight = torch.randn(S, generator=generator) / max(S - 1, 1) ** 0.5
            mean, std = (torch.einsum("s,sck->ck", weight, d) for d in (self.mean_deviations, self.std_deviations))
        else:
            noise = torch.randn(2, *self.mean_center.shape, generator=generator)
            mean, std = self.mean_spread * noise[0], self.std_spread * noise[1]
        return (self.mean_center + mean).clamp(min=0), (self.std_center + std).clamp(min=0)

    def to_arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """prior_means and prior_stds of lab2im, kind "normal": two (2C, K) float64 arrays, rows 2c and 2c+1 of channel c."""
        pairs = ((self.mean_center, self.mean_spread), (self.std_center, self.std_spread))
        means, stds = (torch.stack(pair, 1).flatten(0, 1).double().numpy() for pair in pairs)
        return means, stds

    def to_dict(self, channels: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
        """Plain values for JSON, with the names of the channels and the classes."""
        tensors = {field.name: getattr(self, field.name).tolist() for field in fields(self)}
        return {"channels": list(channels), "names": list(names), **tensors}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], FittedPrior]:
        """Names of the channels, names of the classes, and the prior: inverse of `to_dict`.

        ValueError for missing entries and for tables that are not numbers of shape (C, K), or (S, C, K) for deviations.
        """
        if not isinstance(data, dict):
            raise ValueError("priors must be an object, as estimate_priors.py writes it")
        absent = [key for key in ("channels", "names", *(field.name for field in fields(cls))) if key not in data]
        if absent:
            raise ValueError(f"priors lack {', '.join(absent)}")
        if not isinstance(data["channels"], list) or not isinstance(data["names"], list):
            raise ValueError("priors: channels and names must be lists")
        channels, names = tuple(map(str, data["channels"])), tuple(map(str, data["names"]))
        tensors = {}
        for field in fields(cls):
            try:
                value = torch.tensor(data[field.name], dtype=torch.float32)
            except (TypeError, ValueError, OverflowError):
                raise ValueError(f"priors: {field.name} is not a table of numbers") from None
            shape = (len(channels), len(names))
            deviations = field.name.endswith("deviations")
            if value.ndim != 2 + deviations or value.shape[-2:] != shape or not value.isfinite().all():
                raise ValueError(
                    f"priors: {field.name} must be finite, (channels, names) = {shape}, found {tuple(value.shape)}"
                )
            tensors[field.name] = value
        return channels, names, cls(**tensors)


def priors_for(data: dict[str, Any], scheme: LabelScheme, channels: int) -> FittedPrior:
    """The prior of a JSON file for the classes of a scheme, matched by the name of any of a class's labels.

    ValueError for another number of channels, and naming the classes that the file does not have.
    """
    there, names, prior = FittedPrior.from_dict(data)
    if len(there) != channels:
        raise ValueError(f"priors are of {len(there)} channels ({', '.join(there)}), {channels} are needed")
    members: list[list[str]] = [[] for _ in range(scheme.num_classes)]
    for name, k in zip(scheme.names, scheme.classes, strict=True):
        members[k].append(plain_name(name))
    names = tuple(map(plain_name, names))
    columns = [next((names.index(name) for name in known if name in names), -1) for known in members]
    missing = [known[0] for known, column in zip(members, columns, strict=True) if column < 0]
    if missing:
        raise ValueError(f"no priors for {', '.join(missing)}; there are priors for {', '.join(names)}")
    return FittedPrior(**{field.name: getattr(prior, field.name)[..., columns] for field in fields(FittedPrior)})


def pool_subjects(
    medians: Tensor, spreads: Tensor, names: Sequence[str] | None = None, what: str = "subject"
) -> FittedPrior:
    """A prior from the statistics of S subjects (`subject_statistics`, stacked): two (S, C, K), NaN where unseen.

    Mean and standard deviation (n - 1) are over the subjects that show a class; with one subject the spread is 0.
    Classes that no subject shows get the mean of the others but class 0, with a warning: a voxel of a rare organ in
    the test data must not keep the rest from being synthesised. names: of the classes; what: of a subject, for it.
    ValueError where a channel shows no class at all.
    """
    if medians.shape != spreads.shape or medians.ndim != 3 or not len(medians):
        raise ValueError(f"need two stacks (S, C, K), S > 0, found {tuple(medians.shape)} and {tuple(spreads.shape)}")
    seen = ~medians.isnan().all(0)
    if not seen.any(1).all():
        raise ValueError(f"channels {(~seen.any(1)).nonzero().flatten().tolist()} show no class in any {what}")
    if not seen.all():
        missing = (~seen).any(0).nonzero().flatten().tolist()
        shown = ", ".join(f"class {k}" if names is None else names[k] for k in missing)
        warnings.warn(f"no {what} shows {shown}; the mean of the other labels stands in", stacklevel=2)
    mean_center, mean_spread, mean_deviations = _over_subjects(medians)
    std_center, std_spread, std_deviations = _over_subjects(spreads)
    return FittedPrior(mean_center, mean_spread, std_center, std_spread, mean_deviations, std_deviations)


def _over_subjects(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(S, C, K) with NaN -> centre (C, K), spread (C, K), deviations (S, C, K), none with NaN."""
    known = ~values.isnan()
    n = known.sum(0)
    center = values.nanmean(0)
    deviations = torch.where(known, values - center, torch.zeros_like(values))
    spread = ((deviations**2).sum(0) / (n - 1).clamp(min=1)).sqrt()
    deviations = deviations * (max(len(values) - 1, 1) / (n - 1).clamp(min=1)).sqrt()
    for c, k in (n == 0).nonzero().tolist():
        others = n[c].bool()
        others = others & (torch.arange(len(others)) > 0) if others[1:].any() else others
        center[c, k] = values.nanmean(0)[c, others].mean()
        deviations[:, c, k] = deviations[:, c, others].mean(1)
        spread[c, k] = (deviations[:, c, k] ** 2).sum().div(max(len(values) - 1, 1)).sqrt()
    return center, spread, deviations
