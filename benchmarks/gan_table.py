"""Several runs on the same people, person by person, beside what a second real scan of the same head would get.

python benchmarks/gan_table.py results/a/best results/gmm/latest --reference gmm --repeats data/repeats --out results/table

Results folders of test.py in (`--no-volumes` is enough), `table.md`, `table.json` and `people.png` out. Means over people
with 95 % intervals (bootstrap over people), differences of the same people from `--reference` with theirs.

Floor: second scans of the same heads (scripts/repeats.py), scored as if a generator had painted them.

Distances of features are measured within a person, between the generated and the real slices of this one, so that they too
have an interval over people; test.py and evaluate.py pool everybody's slices. Faithfulness: `--segmented DIR` holds what a
segmenter that was trained on real scans alone sees, in DIR/<run> and in DIR/real (scripts/segment.py or test.py).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tyro
from numpy.typing import NDArray

from dataloaders.io import geometry
from dataloaders.io.files import markdown_table, write_json, write_text
from dataloaders.io.intensity import LEVELS
from dataloaders.io.manifest import Manifest, Slice
from dataloaders.io.pictures import label_colors, save_picture, tile_grid, titled, to_grey
from dataloaders.io.png import read_png
from dataloaders.io.spec import Channel
from engine.command import exit_code
from evaluation.compare import Entrant, refuse_different
from evaluation.floors import REPEATS
from evaluation.metrics.distribution import kid
from evaluation.metrics.feature_sets import EFFICIENTNET, RADIOMICS, Sets
from evaluation.metrics.radiomics import standardise
from evaluation.pairs import ManifestPairs, paired_slices
from evaluation.request import Request, plan
from evaluation.scoring import merged, score
from evaluation.statistics import over_patients, paired_difference
from evaluation.summary import Summary

HEADINGS = {  # metric -> heading, best value
    "ssim": ("SSIM", 1),
    "mae_body": ("MAE in the body", 0),
    "label_mean_error": ("label intensity error", 0),
    "spectrum_distance": ("spectrum distance", 0),
    "lattice_ratio": ("lattice ratio", 1),
    "edge_sharpness_ratio": ("edge sharpness ratio", 1),
    "slice_jump_ratio": ("slice jump ratio", 1),
    "radiomics_kid": ("radiomics kernel distance", 0),
    f"{EFFICIENTNET}_kid": ("EfficientNet-Lite0 kernel distance", 0),
    "faithfulness_dice": ("faithfulness, Dice", 1),
}
QUANTILES = (0.2, 0.35, 0.5, 0.65, 0.8)  # of a person's stack of slices


@dataclass(frozen=True)
class TableOptions:
    """Table of several runs on the same people."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Results folders of test.py, of one split and one prepared folder."""
    reference: str
    """Name of the run that the others are compared with."""
    out: Path = Path("results/table")
    """Folder to write."""
    repeats: Path | None = None
    """Folder of scripts/repeats.py: second scans of the same heads."""
    segmented: Path | None = None
    """Folder with what a segmenter sees: a subfolder for each run, and `real`."""
    device: str = "cpu"
    """Device of the networks."""


Values = dict[str, dict[str, float]]  # metric/channel -> person -> value
Stacks = dict[str, dict[str, list[Slice]]]  # run -> person -> slices


def values_of(folder: Path, o: TableOptions, name: str) -> tuple[Values, Sets]:
    """What is in the table of one results folder by metric and person, and the features that its distances are made of."""
    pairs = ManifestPairs(folder, Manifest.load(folder))
    keys = [key for key in HEADINGS if not key.startswith("faithfulness")]
    folders: dict[str, Any] = {}
    if o.segmented is not None and (o.segmented / name).is_dir():
        folders = {"segmented": o.segmented / name, "segmented_real": o.segmented / "real"}
        keys.append("faithfulness_dice")
    request = Request(",".join(keys), device=o.device, cache=o.out / "features", **folders)
    planned = plan(request, pairs)
    scores = merged(score([(pairs, planned)]))
    result = Summary(pairs, scores, planned).result()
    found: Values = {}
    for person, of_person in result["per_patient"].items():
        for key, value in of_person.items():
            if key.partition("/")[0] in HEADINGS and value is not None:
                found.setdefault(key, {})[person] = value
    if folders:
        ceiling = result["metrics"]["faithfulness_dice"]["ceiling"]
        found["faithfulness_dice/ceiling"] = dict.fromkeys(found["faithfulness_dice"], ceiling)
    return found, scores.sets


def distances_of(sets: Sets, reference: Sets, channels: Sequence[Channel]) -> Values:
    """Distances of features by metric and person. reference: of the run whose real slices are the unit of radiomics."""
    return {
        f"{extractor}_kid/{channels[channel].name}": distances_by_person(
            extractor, rows, np.stack([row[1] for row in reference[extractor, channel]])
        )
        for (extractor, channel), rows in sets.items()
    }


def distances_by_person(
    extractor: str, rows: Sequence[tuple[str, NDArray, NDArray]], scale: NDArray
) -> dict[str, float]:
    """Kernel distance between the real and the generated slices of each person.

    scale: (n, features) of the real slices that radiomics are standardised by: the same for all runs and their floor, since
    a folder of second scans has few people, and by their own spread its distances would be in another unit.
    """
    real, fake = (np.stack([row[side] for row in rows]) for side in (1, 2))
    if extractor == RADIOMICS:
        real, fake = (standardise(real=scale, fake=features)[1] for features in (real, fake))
    people = np.array([row[0] for row in rows])
    return {
        person: kid(real=real[people == person], fake=fake[people == person])[0]
        for person in sorted(set(people))
        if (people == person).sum() >= 2
    }


# -- table ----------------------------------------------------------------------------------------------------------


def table_of(found: Mapping[str, Values], floor: Values, reference: str) -> list[dict[str, Any]]:
    """Rows for table.json: a metric and channel each, with every run's mean, interval, and difference from the reference.

    difference: of the distances from the best value (1 of ratios and overlaps, else 0); below 0 is nearer than the
    reference.
    """
    rows = []
    for key in found[reference]:
        metric = key.partition("/")[0]
        if metric not in HEADINGS or key.endswith("/ceiling"):
            continue
        best = HEADINGS[metric][1]
        people = sorted(found[reference][key])
        row: dict[str, Any] = {"metric": key, "best": best, "floor": over_patients(floor.get(key, {}).values())}
        if ceiling := found[reference].get(f"{metric}/ceiling"):
            row["ceiling"] = over_patients(ceiling.values())["value"]
        for name, values in found.items():
            mine, theirs = (
                [distance(one.get(key, {}).get(person), best) for person in people]
                for one in (values, found[reference])
            )
            row[name] = over_patients(values.get(key, {}).values())
            if name != reference and key in values:  # not every run has been segmented
                row[name] |= {"difference": asdict(paired_difference(mine, theirs))}
        rows.append(row)
    return rows


def distance(value: float | None, best: int) -> float | None:
    """From the best value; unbiased estimates of a distance of 0 may be negative and stay so."""
    return value if value is None or best == 0 else abs(value - best)


def as_markdown(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """table.md: mean [interval] (difference from the reference [interval]), bold where the latter excludes 0."""
    lines = []
    for row in rows:
        metric, _, channel = row["metric"].partition("/")
        heading = HEADINGS[metric][0] + (f", {channel}" if channel else "")
        heading += f" (ceiling {row['ceiling']:.3f})" if row.get("ceiling") is not None else ""
        lines.append([heading, *(cell(row[name]) for name in (*names, "floor"))])
    return markdown_table(["metric", *names, "repeat scan"], lines) + "\n"


def cell(entry: Mapping[str, Any]) -> str:
    """One value as it is printed."""
    if entry["value"] is None:
        return "–"
    text = f"{entry['value']:.4g}" + (" [{:.4g}, {:.4g}]".format(*entry["ci95"]) if entry["ci95"] else "")
    if (difference := entry.get("difference")) is None:
        return text
    told = f"{difference['mean']:+.3g}"
    if (interval := difference["interval"]) is not None:
        told += " [{:+.3g}, {:+.3g}]".format(*interval)
        told = f"**{told}**" if interval[0] > 0 or interval[1] < 0 else told
    return f"{text} ({told})"


# -- picture --------------------------------------------------------------------------------------------------------


def columns_of(stacks: Stacks, person: str) -> list[str]:
    """Titles of the picture: label, real, repeat scan (of another person, where this one has none), runs."""
    runs = [name for name in stacks if name != REPEATS]
    others = [f"real, {one}" for one in stacks[runs[0]] if one != person]
    return ["label", "real", *([REPEATS] if person in stacks.get(REPEATS, {}) else others[:1]), *runs]


def people_picture(folders: Mapping[str, Path], stacks: Stacks, person: str, out: Path) -> None:
    """Slices of one person at QUANTILES of the stack, pixel by pixel, cut to what they show; another one's at the same."""
    first = next(name for name in folders if name != REPEATS)
    there, titles = stacks.get(REPEATS, {}), columns_of(stacks, person)
    others = [one for one in stacks[first] if one != person]
    colours = label_colors(Manifest.load(folders[first]).spec.labels)
    rows = []
    for quantile in QUANTILES:
        own = at(stacks[first][person], quantile)
        ids = read_png(folders[first] / own.label)
        columns = [colours[ids], grey(folders[first] / own.images[0])]
        if person in there:
            columns.append(grey(folders[REPEATS] / at(there[person], quantile).generated[0]))
        elif others:
            columns.append(grey(folders[first] / at(stacks[first][others[0]], quantile).images[0]))
        for name in folders:
            if name != REPEATS:
                columns.append(grey(folders[name] / at(stacks[name][person], quantile).generated[0]))
        rows.append(columns)
    shown = [np.any([tile.any(-1) for tile in row], axis=0) for row in rows]
    width = geometry.bounding_box(np.any(shown, axis=0), margin=4)[1]
    boxes = [(geometry.bounding_box(row, margin=4)[0], width) for row in shown]
    save_picture(
        out, titled(tile_grid([[tile[box] for tile in row] for row, box in zip(rows, boxes, strict=True)]), titles)
    )


def at(stack: Sequence[Slice], quantile: float) -> Slice:
    """The slice at a quantile of a stack."""
    return sorted(stack, key=lambda item: item.index)[round(quantile * (len(stack) - 1))]


def grey(path: Path) -> NDArray[np.uint8]:
    """A prepared image as RGB (H, W, 3), the whole window."""
    return to_grey(read_png(path), 0, LEVELS)


def median_person(values: Mapping[str, float]) -> str:
    """Who has the median value, the lower one of an even number."""
    return sorted(values, key=lambda person: (values[person], person))[(len(values) - 1) // 2]


def refuse_unlike(folders: Mapping[str, Path], reference: str) -> None:
    """ValueError unless all runs are of the reference's slices, and second scans of the same data."""
    runs = {name: Entrant(name, folder, Manifest.load(folder), {}) for name, folder in folders.items()}
    for name, one in runs.items():
        if name == REPEATS:
            ManifestPairs(folders[reference], runs[reference].manifest).beside(one.folder)
        elif name != reference:
            refuse_different(runs[reference], one)


def run() -> int:
    """The command."""
    o = tyro.cli(TableOptions, description=__doc__)
    folders = {str(Manifest.load(folder).provenance.get("name") or folder.name): folder for folder in o.results}
    if o.reference not in folders or len(folders) < len(o.results):
        raise ValueError(f"--reference {o.reference}: of runs with different names, there are {', '.join(folders)}")
    if o.repeats is not None:
        folders[REPEATS] = o.repeats
    refuse_unlike(folders, o.reference)
    scored = {name: values_of(folder, o, name) for name, folder in folders.items()}
    channels = Manifest.load(folders[o.reference]).spec.channels
    reference = scored[o.reference][1]
    found = {name: values | distances_of(sets, reference, channels) for name, (values, sets) in scored.items()}
    floor = found.pop(REPEATS, {})
    rows = table_of(found, floor, o.reference)
    person = median_person(next(found[o.reference][key] for key in found[o.reference] if key.startswith("mae_body")))
    stacks = {name: {c.patient: paired_slices(c) for c in Manifest.load(of).cases} for name, of in folders.items()}
    columns = columns_of(stacks, person)
    about = {"person": person, "columns": columns, "quantiles": QUANTILES, "reference": o.reference}
    write_json(o.out / "table.json", about | {"rows": rows, "values": found, "floor": floor})
    text = as_markdown(rows, [*found])
    write_text(o.out / "table.md", text)
    people_picture(folders, stacks, person, o.out / "people.png")
    print(text + f"{o.out / 'people.png'}: {person}, the median in MAE of {o.reference}; {' | '.join(columns)}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
