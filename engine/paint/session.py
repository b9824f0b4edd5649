"""What one page of the browser works on: a canvas, its folder, and the answers to what the page asks."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.files import read_json, write_json
from dataloaders.io.schema import NAME
from engine.paint.canvas import Action, Canvas, Fill, Start, Stroke, View, action_to_dict, read_action
from engine.paint.studio import Studio

SCHEMA = "medsis-paint/1"
INPUT = "input"  # folder of files that were sent, which goes with the session
MAX_STATE = 2**28  # bytes of a session file
LABEL_FILES = (".nii.gz", ".nii", ".png")


class Session:
    """Made for a page when it opens; `drawing` is held while a run draws, by all sessions."""

    def __init__(self, studio: Studio, folder: Path, drawing: threading.Lock) -> None:
        self.studio, self.folder, self.drawing = studio, folder, drawing
        self.changing = threading.Lock()
        self.used = time.monotonic()
        self.saved: set[str] = set()  # files below the folder that may be asked for
        self._put(studio.empty())

    # -- what the page asks: JSON in, JSON out -----------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Of the canvas."""
        canvas = self.canvas
        steps = {"undo": len(canvas.done), "redo": len(canvas.undone)}
        return {"revision": canvas.revision, **steps, **asdict(canvas.settings)}

    def opened(self) -> dict[str, Any]:
        """All there is to know of a new canvas."""
        return {"cases": self.studio.cases(), **self.studio.describe(self.canvas.start), **self.state()}

    def begin(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A case of the data, or an empty map."""
        name = asked.get("case")
        start = self.studio.empty() if name is None else self.studio.of_case(str(name))
        self._put(start)
        return self.opened()

    def _put(self, start: Start, actions: Sequence[Action] = ()) -> None:
        """A new canvas, with what was done to it."""
        canvas = Canvas(start, self.studio.spec.num_labels)
        for action in actions:
            canvas.act(action)
        with self.changing:
            self.canvas = canvas

    def act(self, asked: dict[str, Any]) -> dict[str, Any]:
        """An action, ``undo`` or ``redo``; the slice that changed comes back."""
        with self.changing:
            canvas = self.canvas
            if (kind := asked.get("kind")) in ("undo", "redo"):
                action = canvas.undo() if kind == "undo" else canvas.redo()
            else:
                action = read_action(asked)
                canvas.act(action)
            changed = action.slice if isinstance(action, (Stroke, Fill)) else None
            return self.state() | ({} if changed is None else self._plane(changed))

    def slice(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Labels of a slice, and its real scan where there is one."""
        position = self._position(asked)
        with self.changing:
            plane = self._plane(position)
        real = self.studio.backdrop(self.canvas.start.case, position)
        return plane | {"real": None if real is None else [_packed(c) for c in real]}

    def _plane(self, position: int) -> dict[str, Any]:
        """elsewhere: pixels that are no background in the other slices, where what is painted is counted."""
        ids = self.canvas.ids
        elsewhere = np.count_nonzero(ids) - np.count_nonzero(ids[position]) if self.studio.voxel_ml else 0
        return {"slice": position, "ids": _packed(ids[position]), "elsewhere": int(elsewhere)}

    def image(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A slice in a panel as the canvas is when its turn comes, so strokes in between cost nothing."""
        position, name = self._position(asked), str(asked.get("panel"))
        with self.drawing:
            view = self._view()
            if name not in self._panels(view):
                raise ValueError(f"no panel {name[:80]!r}")
            started = time.perf_counter()
            levels = self.studio.image(name, min(position, len(view.ids) - 1), view)
            ms = round(1000 * (time.perf_counter() - started), 1)
            note = self.studio.note(name, view)
        channels = [_packed(channel) for channel in levels]
        answer = {"panel": name, "slice": position, "revision": view.revision, "ms": ms, "channels": channels}
        return answer | {"note": note}

    def save(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Write ``slice``, ``volumes`` or ``session`` to the session's folder; names of the files."""
        what = asked.get("what")
        with self.drawing:
            view = self._view()
            if what == "slice":
                files = self.studio.save_slice(self.folder, self._position(asked), view)
            elif what == "volumes":
                files = self.studio.save_volumes(self.folder, view)
            elif what == "session":
                files = [self._save_session(view, self._position(asked))]
            else:
                raise ValueError("save: must be slice, volumes or session")
        names = [path.relative_to(self.folder).as_posix() for path in files]
        self.saved.update(names)
        return {"folder": str(self.folder), "files": names}

    def file(self, name: str) -> Path:
        """A file that was saved; ValueError for any other."""
        if name not in self.saved:
            raise ValueError(f"no saved file {name[:80]!r}")
        return self.folder / name

    def incoming(self, name: str) -> Path:
        """Where a file of that name is put, below the session's folder, whatever the name; ValueError for unfit ones."""
        plain = re.split(r"[/\\]", name)[-1]
        suffix = next((s for s in (*LABEL_FILES, ".json") if plain.lower().endswith(s)), None)
        if suffix is None:
            raise ValueError(
                f"{plain[:80]!r}: must be a label map ({', '.join(LABEL_FILES)}) or a saved session (.json)"
            )
        return self.folder / INPUT / f"{NAME.of(plain[: -len(suffix)], 'file name')}{suffix}"

    def receive(self, path: Path) -> dict[str, Any]:
        """Begin with a file that was sent, a label map or a saved session. ValueError for what is neither."""
        if path.suffix == ".json":
            return self.replay(read_json(path))
        self._put(self.studio.of_file(path))
        return self.opened()

    # -- saved sessions ----------------------------------------------------------------------------------------------

    def _save_session(self, view: View, position: int) -> Path:
        data = {
            "schema": SCHEMA,
            "labels": [label.name for label in self.studio.spec.labels],
            "start": view.start.to_dict(),
            "actions": [action_to_dict(action) for action in view.done],
            "weights": self.studio.sha256,
            "shown": {"slice": position, "images": self._digests(view, position)},
        }
        path = self.folder / f"{view.case.id}_session.json"
        write_json(path, data)
        return path

    def _panels(self, view: View) -> list[str]:
        return [panel.name for panel in self.studio.panels(view.case)]

    def _digests(self, view: View, position: int) -> dict[str, str]:
        images = {name: self.studio.image(name, position, view) for name in self._panels(view)}
        return {name: hashlib.sha256(image.tobytes()).hexdigest() for name, image in images.items()}

    def replay(self, data: Any) -> dict[str, Any]:
        """Do again what was saved; notes say where images differ. ValueError for what is no session of these runs."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("actions"), list):
            raise ValueError(f"not a session that this page saved ({SCHEMA})")
        if data.get("labels") != [label.name for label in self.studio.spec.labels]:
            raise ValueError("the session was painted with other classes than those of the runs that are open")
        self._put(self.studio.of_saved(data.get("start")), [read_action(action) for action in data["actions"]])
        shown, opened = data.get("shown"), self.opened()
        if isinstance(shown, dict) and shown.get("slice") in range(opened["slices"]):
            opened["shown"] = shown["slice"]
            opened["notes"] += self._differences(shown, data.get("weights"))
        return opened

    def _differences(self, shown: dict[str, Any], weights: Any) -> list[str]:
        was = shown.get("images")
        with self.drawing:
            now = self._digests(self._view(), shown["slice"])
        same = [name for name in now if isinstance(was, dict) and was.get(name) == now[name]]
        notes = [f"images of {', '.join(same)} are those that were saved, pixel by pixel"] if same else []
        there = weights if isinstance(weights, dict) else {}
        for name in now.keys() - set(same):
            other = there.get(name) != self.studio.sha256[name]
            why = (
                "made by other weights, or of another scan" if other else "made by another machine or number of threads"
            )
            notes.append(f"images of {name} are not those that were saved: {why}")
        return notes

    def close(self) -> None:
        """Remove what was sent; what was saved stays."""
        shutil.rmtree(self.folder / INPUT, ignore_errors=True)

    def _view(self) -> View:
        with self.changing:
            return self.canvas.view()

    def _position(self, asked: dict[str, Any]) -> int:
        position = asked.get("slice", 0)
        if type(position) is not int or position not in range(len(self.canvas.ids)):
            raise ValueError(f"slice {str(position)[:40]}: there are 0..{len(self.canvas.ids) - 1}")
        return position


def _packed(pixels: NDArray) -> str:
    """Base64 of 8- or 16-bit pixels, low byte first."""
    little = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()
