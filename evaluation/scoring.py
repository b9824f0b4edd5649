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
from tqdm import tqdm

from dataloaders.intensity import LEVELS
from dataloaders.manifest import Case
from evaluation import networks, paired
from evaluation.case_volume import CaseVolume
from evaluation.catalog import LPIPS, SYNTHRAD
from evaluation.continuity import CaseContinuity
from evaluation.diversity import LabelSpread, pairwise_similarity
from evaluation.extractors import Extractor, cached_features, image_sha256
from evaluation.faithfulness import CaseMaps, labels_of
from evaluation.feature_sets import OASIS, RADIOMICS, FeatureSets
from evaluation.intensity import LabelHistograms, wasserstein
from evaluation.lesions import change_outside
from evaluation.msssim import LARGEST_REFUSED, ssim_and_ms_ssim
from evaluation.pairs import Item, Pairs
from evaluation.radiomics import slice_features
from evaluation.sharpness import Edges, label_edges
from evaluation.spectrum import CaseSpectrum
from spec import DataSpec

BATCH = 32
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """What is to be gathered beyond the paired and weight-free metrics, which always are.

    extractors: key of the results -> network. lpips: its network. cache: folder of features by content.
    draws, segmented, segmented_real: folders; see `evaluation.request.Request`. lesion: label id.
    """

    extractors: dict[str, Extractor] = field(default_factory=dict)
    lpips: torch.nn.Module | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    radiomics: bool = True
    synthrad: bool = False
    cache: Path | None = None
    draws: tuple[Path, ...] = ()
    segmented: Path | None = None
    segmented_real: Path | None = None
    lesion: int | None = None
    progress: bool = False


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
    constant_images: int = 0
    identical: int = 0

    def __iadd__(self, other: Scores) -> Scores:
        for name in ("rows", "labels", "cases", "overlap", "lesions"):
            getattr(self, name).extend(getattr(other, name))
        for key, rows in other.features.sets.items():
            self.features.sets.setdefault(key, []).extend(rows)
        self.constant_images += other.constant_images
        self.identical += other.identical
        return self


class CaseLook:
    """What is gathered over the slices of one case and channel."""

    def __init__(self, spacing: tuple[float, float, float]) -> None:
        in_plane = spacing[1:]
        self.spacing = in_plane
        self.continuity, self.spectrum, self.edges = CaseContinuity(), CaseSpectrum(in_plane), Edges()
        self.volume, self.spread, self.outside = CaseVolume(), LabelSpread(), (0.0, 0)
        self.histograms = LabelHistograms(), LabelHistograms()

    def add(self, item: Item, draws: list[NDArray], lesion: int | None) -> None:
        """One slice; slices come by index. draws: the generated images, in physical units, of all draws."""
        real, fake = item.physical
        body = item.label > 0
        self.continuity.add(item.slice.index, real, fake, body)
        self.spectrum.add(real, fake)
        self.edges += label_edges(item.label, real, fake, self.spacing)
        self.volume.add(item.slice.index, real, fake, body)
        for histogram, levels in zip(self.histograms, (item.real, item.fake), strict=True):
            histogram.add(item.label, levels)
        if draws:
            self.spread.add(item.label, draws)
        if lesion is not None:
            change = change_outside(real, fake, item.label == lesion)
            if not math.isnan(change):
                self.outside = (self.outside[0] + change, self.outside[1] + 1)

    def row(self, case: Case, channel: int, synthrad: bool) -> dict[str, Any]:
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
            "ssim_3d": self.volume.ssim_3d(case.windows[channel]),
            "diversity_label_spread": self.spread.spread,
            "lesion_change_outside": change / slices if slices else math.nan,
        }
        return row | (self.volume.synthrad() if synthrad else dict.fromkeys(SYNTHRAD, math.nan))


def score(pairs: Pairs, work: Work, groups: Sequence[int] | None = None) -> list[tuple[int, Scores]]:
    """Everything that can be said of `pairs`, in one pass over the images; (number, scores) of each group of cases.

    groups: numbers of those to score, all unless told. A group's scores do not depend on which others are scored: cases
    share batches of the networks only within their group (`Pairs.groups`).
    """
    all_groups = pairs.groups()
    chosen = range(len(all_groups)) if groups is None else groups
    total = pairs.total if groups is None else None
    scored = []
    with tqdm(desc="evaluate", total=total, disable=None if work.progress else True) as bar:
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


def _counted(items: Iterable[Item], bar: tqdm) -> Iterator[Item]:
    for item in items:
        yield item
        bar.update()


def _score_case(pairs: Pairs, case: Case, items: Iterable[Item], work: Work, scores: Scores, waiting: _Waiting) -> None:
    looks: dict[int, CaseLook] = {}
    maps = CaseMaps(case.patient, case.id, pairs.spacing(case))
    for item in items:
        draws = _draws(pairs, item, work.draws)
        row = _score_slice(item, pairs.spec.channels[item.channel].name, draws, scores)
        scores.rows.append(row)
        looks.setdefault(item.channel, CaseLook(pairs.spacing(case))).add(item, draws, work.lesion)
        if work.radiomics:
            _add_radiomics(item, scores.features)
        if item.channel == 0 and work.segmented is not None:
            maps.add(item.slice.index, item.label, _segmented(pairs, item, work))
        waiting.add(item, row, draws, scores.features)
    for channel, look in looks.items():
        about = {"patient": case.patient, "case": case.id, "channel": pairs.spec.channels[channel].name}
        scores.labels += [about | row for row in _label_rows(pairs.spec, case, channel, *look.histograms)]
        scores.cases.append(about | look.row(case, channel, work.synthrad))
    if work.segmented is not None:
        scores.overlap += maps.overlap(labels_of([*maps.condition, *maps.of["generated"]]))
        scores.lesions += [maps.lesions(work.lesion)] if work.lesion is not None else []


def generated_features(pairs: Pairs, work: Work) -> tuple[dict[tuple[str, int], NDArray], dict[str, int]]:
    """Features (m, d) of the generated images by extractor and channel, and how many slices, cases and patients."""
    sets, waiting = FeatureSets(), _Waiting(work)
    seen: dict[str, set[Any]] = {"slices": set(), "cases": set(), "patients": set()}
    items = tqdm(pairs.items(), desc="evaluate", total=pairs.total, disable=None if work.progress else True)
    for item in items:
        for level, key in zip(seen, ((item.case.id, item.slice.index), item.case.id, item.case.patient), strict=True):
            seen[level].add(key)
        if work.radiomics:
            _add_radiomics(item, sets)
        waiting.add(item, {}, [], sets)
    waiting.run(sets)
    features = {key: np.stack([fake for _, _, fake in rows]) for key, rows in sets.sets.items()}
    return features, {level: len(keys) for level, keys in seen.items()}


def _draws(pairs: Pairs, item: Item, folders: tuple[Path, ...]) -> list[NDArray]:
    """The generated image and the further draws of the same label map in physical units; none without further draws."""
    others = [item.window.decode(pairs.companion(folder, item, labels=False)) for folder in folders]
    return [item.physical[1], *others] if others else []


def _segmented(pairs: Pairs, item: Item, work: Work) -> dict[str, NDArray]:
    folders = {"generated": work.segmented, "real": work.segmented_real}
    return {kind: pairs.companion(path, item, labels=True) for kind, path in folders.items() if path is not None}


def _score_slice(item: Item, channel: str, draws: list[NDArray], scores: Scores) -> dict[str, Any]:
    (real, fake), window = item.physical, item.window
    body = item.label > 0
    if min(real.shape) > LARGEST_REFUSED:
        ssim, ms_ssim = ssim_and_ms_ssim(real, fake, window.low, window.width)
    else:
        ssim, ms_ssim = paired.ssim(real, fake, window.low, window.width), math.nan
    psnr = paired.psnr(real, fake, window.width)
    scores.identical += math.isinf(psnr)
    scores.constant_images += int(fake.min() == fake.max())
    row = {
        "patient": item.case.patient,
        "case": item.case.id,
        "slice": item.slice.index,
        "channel": channel,
        "mae": paired.mae(real, fake),
        "rmse": paired.rmse(real, fake),
        "mae_body": paired.mae(real, fake, body),
        "rmse_body": paired.rmse(real, fake, body),
        "psnr": psnr,
        "ssim": ssim,
        "ms_ssim": ms_ssim,
    }
    if draws:
        row["diversity_ssim"], row["diversity_ms_ssim"] = pairwise_similarity(draws, window)
    return row


def _add_radiomics(item: Item, sets: FeatureSets) -> None:
    """Features of both images within the body, or of all pixels where no label says what the body is."""
    body = item.label > 0 if item.label.any() else np.ones(item.label.shape, bool)
    pair = (slice_features(image / LEVELS, body) for image in (item.real, item.fake))
    sets.add(RADIOMICS, item.channel, item.case.patient, *pair)


def _label_rows(spec: DataSpec, case: Case, channel: int, real: LabelHistograms, fake: LabelHistograms) -> Rows:
    """One row per label of a case and channel: real and generated mean and standard deviation, errors, distance."""
    window = case.windows[channel]
    rows = []
    for label in sorted(real.counts):
        (mean_r, std_r), (mean_f, std_f) = real.moments(label, window), fake.moments(label, window)
        distance = wasserstein(real.counts[label], fake.counts[label], window)
        rows.append(
            {
                "label": label,
                "name": spec.labels[label].name,
                "pixels": int(real.counts[label].sum()),
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


class _Waiting:
    """Slices that wait for the networks, which are faster in batches."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.items: list[tuple[Item, dict[str, Any], list[NDArray]]] = []

    def add(self, item: Item, row: dict[str, Any], draws: list[NDArray], sets: FeatureSets) -> None:
        """One more slice; a full batch is run. Slices of another size start a new batch."""
        if not self.work.extractors and self.work.lpips is None:
            return
        if self.items and self.items[0][0].real.shape != item.real.shape:
            self.run(sets)
        self.items.append((item, row, draws))
        if len(self.items) == BATCH:
            self.run(sets)

    def run(self, sets: FeatureSets) -> None:
        """Networks on all that waits."""
        if not self.items:
            return
        if self.work.lpips is not None:
            self._lpips(self.work.lpips)
        for key, extractor in self.work.extractors.items():
            of_real, of_fake = (self._features(key, extractor, side) for side in (0, 1))
            for (item, _, _), real, fake in zip(self.items, of_real, of_fake, strict=True):
                sets.add(key, item.channel, item.case.patient, real, fake)
        self.items = []

    def _lpips(self, net: torch.nn.Module) -> None:
        def distances(a: list[NDArray], b: list[NDArray]) -> NDArray:
            return networks.lpips_distances(net, np.stack(a), np.stack(b), self.work.device)

        real, fake = ([item.unit[side] for item, _, _ in self.items] for side in (0, 1))
        for (_, row, _), distance in zip(self.items, distances(real, fake), strict=True):
            row[LPIPS] = float(distance)
        for item, row, draws in self.items:
            if draws:
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
