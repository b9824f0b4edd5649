"""What a data set holds, in lines for the console: the last that prepare_data.py says, and the first of train.py."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from dataloaders.io.manifest import SPLITS, Case, Manifest
from dataloaders.io.spec import DataSpec, Label, flip_table

WIDTH = 120  # characters of a line
HARD = "\N{NO-BREAK SPACE}"
FEW = 100  # training pixels; of a portal vein of 23, a generator made bone


def overview(manifest: Manifest) -> list[str]:
    """Slices, cases and patients per split, classes with their share, channels with unit and window, grid, mirroring."""
    spec, lines = manifest.spec, split_sizes(manifest)
    if "split" in manifest.provenance:
        lines.append(f"split by {manifest.provenance['split']}")
    lines += wrapped(class_shares(spec.labels, manifest.pixels("train")))
    channels = [f"{c.name} in {c.unit}, {_windows(manifest.cases, i)}" for i, c in enumerate(spec.channels)]
    lines.append(f"channels: {'; '.join(channels) or 'none'}")
    lines.append(grid(spec))
    return [*lines, *mirroring(spec)]


def split_sizes(manifest: Manifest) -> list[str]:
    """A line for each split."""
    lines = []
    for split in SPLITS:
        cases = manifest.split(split)
        slices, patients = sum(len(case.slices) for case in cases), len({case.patient for case in cases})
        lines.append(
            f"{split:>5}: {counted(slices, 'slice')}, {counted(len(cases), 'case')}, {counted(patients, 'patient')}"
        )
    return lines


def class_shares(labels: Sequence[Label], pixels: dict[int, int]) -> str:
    """``labels: background 61 %, liver 8.1 %, … of the training pixels``, and which have hardly any or none.

    Plain names where no pixels are counted.
    """
    total = sum(pixels.values())
    if not labels or not total:
        return f"labels: {', '.join(label.name for label in labels) or 'none'}"
    there = [f"{label.name}{HARD}{percent(pixels[label.id] / total)}" for label in labels if pixels.get(label.id)]
    few = [f"{label.name}{HARD}{pixels[label.id]}" for label in labels if 0 < pixels.get(label.id, 0) < FEW]
    never = [label.name for label in labels if not pixels.get(label.id)]
    rare = f"; learned from hardly any pixels: {', '.join(few)}" if few else ""
    absent = f"; in no training slice: {', '.join(never)}" if never else ""
    return f"{len(labels)} labels, share of the training pixels: {', '.join(there)}{rare}{absent}"


def percent(share: float) -> str:
    """``61 %``, ``0.81 %``, ``<0.01 %``, with a space that `wrapped` does not break at."""
    value = 100 * share
    text = "<0.01" if 0 < value < 0.01 else f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"
    return f"{text}{HARD}%"


def counted(n: int, what: str) -> str:
    """``1 case``, ``1,200 cases``."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def grid(spec: DataSpec) -> str:
    """Size, spacing and direction of the slices; what is not known is left out."""
    size = f"slices: {spec.size[0]}x{spec.size[1]} pixels"
    if spec.axis is None:
        return size
    mm = f"{spec.spacing[0]:g} x {spec.spacing[1]:g} mm, {spec.slice_spacing:g} mm apart"
    return f"{size} of {mm}, {spec.axis}"


def mirroring(spec: DataSpec) -> list[str]:
    """How many labels change sides in a left-right mirror; nothing where slices are not mirrored."""
    table = flip_table(spec)
    if table is None or len(spec.labels) < 2:
        return []
    moved = sum(int(new) != old for old, new in enumerate(table))
    text = f"mirroring: {moved} of {len(spec.labels) - 1} labels change sides (left, lh, L and their like in names)"
    unnamed = [label for label in spec.labels if label.name == f"label_{label.source[0] if label.source else label.id}"]
    if moved or not unnamed:
        return [text]
    return [f"{text}; {len(unnamed)} have no name: prepare_data.py --label_map gives them, or train with --no-flip"]


def wrapped(text: str) -> list[str]:
    """Lines of a long text, the later ones indented."""
    lines = textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [line.replace(HARD, " ") for line in lines]


def _windows(cases: Sequence[Case], channel: int) -> str:
    windows = [case.windows[channel] for case in cases if len(case.windows) > channel]
    if not windows:
        return "no images"
    lows, highs = ([getattr(w, side) for w in windows] for side in ("low", "high"))
    if min(lows) == max(lows) and min(highs) == max(highs):
        return f"window {lows[0]:.6g} to {highs[0]:.6g}"
    return f"windows by case, from {min(lows):.4g}…{max(lows):.4g} to {min(highs):.4g}…{max(highs):.4g}"
