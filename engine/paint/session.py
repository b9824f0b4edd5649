"""What one page of the browser works on: a scene, its folder, and the answers to what the page asks."""

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
from engine.paint.canvas import Fill, Stroke, View, action_to_dict, read_action
from engine.paint.scene import Scene, Studio

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
        self.scene = studio.scene(studio.empty())

    # -- what the page asks: JSON in, JSON out -----------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Of the canvas."""
        canvas = self.scene.canvas
        undo, redo = canvas.steps
        return {"revision": canvas.revision, "undo": undo, "redo": redo, **asdict(canvas.settings)}

    def opened(self) -> dict[str, Any]:
        """All there is to know of a new scene."""
        return {"cases": self.studio.cases(), **self.scene.describe(), **self.state()}

    def begin(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A case of the data, or an empty map."""
        name = asked.get("case")
        start = self.studio.empty() if name is None else self.studio.of_case(str(name))
        return self._begin(self.studio.scene(start))

    def _begin(self, scene: Scene) -> dict[str, Any]:
        with self.changing:
            self.scene = scene
        return self.opened()

    def act(self, asked: dict[str, Any]) -> dict[str, Any]:
        """An action, ``undo`` or ``redo``; the slice that changed comes back."""
        with self.changing:
            canvas = self.scene.canvas
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
        real = self.scene.backdrop(position)
        return plane | {"real": None if real is None else [_packed(c) for c in real]}

    def _plane(self, position: int) -> dict[str, Any]:
        """elsewhere: pixels that are no background in the other slices, where what is painted is counted."""
        ids = self.scene.canvas.ids
        elsewhere = np.count_nonzero(ids) - np.count_nonzero(ids[position]) if self.scene.voxel_ml else 0
        return {"slice": position, "ids": _packed(ids[position]), "elsewhere": int(elsewhere)}

    def image(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A slice in a panel as the canvas is when its turn comes, so strokes in between cost nothing."""
        position, name = self._position(asked), str(asked.get("panel"))
        with self.drawing:
            scene, view = self._now()
            if name not in scene.panels:
                raise ValueError(f"no panel {name[:80]!r}")
            started = time.perf_counter()
            levels = scene.image(name, min(position, len(view.ids) - 1), view)
            ms = round(1000 * (time.perf_counter() - started), 1)
            note = scene.note(name, view)
        channels = [_packed(channel) for channel in levels]
        answer = {"panel": name, "slice": position, "revision": view.revision, "ms": ms, "channels": channels}
        return answer | {"note": note}

    def save(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Write ``slice``, ``volumes`` or ``session`` to the session's folder; names of the files."""
        what = asked.get("what")
        with self.drawing:
            scene, view = self._now()
            if what == "slice":
                files = scene.save_slice(self.folder, self._position(asked), view)
            elif what == "volumes":
                files = scene.save_volumes(self.folder, view)
            elif what == "session":
                files = [self._save_session(scene, view, self._position(asked))]
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
        return self._begin(self.studio.scene(self.studio.of_file(path)))

    # -- saved sessions ----------------------------------------------------------------------------------------------

    def _save_session(self, scene: Scene, view: View, position: int) -> Path:
        data = {
            "schema": SCHEMA,
            "labels": [label.name for label in self.studio.spec.labels],
            "start": scene.start.to_dict(),
            "actions": [action_to_dict(action) for action in view.done],
            "weights": self.studio.sha256,
            "shown": {"slice": position, "images": self._digests(scene, view, position)},
        }
        path = self.folder / f"{scene.start.case.id}_session.json"
        write_json(path, data)
        return path

    def _digests(self, scene: Scene, view: View, position: int) -> dict[str, str]:
        return {n: hashlib.sha256(scene.image(n, position, view).tobytes()).hexdigest() for n in scene.panels}

    def replay(self, data: Any) -> dict[str, Any]:
        """Do again what was saved; notes say where images differ. ValueError for what is no session of these runs."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("actions"), list):
            raise ValueError(f"not a session that this page saved ({SCHEMA})")
        if data.get("labels") != [label.name for label in self.studio.spec.labels]:
            raise ValueError("the session was painted with other classes than those of the runs that are open")
        scene = self.studio.scene(self.studio.of_saved(data.get("start")))
        for action in data["actions"]:
            scene.canvas.act(read_action(action))
        shown = data.get("shown")
        opened = self._begin(scene)
        if isinstance(shown, dict) and shown.get("slice") in range(len(scene.start.ids)):
            opened["shown"] = shown["slice"]
            opened["notes"] = [*opened["notes"], *self._differences(scene, shown, data.get("weights"))]
        return opened

    def _differences(self, scene: Scene, shown: dict[str, Any], weights: Any) -> Sequence[str]:
        was = shown.get("images")
        with self.drawing:
            now = self._digests(scene, scene.canvas.view(), shown["slice"])
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

    def _now(self) -> tuple[Scene, View]:
        with self.changing:
            return self.scene, self.scene.canvas.view()

    def _position(self, asked: dict[str, Any]) -> int:
        position = asked.get("slice", 0)
        if type(position) is not int or position not in range(len(self.scene.canvas.ids)):
            raise ValueError(f"slice {str(position)[:40]}: there are 0..{len(self.scene.canvas.ids) - 1}")
        return position


def _packed(pixels: NDArray) -> str:
    """Base64 of 8- or 16-bit pixels, low byte first."""
    little = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()
