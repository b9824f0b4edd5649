"""What a skull stripper leaves that is no brain, of a study of scripts/pipeline.py that has run as far as its tissue maps.

python benchmarks/strip_table.py studies/ms.toml

White matter never lies at the brain's surface: what the study's first classifier calls white within 2 mm of a mask's edge,
in the plane of the slices, is skull, fat or a brain that was cut into; what is 1.3 times as bright as the median of white
matter is fat or contrast agent. Slices are taken across the thickest voxels, of cubes across the first axis. Raw heads
alone; Markdown on stdout.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tyro
from numpy.typing import NDArray
from scipy import ndimage

from dataloaders.io.files import markdown_table
from dataloaders.io.geometry import spacing, voxel_volume
from dataloaders.io.nifti import read_volume
from engine.command import exit_code
from pipeline.project import Project
from pipeline.tissue import TISSUES

EDGE_MM, BRIGHT = 2.0, 1.3


def leavings(tissue: NDArray, image: NDArray, mm: NDArray) -> tuple[int, int]:
    """Voxels of white matter at the edge of a tissue map's brain, and of its brain too bright for white matter.

    tissue, image: (X, Y, Z); mm: voxel size. The thickest voxel's direction is not looked along.
    """
    brain, white = tissue > 0, tissue == TISSUES["WM"]
    across = int(np.argmax(mm))
    depth = np.zeros(brain.shape)
    for i in range(brain.shape[across]):
        at = tuple(i if axis == across else slice(None) for axis in range(3))
        depth[at] = ndimage.distance_transform_edt(brain[at], np.delete(mm, across))
    return int((white & (depth <= EDGE_MM)).sum()), int((brain & (image > BRIGHT * np.median(image[white]))).sum())


def run() -> int:
    """A row for each head."""
    project = Project.load(tyro.cli(Annotated[Path, tyro.conf.Positional], description=__doc__))
    tools, first = list(project.study.strip.tools), next(iter(project.study.segment.tools))
    rows = []
    for case in project.cases:
        outputs = {name: project.records[name].outputs for name in project.records if name.endswith(f"/{case}")}
        maps = [f"tissue/{first}_{tool}/{case}" for tool in tools]
        if any("tissue" not in outputs.get(name, {}) for name in maps):
            continue
        if any(project.records[f"strip/{tool}/{case}"].tool.get("name") == "given" for tool in tools):
            continue
        image = read_volume(project.study.work / f"harmonise/{case}" / outputs[f"harmonise/{case}"]["image"].file)
        ml, found = voxel_volume(image.affine) / 1000, []
        for name in maps:
            tissue = read_volume(project.study.work / name / outputs[name]["tissue"].file).data
            edge, bright = leavings(tissue, image.data, np.array(spacing(image.affine)))
            found.append([f"{(tissue > 0).sum() * ml / 1000:.2f}", f"{edge * ml:.1f}", f"{bright * ml:.1f}"])
        rows.append([case, *(cell for column in zip(*found, strict=True) for cell in column)])
    if not rows:
        raise ValueError(
            f"{project.file}: no raw head has its tissue maps; run the study first (scripts/pipeline.py run)"
        )
    heads = ("brain, l", "white at the edge, ml", "brighter than white, ml")
    print(markdown_table(["", *(f"{head}: `{tool}`" for head in heads for tool in tools)], rows))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
