"""Stream over pairs of slices and gather what every metric needs; memory is that of four cases and batches at most."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dataloaders.io.console import Progress, warn_once
from dataloaders.io.intensity import LEVELS
from dataloaders.io.manifest import Case
from evaluation.metrics import perceptual
from evaluation.metrics.extractors import cached_features
from evaluation.metrics.faithfulness import overlap_rows
from evaluation.metrics.feature_sets import OASIS, RADIOMICS, Sets, feature_distances, of_extractor, paired_of
from evaluation.metrics.intensity import label_rows
from evaluation.metrics.lesions import lesion_row
from evaluation.metrics.metric import CaseSlices, Level, Row
from evaluation.metrics.radiomics import slice_features
from evaluation.pairs import Item, Pairs
from evaluation.request import ScoringPlan

_T = TypeVar("_T")
_R = TypeVar("_R")
BATCH = 32
AT_ONCE = 4  # groups of cases: each is in memory
TABLES: tuple[Level, ...] = ("slice", "label", "case", "overlap", "lesions")
COUNTS = ("constant_images", "psnr_identical", "clipped_real", "clipped_generated")


@dataclass
class Scores:
    """What is gathered. tables: the rows of each level with a table (`metric.Level`), per channel; but those of segmented
    images, ``overlap`` and ``lesions``, have all channels.

    counts: constant generated images, pairs of identical images, pixels beyond the window.
    """

    tables: dict[Level, list[Row]] = field(default_factory=lambda: {level: [] for level in TABLES})
    sets: Sets = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    def __iadd__(self, other: Scores) -> Scores:
        for level, rows in other.tables.items():
            self.tables[level] += rows
        for key, features in other.sets.items():
            self.sets.setdefault(key, []).extend(features)
        self.counts = {name: n + other.counts[name] for name, n in self.counts.items()}
        return self


Side = tuple[Pairs, ScoringPlan]
Scored = dict[int, list[Scores]]  # number of a group of cases -> its scores of each side


def score(sides: Sequence[Side], groups: Sequence[int] | None = None, known: Scored | None = None) -> Scored:
    """Everything that can be said of the pairs of each side, in one pass over the images; scores by group of cases.

    sides: what is scored, and perhaps its second scans (`Pairs.beside`). groups: numbers of those to score, else all.
    known: what was scored before; of that only what is `outdated` is scored again. A group's scores do not depend on which
    others are scored: cases share batches of the networks only within their group (`Pairs.groups`).
    """
    groups_of = [pairs.groups() for pairs, _ in sides]
    jobs = range(max(map(len, groups_of)))
    scored: Scored = {**(known or {})}

    def one(number: int) -> tuple[int, list[Scores]]:
        return number, [
            Group(*side).scored(found[number] if number < len(found) else [])
            for side, found in zip(sides, groups_of, strict=True)
        ]

    def is_missing(number: int) -> bool:
        pairs, own = sides[0][0], groups_of[0]
        return number not in scored or (number < len(own) and pairs.outdated(own[number]))

    while chosen := [number for number in (jobs if groups is None else groups) if is_missing(number)]:
        cases = sum(len(groups_of[0][number]) for number in chosen if number < len(groups_of[0]))
        with Progress("evaluate", cases, "case", sides[0][1].request.progress) as bar:
            for number, of_sides in side_by_side(one, chosen, len(jobs)):
                scored[number] = of_sides
                bar.update(len(groups_of[0][number]) if number < len(groups_of[0]) else 0)
    for pairs, _ in sides:
        pairs.tell()
    return scored


def side_by_side(work: Callable[[_T], _R], jobs: Sequence[_T], of: int) -> Iterator[_R]:
    """Results in the jobs' order, of as many threads as torch has, `AT_ONCE` at most; networks share the rest of them.

    of: jobs in all shards together, so that a job has equally many threads in each, and the same rounding.
    Reading, transforms and networks let other threads run, so that two cores take little more than half the time.
    """
    threads = torch.get_num_threads()
    count = min(threads, AT_ONCE, of)
    if count <= 1:
        yield from map(work, jobs)
        return
    share = threads // count
    # NumPy's own threads would wait for each other.
    with threadpool_limits(share, "blas"), ThreadPoolExecutor(count, "score", torch.set_num_threads, (share,)) as pool:
        try:
            yield from pool.map(work, jobs)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # of threads that start later


def merged(scored: Scored, side: int = 0) -> Scores:
    """The scores of all groups of one side together, in the groups' order."""
    total = Scores()
    for _, of_sides in sorted(scored.items()):
        total += of_sides[side]
    return total


class Group:
    """Scores cases one after the other; slices wait for the networks, which are faster in batches."""

    def __init__(self, pairs: Pairs, plan: ScoringPlan) -> None:
        self.pairs, self.plan, self.scores = pairs, plan, Scores()
        self.waiting: list[tuple[Item, Row]] = []
        slice_metrics = [metric for metric in plan.of("slice") if not metric.weights]
        self.of_slice = [*dict.fromkeys(metric.of for metric in slice_metrics if metric.of)]
        self.of_case = [*dict.fromkeys(metric.of for metric in plan.of("case") if metric.of)]
        self.of_network = [(metric, metric.of) for metric in plan.of("slice") if metric.key in plan.files and metric.of]
        self.radiomics = any(metric.key in plan.chosen for metric in of_extractor(RADIOMICS).values())

    def scored(self, cases: Sequence[str]) -> Scores:
        """Scores of the named cases."""
        for case, of_case in itertools.groupby(self.pairs.items(cases), key=lambda item: item.case):
            self.add(case, of_case)
        self.run_networks()
        return self.scores

    def add(self, case: Case, items: Iterable[Item]) -> None:
        """One case, slices by index, then channels."""
        channels: dict[int, list[Item]] = {}
        segmented: list[tuple[Item, dict[str, NDArray]]] = []
        for item in items:
            if item.scored and self.plan.request.draws:
                others = (self.pairs.companion(folder, item, labels=False) for folder in self.plan.request.draws)
                item = replace(item, draws=(item.physical[1], *others))
            if item.channel == 0 and self.plan.of("overlap", "lesions"):
                segmented.append((item, self._segmented(item)))
            if self.plan.real:
                channels.setdefault(item.channel, []).append(item.seen)
            if item.scored:
                self._slice(item)
        for channel, seen in channels.items():
            self._case(case, channel, seen)
        if segmented:
            self._segmentations(case, segmented)

    def _slice(self, item: Item) -> None:
        seen, counts = item.seen, self.scores.counts
        real, fake = seen.physical
        counts["psnr_identical"] += int(np.array_equal(real, fake))
        counts["constant_images"] += int(fake.min() == fake.max())
        if seen.values is not None:
            for name, values in zip(("clipped_real", "clipped_generated"), seen.values, strict=True):
                counts[name] += int(((values < item.window.low) | (values > item.window.high)).sum())
        channel = self.pairs.channels[item.channel].name
        row = {"patient": item.case.patient, "case": item.case.id, "slice": item.slice.index, "channel": channel}
        for of in self.of_slice:
            row |= {key: value for key, value in of(seen).items() if key in self.plan.chosen}
        self.scores.tables["slice"].append(row)
        if self.radiomics:
            self._add_radiomics(item)
        if self.plan.extractors or self.of_network:
            if self.waiting and _shapes(self.waiting[0][0]) != _shapes(item):
                self.run_networks()
            self.waiting.append((item, row))
            if len(self.waiting) == BATCH:
                self.run_networks()

    def _case(self, case: Case, channel: int, seen: Sequence[Item]) -> None:
        slices = CaseSlices(seen, self.pairs.spacing(case), self.plan.lesion)
        if not slices.scored:
            warn_once(f"case {case.id} is left out: no label anywhere, and every real slice is constant")
            return
        about = {"patient": case.patient, "case": case.id, "channel": self.pairs.channels[channel].name}
        self.scores.tables["label"] += [about | self._named(row) for row in label_rows(slices)]
        self.scores.tables["case"].append(
            about | {key: value for of in self.of_case for key, value in of(slices).items()}
        )

    def _segmentations(self, case: Case, segmented: Sequence[tuple[Item, dict[str, NDArray]]]) -> None:
        indices, spacing = [item.slice.index for item, _ in segmented], self.pairs.spacing(case)
        condition = volume_of(case, indices, [item.label for item, _ in segmented])
        about = {"patient": case.patient, "case": case.id}
        for kind in segmented[0][1]:
            volume = volume_of(case, indices, [maps[kind] for _, maps in segmented])
            for row in overlap_rows(condition, volume, spacing):
                self.scores.tables["overlap"].append(about | {"of": kind} | self._named(row))
            if kind == "generated" and (lesion := self.plan.lesion) is not None:
                known = spacing if self.pairs.spacing_known else None
                self.scores.tables["lesions"].append(about | lesion_row(condition == lesion, volume == lesion, known))

    def _segmented(self, item: Item) -> dict[str, NDArray]:
        folders = {"generated": self.plan.request.segmented, "real": self.plan.request.segmented_real}
        return {
            kind: self.pairs.companion(path, item, labels=True) for kind, path in folders.items() if path is not None
        }

    def _named(self, row: Row) -> Row:
        return row | {"name": self.pairs.name_of(row["label"])}

    def _add_radiomics(self, item: Item) -> None:
        """Features of both images within the body, or of all pixels where no label map says what the body is.

        A slice whose map has no body has none.
        """
        body = item.body if item.slice.label else np.ones(item.label.shape, bool)
        if body.any():
            fake = slice_features(item.fake / LEVELS, body)
            real = slice_features(item.real / LEVELS, body) if self.plan.real else fake
            self._add_features(RADIOMICS, item, real, fake)

    def _add_features(self, extractor: str, item: Item, real: NDArray, fake: NDArray) -> None:
        self.scores.sets.setdefault((extractor, item.channel), []).append((item.case.patient, real, fake))

    def run_networks(self) -> None:
        """Networks on all slices that wait."""
        items = [item for item, _ in self.waiting]
        if items and min(items[0].seen.real.shape) >= perceptual.SMALLEST:
            for metric, of in self.of_network:
                there = [(item, row) for item, row in self.waiting if item.draws or "draws" not in metric.asked]
                values = of(self.plan.lpips, [item.seen for item, _ in there], self.plan.device) if there else []
                for (_, row), value in zip(there, values, strict=True):
                    row[metric.key] = value
        for key in self.plan.extractors if items else ():
            fake = self._features(key, [item.unit[1] for item in items])
            real = self._features(key, [item.unit[0] for item in items]) if self.plan.real else fake
            for item, of_real, of_fake in zip(items, real, fake, strict=True):
                self._add_features(key, item, of_real, of_fake)
            if (name := paired_of(key).key) in self.plan.chosen:
                for (_, row), distance in zip(self.waiting, feature_distances(real, fake), strict=True):
                    row[name] = float(distance)
        self.waiting = []

    def _features(self, key: str, images: Sequence[NDArray]) -> NDArray[np.float32]:
        if key == OASIS:
            images = [as_8_bit(image) for image in images]
        return cached_features(self.plan.extractors[key], images, self.plan.request.cache)


def volume_of(case: Case, indices: Sequence[int], slices: Sequence[NDArray]) -> NDArray:
    """Slices at their places along z, so that a gap stays a gap for distances; ValueError for different sizes."""
    if len({ids.shape for ids in slices}) > 1:
        sizes = ", ".join(sorted({str(ids.shape) for ids in slices}))
        raise ValueError(f"case {case.id}: slices of different sizes ({sizes}); segmentations need one size a case")
    first = min(indices)
    volume = np.zeros((max(indices) - first + 1, *slices[0].shape), np.result_type(*slices))
    for index, ids in zip(indices, slices, strict=True):
        volume[index - first] = ids
    return volume


def _shapes(item: Item) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return item.real.shape, item.seen.real.shape


def as_8_bit(image: NDArray) -> NDArray[np.float32]:
    """An image in [0, 1] as an 8-bit file holds it: 256 levels, rounded to the nearest."""
    return (np.rint(np.asarray(image, np.float64) * 255) / 255).astype(np.float32)
