"""The run's log: metrics.jsonl is the truth, console, log.txt, curves and TensorBoard are views of it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

from dataloaders.io.files import atomic_path, write_text
from dataloaders.io.schema import Mismatch, decode

JSONL = "metrics.jsonl"
CURVES = (
    "composite",
    "wasserstein",
    "ssim",
    "mae_body",
)  # metrics worth a panel; all are in the log and in TensorBoard


class RunLog:
    """Appends records to metrics.jsonl and lines to log.txt and the console; mirrors numbers to TensorBoard.

    A record is one JSON object with ``kind`` (train or eval), ``images`` and named numbers. A full disk costs lines of the
    log, with a warning on the console, and never the run. silent: for a rank that leaves it to the first one.
    """

    def __init__(self, folder: Path, silent: bool = False) -> None:
        self.folder, self.silent = folder, silent
        self.path = folder / JSONL
        self.board: Any = None
        if silent:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        with mock.patch("socket.gethostname", return_value="host"):  # it would be part of the files' names
            self.board = SummaryWriter(str(folder / "tensorboard"))

    def say(self, line: str) -> None:
        """One line to the console and to log.txt."""
        if not self.silent:
            print(line, flush=True)
            _append(self.folder / "log.txt", line + "\n")

    def record(self, record: dict[str, Any]) -> None:
        """Append one record and flush it; numbers that are not finite become null."""
        if self.silent:
            return
        _append(self.path, json.dumps(_finite(record), allow_nan=False) + "\n")
        try:
            self._mirror(record)
        except OSError as error:  # its writer does not recover
            print(f"warning: TensorBoard is given up: {error}", file=sys.stderr)
            self.board = None

    def _mirror(self, record: dict[str, Any]) -> None:
        if self.board is not None:
            for group in ("losses", "measures", "metrics", "gradient_norm"):
                for name, value in record.get(group, {}).items():
                    if value is not None:
                        self.board.add_scalar(f"{group}/{name}", value, record["images"])
            self.board.flush()

    def rewind(self, images: int) -> None:
        """Forget records after `images`: a run that resumes from there will write them again."""
        if not self.silent and self.path.is_file():
            kept = [r for r in read_log(self.path) if r["images"] <= images]
            write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))

    def plot(self) -> None:
        """Draw losses, accuracies, gradient norms and evaluation metrics to curves.png."""
        records = read_log(self.path) if not self.silent and self.path.is_file() else []
        metrics = log_curves(records, "metrics")
        shown = {name: xy for name, xy in metrics.items() if name.split("/")[0] in CURVES}
        gradients = {f"gradient norm {name}": xy for name, xy in log_curves(records, "gradient_norm").items()}
        panels = log_curves(records, "losses") | log_curves(records, "measures") | gradients | shown
        if panels:
            _draw(panels, self.folder / "curves.png")

    def close(self) -> None:
        """Close the TensorBoard writer."""
        if self.board is not None:
            self.board.close()


def _append(path: Path, text: str) -> None:
    """Append whole or not at all."""
    try:
        with open(path, "ab", buffering=0) as file:
            start = file.tell()
            content = text.encode()
            if file.write(content) < len(content):
                file.truncate(start)
                raise OSError(f"{path}: no space left")
    except OSError as error:
        print(f"warning: not logged: {error}", file=sys.stderr, flush=True)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl; a last line that was cut by a kill is dropped, with a warning."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(_record(json.loads(line)))
        except Mismatch as error:
            raise ValueError(f"{path}:{number}: damaged: {error}") from None
        except ValueError:
            print(f"warning: {path}:{number}: incomplete record dropped", file=sys.stderr)
    return records


def _record(found: Any) -> dict[str, Any]:
    """Mismatch unless what is drawn are numbers by name, over images seen."""
    record: dict[str, Any] = decode(dict[str, Any], found, "record")
    for key, hint in (("kind", str), ("images", int)):
        decode(hint, record.get(key), key)
    for group in ("losses", "measures", "metrics", "gradient_norm"):
        decode(dict[str, float | None], record.get(group, {}), group)
    return record


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def log_curves(records: Iterable[dict[str, Any]], group: str) -> dict[str, tuple[list[float], list[float]]]:
    """Images seen and values by name, of one group of numbers: losses, measures, gradient_norm or metrics."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for record in records:
        for name, value in record.get(group, {}).items():
            if value is not None:
                xs, ys = found.setdefault(name, ([], []))
                xs.append(record["images"])
                ys.append(value)
    return found


def _draw(panels: dict[str, tuple[list[float], list[float]]], path: Path) -> None:
    from matplotlib.figure import Figure  # here, because it is slow to import and jobs may log without plotting

    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = 3.2 * columns, 2.3 * rows  # inches, as all below
    figure = Figure(figsize=(width, height))
    # matplotlib's own layout draws everything twice over, which takes longer than many a step of a training.
    figure.subplots_adjust(0.6 / width, 0.45 / height, 1 - 0.1 / width, 1 - 0.3 / height, wspace=0.3, hspace=0.5)
    for position, (name, (xs, ys)) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, position)
        axes.plot(xs, ys, color="#1f4e79", linewidth=1.2, marker="." if len(xs) < 30 else "")
        later = ys[len(ys) // 10 :]  # the steep start of a run would flatten all that follows; it may leave the panel
        if len(ys) >= 20 and max(later) > min(later):
            margin = 0.05 * (max(later) - min(later))
            axes.set_ylim(min(later) - margin, max(later) + margin)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.locator_params(nbins=4)
        axes.ticklabel_format(useOffset=False)
        axes.set_xlabel("images seen", fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
