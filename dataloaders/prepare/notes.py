"""What preparing did to the scans, for people: slices left out, planes padded or cropped, windows and what they clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.intensity import Window
from dataloaders.overview import counted, percent
from dataloaders.prepare.options import PrepareOptions

CUT = 0.001  # of the labelled voxels lost to a crop: more is a line for each case
CASES = 20  # of which there are such lines
UNLABELLED = 0.03  # of what is no air without a label: more is a line


@dataclass(frozen=True)
class CaseNotes:
    """One case. planes: rows, columns and number of its slices before padding and cropping. kept: slices that were written;
    guard: those left out between held-out blocks.

    cut: share of the labelled voxels outside the window. values: lowest and highest of each channel, before cleaning;
    outside: share of the voxels below and above each channel's window. unlabelled: share of what is no air in the
    first channel that is background, 0 with --split_background and where images or labels are alone.
    """

    id: str
    planes: tuple[int, int, int]
    kept: int
    guard: int
    cut: float
    values: tuple[tuple[float, float], ...]
    outside: tuple[tuple[float, float], ...]
    unlabelled: float = 0.0


def value_ranges(images: Sequence[NDArray]) -> tuple[tuple[float, float], ...]:
    """Lowest and highest value of each channel."""
    return tuple((float(image.min()), float(image.max())) for image in images)


def clipped(images: Sequence[NDArray], windows: Sequence[Window]) -> tuple[tuple[float, float], ...]:
    """Share of the voxels below and above each channel's window."""
    pairs = zip(images, windows, strict=True)
    return tuple((float(np.mean(image < w.low)), float(np.mean(image > w.high))) for image, w in pairs)


def note_lines(notes: Sequence[CaseNotes], channels: Sequence[str], ct: Sequence[bool], o: PrepareOptions) -> list[str]:
    """Lines over all cases."""
    kept, guard, total = (
        sum(numbers) for numbers in zip(*((n.kept, n.guard, n.planes[2]) for n in notes), strict=True)
    )
    lines = [f"kept {kept:,} of {counted(total, 'slice')}"]
    if (few := total - kept - guard) and o.min_foreground > 0:
        lines[0] += (
            f"; {few:,} have less than {percent(o.min_foreground)} of their pixels {o.inside} (--min_foreground)"
        )
    if guard:
        lines[0] += f"; {guard:,} lie between held-out blocks (--guard)"
    lines += [_planes(notes, o.slice_size), *_cut(notes, o)]
    for c, (name, hu) in enumerate(zip(channels, ct, strict=True) if notes[0].values else ()):
        low, high = min(n.values[c][0] for n in notes), max(n.values[c][1] for n in notes)
        below, above = (float(np.mean([n.outside[c][side] for n in notes])) for side in (0, 1))
        unit = "HU" if hu else "a.u."
        lines.append(
            f"{name}: values from {low:.6g} to {high:.6g} {unit}; {percent(below)} of the voxels lie below the window and "
            f"become its low end, {percent(above)} above it"
        )
    if (unlabelled := float(np.mean([n.unlabelled for n in notes]))) > UNLABELLED:
        lines.append(
            f"{percent(unlabelled)} of what is no air has no label, so it is one class with air to what is trained here; "
            "--split_background makes another of it (body_unlabelled), which generators paint better"
        )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _planes(notes: Sequence[CaseNotes], size: tuple[int, int]) -> str:
    found = sorted({n.planes[:2] for n in notes})
    low, high = ([end(plane[i] for plane in found) for i in (0, 1)] for end in (min, max))
    planes = f"planes of {low[0]}x{low[1]}" + ("" if low == high else f" to {high[0]}x{high[1]}") + " pixels"
    padded, cropped = (any(sign * (size[i] - edge[i]) > 0 for i in (0, 1)) for sign, edge in ((1, low), (-1, high)))
    if not padded and not cropped:
        return f"{planes}, neither padded nor cropped"
    done = " and ".join(word for word, is_so in (("padded", padded), ("cropped", cropped)) if is_so)
    inside = float(np.mean([min(n.planes[0], size[0]) * min(n.planes[1], size[1]) for n in notes])) / (
        size[0] * size[1]
    )
    share = f": {percent(1 - inside)} of a slice is padding" if padded else ""
    return f"{planes}, {done} to {size[0]}x{size[1]} around the labels (--size){share}"


def _cut(notes: Sequence[CaseNotes], o: PrepareOptions) -> list[str]:
    cut, edge = [n for n in notes if n.cut > CUT], "x".join(map(str, o.slice_size))
    lines = [f"{n.id}: {percent(n.cut)} of the voxels {o.inside} lie outside the {edge} pixels" for n in cut[:CASES]]
    return lines + ([f"and {counted(len(cut) - CASES, 'further case')}"] if len(cut) > CASES else [])
