"""Put MS lesions into a scan: ``scripts/add_lesions.py --name RUN --input T1 FLAIR --from_patient DIR --output DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataloaders.io.spec import LESION
from dataloaders.lesions.adding import Painting
from dataloaders.lesions.options import AddLesionsOptions, check_options
from engine.command import exit_code
from engine.lesion_command import add_to_scan
from engine.methods.base import workflow_of
from engine.trained import TrainedRun
from models.base import Method
from models.lesion.method import LesionUnet


def painter(o: AddLesionsOptions) -> tuple[Method, Painting]:
    """The method of the run with its weights, and how it paints. ValueError for runs that cannot paint lesions."""
    run = TrainedRun.load(o.checkpoints_dir, o.name, o.ckpt_iter)
    workflow = workflow_of(run.config)
    if all(label.name != LESION for label in run.spec.labels):
        raise ValueError(f"--name {o.name}: the run was trained without a class named {LESION!r}")
    if neighbours := getattr(workflow, "neighbours", 0):
        raise ValueError(f"--name {o.name}: 2.5-D runs (neighbours {neighbours}) cannot paint lesions")
    method, _ = run.method(o.gpu_ids)
    if not isinstance(method, LesionUnet):
        return method, Painting(any_size=run.config.method.fitted)
    method.composite = False  # blended in three dimensions, in the scan's own units
    u = run.config.lesion
    return method, Painting(u.everywhere, True, u.dims == 3, u.levels == "bands", u.reach, u.feather)


def run() -> int:
    """The command."""
    o = tyro.cli(AddLesionsOptions, description=AddLesionsOptions.__doc__)
    check_options(o)
    method, how = painter(o)
    profile = method.level_profile if isinstance(method, LesionUnet) else None
    print(add_to_scan(o, method, how, None if profile is None else (profile.mean, profile.between, profile.within)))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
