"""Put MS lesions into a scan: ``scripts/add_lesions.py --name RUN --input T1 FLAIR --from_patient DIR --output DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import config as options
from dataloaders.io.spec import LESION, DataSpec
from dataloaders.lesions.adding import Painting
from dataloaders.lesions.options import AddLesionsOptions, check_options
from engine import device
from engine.checkpoint import load_weights
from engine.command import exit_code
from engine.lesion_command import add_to_scan
from engine.run import weights_folder
from models import build_method
from models.base import Method
from models.lesion.method import LesionUnet


def painter(o: AddLesionsOptions) -> tuple[Method, Painting]:
    """The method of the run with its weights, and how it paints. ValueError for runs that cannot paint lesions."""
    weights = load_weights(weights_folder(o.checkpoints_dir, o.name), o.ckpt_iter)
    trained, spec = options.from_dict(weights.config), DataSpec.from_dict(weights.spec)
    if all(label.name != LESION for label in spec.labels):
        raise ValueError(f"--name {o.name}: the run was trained without a class named {LESION!r}")
    if trained.gan and trained.gan.neighbours:
        raise ValueError(f"--name {o.name}: 2.5-D runs (neighbours {trained.gan.neighbours}) cannot paint lesions")
    method = build_method(trained, spec).to(device.select_device(o.gpu_ids)).eval()
    method.load_release(weights.tensors)
    if not isinstance(method, LesionUnet):
        return method, Painting(any_size=trained.model == "gmm")
    method.composite = False  # blended in three dimensions, in the scan's own units
    u = trained.lesion
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
