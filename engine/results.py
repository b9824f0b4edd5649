"""From a method and a split to a results folder: slices, volumes, manifest. The seam that evaluation reads."""

from __future__ import annotations

import itertools
import operator
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataloaders.io.console import tracked
from dataloaders.io.geometry import stitch
from dataloaders.io.intensity import model_to_levels
from dataloaders.io.manifest import Case, Manifest, Slice, slice_name
from dataloaders.io.nifti import write_volume
from dataloaders.io.png import write_png
from dataloaders.io.spec import DataSpec
from models.base import Batch, Method, SampleRandom, seeded_generator


@dataclass(frozen=True)
class Draws:
    """What styles are drawn from. noise: ``case`` draws once per case, ``slice`` anew for each slice.

    again: label id -> which other draw its style is from, while all other labels keep theirs.
    """

    seed: int
    noise: str = "case"
    again: Mapping[int, int] = field(default_factory=dict)

    def of(self, case: str, index: int) -> SampleRandom:
        """The streams of one slice."""
        random = SampleRandom.of(self.seed, case, index)
        random = random if self.noise == "case" else SampleRandom(random.slice, random.slice)
        place = "case" if self.noise == "case" else index
        again = self.again.items()
        labels = {label: seeded_generator(self.seed, case, place, draw, "label", label) for label, draw in again}
        return replace(random, labels=labels)


@dataclass
class Synthesis:
    """The slices of all batches, made as they are asked for: case, index of the slice, image (C, H, W) in [-1, 1].

    seconds: per slice, of pure synthesis, so far. total: slices of all batches, for the progress shown.
    """

    method: Method
    batches: Iterable[Batch]
    device: torch.device
    draws: Draws
    total: int | None = None
    seconds: float = 0.0

    def __iter__(self) -> Iterator[tuple[str, int, NDArray]]:
        spent, count = 0.0, 0
        for batch in tracked(self.batches, "synthesise", self.total, count=len):
            randoms = [self.draws.of(case, index) for case, index in zip(batch.cases, batch.indices, strict=True)]
            start = time.perf_counter()
            images = self.method.synthesize(batch.to(self.device), randoms).cpu().numpy()
            spent, count = spent + time.perf_counter() - start, count + len(batch)
            self.seconds = spent / count
            yield from zip(batch.cases, batch.indices, images, strict=True)


def write_results(
    folder: Path,
    data_root: Path,
    data: Manifest,
    made: Synthesis,
    provenance: dict[str, Any],
    volumes: bool = True,
) -> None:
    """Write `{label,generated,groundtruth,filled}/*.png`, with `volumes` also `volumes/*.nii.gz`, and at last the manifest.

    folder: a new one, of `whole_folder`, so that results are whole or absent. made: slices of a case follow each other.
    """
    of_id, cases = {case.id: case for case in data.cases}, []
    for case_id, of_case in itertools.groupby(made, operator.itemgetter(0)):
        case, items, stack = of_id[case_id], [], {}
        sources = {item.index: item for item in case.slices}
        for _, index, image in of_case:
            levels = model_to_levels(image)
            items.append(_write_slice(folder, data_root, case_id, sources[index], levels))
            if volumes and case.geometry is not None:
                stack[index] = levels
        if stack:
            names = [f"{case_id}_{channel.name}.nii.gz" for channel in data.spec.channels]
            write_volumes(case, data.spec, stack, [folder / "volumes" / name for name in names])
        cases.append(replace(case, slices=tuple(items)))
    facts = {"kind": "results", **provenance, "seconds_per_slice": round(made.seconds, 5)}
    Manifest(data.spec, tuple(cases), facts).save(folder)


def _write_slice(folder: Path, data_root: Path, case: str, source: Slice, levels: NDArray) -> Slice:
    """One generated slice, with copies of what it was made of."""

    def copied(paths: Sequence[str], kind: str) -> tuple[str, ...]:
        written = tuple(f"{kind}/{slice_name(case, source.index, c)}" for c in range(len(paths)))
        for path, target in zip(paths, written, strict=True):
            (folder / kind).mkdir(exist_ok=True)
            shutil.copyfile(data_root / path, folder / target)
        return written

    written = tuple(f"generated/{slice_name(case, source.index, c)}" for c in range(len(levels)))
    for path, channel in zip(written, levels, strict=True):
        write_png(folder / path, channel)
    label = folder / "label" / slice_name(case, source.index)
    label.parent.mkdir(exist_ok=True)
    shutil.copyfile(data_root / source.label, label)
    images = copied(source.images, "groundtruth")
    # What a lesion generator started from; the real files again where they are the same.
    filled = images if source.filled == source.images else copied(source.filled, "filled")
    return replace(source, label=f"label/{label.name}", images=images, generated=written, filled=filled)


def write_volumes(case: Case, spec: DataSpec, stack: Mapping[int, NDArray], paths: Sequence[Path]) -> None:
    """Slice index -> (C, H, W) 16-bit levels of a case to one NIfTI file per channel, in source geometry and units."""
    assert case.geometry is not None
    assert spec.axis is not None
    for c, (path, window) in enumerate(zip(paths, case.windows, strict=True)):
        planes = {index: window.decode(levels[c]) for index, levels in stack.items()}
        volume, affine = stitch(case.geometry, spec.axis, planes, fill=window.low)
        write_volume(path, volume, affine, np.float32, case.geometry.source_codes)
