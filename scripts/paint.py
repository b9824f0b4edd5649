"""Paint a label map, see the scan: ``python scripts/paint.py --name exp --dataroot data`` opens a page on this machine."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataloaders.io.schema import GpuIds, Iteration, Must, check
from engine.command import exit_code
from engine.paint.maps import PaintedRun, Studio
from engine.paint.server import HERE, PaintServer
from engine.paint.session import Session
from engine.trained import TrainedRun

Port = Annotated[int, Must("in 0..65535, 0 for any that is free", lambda port: 0 <= port <= 65535)]


@dataclass(frozen=True, kw_only=True)
class PaintOptions:
    """A page on this machine: paint tissue, and what trained runs make of it appears beside. Ctrl-C ends it."""

    name: Annotated[tuple[str, ...], Must("one run or more", bool)]
    """Runs that paint, side by side; the first one's classes and size are the page's."""
    dataroot: Path | None = None
    """Prepared data whose slices can be begun with; without it an empty map, or a file that is opened on the page."""
    out: Path = Path("painted")
    """Folder of what is saved, one below it for each page."""
    port: Port = 7860
    """Port of the page; 0 takes any that is free."""
    host: str = "127.0.0.1"
    """Address to serve: this machine alone. Others reach any other address."""
    checkpoints_dir: Path = Path("checkpoints")
    """Folder of all runs."""
    ckpt_iter: Iteration = "best"
    """Weights to use: best, latest, or a number of images seen."""
    gpu_ids: GpuIds = "auto"
    """GPU to use: a number, -1 for the CPU, auto for GPU 0 where there is one."""


def serve(o: PaintOptions) -> None:
    """Load everything, then answer until Ctrl-C. ValueError for runs and data that do not go together."""
    runs = [
        PaintedRun(TrainedRun.load(o.checkpoints_dir, name, o.ckpt_iter), o.gpu_ids) for name in dict.fromkeys(o.name)
    ]
    studio, drawing = Studio(runs, o.dataroot), threading.Lock()
    server = PaintServer(o.host, o.port, lambda folder: Session(studio, o.out / folder, drawing))
    try:
        if o.host not in HERE:
            print(f"warning: --host {o.host}: whoever reaches this machine and has the address below can use the page")
        print(f"open {server.address}\n(Ctrl-C ends it; what is saved goes to {o.out})", flush=True)
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
        sys.stdout.flush()
        os._exit(0)  # at once: an image may be on its way, and torch's threads abort when Python ends around them


def main() -> int:
    """Exit codes: 0 ended by Ctrl-C, 2 bad options."""
    o = tyro.cli(PaintOptions, description=PaintOptions.__doc__)
    check(o)
    serve(o)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
