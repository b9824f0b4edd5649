"""Paint labels or lesions, see the scan: ``python scripts/paint.py --name exp --dataroot data`` opens a page."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

from dataloaders.io.schema import GpuIds, Iteration, Must, check, options_of
from engine.add_lesions import AddLesionsOptions, LesionRun
from engine.command import exit_code
from engine.paint.lesions import LesionStudio
from engine.paint.maps import MapStudio, PaintedRun
from engine.paint.server import HERE, PaintServer
from engine.paint.session import Session
from engine.paint.studio import Studio
from engine.trained import TrainedRun

Port = Annotated[int, Must("in 0..65535, 0 for any that is free", lambda port: 0 <= port <= 65535)]


@dataclass(frozen=True, kw_only=True)
class PaintOptions:
    """A page on this machine: paint tissue or lesions, and what trained runs make of it appears beside. Ctrl-C ends it."""

    name: Annotated[tuple[str, ...], Must("one run or more", bool)]
    """Runs that paint, side by side; the first one's classes and size are the page's."""
    dataroot: Path | None = None
    """Prepared data whose slices can be begun with; without it an empty map, or a file that is opened on the page."""
    input: tuple[Path, ...] = ()
    """Scan to paint lesions into instead of labels, as for add_lesions.py: one NIfTI file per modality (T1w FLAIR)."""
    own_lesions: Path | None = None
    """Mask of lesions that the scan has already; they are filled first."""
    tissue: Path | None = None
    """Tissue of the scan on its grid (1 CSF, 2 grey, 3 white matter); by default made from its T1w, in about a minute."""
    brain_mask: Path | None = None
    """Brain of the scan, for a T1w with skull."""
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

    def check_together(self) -> None:
        """ValueError for options that do not go together."""
        if self.input and self.dataroot is not None:
            raise ValueError("--input: lesions are painted into one scan, so --dataroot has no use beside it")
        for flag in ("own_lesions", "tissue", "brain_mask"):
            if getattr(self, flag) is not None and not self.input:
                raise ValueError(f"--{flag} {getattr(self, flag)}: only with --input")

    def lesions(self) -> AddLesionsOptions:
        """What add_lesions.py would be called with."""
        of_scan = {key: getattr(self, key) for key in ("input", "own_lesions", "tissue", "brain_mask")}
        weights = {key: getattr(self, key) for key in ("checkpoints_dir", "ckpt_iter", "gpu_ids")}
        return AddLesionsOptions(name=self.name[0], output=self.out, **of_scan, **weights)


def load(o: PaintOptions) -> Studio:
    """Runs and what they paint on. ValueError where they do not go together."""
    runs = [TrainedRun.load(o.checkpoints_dir, name, o.ckpt_iter) for name in dict.fromkeys(o.name)]
    if not o.input:
        return MapStudio([PaintedRun(run, o.gpu_ids) for run in runs], o.dataroot)
    if o.tissue is None:
        print("finding tissue in the scan, which --tissue would spare …", flush=True)
    return LesionStudio([LesionRun.of(run, o.gpu_ids) for run in runs], o.lesions())


def serve(o: PaintOptions) -> None:
    """Load everything, then answer until Ctrl-C."""
    studio, drawing = load(o), threading.Lock()
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
    o = options_of(PaintOptions)
    check(o)
    serve(o)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
