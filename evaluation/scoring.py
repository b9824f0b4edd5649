"""Stream over pairs of slices and gather what every metric needs; memory is that of one case and one batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataloaders.io.intensity import LEVELS, Window
from dataloaders.io.manifest import Case
from dataloaders.io.notices import warn_once
from dataloaders.io.progress import Progress, tracked
from evaluation.catalog import (
    ALWAYS,
    DIVERSITY,
    FAITHFULNESS,
    LABEL_SPREAD,
    LESION_CHANGE,
    LESION_VOLUMES,
    LESIONS,
    LPIPS,
    LPIPS_SMALLEST,
    SYNTHRAD,
)
from evaluation.metrics import networks, paired
from evaluation.metrics.case_volume import CaseVolume
from evaluation.metrics.continuity import CaseContinuity
from evaluation.metrics.diversity import LabelSpread, pairwise_similarity
from evaluation.metrics.extractors import Extractor, cached_features, image_sha256
from evaluation.metrics.faithfulness import CaseMaps
from evaluation.metrics.feature_sets import OASIS, RADIOMICS, FeatureSets, names
from evaluation.metrics.intensity import LabelHistograms, LabelMoments, wasserstein
from evaluation.metrics.lesions import change_outside
from evaluation.metrics.msssim import similarities
from evaluation.metrics.radiomics import slice_features
from evaluation.metrics.sharpness import Edges, label_edges
from evaluation.metrics.spectrum import SMALLEST_SIDE, CaseSpectrum
from evaluation.pairs import Item, Pairs

BATCH = 32
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """What is to be gathered.

    wanted: metrics by name. extractors: key of the results -> network. lpips: its network. cache: folder of features by
    content. draws, segmented, segmented_real: folders; see `evaluation.request.Request`. lesion: label id.
    real: whether features of the real images are needed too.
    """

    wanted: frozenset[str] = frozenset(ALWAYS)
    extractors: dict[str, Extractor] = field(default_factory=dict)
    lpips: torch.nn.Module | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: Path | None = None
    draws: tuple[Path, ...] = ()
    segmented: Path | None = None
    segmented_real: Path | None = None
    lesion: int | None = None
    progress: bool = False
    real: bool = True

    def wants(self, *metrics: str) -> bool:
        """Whether any of these is to be gathered."""
        return not self.wanted.isdisjoint(metrics)


def no_counts() -> dict[str, int]:
    """What is counted: constant generated images, pairs of identical images, pixels beyond the window."""
    return dict.fromkeys(("constant_images", "psnr_identical", "clipped_real", "clipped_generated"), 0)


@dataclass
class Scores:
    """What is gathered: a row a slice, a row a label of a case, a row a case; per channel where not said otherwise.

    overlap, lesions: rows a case and label, and a case; of the segmented images, which have all channels.
    """

    rows: Rows = field(default_factory=list)
    labels: Rows = field(default_factory=list)
    cases: Rows = field(default_factory=list)
    overlap: Rows = field(default_factory=list)
    lesions: Rows = field(default_factory=list)
    features: FeatureSets = field(default_factory=FeatureSets)
    counts: dict[str, int] = field(default_factory=no_counts)

    def __iadd__(self, other: Scores) -> Scores:
        for name in ("rows", "labels", "cases", "overlap", "lesions"):
            getattr(self, name).extend(getattr(other, name))
        for key, rows in other.features.sets.items():
            self.features.sets.setdefault(key, []).extend(rows)
        self.counts = {name: n + other.counts[name] for name, n in self.counts.items()}
        return self


class CaseLook:
    """What is gathered over the slices of one case and channel."""

    def __init__(self, window: Window, spacing: tuple[float, float, float], work: Work) -> None:
        self.work, self.spacing = work, spacing[1:]
        self.slices = 0
        self.continuity, self.spectrum, self.edges = CaseContinuity(), CaseSpectrum(self.spacing), Edges()
        self.volume = CaseVolume(window, ssim_3d=work.wants("ssim_3d"), synthrad=work.wants(*SYNTHRAD))
        self.spread, self.outside = LabelSpread(), (0.0, 0)
        self.histograms = LabelHistograms(), LabelHistograms()
        self.moments = LabelMoments(), LabelMoments()

    def add(self, item: Item, draws: list[NDArray]) -> None:
        """One slice as `Item.seen`; slices come by index. draws: the generated images, in physical units, of all draws."""
        (real, fake), wants = item.physical, self.work.wants
        body = item.label > 0
        self.volume.add(item.slice.index, real, fake, body)
        if wants("slice_jump_ratio", "slice_difference_mae"):
            self.continuity.add(item.slice.index, real, fake, body)
        if self.work.lesion is not None and wants(LESION_CHANGE):
            change = change_outside(real, fake, item.label == self.work.lesion)
            if not math.isnan(change):
                self.outside = (self.outside[0] + change, self.outside[1] + 1)
        if not item.scored:
            return
        self.slices += 1
        if wants("spectrum_distance") and min(real.shape) >= SMALLEST_SIDE:
            self.spectrum.add(real, fake)
        if wants("edge_sharpness_ratio"):
            self.edges += label_edges(item.label, real, fake, self.spacing)
        for side, levels in enumerate((item.real, item.fake)):
            self.histograms[side].add(item.label, levels)
            if item.values is not None:
                self.moments[side].add(item.label, item.values[side])
        if draws and wants(LABEL_SPREAD):
            self.spread.add(item.label, draws)

    def row(self) -> dict[str, Any]:
        """The row of the case, and from how many pairs of slices and border pixels it comes."""
        jumps = self.continuity.jumps
        change, slices = self.outside
        row = {
            "slice_pairs": jumps.pairs,
            "slice_jump_ratio": jumps.ratio,
            "slice_difference_mae": jumps.mae,
            "spectrum_distance": self.spectrum.distance,
            "edge_pixels": self.edges.pixels,
            "edge_sharpness_ratio": self.edges.ratio,
            "diversity_label_spread": self.spread.spread,
            "lesion_change_outside": change / slices if slices else math.nan,
        }
        return row | self.volume.results()

    def label_rows(self, pairs: Pairs, window: Window) -> Rows:
        """One row a label: real and generated mean and standard deviation, errors, distance.

        Means and standard deviations are of the values as they are stored, the distance of the window's levels.
        """
        rows = []
        for label in sorted(self.histograms[0].counts):
            stored = label in self.moments[0].sums
            (mean_r, std_r), (mean_f, std_f) = (
                self.moments[side].moments(label) if stored else self.histograms[side].moments(label, window)
                for side in (0, 1)
            )
            real, fake = (histogram.counts[label] for histogram in self.histograms)
            distance = wasserstein(real, fake, window)
            rows.append(
                {
                    "label": pairs.source_of(label),
                    "name": pairs.name_of(label),
                    "pixels": int(real.sum()),
                    "real_mean": mean_r,
                    "real_std": std_r,
                    "generated_mean": mean_f,
                    "generated_std": std_f,
                    "label_mean_error": abs(mean_f - mean_r),
                    "label_std_error": abs(std_f - std_r),
                    "wasserstein": distance,
                    "wasserstein_relative": distance / window.width,
                }
            )
        return rows


def score(pairs: Pairs, work: Work, groups: Sequence[int] | None = None) -> list[tuple[int, Scores]]:
    """Everything that can be said of `pairs`, in one pass over the images; (number, scores) of each group of cases.

    groups: numbers of those to score, all unless told. A group's scores do not depend on which others are scored: cases
    share batches of the networks only within their group (`Pairs.groups`).
    """
    all_groups = pairs.groups()
    chosen = range(len(all_groups)) if groups is None else groups
    total = pairs.total if groups is None else None
    scored = []
    with Progress("evaluate", total, "slice", work.progress) as bar:
        for number in chosen:
            scores, waiting = Scores(), _Waiting(work)
            items = pairs.items(all_groups[number])
            for case, of_case in itertools.groupby(items, key=lambda item: item.case):
                _score_case(pairs, case, _counted(of_case, bar), work, scores, waiting)
            waiting.run(scores.features)
            scored.append((number, scores))
    return scored


def merged(scored: Iterable[tuple[int, Scores]]) -> Scores:
    """The scores of all groups together, in the groups' order."""
    total = Scores()
    for _, scores in sorted(scored, key=lambda pair: pair[0]):
        total += scores
    return total


def _counted(items: Iterable[Item], bar: Progress) -> Iterator[Item]:
    for item in items:
        yield item
        bar.update()


def _score_case(pairs: Pairs, case: Case, items: Iterable[Item], work: Work, scores: Scores, waiting: _Waiting) -> None:
    looks: dict[int, CaseLook] = {}
    maps = CaseMaps(case.patient, case.id, pairs.spacing(case), pairs.spacing_known)
    segmented = work.segmented is not None and work.wants(*FAITHFULNESS, *LESIONS, LESION_VOLUMES)
    for item in items:
        draws = _draws(pairs, item, work.draws) if item.scored else []
        if item.channel not in looks:
            looks[item.channel] = CaseLook(item.window, pairs.spacing(case), work)
        looks[item.channel].add(item.seen, draws)
        if item.channel == 0 and segmented:
            maps.add(item.slice.index, item.label, _segmented(pairs, item, work))
        if not item.scored:
            continue
        row = _score_slice(item.seen, pairs.spec.channels[item.channel].name, draws, work, scores)
        scores.rows.append(row)
        if work.wants(*names(RADIOMICS)):
            _add_radiomics(item, scores.features, work.real)
        waiting.add(item, row, draws, scores.features)
    for channel, look in looks.items():
        if not look.slices:
            warn_once(f"case {case.id} is left out: no label anywhere, and every real slice is constant")
            continue
        about = {"patient": case.patient, "case": case.id, "channel": pairs.spec.channels[channel].name}
        scores.labels += [about | row for row in look.label_rows(pairs, case.windows[channel])]
        scores.cases.append(about | look.row())
    if segmented:
        for row in maps.overlap():
            label = {"label": pairs.source_of(row["label"]), "name": pairs.name_of(row["label"])}
            scores.overlap.append(row | label)
        scores.lesions += [maps.lesions(work.lesion)] if work.lesion is not None else []


def generated_features(pairs: Pairs, work: Work) -> tuple[dict[tuple[str, int], NDArray], dict[str, int], int]:
    """Features (m, d) of the generated images by extractor and channel; how many slices, cases and patients; how many
    images are constant.
    """
    sets, waiting, constant = FeatureSets(), _Waiting(work), 0
    seen: dict[str, set[Any]] = {"slices": set(), "cases": set(), "patients": set()}
    items = tracked(pairs.items(), "evaluate", pairs.total, work.progress)
    for item in items:
        if not item.scored:
            continue
        for level, key in zip(seen, ((item.case.id, item.slice.index), item.case.id, item.case.patient), strict=True):
            seen[level].add(key)
        constant += int(item.fake.min() == item.fake.max())
        if work.wants(*names(RADIOMICS)):
            _add_radiomics(item, sets, work.real)
        waiting.add(item, {}, [], sets)
    waiting.run(sets)
    features = {key: np.stack([fake for _, _, fake in rows]) for key, rows in sets.sets.items()}
    return features, {level: len(keys) for level, keys in seen.items()}, constant


def _draws(pairs: Pairs, item: Item, folders: tuple[Path, ...]) -> list[NDArray]:
    """`Item.seen` of the generated image and of further draws of its label map in physical units; none without those."""
    others = [pairs.companion(folder, item, labels=False)[item.view] for folder in folders]
    return [item.seen.physical[1], *others] if others else []


def _segmented(pairs: Pairs, item: Item, work: Work) -> dict[str, NDArray]:
    folders = {"generated": work.segmented, "real": work.segmented_real}
    return {kind: pairs.companion(path, item, labels=True) for kind, path in folders.items() if path is not None}


def _score_slice(item: Item, channel: str, draws: list[NDArray], work: Work, scores: Scores) -> dict[str, Any]:
    (real, fake), window = item.physical, item.window
    body = item.label > 0
    scores.counts["psnr_identical"] += int(np.array_equal(real, fake))
    scores.counts["constant_images"] += int(fake.min() == fake.max())
    if item.values is not None:
        for name, values in zip(("clipped_real", "clipped_generated"), item.values, strict=True):
            scores.counts[name] += int(((values < window.low) | (values > window.high)).sum())
    about = {"patient": item.case.patient, "case": item.case.id, "slice": item.slice.index, "channel": channel}
    simple = {
        "mae": lambda: paired.mae(real, fake),
        "rmse": lambda: paired.rmse(real, fake),
        "mae_body": lambda: paired.mae(real, fake, body),
        "rmse_body": lambda: paired.rmse(real, fake, body),
        "psnr": lambda: paired.psnr(real, fake, window.width),
    }
    row = about | {name: metric() for name, metric in simple.items() if work.wants(name)}
    row |= _similarities(("ssim", "ms_ssim"), work, lambda: similarities(real, fake, window.low, window.width))
    if draws:
        row |= _similarities(DIVERSITY[:2], work, lambda: pairwise_similarity(draws, window))
    return row


def _similarities(keys: Sequence[str], work: Work, both: Callable[[], tuple[float, float]]) -> dict[str, float]:
    """SSIM and MS-SSIM under their keys, those that are wanted."""
    wanted = [work.wants(key) for key in keys]
    return {key: value for key, value, yes in zip(keys, both(), wanted, strict=True) if yes} if any(wanted) else {}


def _add_radiomics(item: Item, sets: FeatureSets, both: bool) -> None:
    """Features of both images within the body, or of all pixels where no label map says what the body is.

    A slice whose map has no body has none. both: real features too, else the generated ones stand for them.
    """
    body = item.label > 0 if item.slice.label else np.ones(item.label.shape, bool)
    if not body.any():
        return
    fake = slice_features(item.fake / LEVELS, body)
    real = slice_features(item.real / LEVELS, body) if both else fake
    sets.add(RADIOMICS, item.channel, item.case.patient, real, fake)


def _shapes(item: Item) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return item.real.shape, item.seen.real.shape


class _Waiting:
    """Slices that wait for the networks, which are faster in batches."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.items: list[tuple[Item, dict[str, Any], list[NDArray]]] = []

    def add(self, item: Item, row: dict[str, Any], draws: list[NDArray], sets: FeatureSets) -> None:
        """One more slice; a full batch is run. Slices of another size start a new batch."""
        if not self.work.extractors and self.work.lpips is None:
            return
        if self.items and _shapes(self.items[0][0]) != _shapes(item):
            self.run(sets)
        self.items.append((item, row, draws))
        if len(self.items) == BATCH:
            self.run(sets)

    def run(self, sets: FeatureSets) -> None:
        """Networks on all that waits."""
        if not self.items:
            return
        if self.work.lpips is not None and min(self.items[0][0].seen.real.shape) >= LPIPS_SMALLEST:
            self._lpips(self.work.lpips)
        for key, extractor in self.work.extractors.items():
            of_fake = self._features(key, extractor, 1)
            of_real = self._features(key, extractor, 0) if self.work.real else of_fake
            for (item, _, _), real, fake in zip(self.items, of_real, of_fake, strict=True):
                sets.add(key, item.channel, item.case.patient, real, fake)
        self.items = []

    def _lpips(self, net: torch.nn.Module) -> None:
        def distances(a: list[NDArray], b: list[NDArray]) -> NDArray:
            return networks.lpips_distances(net, np.stack(a), np.stack(b), self.work.device)

        if self.work.wants(LPIPS):
            real, fake = ([item.seen.unit[side] for item, _, _ in self.items] for side in (0, 1))
            for (_, row, _), distance in zip(self.items, distances(real, fake), strict=True):
                row[LPIPS] = float(distance)
        for item, row, draws in self.items:
            if draws and self.work.wants("diversity_lpips"):
                shares = [((draw - item.window.low) / item.window.width).clip(0, 1) for draw in draws]
                pairs = list(itertools.combinations(shares, 2))
                row["diversity_lpips"] = float(distances(*(list(side) for side in zip(*pairs, strict=True))).mean())

    def _features(self, key: str, extractor: Extractor, side: int) -> NDArray[np.float32]:
        prepare: Callable[[NDArray], NDArray] = as_8_bit if key == OASIS else lambda image: image
        images = [prepare(item.unit[side]) for item, _, _ in self.items]
        if self.work.cache is None:
            return extractor.features(np.stack(images))
        named = [(image_sha256(image), lambda image=image: image) for image in images]
        return cached_features(extractor, named, self.work.cache)


def as_8_bit(image: NDArray) -> NDArray[np.float32]:
    """An image in [0, 1] as an 8-bit file holds it: 256 levels, rounded to the nearest."""
    return (np.rint(np.asarray(image, np.float64) * 255) / 255).astype(np.float32)
