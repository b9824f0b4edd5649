"""A label map that is painted: strokes and fills, undone and redone, and the list of them that plays again.

What the page draws while a stroke is under way is the same arithmetic in whole numbers (`brushed`, page/page.js), so what
comes back from here is what was seen.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.io.manifest import Case, Slice
from dataloaders.io.schema import AtLeast0, Must, Name, decode

MAX_BRUSH = 128  # pixels
MAX_POINTS = 20_000  # of a stroke
MAX_ACTIONS = 20_000  # of a session
Pixel = Annotated[int, Must("in -1024..3071", lambda v: -1024 <= v < 3072)]  # products stay exact in JavaScript
Size = Annotated[int, Must(f"in 1..{MAX_BRUSH}", lambda v: 1 <= v <= MAX_BRUSH)]
Points = Annotated[
    tuple[tuple[Pixel, Pixel], ...], Must(f"1 to {MAX_POINTS} points", lambda v: 1 <= len(v) <= MAX_POINTS)
]
SLIDERS = {  # of a GMM, name -> low, high, step, unit
    "contrast": (-1.0, 1.0, 0.05, "ln γ"),
    "bias": (0.0, 1.0, 0.05, "SD of ln"),
    "noise": (0.0, 0.2, 0.01, "SD"),
    "resolution": (0.5, 8.0, 0.5, "mm"),
}


@dataclass(frozen=True)
class Stroke:
    """Label along points (x, y) in pixels of a slice, with a round brush `size` pixels across."""

    slice: AtLeast0
    label: AtLeast0
    size: Size
    points: Points


@dataclass(frozen=True)
class Fill:
    """Label for all pixels of a slice that hang together with (x, y), by their sides, and have its label."""

    slice: AtLeast0
    label: AtLeast0
    x: Pixel
    y: Pixel


@dataclass(frozen=True)
class Noise:
    """All noise from another seed, as test.py --seed."""

    seed: AtLeast0


@dataclass(frozen=True)
class Resample:
    """The noise of one label from another draw, as test.py --resample LABEL --draw; 0 is the seed's own."""

    label: AtLeast0
    draw: AtLeast0


@dataclass(frozen=True)
class Slide:
    """A step of a GMM's acquisition fixed (`SLIDERS`); None as the run has it."""

    run: Name
    name: Literal["contrast", "bias", "noise", "resolution"]
    value: float | None

    def __post_init__(self) -> None:
        low, high, *_ = SLIDERS[self.name]
        if self.value is not None and not low <= self.value <= high:
            raise ValueError(f"{self.name} {self.value:g}: must be in [{low:g}, {high:g}]")


Action = Stroke | Fill | Noise | Resample | Slide
KINDS: dict[str, type[Action]] = {kind.__name__.lower(): kind for kind in (Stroke, Fill, Noise, Resample, Slide)}


def read_action(data: Any) -> Action:
    """An action of JSON, ``{"kind": "stroke", …}``; ValueError for anything else."""
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"action {str(kind)[:40]!r}: must be one of {', '.join(KINDS)}")
    action: Action = decode(KINDS[kind], {key: value for key, value in data.items() if key != "kind"}, kind)
    return action


def action_to_dict(action: Action) -> dict[str, Any]:
    """Inverse of `read_action`."""
    return {"kind": type(action).__name__.lower(), **asdict(action)}


@dataclass
class Settings:
    """What images depend on beside the labels. draws: other draws of single labels. sliders: by run and name."""

    seed: int = 0
    draws: dict[int, int] = field(default_factory=dict)
    sliders: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, action: Action) -> None:
        """What the action sets."""
        if isinstance(action, Noise):
            self.seed, self.draws = action.seed, {}
        elif isinstance(action, Resample):
            self.draws[action.label] = action.draw
        elif isinstance(action, Slide):
            own = self.sliders.setdefault(action.run, {})
            own.pop(action.name, None)
            if action.value is not None:
                own[action.name] = action.value


@dataclass(frozen=True)
class Start:
    """What painting begins with. ids (S, H, W) classes of the page; case: their place and the windows of their images.

    notes: what the user should know of the file that it was read from.
    """

    case: Case
    ids: NDArray
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: everything that is needed to begin again, without paths and pictures."""
        bare = tuple(Slice(item.index, "") for item in self.case.slices)
        packed = base64.b64encode(zlib.compress(self.ids.tobytes(), 9)).decode()
        return {"case": asdict(replace(self.case, slices=bare, sources={})), "ids": packed}


@dataclass(frozen=True)
class View:
    """A canvas as it was at one moment: slices (S, H, W), what else images depend on, and all that was done."""

    start: Start
    ids: NDArray
    settings: Settings
    revision: int
    done: tuple[Action, ...]

    @property
    def case(self) -> Case:
        """What is painted."""
        return self.start.case


class Canvas:
    """Slices of a label map (S, H, W) with all that was done to them.

    revision: counts up with every change. done: all actions in order, those undone left out, which are in `undone`.
    """

    def __init__(self, start: Start, labels: int) -> None:
        self.start, self.ids, self.labels = start, start.ids.copy(), labels
        self.revision = 0
        self.done: list[Action] = []
        self._before: list[
            tuple[NDArray[np.intp], NDArray] | None
        ] = []  # of each: flat pixels of its slice, their labels
        self.undone: list[Action] = []

    @property
    def settings(self) -> Settings:
        """After all that was done."""
        settings = Settings()
        for action in self.done:
            settings.add(action)
        return settings

    def view(self) -> View:
        """The canvas as it is now, which later strokes leave alone."""
        return View(self.start, self.ids.copy(), self.settings, self.revision, tuple(self.done))

    def act(self, action: Action) -> None:
        """Do it; what was undone before is gone. ValueError, with nothing changed, for what the canvas does not have."""
        if len(self.done) >= MAX_ACTIONS:
            raise ValueError(f"a session has {MAX_ACTIONS} actions at most; save it and start anew")
        self._do(action)
        self.undone.clear()

    def _do(self, action: Action) -> None:
        if isinstance(action, (Stroke, Fill, Resample)) and action.label >= self.labels:
            raise ValueError(f"label {action.label}: there are 0..{self.labels - 1}")
        before = None
        if isinstance(action, (Stroke, Fill)):
            if action.slice >= len(self.ids):
                raise ValueError(f"slice {action.slice}: there are 0..{len(self.ids) - 1}")
            plane = self.ids[action.slice].reshape(-1)
            where = np.flatnonzero(self._touched(action))
            where = where[plane[where] != action.label]
            before = where, plane[where]
            plane[where] = action.label
        self.done.append(action)
        self._before.append(before)
        self.revision += 1

    def _touched(self, action: Stroke | Fill) -> NDArray[np.bool_]:
        plane = self.ids[action.slice]
        if isinstance(action, Stroke):
            return brushed(plane.shape, action.points, action.size)
        if not (0 <= action.x < plane.shape[1] and 0 <= action.y < plane.shape[0]):
            raise ValueError(f"pixel ({action.x}, {action.y}) lies outside of the slice")
        parts, _ = ndimage.label(plane == plane[action.y, action.x])
        found: NDArray[np.bool_] = parts == parts[action.y, action.x]
        return found

    def undo(self) -> Action | None:
        """Take back the last action; None where there is none."""
        if not self.done:
            return None
        action, before = self.done.pop(), self._before.pop()
        if isinstance(action, (Stroke, Fill)) and before is not None:
            self.ids[action.slice].reshape(-1)[before[0]] = before[1]
        self.undone.append(action)
        self.revision += 1
        return action

    def redo(self) -> Action | None:
        """Do again what was undone last; None where there is nothing."""
        if not self.undone:
            return None
        action = self.undone.pop()
        self._do(action)
        return action


def brushed(shape: Sequence[int], points: Sequence[tuple[int, int]], size: int) -> NDArray[np.bool_]:
    """(H, W): pixels whose centres lie within size/2 of the line through points (x, y), in whole numbers throughout."""
    mask = np.zeros(shape, bool)
    height, width = shape
    for (ax, ay), (bx, by) in pairwise([*points, points[-1]]):
        reach = size // 2
        x0, x1 = max(0, min(ax, bx) - reach), min(width, max(ax, bx) + reach + 1)
        y0, y1 = max(0, min(ay, by) - reach), min(height, max(ay, by) + reach + 1)
        if x0 >= x1 or y0 >= y1:
            continue
        y, x = np.ogrid[y0:y1, x0:x1]
        dx, dy = bx - ax, by - ay
        length = dx * dx + dy * dy
        along = (x - ax) * dx + (y - ay) * dy
        to_a, to_b = (x - ax) ** 2 + (y - ay) ** 2, (x - bx) ** 2 + (y - by) ** 2
        across = (x - ax) * dy - (y - ay) * dx
        ends = np.where(along <= 0, to_a, to_b)
        inside = (along > 0) & (along < length)
        mask[y0:y1, x0:x1] |= np.where(inside, 4 * across * across <= size * size * length, 4 * ends <= size * size)
    return mask
