"""Tissue classification without weights beside manual labels, person by person, and in lesions.

python benchmarks/tissue_table.py data/manual --repeats sub-1023 sub-1039 \\
    --unseen sub-1019 sub-1101 sub-1107 sub-1110 sub-1116 sub-1122 sub-1128 --lesions data/ms --out results/tissue

Stripped T1w as BIDS with `dseg.tsv` (index, tissue, structure) and label maps in derivatives; `table.md`, `table.json` and
`person.png` out. What is in `table.json` is not done again: delete it, or the method in it, after a change.

--segmented NAME=DIR, what scripts/segment.py made of the same scans (of structures with `--tissue`),
adds these networks, and the vote of the classifiers and the first of them.

Dice of grey and white matter over all brain voxels. Dice of fluid over voxels with a label alone: brain voxels without
one are cerebrospinal fluid and meninges. Structures: share of their voxels with the tissue of the manual table. Lesions:
share of their voxels called white matter, where the classifier is told nothing of them. Seconds: of the processor, without
the first use of the template. Means with 95 % intervals (bootstrap over people).
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tyro
from numpy.typing import NDArray

from dataloaders.io.files import markdown_table, read_json, write_json, write_text
from dataloaders.io.geometry import bounding_box, to_ras
from dataloaders.io.nifti import Volume, read_volume
from dataloaders.io.pictures import save_picture, tile_grid, titled, to_grey
from dataloaders.prepare.atlas import template_maps
from dataloaders.registration import dice
from engine.command import exit_code
from evaluation.statistics import bootstrap_interval
from pipeline.tools.ours import CLASSIFIERS

TISSUES = {"csf": 1, "grey_matter": 2, "white_matter": 3}
PARTS = (
    *("thalamus", "pallidum", "putamen", "caudate", "hippocampus", "cerebral cortex"),
    *("ventral dc", "brain stem", "cerebellum white matter"),
)
COLORS = np.array([[0, 0, 0], [60, 90, 220], [200, 120, 60], [235, 235, 235]], np.uint8)  # of background and tissues
MM_SHOWN = ((2, -6), (1, -12))  # axis and MNI-like place, mm from the brain's middle, of the picture's planes


@dataclass(frozen=True)
class TableOptions:
    """Table of tissue classifiers."""

    bids: Annotated[Path, tyro.conf.Positional]
    """Folder of stripped T1w with manual labels."""
    repeats: tuple[str, ...] = ()
    """Second scans of people who are there already: left out."""
    unseen: tuple[str, ...] = ()
    """People whom nothing was chosen on: they have rows of their own."""
    lesions: Path | None = None
    """Folder of stripped T1w with lesion masks in derivatives/lesions."""
    segmented: tuple[str, ...] = ()
    """Name and folder of a network's csf, grey and white matter (1, 2, 3) of each person: NAME=DIR."""
    shown: str = ""
    """The person in the picture; by default there is none."""
    out: Path = Path("results/tissue")
    """Folder to write."""


Scores = dict[str, dict[str, float]]  # method -> column -> value


def manual(o: TableOptions, person: str) -> NDArray[np.int_]:
    """The ids of a person's manual labels (I, J, K)."""
    return read_volume(next((o.bids / "derivatives").rglob(f"{person}*_dseg.nii.gz"))).data.astype(int)


def tissue_of(ids: NDArray, rows: Sequence[dict[str, str]]) -> NDArray[np.uint8]:
    """Tissue (`TISSUES`) of manual ids, by the table; 0 for none."""
    tissue = np.zeros(max(int(row["index"]) for row in rows) + 1, np.uint8)
    for row in rows:
        tissue[int(row["index"])] = TISSUES.get(row["tissue"], 0)
    return tissue[ids]


def scored(found: NDArray, ids: NDArray, rows: Sequence[dict[str, str]]) -> dict[str, float]:
    """All columns for one map (I, J, K) beside manual labels."""
    truth = tissue_of(ids, rows)
    values = {
        name: dice(found == TISSUES[f"{name}_matter"], truth == TISSUES[f"{name}_matter"]) for name in ("grey", "white")
    }
    values["csf"] = dice((found == 1) & (truth > 0), truth == 1)
    for part in PARTS:
        own = np.isin(ids, [int(row["index"]) for row in rows if row["structure"].endswith(part)])
        values[part] = float((found == truth)[own].mean())
    return values


def segmented(o: TableOptions, person: str) -> dict[str, NDArray]:
    """A person's maps (I, J, K) of --segmented."""
    found = {}
    for word in o.segmented:
        name, _, folder = word.partition("=")
        maps = sorted((Path(folder) / person).rglob("*_dseg.nii.gz")) if folder else []
        if len(maps) != 1:
            raise ValueError(f"--segmented {word}: must be NAME=DIR with one segmentation of {person}, has {len(maps)}")
        found[name] = read_volume(maps[0]).data
    return found


def of_person(o: TableOptions, person: str, rows: Sequence[dict[str, str]], done: Scores) -> None:
    """Scores of a person by every method that is not in `done` yet."""
    scan = read_volume(next((o.bids / person).rglob("*_T1w.nii.gz")))
    ids, maps = manual(o, person), segmented(o, person)
    first = next(iter(maps), "")  # of the networks: the one that votes
    vote = f"vote with {first}"
    voting = bool(first) and vote not in done
    for name, method in CLASSIFIERS.items():
        if name not in done or voting:
            start = time.process_time()
            maps[name] = method(scan)
            done[name] = {**scored(maps[name], ids, rows), "seconds": time.process_time() - start}
    if voting:
        maps[vote] = np.where(maps["hmrf"] == maps[first], maps[first], maps["atlas"])
    for name in [name for name in maps if name not in done]:
        done[name] = scored(maps[name], ids, rows)


def of_patient(scan: Volume, lesion: NDArray[np.bool_], done: Scores) -> None:
    """Share of the lesion voxels that are called white matter, by every method that is not in `done` yet."""
    for name in [name for name in CLASSIFIERS if name not in done]:
        done[name] = {"white": float((CLASSIFIERS[name](scan)[lesion] == 3).mean())}


def shown(o: TableOptions, rows: Sequence[dict[str, str]]) -> NDArray[np.uint8]:
    """The person of --shown: the scan, manual labels, then the methods' maps."""
    scan = read_volume(next((o.bids / o.shown).rglob("*_T1w.nii.gz")))
    maps = {"manual": tissue_of(manual(o, o.shown), rows)}
    maps |= {name: method(scan) for name, method in CLASSIFIERS.items()} | segmented(o, o.shown)
    return titled(picture(scan, list(maps.values())), ["T1w", *maps])


def picture(scan: Volume, maps: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """An axial and a coronal plane: the scan, then the maps (I, J, K)."""
    image = to_ras(scan.data, scan.affine)[0]
    box = bounding_box(image > 0)
    shown = [to_grey(image[box], 0, float(np.percentile(image[box], 99.8)))]
    shown += [COLORS[to_ras(found, scan.affine)[0][box]] for found in maps]
    rows = []
    for axis, place in MM_SHOWN:
        index = shown[0].shape[axis] // 2 + place
        rows.append([np.rot90(np.take(volume, index, axis)) for volume in shown])
    return tile_grid(rows)


def as_markdown(values: dict[str, Scores], lesions: dict[str, Scores], unseen: Sequence[str]) -> str:
    """The table, with a row for each method and group of people."""
    groups = {"all": list(values)}
    if unseen:
        groups |= {"others": [p for p in values if p not in unseen], "unseen": [p for p in values if p in unseen]}
    columns = ["grey", "white", "csf", *PARTS, "seconds"]
    lines = []
    for method in [name for name in next(iter(values.values())) if all(name in found for found in values.values())]:
        for group, people in groups.items():
            cells = [_cell([values[person][method].get(column, np.nan) for person in people]) for column in columns]
            lines.append([f"`{method}`", f"{len(people)} {group}", *cells])
    below = [
        f"lesion voxels of {patient} called white matter: "
        + ", ".join(f"{m} {s['white']:.2f}" for m, s in found.items())
        for patient, found in lesions.items()
    ]
    return "\n".join([markdown_table(["method", "people", *columns], lines), "", *below]) + "\n"


def _cell(values: Sequence[float]) -> str:
    mean, interval = float(np.mean(values)), bootstrap_interval(np.array(values))
    if mean > 2 or np.isnan(mean):  # seconds
        return f"{mean:.0f}"
    return f"{mean:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def run() -> int:
    """Everybody, then the table."""
    o = tyro.cli(TableOptions)
    with (o.bids / "dseg.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    people = [path.name for path in sorted(o.bids.glob("sub-*")) if path.name not in o.repeats]
    table = o.out / "table.json"
    done = read_json(table) if table.is_file() else {"people": {}, "lesions": {}}
    template_maps()
    for person in people:
        of_person(o, person, rows, done["people"].setdefault(person, {}))
        write_json(table, done)
        print(person, done["people"][person], flush=True)
    folder = o.lesions or Path()
    for scan in sorted(folder.glob("sub-*/**/*_T1w.nii.gz")) if o.lesions else []:
        patient = scan.name.partition("_")[0]
        mask = next((folder / "derivatives").rglob(f"{patient}*mask.nii.gz"))
        of_patient(read_volume(scan), read_volume(mask).data > 0, done["lesions"].setdefault(patient, {}))
        write_json(table, done)
    text = as_markdown(done["people"], done["lesions"], o.unseen)
    write_text(o.out / "table.md", text)
    print(text)
    if o.shown:
        save_picture(o.out / "person.png", shown(o, rows))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
