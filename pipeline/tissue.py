"""Labels of any tool on the scan's grid, as GM, WM and CSF by tables that are data; and what a usable tissue map is like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.geometry import resample, to_ras
from dataloaders.io.nifti import Volume, read_volume, whole_numbers
from dataloaders.io.spec import Label, plain_name
from dataloaders.labelmaps.label_tables import table_rows
from dataloaders.labelmaps.labels import ClassTable
from dataloaders.prepare.tissue import largest_component
from pipeline.study import QualityOptions

HIGH_PERCENTILE = 99.9  # of the brain's intensities: the white end of a case's window
TISSUES = {"GM": 1, "WM": 2, "CSF": 3}
LABELS = (Label(0, "background"), *(Label(i, name) for name, i in TISSUES.items()))


def read_labels(path: Path, grid: Volume) -> NDArray[np.int32]:
    """Label ids on the grid of another volume: moved by nearest neighbour only, so that no new id appears."""
    volume = read_volume(path)
    ids = whole_numbers(path, volume.data)
    return np.asarray(on_grid(ids, volume.affine, grid, labels=True), np.int32)


def on_grid(data: NDArray, affine: NDArray, grid: Volume, labels: bool) -> NDArray:
    """`data` brought to the grid of another volume through scanner coordinates."""
    moved, own = to_ras(data, affine)
    return resample(moved, own, grid.data.shape, grid.affine, labels=labels)


def read_table(path: Path) -> ClassTable:
    """The tissue of each id of a tool: by BIDS' column mapping of any `label_tables.table_rows`, else by the names there.

    ValueError names file and row, and tissues that nothing becomes.
    """
    from dataloaders.labelmaps.classes import tissue_classes  # here, since it loads torch

    classes, ids = tissue_classes(), {label.name: list[int]() for label in LABELS}
    known, short = classes.names(), {"grey_matter": "GM", "white_matter": "WM", "csf": "CSF"}
    for row in table_rows(path, "tissue table"):
        number = known.get(plain_name(row.tissue or row.name))
        if number is None:
            raise ValueError(
                f"tissue table {path}: {row.where}: {row.tissue or row.name!r}; must be csf, grey_matter, white_matter, "
                "background or a name of FreeSurfer's, or have BIDS' column mapping"
            )
        ids[short.get(classes.labels[number].name, "background")].append(row.id)
    if absent := [name for name in TISSUES if not ids[name]]:
        raise ValueError(f"{path}: no id becomes {', '.join(absent)}")
    return ClassTable(tuple(replace(label, source=tuple(ids[label.name])) for label in LABELS), lenient=True)


def tissue_facts(tissue: NDArray[np.uint8], t1: NDArray, voxel_ml: float) -> dict[str, Any]:
    """What the gate looks at: litres, share and mean T1 intensity of each tissue, share of the largest component."""
    brain = tissue > 0
    count = int(brain.sum())
    shares = {name: float((tissue == i).sum()) / count if count else 0.0 for name, i in TISSUES.items()}
    means = {name: float(t1[tissue == i].mean()) if shares[name] else None for name, i in TISSUES.items()}
    largest = float(largest_component(brain).sum()) / count if count else 0.0
    return {"litres": count * voxel_ml / 1000, "share": shares, "mean": means, "largest": largest}


def gate(facts: dict[str, Any], o: QualityOptions) -> list[str]:
    """Why a map must not be used, one line each; empty for a good one."""
    absent = [name for name, share in facts["share"].items() if share == 0]
    if len(absent) == len(TISSUES):
        return ["the segmentation is empty"]
    if absent:
        return [f"no {' and no '.join(absent)}"]
    faults = [
        f"{name} is {100 * share:.1f} % of the brain, outside {100 * o.fraction[0]:g}-{100 * o.fraction[1]:g} %"
        for name, share in facts["share"].items()
        if not o.fraction[0] <= share <= o.fraction[1]
    ]
    if not o.litres[0] <= facts["litres"] <= o.litres[1]:
        faults.append(f"the brain has {facts['litres']:.2f} l, outside {o.litres[0]:g}-{o.litres[1]:g} l")
    if facts["largest"] < o.largest:
        faults.append(f"the largest part is {100 * facts['largest']:.1f} % of the brain, below {100 * o.largest:g} %")
    mean = facts["mean"]
    if o.contrast and not mean["CSF"] < mean["GM"] < mean["WM"]:
        found = ", ".join(f"{name} {mean[name]:.4g}" for name in ("CSF", "GM", "WM"))
        faults.append(f"T1w does not rise from CSF to GM to WM ({found}): exchanged labels?")
    return faults
