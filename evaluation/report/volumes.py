"""Volumes for the page's case browser: 8-bit, cut to the body, compressed without further loss.

A stack of slices is stored as one text: a line per slice, which is a WebP picture without loss, in base64.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataloaders.io.intensity import Window
from dataloaders.io.manifest import Case, Slice
from dataloaders.io.pictures import hex_color, label_colors, webp
from evaluation.compare import Entrant
from evaluation.pairs import paired_slices
from evaluation.report.gather import read_label, read_picture
from evaluation.report.pictures import HU_WINDOWS, body_box, display_window

PAGE, PLOTS = 13_500_000, 1_500_000  # characters of pictures and stacks, and of plots, of a page of about 15 MB
BUDGET = (3_000_000, 10_000_000)  # least and most characters of all stacks together
MOST_CASES = 40
FEWEST_SLICES = 8  # of a case, where it has so many; rather fewer cases than a volume that cannot be scrolled through
LARGEST_SIDE = 320  # pixels; larger slices are reduced by a whole number
# Codes of HU: 2.5 HU a step in soft tissue, 20 in lung and bone, 370 above.
HU_KNOTS = ((0, -1024.0), (44, -160.0), (204, 240.0), (250, 1200.0), (255, 3071.0))
Key = tuple[str, int]  # case id, slice index
T = TypeVar("T")


@dataclass(frozen=True)
class Volumes:
    """meta: what page.js needs to know, as JSON. stacks: id -> base64 text. note: what was left out, in a sentence."""

    meta: dict[str, Any]
    stacks: dict[str, str]
    note: str
    shown: frozenset[Key] = field(default_factory=frozenset)

    @property
    def reduced(self) -> bool:
        """Whether any case has fewer pixels than its images."""
        return any(case["reduced"] > 1 for case in self.meta["cases"])


def pack(
    entrants: Sequence[Entrant], limits: Sequence[tuple[float, str]], wanted: Sequence[Key], budget: int = BUDGET[1]
) -> Volumes:
    """All cases where they fit, else evenly spaced slices of evenly spaced cases.

    limits: end of the difference scale of each channel, and its unit (``% of window`` is turned into the case's).
    wanted: slices that have to be there, because the page points at them.
    """
    first = entrants[0]
    chosen = choose(entrants, wanted, budget)
    stacks: dict[str, str] = {}
    cases = []
    for number, (case, items) in enumerate(chosen):
        cases.append(_add_case(entrants, number, case, items, limits, stacks))
    spec = first.spec
    total = sum(len(paired_slices(case)) for case in first.manifest.cases)
    held = sum(len(items) for _, items in chosen)
    note = ""
    if held < total:
        note = (
            f"{held} of {total} slices of {len(chosen)} of {len(first.manifest.cases)} cases are here, evenly spaced, "
            "as many as a page of about 15 MB holds."
        )
    colors = [hex_color(rgb) for rgb in label_colors(spec.labels)]
    meta = {
        "methods": [entrant.name for entrant in entrants],
        "channels": [{"name": c.name, "unit": c.unit, "windows": _windows(c.unit)} for c in spec.channels],
        "labels": [{"name": label.name.replace("_", " "), "color": colors[label.id]} for label in spec.labels],
        "cases": cases,
    }
    return Volumes(meta, stacks, note, frozenset((case.id, item.index) for case, items in chosen for item in items))


def budget_beside(characters: int, plots: int = 0) -> int:
    """What stacks may take on a page that has so many characters of pictures and of plots already."""
    return min(BUDGET[1], max(BUDGET[0], PAGE - characters - max(0, plots - PLOTS)))


def choose(entrants: Sequence[Entrant], wanted: Sequence[Key], budget: int) -> list[tuple[Case, list[Slice]]]:
    """Cases and slices that fit into the budget, by the size of a few: every wanted slice, the rest evenly spaced."""
    first = entrants[0]
    of_case = {case.id: sorted(paired_slices(case), key=lambda item: item.index) for case in first.manifest.cases}
    cases = [case for case in first.manifest.cases if of_case[case.id]]
    every = [(case, item) for case in cases for item in of_case[case.id]]
    affordable = max(1, int(budget / _characters(entrants, _spread(every, 6))))
    if affordable >= len(every) and len(cases) <= MOST_CASES:
        return [(case, of_case[case.id]) for case in cases]
    must = dict.fromkeys(case_id for case_id, _ in wanted)
    typical = int(np.median([len(items) for items in of_case.values()]))
    room = min(MOST_CASES, max(1, affordable // max(1, min(FEWEST_SLICES, typical))), len(cases))
    kept = {case.id for case in _spread([case for case in cases if case.id not in must], max(0, room - len(must)))}
    kept |= must.keys()
    share = max(1, affordable // len(kept))
    chosen = []
    for case in cases:
        if case.id in kept:
            needed = {index for case_id, index in wanted if case_id == case.id}
            others = [item for item in of_case[case.id] if item.index not in needed]
            picked = {item.index for item in _spread(others, max(0, share - len(needed)))} | needed
            chosen.append((case, [item for item in of_case[case.id] if item.index in picked]))
    return chosen


def _spread(items: Sequence[T], n: int) -> list[T]:
    """At most n items, evenly spaced, the middle one for n = 1."""
    if n >= len(items):
        return list(items)
    return [items[int((i + 0.5) * len(items) / n)] for i in range(n)]


def _characters(entrants: Sequence[Entrant], sample: Sequence[tuple[Case, Slice]]) -> float:
    """Characters that a slice takes in all channels and methods, the mean of a few slices."""
    sizes = []
    for case, item in sample:
        stacks: dict[str, str] = {}
        _add_case(entrants, 0, case, [item], [(1.0, "")] * entrants[0].spec.num_channels, stacks)
        sizes.append(sum(len(text) for text in stacks.values()))
    return float(np.mean(sizes))


def _windows(unit: str) -> list[dict[str, Any]]:
    return [{"name": name, "range": list(ends)} for name, ends in HU_WINDOWS.items()] if unit == "HU" else []


def _add_case(
    entrants: Sequence[Entrant],
    number: int,
    case: Case,
    items: Sequence[Slice],
    limits: Sequence[tuple[float, str]],
    stacks: dict[str, str],
) -> dict[str, Any]:
    """Fill in the stacks of one case, ``<number>-label`` and ``<number>-<channel>-<0 real, 1.. methods>``."""
    first = entrants[0]
    labels = [read_label(first, item) for item in items]
    cut = body_box(labels)
    step = -(-max(labels[0][cut].shape) // LARGEST_SIDE)
    small = [label[cut][step // 2 :: step, step // 2 :: step] for label in labels]
    present = np.unique(np.concatenate([np.unique(label) for label in small]))[:256]
    codes = [np.searchsorted(present, np.where(np.isin(label, present), label, present[0])) for label in small]
    stacks[f"{number}-label"] = encode(np.stack(codes).astype(np.uint8))
    for channel, window in enumerate(case.windows):
        knots = knots_of(first, channel, window)
        read = [read_picture(entrants, case, item, channel, label) for item, label in zip(items, labels, strict=True)]
        for source in range(1 + len(entrants)):
            levels = [(picture.real, *picture.generated)[source][cut] for picture in read]
            shrunk = [_reduced(window.decode(one), step, small[0].shape) for one in levels]
            stacks[f"{number}-{channel}-{source}"] = encode(to_codes(np.stack(shrunk), knots))
    height, width = small[0].shape
    _, rows, columns = first.spacing(case)
    shown = [display_window(first, c, case) for c in range(len(case.windows))]
    return {
        "id": case.id,
        "size": [height, width],
        "aspect": width * columns / (height * rows),
        "reduced": step,
        "slices": [item.index for item in items],
        "labels": [int(i) for i in present],
        "knots": [knots_of(first, c, window) for c, window in enumerate(case.windows)],
        "windows": [[window.low, window.high] for window in shown],
        "limits": [
            limit * window.width / 100 if unit == "% of window" else limit
            for (limit, unit), window in zip(limits, case.windows, strict=True)
        ],
    }


def _reduced(image: NDArray, step: int, shape: tuple[int, ...]) -> NDArray:
    """Means of blocks of `step` pixels; the last ones may be smaller."""
    small = np.asarray(Image.fromarray(image.astype(np.float32)).reduce(step))
    return small[: shape[0], : shape[1]]


def knots_of(entrant: Entrant, channel: int, window: Window) -> list[list[float]]:
    """(code, physical value) of the 8-bit codes: piecewise linear, finer in soft tissue for HU."""
    if entrant.spec.channels[channel].unit == "HU":
        return [[float(code), value] for code, value in HU_KNOTS]
    return [[0.0, window.low], [255.0, window.high]]


def to_codes(values: NDArray, knots: Sequence[Sequence[float]]) -> NDArray[np.uint8]:
    """Physical values -> 8-bit codes, rounded to nearest; values beyond the knots are clipped."""
    codes, ends = zip(*knots, strict=True)
    return np.rint(np.interp(values, ends, codes)).astype(np.uint8)


def encode(stack: NDArray[np.uint8]) -> str:
    """(S, H, W) -> text, which page.js reads."""
    return "\n".join(base64.b64encode(webp(pixels, exact=True)).decode() for pixels in stack)
