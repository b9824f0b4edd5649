"""Does a run remember its training people? ``python scripts/privacy.py --name exp --dataroot data``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from config import RunOptions, TestConfig
from dataloaders.io.files import atomic_path, read_json, write_json, write_text
from dataloaders.io.locks import lock_place
from dataloaders.io.manifest import SPLITS, Manifest
from dataloaders.io.pictures import to_grey
from dataloaders.io.schema import AtLeast0, GpuIds, check, options_of
from dataloaders.io.weights import resolve
from dataloaders.plain_folder import load_manifest
from dataloaders.slices import fingerprint
from engine.command import exit_code
from engine.methods.base import workflow_of
from engine.methods.synthesis import SynthesisWorkflow
from engine.results import Draws, Synthesis
from engine.split_synthesis import SplitSynthesis, run_classes
from engine.trained import TrainedRun
from evaluation import privacy
from evaluation.metrics.extractors import cached_features, efficientnet_extractor
from evaluation.metrics.feature_sets import EFFICIENTNET
from evaluation.statistics import finite_rows
from evaluation.tables import rows_csv
from models.base import Batch, Method

SCHEMA = "medsis-privacy/1"
LEAST_PEOPLE = 2
TRAIN, OTHERS = "train", ("val", "test")
SHOWN, SHOWN_SIDE = 3, 192  # pairs in the picture, pixels of each
ENDS = 2.5  # standard deviations from the mean that are black and white


@dataclass(frozen=True, kw_only=True)
class PrivacyOptions(RunOptions):
    """Tell whether images of a run are nearer to its training people than to others: JSON, tables, a picture, a verdict."""

    dataroot: Path
    """The prepared data that it was trained on, with people in train and others in val or test."""
    out: Path | None = None
    """Folder to write; by default <checkpoints_dir>/<name>/privacy, where export_model.py finds it for the model card."""
    slices: AtLeast0 = 8
    """Slices for each person, evenly spaced; 0 for all."""
    canaries: str = ""
    """Regular expression of people's names: only these are tested, such as planted ones, half of them drawn into train."""
    cache: Path | None = None
    """Folder that keeps network features by the images' content, so that a second run is fast."""
    seed: int = 0
    """Seed of the noise."""
    gpu_ids: GpuIds = "auto"
    """GPU to use: a number, -1 for the CPU, auto for GPU 0 where there is one."""


@dataclass
class MadeSlice:
    """Label (H, W); real, painted and generated image (C, H, W) in [0, 1]; whose it is, and whether of a training person.

    realness: of the real image, by the discriminator, less that of the painted one; None without discriminator.
    """

    label: NDArray
    real: NDArray
    painted: NDArray
    person: str
    index: int
    training: bool
    realness: float | None = None
    fake: NDArray | None = None

    @property
    def sides(self) -> tuple[NDArray, NDArray, NDArray]:
        """Generated, real and painted image."""
        assert self.fake is not None
        return self.fake, self.real, self.painted

    @property
    def name(self) -> str:
        """Person and slice."""
        return f"{self.person} z{self.index}"


@dataclass
class MadeSlices:
    """Slices as they come by."""

    method: Method
    device: torch.device
    slices: list[MadeSlice] = field(default_factory=list)

    def watch(self, batches: Iterable[Batch], training: bool, judged: bool) -> Iterator[Batch]:
        """The batches, on their way. judged: whether a discriminator's weights are there."""
        for batch in batches:
            real, label = (batch.real.numpy() + 1) / 2, batch.label.numpy()
            painted = [privacy.painted(*pair) for pair in zip(real, label, strict=True)]
            realness = self._realness(batch, torch.from_numpy(np.stack(painted)) * 2 - 1, judged)
            parts = zip(label, real, painted, batch.patients, batch.indices, strict=True)
            self.slices += [MadeSlice(*of, training, r) for r, of in zip(realness, parts, strict=True)]
            yield batch

    def _realness(self, batch: Batch, painted: Tensor, judged: bool) -> list[float] | list[None]:
        images = (batch.real, painted) if judged else ()
        found = [self.method.realness(replace(batch, image=image).to(self.device)) for image in images]
        real, fake = found or (None, None)
        return [None] * len(batch) if real is None or fake is None else (real - fake).float().cpu().tolist()


def check_people(o: PrivacyOptions, run: TrainedRun) -> Manifest:
    """The data with the people to look at. ValueError in one line where run or data cannot be tested."""
    try:
        planted = re.compile(o.canaries)
    except re.error as error:
        raise ValueError(f"--canaries {o.canaries}: no regular expression: {error}") from None
    workflow = workflow_of(run.config)
    if not isinstance(workflow, SynthesisWorkflow) or not workflow.paints_labels:
        raise ValueError(f"--name {o.name}: a run of {run.config.model} does not make images from label maps")
    if workflow.unpaired:
        raise ValueError(f"--name {o.name}: trained unpaired, so that no scan belongs to the image of a label map")
    data = load_manifest(o.dataroot)
    start = run.folder / "config.json"
    if start.is_file() and read_json(start).get("data") not in (None, fingerprint(o.dataroot)):
        raise ValueError(
            f"--dataroot {o.dataroot}: not the data that {o.name!r} was trained on; who was in its training matters here"
        )
    if o.canaries:
        data = replace(data, cases=tuple(case for case in data.cases if planted.search(case.patient)))
    people = {split: {case.patient for case in data.split(split)} for split in (TRAIN, *OTHERS)}
    held_out = set().union(*(people[split] for split in OTHERS))
    for who, where, there in (("training", TRAIN, people[TRAIN]), ("held-out", " and ".join(OTHERS), held_out)):
        if len(there) < LEAST_PEOPLE:
            raise ValueError(
                f"--dataroot {o.dataroot}: {len(there)} {who} people in {where}, at least {LEAST_PEOPLE} are needed"
            )
    if both := sorted(people[TRAIN] & held_out):
        raise ValueError(f"--dataroot {o.dataroot}: {', '.join(both[:5])}: in training and held out; split by patients")
    for split in (TRAIN, *OTHERS):
        data.refuse_bare(o.dataroot, split, "image")
    return data


def gather(o: PrivacyOptions, run: TrainedRun, data: Manifest) -> MadeSlices:
    """Slices of all people with what the run makes of their label maps, and what its discriminator says of the scans."""
    workflow = workflow_of(run.config)
    assert isinstance(workflow, SynthesisWorkflow)
    method, device = run.method(o.gpu_ids)
    state = run.state()
    judged = bool(state) and bool(method.start_from(run.weights.tensors, state))
    found = MadeSlices(method, device)
    for phase in SPLITS:
        people = {case.patient for case in data.split(phase)}
        if not people:
            continue
        config = TestConfig(name=o.name, dataroot=o.dataroot, phase=phase, metrics="none", gpu_ids=o.gpu_ids)
        split = SplitSynthesis(workflow, config, run)  # refuses labels and sizes that do not fit
        loader = workflow.test_loader(o.dataroot, data, config, run_classes(run.spec, split.data.spec))
        limit = min(o.slices * len(people), len(loader)) or len(loader)
        batches = found.watch(loader.once(limit), phase == TRAIN, judged)
        made = Synthesis(method, batches, device, Draws(o.seed), limit)
        for i, (_, _, image) in enumerate(made, len(found.slices)):
            found.slices[i].fake = (image.astype(np.float32) + 1) / 2
    return found


@dataclass
class Vectors:
    """Of the slices that can be aligned: these, and vectors of generated, real and painted images by kind."""

    slices: list[MadeSlice]
    of: dict[str, tuple[NDArray, ...]]

    def __post_init__(self) -> None:
        self.person = np.array([one.person for one in self.slices])
        self.training = np.array([one.training for one in self.slices])


def vectors_of(found: MadeSlices, cache: Path | None) -> Vectors:
    """Aligned pixels and EfficientNet-Lite0's features. ValueError where a group has too few people left."""
    aligned = [(one, [privacy.aligned(image, one.label) for image in one.sides]) for one in found.slices]
    whole = [(one, row) for one, row in aligned if all(vector is not None for vector in row)]
    for training in (True, False):
        left = {one.person for one, _ in whole if one.training == training}
        if len(left) < LEAST_PEOPLE:
            raise ValueError(
                f"only {len(left)} {'training' if training else 'held-out'} people have slices that are labelled to "
                f"{privacy.LEAST_LABELLED:.0%} and not constant, at least {LEAST_PEOPLE} are needed"
            )
    net = efficientnet_extractor(found.device, resolve(EFFICIENTNET))
    features = []
    for side in zip(*(one.sides for one, _ in whole), strict=True):
        channels = [[np.clip(image[c], 0, 1) for image in side] for c in range(len(side[0]))]
        features.append(np.concatenate([cached_features(net, channel, cache) for channel in channels], axis=1))
    pixels = tuple(np.stack(side) for side in zip(*(row for _, row in whole), strict=True))
    return Vectors([one for one, _ in whole], {"pixels": pixels, "features": tuple(features)})


def pixel_distances(queries: NDArray, scans: NDArray) -> NDArray:
    """(S, R), of each slice or its mirror image, whichever is nearer: training may mirror."""
    return np.minimum(privacy.distances(queries, scans), privacy.distances(privacy.mirrored(queries), scans))


def measure(vectors: Vectors, left_out: int) -> tuple[dict[str, Any], list[dict[str, Any]], NDArray]:
    """What privacy.json says, the table of slices, and the pixel distances (S, S) of generated slices to real ones."""
    person, training = vectors.person, vectors.training
    people = privacy.People(person, training)
    tests, controls, near, ratios, apart = [], [], {}, {}, {}
    for kind, (fake, real, painted) in vectors.of.items():
        tests.append(privacy.membership(kind, privacy.closeness(fake, real, painted), person, training))
        ease = -np.log(np.linalg.norm(painted - real, axis=1) + privacy.COPY)
        controls.append(privacy.membership(f"how hard scans are ({kind}, no generator)", ease, person, training))
        distances = pixel_distances if kind == "pixels" else privacy.distances
        apart[kind] = distances(fake, real)
        ratios[kind] = people.log_ratio(apart[kind], person)
        floor = people.log_ratio(distances(real, real), person)
        for labels, side in (("held-out", ~training), ("training", training)):
            near[labels, kind] = privacy.nearness(ratios[kind][side], floor[side], person[side])
    judge = None
    if all(one.realness is not None for one in vectors.slices):
        scores = np.array([one.realness for one in vectors.slices], float)
        judge = privacy.membership("the discriminator", scores, person, training)
    said = privacy.verdict(
        tests, controls, judge, {kind: n for (labels, kind), n in near.items() if labels == "held-out"}
    )
    rows = privacy.as_rows([*tests, *([judge] if judge else []), *controls], near)
    counts = {"slices": len(vectors.slices), "left_out": left_out}
    result = {"verdict": said, "limits": privacy.LIMITS, "measures": finite_rows(rows), "counts": counts}
    return result, slice_rows(vectors, apart, ratios), apart["pixels"]


def slice_rows(vectors: Vectors, apart: dict[str, NDArray], ratios: dict[str, NDArray]) -> list[dict]:
    """One row a generated slice: the nearest training and held-out scan, one's own too, and the ratio without one's own."""
    rows = []
    for i, one in enumerate(vectors.slices):
        row: dict[str, Any] = {"person": one.person, "slice": one.index, "training": one.training}
        for kind, table in apart.items():
            for who, side in (("training", vectors.training), ("held_out", ~vectors.training)):
                nearest = np.flatnonzero(side)[table[i, side].argmin()]
                row[f"{kind}_{who}"] = vectors.slices[nearest].name
                row[f"{kind}_{who}_distance"] = float(table[i, nearest])
            row[f"{kind}_ratio"] = float(np.exp(ratios[kind][i]))
        rows.append(row)
    return rows


def closest(apart: NDArray, person: NDArray, training: NDArray[np.bool_]) -> list[int]:
    """Places of the generated slices nearest to any training scan, one of each person."""
    chosen: list[int] = []
    for i in apart[:, training].min(axis=1).argsort():
        if person[i] not in [person[j] for j in chosen]:
            chosen.append(int(i))
    return chosen[:SHOWN]


def draw(path: Path, vectors: Vectors, apart: NDArray) -> None:
    """The closest pairs: generated, nearest training scan, their difference, nearest held-out scan; first channel."""
    from evaluation.report.panels import png  # slow to import
    from evaluation.report.pictures import Tile, signed, tile_sheet

    slices, training = vectors.slices, vectors.training

    def shown(i: int, side: int) -> NDArray:
        vector = privacy.aligned(slices[i].sides[side][:1], slices[i].label, SHOWN_SIDE)
        return np.zeros((SHOWN_SIDE, SHOWN_SIDE)) if vector is None else vector.reshape(SHOWN_SIDE, -1) * SHOWN_SIDE

    rows = []
    for i in closest(apart, vectors.person, training):
        inside, outside = (int(np.flatnonzero(side)[apart[i, side].argmin()]) for side in (training, ~training))
        fake, near, far = shown(i, 0), shown(inside, 1), shown(outside, 1)
        fake = min((fake, fake[:, ::-1]), key=lambda image: float(np.square(image - near).mean()))
        r, elsewhere = (1 - apart[i, j] ** 2 / 2 for j in (inside, outside))
        own = " (its own)" if inside == i else ""
        tiles = [
            Tile(f"generated, label map of\n{slices[i].name}", to_grey(fake, -ENDS, ENDS)),
            Tile(f"training{own}:\n{slices[inside].name}", to_grey(near, -ENDS, ENDS)),
            Tile(f"difference, r = {r:.3f};\nheld out {elsewhere:.3f}", signed(fake - near, ENDS)),
            Tile(f"held out:\n{slices[outside].name}", to_grey(far, -ENDS, ENDS)),
        ]
        rows.append(("", [(tile.title, tile) for tile in tiles]))
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(tile_sheet(rows, 1.0, "intensities standardised within the body")))


def as_markdown(name: str, result: dict[str, Any]) -> str:
    """Verdict, table, limits, under a title."""
    return "\n".join([f"# Memory of training people: {name}", "", *privacy.as_lines(result), ""])


def inspect(o: PrivacyOptions) -> tuple[Path, dict[str, Any]]:
    """Everything, written to the folder that is returned."""
    check(o)
    run = TrainedRun.load(o.checkpoints_dir, o.name, o.ckpt_iter)
    found = gather(o, run, check_people(o, run))
    vectors = vectors_of(found, o.cache)
    measured, slices, apart = measure(vectors, len(found.slices) - len(vectors.slices))
    about = {"schema": SCHEMA, "run": run.about(), "weights_sha256": run.sha256, "data": fingerprint(o.dataroot)}
    settings = {"slices": o.slices, "seed": o.seed, "canaries": o.canaries, "features": EFFICIENTNET}
    result = {**about, "settings": settings, **measured}
    out = o.out or run.folder / privacy.FOLDER
    with lock_place(out):
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "nearest.csv", rows_csv(slices))
        write_text(out / "privacy.csv", rows_csv(result["measures"]))
        draw(out / "closest.png", vectors, apart)
        write_text(out / "privacy.md", as_markdown(o.name, result))
        write_json(out / privacy.FILE, result)
    return out, result


def main() -> int:
    """Exit codes: 0 fine, 2 bad options or data."""
    out, result = inspect(options_of(PrivacyOptions))
    print(result["verdict"])
    print(f"{out}: privacy.md, privacy.json, privacy.csv, nearest.csv, closest.png")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
