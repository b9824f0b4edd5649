"""From a method and a split to a results folder: slices, volumes, manifest. The seam that evaluation reads."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

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


@dataclass
class ResultsWriter:
    """Writes `{label,generated,groundtruth}/*.png`, optionally `volumes/*.nii.gz`, and at last the manifest.

    folder: a new one, of `whole_folder`, so that results are whole or absent.
    """

    folder: Path
    data_root: Path
    data: Manifest
    volumes: bool = True
    slices: dict[str, list[Slice]] = field(default_factory=dict)
    stack: dict[int, NDArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cases = {case.id: case for case in self.data.cases}

    def add(self, case_id: str, index: int, generated: NDArray) -> None:
        """One slice: generated (C, H, W) in [-1, 1]. Slices of one case must follow each other."""
        if case_id not in self.slices:
            self._finish_case()
            self.slices[case_id] = []
        source = next(item for item in self.cases[case_id].slices if item.index == index)
        levels = model_to_levels(generated)
        written = [f"generated/{slice_name(case_id, index, c)}" for c in range(len(levels))]
        for path, channel in zip(written, levels, strict=True):
            write_png(self.folder / path, channel)
        copied = replace(
            source,
            label=self._copy(source.label, "label", slice_name(case_id, index)),
            images=tuple(
                self._copy(path, "groundtruth", slice_name(case_id, index, c)) for c, path in enumerate(source.images)
            ),
            generated=tuple(written),
            filled=self._copy_filled(case_id, index, source),
        )
        self.slices[case_id].append(copied)
        if self.volumes and self.cases[case_id].geometry is not None:
            self.stack[index] = levels

    def _copy_filled(self, case_id: str, index: int, source: Slice) -> tuple[str, ...]:
        """Copies without lesions, what a lesion generator started from; the real files again where they are the same."""
        if source.filled == source.images:
            return tuple(f"groundtruth/{slice_name(case_id, index, c)}" for c in range(len(source.images)))
        names = [slice_name(case_id, index, c) for c in range(len(source.filled))]
        return tuple(self._copy(path, "filled", name) for path, name in zip(source.filled, names, strict=True))

    def _copy(self, source: str, folder: str, name: str) -> str:
        target = self.folder / folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(self.data_root / source, target)
        return f"{folder}/{name}"

    def _finish_case(self) -> None:
        """Stack the slices gathered so far to one NIfTI file per channel, in source geometry and units."""
        if not self.stack:
            return
        case = self.cases[list(self.slices)[-1]]
        names = [f"{case.id}_{channel.name}.nii.gz" for channel in self.data.spec.channels]
        write_volumes(case, self.data.spec, self.stack, [self.folder / "volumes" / name for name in names])
        self.stack = {}

    def close(self, provenance: dict[str, Any]) -> Manifest:
        """Write the manifest, the last file."""
        self._finish_case()
        cases: list[Case] = [replace(self.cases[i], slices=tuple(slices)) for i, slices in self.slices.items()]
        manifest = Manifest(self.data.spec, tuple(cases), {"kind": "results", **provenance})
        manifest.save(self.folder)
        return manifest


def write_volumes(case: Case, spec: DataSpec, stack: Mapping[int, NDArray], paths: Sequence[Path]) -> None:
    """Slice index -> (C, H, W) 16-bit levels of a case to one NIfTI file per channel, in source geometry and units."""
    assert case.geometry is not None
    assert spec.axis is not None
    for c, (path, window) in enumerate(zip(paths, case.windows, strict=True)):
        planes = {index: window.decode(levels[c]) for index, levels in stack.items()}
        volume, affine = stitch(case.geometry, spec.axis, planes, fill=window.low)
        write_volume(path, volume, affine, np.float32, case.geometry.source_codes)


class SliceWriter(Protocol):
    """What takes the slices of `synthesize_split`."""

    def add(self, case_id: str, index: int, generated: NDArray) -> None:
        """One slice: generated (C, H, W) in [-1, 1]."""
        ...


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


def synthesize_split(
    method: Method,
    batches: Iterable[Batch],
    writer: SliceWriter,
    device: torch.device,
    draws: Draws,
    total: int | None = None,
) -> float:
    """Synthesise all batches into the writer; returns seconds per slice of pure synthesis.

    total: slices of all batches, for the progress shown.
    """
    seconds, count = 0.0, 0
    for batch in tracked(batches, "synthesise", total, count=len):
        randoms = [draws.of(case, index) for case, index in zip(batch.cases, batch.indices, strict=True)]
        start = time.perf_counter()
        images = method.synthesize(batch.to(device), randoms).cpu().numpy()
        seconds += time.perf_counter() - start
        count += len(batch)
        for case, index, image in zip(batch.cases, batch.indices, images, strict=True):
            writer.add(case, index, image)
    return seconds / max(count, 1)
