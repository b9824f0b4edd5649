"""Seeds for the GMM generator: tissues split by intensity, so that few labels still give an image with structure.

A label map with three tissues makes flat images with edges only where labels end. Here the labels of real scans are
fused to a few meta-labels (CSF, grey matter, white matter, non-brain), and the voxels of each are split by a Gaussian
mixture of the scan's intensities into 1, 2, … sub-clusters. A voxel's seed is ``10 * meta + cluster``. For every image
the generator draws how many sub-clusters each meta-label has. Idea: Brain-ID (Liu et al., ECCV 2024) and FetalSynthSeg
(Zalevskyi et al., MICCAI 2024).
"""

from __future__ import annotations

import csv
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dataloaders.nifti import SUFFIXES, file_sha256, read_volume, stem, whole_numbers, write_volume
from engine.files import LOCK, check_name, lock_folder, read_json, write_json

if TYPE_CHECKING:
    import torch

MAX_META = 9  # the largest code, 10 * 9 + 9, fits every 8-bit type
MAX_SUBCLASSES = 10  # clusters 0..9 of 10 * meta + cluster
MAX_LABEL = 65535
FIT_VOXELS = 20_000  # the mixture is fitted to at most so many voxels, then sorts all of them
N_INIT = 5
AFFINE_TOLERANCE = 1e-3  # mm
INDEX = "seeds.json"
_PREDICT_CHUNK = 1_000_000


# ---------------------------------------------------------------------------------------------------------------------
# Schemes: which labels make a meta-label


@dataclass(frozen=True)
class SeedScheme:
    """Meta-labels in the order of their ids 1..M: (name, label ids).

    Id 0 in a meta-label stands for the voxels without label where the image is not 0 (skull, uterus, mother).
    `background`: further ids that count as 0. Raises ValueError for what cannot be meant.
    """

    name: str
    metas: tuple[tuple[str, tuple[int, ...]], ...]
    background: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.metas) <= MAX_META:
            raise ValueError(f"{self.name}: {len(self.metas)} meta-labels; 1 to {MAX_META} are allowed")
        owner = dict.fromkeys(self.background, "background")
        if 0 in owner:
            raise ValueError(f"{self.name}: 0 is background anyway; list it in a meta-label or not at all")
        for name, labels in self.metas:
            check_name(name, f"{self.name}: meta-label")
            if not labels:
                raise ValueError(f"{self.name}: meta-label {name!r} has no labels")
            for label in labels:
                if label in owner:
                    both = f"{owner[label]!r} and {name!r}" if owner[label] != name else f"twice in {name!r}"
                    raise ValueError(f"{self.name}: label {label} is in {both}")
                owner[label] = name
        names = [name for name, _ in self.metas]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name}: meta-label names repeat: {', '.join(names)}")
        wrong = [label for label in owner if not 0 <= label <= MAX_LABEL]
        if wrong:
            raise ValueError(f"{self.name}: labels must be 0 to {MAX_LABEL}, found {wrong[0]}")

    def apply(self, labels: NDArray[np.integer], image: NDArray) -> NDArray[np.uint8]:
        """Meta-label ids 0..M of label ids >= 0 and the image, all of one shape. Voxels that are not finite become 0.

        Raises ValueError that lists the labels of no meta-label with their voxel counts.
        """
        meta_of = {0: 0, **dict.fromkeys(self.background, 0)}
        meta_of |= {label: i for i, (_, ids) in enumerate(self.metas, 1) for label in ids if label != 0}
        top = max(meta_of) + 1
        clipped = np.minimum(labels, top)  # everything above stands at `top`, however large
        present = np.flatnonzero(np.bincount(clipped.ravel(order="K"), minlength=top + 1))
        if not set(present.tolist()) <= meta_of.keys():
            ids, counts = np.unique(labels[~np.isin(labels, list(meta_of))], return_counts=True)
            listing = ", ".join(f"{i} ({n} voxels)" for i, n in zip(ids, counts, strict=True))
            raise ValueError(f"labels that the annotation {self.name!r} does not list: {listing}")
        table = np.zeros(top + 1, np.uint8)
        table[list(meta_of)] = list(meta_of.values())
        metas = table[clipped]
        outside = self.outside()
        if outside:
            metas[(metas == 0) & (image != 0)] = outside
        metas[~np.isfinite(image)] = 0
        return metas

    def outside(self) -> int:
        """Id of the meta-label that collects what has no label, 0 where there is none."""
        return next((i for i, (_, labels) in enumerate(self.metas, 1) if 0 in labels), 0)


_CORTEX = (*range(1000, 1036), *range(2000, 2036))
_DEEP_GREY = (9, 10, 11, 12, 13, 17, 18, 26, 27, 28, 48, 49, 50, 51, 52, 53, 54, 58, 59, 60)
_EXTRA_CEREBRAL = (165, 258, 259, 502, *range(506, 510), 511, 512, *range(514, 517), 530)
SCHEMES = {
    # 1 outer CSF, 2 cortex, 3 white matter, 4 ventricles, 5 cerebellum, 6 deep grey matter, 7 brainstem
    "feta": SeedScheme(
        "feta", (("csf", (1, 4)), ("grey_matter", (2, 6)), ("white_matter", (3, 5, 7)), ("non_brain", (0,)))
    ),
    # 1 CSF, 2 cortex, 3 white matter, 4 background, 5 ventricles, 6 cerebellum, 7 deep grey matter, 8 brainstem,
    # 9 hippocampus and amygdala
    "dhcp": SeedScheme(
        "dhcp", (("csf", (1, 5)), ("grey_matter", (2, 7, 9)), ("white_matter", (3, 6, 8)), ("non_brain", (0,))), (4,)
    ),
    # What scripts/prepare_data.py --tissue hmrf makes, and most tissue classifiers
    "tissue": SeedScheme("tissue", (("csf", (1,)), ("grey_matter", (2,)), ("white_matter", (3,)), ("non_brain", (0,)))),
    # aseg and aparc+aseg, with the extra-cerebral ids of the lab2im and SynthSeg maps
    "freesurfer": SeedScheme(
        "freesurfer",
        (
            ("csf", (4, 5, 14, 15, 24, 30, 31, 43, 44, 62, 63, 72, 136, 137, 163, 164)),
            ("grey_matter", (3, 8, 42, 47, *_DEEP_GREY, *_CORTEX)),
            ("white_matter", (2, 7, 16, 25, 41, 46, 57, 77, 78, 79, 80, 85, *range(251, 256))),
            ("non_brain", (0, *_EXTRA_CEREBRAL)),
        ),
    ),
}


def find_scheme(annotation: str) -> SeedScheme:
    """A scheme by name, or from a table: a .json file ``{"csf": [1, 4], …}``, a .csv or .tsv file of columns id, name.

    The name ``background`` collects ids to ignore. ValueError names the file and what is wrong.
    """
    if annotation in SCHEMES:
        return SCHEMES[annotation]
    path = Path(annotation)
    if path.suffix not in (".json", ".csv", ".tsv"):
        known = ", ".join(SCHEMES)
        raise ValueError(f"--annotation {annotation}: expected {known}, or a table that ends in .json, .csv or .tsv")
    if not path.is_file():
        raise ValueError(f"--annotation {annotation}: no such file")
    groups = _json_groups(path) if path.suffix == ".json" else _csv_groups(path)
    background = groups.pop("background", [])
    try:
        return SeedScheme(
            path.name, tuple((name, tuple(ids)) for name, ids in groups.items()), tuple(i for i in background if i != 0)
        )
    except ValueError as error:
        raise ValueError(f"--annotation {error}") from None


def _json_groups(path: Path) -> dict[str, list[int]]:
    data = read_json(path)
    form = f'--annotation {path}: expected {{"name": [label ids], …}}'
    if not isinstance(data, dict):
        raise ValueError(form)
    groups: dict[str, list[int]] = {}
    for name, value in data.items():
        ids = value if isinstance(value, list) else [value]
        if not all(type(i) is int for i in ids):
            raise ValueError(f"{form}, found {value!r} for {name!r}")
        groups[name] = ids
    return groups


def _csv_groups(path: Path) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        if not {"id", "name"} <= set(reader.fieldnames or ()):
            raise ValueError(f"--annotation {path}: needs the columns id and name, found {reader.fieldnames}")
        for row in reader:
            try:
                groups.setdefault((row["name"] or "").strip(), []).append(int(row["id"]))
            except (TypeError, ValueError):
                raise ValueError(
                    f"--annotation {path}: line {reader.line_num}: {row['id']!r} is no whole number"
                ) from None
    return groups


# ---------------------------------------------------------------------------------------------------------------------
# Arrays


@dataclass(frozen=True)
class SeedPart:
    """One meta-label split into clusters. codes (I, J, K) uint8: 0 outside, else 10 * meta + cluster.

    means, sizes: of each cluster's voxels, in the image's units and voxels, ordered from dark to bright. notes: why
    there are fewer clusters than were asked for.
    """

    codes: NDArray[np.uint8]
    means: tuple[float, ...]
    sizes: tuple[int, ...]
    notes: tuple[str, ...] = ()


def subcluster(image: NDArray, mask: NDArray[np.bool_], meta: int, n: int, seed: int = 0) -> SeedPart:
    """Split the voxels of `mask` into `n` clusters by a Gaussian mixture of their intensities, ordered from dark to bright.

    image, mask: the same shape. meta 1..9, n 1..10. Five k-means++ starts with a fixed seed, fitted to a random sample of
    at most 20,000 voxels; every voxel then goes to its most probable component. n = 1 needs no fit. Voxels that are not
    finite get 0. Where there are not enough different intensities, or a component wins no voxel, there are fewer
    clusters and a note. The result does not depend on the image's scale or offset.
    """
    if not 1 <= meta <= MAX_META or not 1 <= n <= MAX_SUBCLASSES:
        raise ValueError(
            f"meta-label {meta} and {n} sub-clusters: 1 to {MAX_META} and 1 to {MAX_SUBCLASSES} are allowed"
        )
    if image.shape != mask.shape:
        raise ValueError(f"the image has shape {image.shape}, the mask {mask.shape}")
    mask = mask & np.isfinite(image)
    values = image[mask].astype(np.float64)
    codes = np.zeros_like(image, np.uint8)  # in the image's memory order
    if values.size == 0:
        return SeedPart(codes, (), (), ("no voxels",))
    component, notes = _components(values, n, seed)
    sizes = np.bincount(component, minlength=n)
    filled = np.flatnonzero(sizes)
    means = np.bincount(component, weights=values, minlength=n)[filled] / sizes[filled]
    order = filled[np.argsort(means, kind="stable")]
    rank = np.zeros(n, np.uint8)
    rank[order] = np.arange(len(order))
    codes[mask] = 10 * meta + rank[component]
    if len(order) < n:
        notes.append(f"{len(order)} instead of {n} clusters")
    return SeedPart(codes, tuple(np.sort(means).tolist()), tuple(sizes[order].tolist()), tuple(notes))


def _components(values: NDArray[np.float64], n: int, seed: int) -> tuple[NDArray[np.intp], list[str]]:
    """Component 0..n-1 of each value, in any order."""
    if n == 1:
        return np.zeros(values.size, np.intp), []
    distinct, group = np.unique(values, return_inverse=True)
    if len(distinct) <= n:
        return group, []
    sample = values
    if values.size > FIT_VOXELS:
        sample = np.random.default_rng(seed).choice(values, FIT_VOXELS, replace=False)
    centre, scale = sample.mean(), sample.std()
    if len(np.unique(sample)) <= n or not scale > 0:  # the few other values were not sampled, or differ by rounding
        nearest = np.abs(values[:, None] - np.unique(sample)[None, :n]).argmin(1)
        return nearest, ["almost all voxels share a few intensities"]
    return _mixture((sample - centre) / scale, (values - centre) / scale, n, seed)


def _mixture(
    sample: NDArray[np.float64], values: NDArray[np.float64], n: int, seed: int
) -> tuple[NDArray[np.intp], list[str]]:
    from sklearn.mixture import GaussianMixture  # slow to import, and drawing seed maps does without
    from threadpoolctl import threadpool_limits

    mixture = GaussianMixture(n, n_init=N_INIT, init_params="k-means++", random_state=seed)
    # One thread: the same sums in the same order on every machine, and subjects run side by side anyway.
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mixture.fit(sample[:, None])
        starts = range(0, values.size, _PREDICT_CHUNK)
        component = np.concatenate([mixture.predict(values[i : i + _PREDICT_CHUNK, None]) for i in starts])
    return component, [re.sub(r"\s+", " ", str(warning.message)) for warning in caught]


def seed_map(parts: Sequence[NDArray[np.integer]]) -> NDArray[np.uint8]:
    """Sum of the meta-labels' seed files, (I, J, K) each. ValueError where they overlap or differ in shape."""
    total = np.zeros_like(parts[0], np.uint8)
    for part in parts:
        if part.shape != total.shape:
            raise ValueError(f"seeds of shape {part.shape} and {total.shape} cannot be added")
        if ((part != 0) & (total != 0)).any():
            raise ValueError(f"seeds of two meta-labels overlap in {int(((part != 0) & (total != 0)).sum())} voxels")
        total += part.astype(np.uint8)
    return total


# ---------------------------------------------------------------------------------------------------------------------
# Reading at run time


@dataclass(frozen=True)
class SeedMeta:
    """A meta-label of one subject. clusters[n - 1]: how many clusters the split into n really has."""

    id: int
    name: str
    clusters: tuple[int, ...]


@dataclass(frozen=True)
class SeedCase:
    """Seeds of one image on disk. key: its place in the tree, ``sub-01/anat/sub-01_T2w``."""

    folder: Path
    key: str
    metas: tuple[SeedMeta, ...]

    def file(self, n: int, meta: int) -> Path:
        """Seeds of meta-label `meta` split into `n`."""
        return seed_file(self.folder, self.key, n, meta)


@dataclass(frozen=True)
class SeedDraw:
    """A label map to generate from.

    seeds (I, J, K) uint8, affine (4, 4). labels: its codes, 0 first. classes: for each code its meta-label, code // 10,
    whose mean the generator may share among the clusters. names: class id -> name. subclasses: what was drawn, by
    meta-label.
    """

    seeds: NDArray[np.uint8]
    affine: NDArray[np.float64]
    labels: tuple[int, ...]
    classes: tuple[int, ...]
    names: dict[int, str]
    subclasses: tuple[int, ...]


def seed_file(folder: Path, key: str, n: int, meta: int) -> Path:
    """``<folder>/subclasses_<n>/<key>_mlabel_<meta>.nii.gz``."""
    return folder / f"subclasses_{n}" / f"{key}_mlabel_{meta}.nii.gz"


def load_seeds(folder: Path | str) -> tuple[SeedCase, ...]:
    """All subjects of a folder of scripts/make_seeds.py, in the order of its index. ValueError where it is none."""
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder}: no {INDEX}; make the folder with scripts/make_seeds.py")
    cases = []
    for key in read_json(folder / INDEX)["cases"]:
        for part in key.split("/"):
            check_name(part, f"{folder / INDEX}: case")
        record = read_json(_record_file(folder, key))
        metas = tuple(
            SeedMeta(meta["id"], meta["name"], tuple(len(split["means"]) for split in meta["splits"]))
            for meta in record["metas"]
        )
        cases.append(SeedCase(folder, key, metas))
    return tuple(cases)


def draw_seed_map(case: SeedCase, generator: torch.Generator, minimum: int = 1, maximum: int | None = None) -> SeedDraw:
    """Draw the number of sub-clusters of each meta-label, uniform in [minimum, maximum], and add up their files.

    maximum: all that the folder has by default. Only `generator` (on the CPU) decides: one draw per meta-label, whatever
    the subject. Raises ValueError for a range that the folder does not have, VolumeError for damaged files.
    """
    import torch  # here, so that making seeds starts without it

    available = min(len(meta.clusters) for meta in case.metas)
    maximum = available if maximum is None else maximum
    if not 1 <= minimum <= maximum <= available:
        raise ValueError(f"{minimum} to {maximum} sub-clusters: {case.folder} has 1 to {available}")
    drawn = torch.randint(minimum, maximum + 1, (len(case.metas),), generator=generator).tolist()
    volumes = [read_volume(case.file(n, meta.id)) for n, meta in zip(drawn, case.metas, strict=True)]
    codes = [10 * meta.id + c for n, meta in zip(drawn, case.metas, strict=True) for c in range(meta.clusters[n - 1])]
    labels = (0, *codes)
    return SeedDraw(
        seed_map([volume.data for volume in volumes]),
        volumes[0].affine,
        labels,
        tuple(code // 10 for code in labels),
        {0: "background", **{meta.id: meta.name for meta in case.metas}},
        tuple(drawn),
    )


# ---------------------------------------------------------------------------------------------------------------------
# A BIDS tree


@dataclass(frozen=True, kw_only=True)
class SeedOptions:
    """Split the tissues of a BIDS data set by intensity into seeds for the GMM generator."""

    bids_path: Path
    """BIDS folder: sub-*/[ses-*/]anat/ with images and label maps beside them."""
    out_path: Path
    """Folder to write; the same command goes on with what was interrupted there."""
    max_subclasses: int = 6
    """Split each meta-label into 1, 2, … up to so many sub-clusters (at most 10)."""
    annotation: str = "feta"
    """feta, dhcp, tissue, freesurfer, or a table of meta-labels (.json, .csv, .tsv)."""
    image_suffix: str = "T2w"
    """Ending of the images' names."""
    label_suffix: str = "dseg"
    """Ending of the label maps' names: <image>_dseg, or _dseg in the place of the image's suffix."""
    seed: int = 0
    """Seed of the mixtures."""
    num_workers: int = 0
    """Subjects worked on at the same time; 0 for one per core."""
    overwrite: bool = False
    """Make everything again, also where it was made with other settings."""


@dataclass(frozen=True)
class SeedSource:
    """Image and label map of one case. key as in SeedCase."""

    key: str
    image: Path
    label: Path


@dataclass
class SeedReport:
    """What became of the cases: keys that were made now, keys that were there before, lines about the others."""

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def find_sources(bids: Path, image_suffix: str, label_suffix: str) -> tuple[list[SeedSource], list[str]]:
    """Images with a label map beside them, and one line for each file without a partner.

    ``<name>_T2w`` belongs to ``<name>_T2w_dseg``, or else to ``<name>_dseg``. ValueError where nothing is found.
    """
    if not bids.is_dir():
        raise ValueError(f"--bids_path {bids}: no such folder")
    sources, skipped = [], []
    for folder in sorted([*bids.glob("sub-*/anat"), *bids.glob("sub-*/ses-*/anat")]):
        files: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):  # .nii before .nii.gz, and the latter counts
            if path.name.endswith(SUFFIXES):
                files[stem(path)] = path
        used = set()
        for name in (name for name in files if name.endswith(f"_{image_suffix}")):
            candidates = (f"{name}_{label_suffix}", f"{name.removesuffix(image_suffix)}{label_suffix}")
            label = next((c for c in candidates if c in files), None)
            if label is None:
                skipped.append(f"{files[name].relative_to(bids)}: no label map {' or '.join(candidates)}")
                continue
            used.add(label)
            sources.append(SeedSource((folder.relative_to(bids) / name).as_posix(), files[name], files[label]))
        for name in (name for name in files if name.endswith(f"_{label_suffix}") and name not in used):
            skipped.append(f"{files[name].relative_to(bids)}: no image *_{image_suffix} for this label map")
    if not sources:
        lines = "".join(f"\n  {line}" for line in skipped)
        raise ValueError(f"--bids_path {bids}: no sub-*/[ses-*/]anat/*_{image_suffix} with a label map{lines}")
    return sources, skipped


def make_seeds(o: SeedOptions) -> SeedReport:
    """Seeds of every subject under o.out_path, in parallel; one record per subject, and the index last.

    A subject that fails becomes a line of the report, the others go on. Raises ValueError for bad options and for a
    folder that holds seeds of other settings (unless o.overwrite).
    """
    scheme = _check(o)
    sources, skipped = find_sources(o.bids_path, o.image_suffix, o.label_suffix)
    settings = {
        "annotation": asdict(scheme),
        "max_subclasses": o.max_subclasses,
        "image_suffix": o.image_suffix,
        "label_suffix": o.label_suffix,
        "seed": o.seed,
        "fit_voxels": FIT_VOXELS,
    }
    settings = _as_json(settings)
    _check_settings(o, settings)
    o.out_path.mkdir(parents=True, exist_ok=True)
    report = SeedReport(skipped=skipped)
    with lock_folder(o.out_path):
        old = read_json(o.out_path / INDEX)["cases"] if (o.out_path / INDEX).is_file() and not o.overwrite else []
        _write_if_new(o.out_path / INDEX, {"settings": settings, "cases": old})
        for pattern in (".tmp-*", "subclasses_*/**/.tmp-*", "sub-*/**/.tmp-*"):  # left by a killed run
            for path in o.out_path.glob(pattern):
                path.unlink()
        done = {key: (state, line) for key, state, line in _each(o, scheme, settings, sources)}
        for source in sources:  # in the tree's order, whichever worker was first
            state, line = done[source.key]
            getattr(report, state).append(source.key if state != "failed" else line)
        cases = [source.key for source in sources if done[source.key][0] != "failed"]
        _write_if_new(o.out_path / INDEX, {"settings": settings, "cases": cases})
        _write_if_new(o.out_path / "dataset_description.json", _DESCRIPTION)
    return report


_DESCRIPTION = {
    "Name": "Seeds: meta-labels split by intensity",
    "BIDSVersion": "1.9.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "medsis", "Description": "scripts/make_seeds.py"}],
}


def _check(o: SeedOptions) -> SeedScheme:
    if not 1 <= o.max_subclasses <= MAX_SUBCLASSES:
        raise ValueError(f"--max_subclasses {o.max_subclasses}: 1 to {MAX_SUBCLASSES} are allowed")
    if o.num_workers < 0:
        raise ValueError(f"--num_workers {o.num_workers}: 0 (one per core) or more")
    if not 0 <= o.seed < 2**32:
        raise ValueError(f"--seed {o.seed}: 0 to 2**32 - 1 are allowed")
    check_name(o.image_suffix, "--image_suffix")
    check_name(o.label_suffix, "--label_suffix")
    return find_scheme(o.annotation)


def _check_settings(o: SeedOptions, settings: dict[str, Any]) -> None:
    """Refuse to write into the source, into a folder of something else, and to mix settings."""
    out = o.out_path
    if out.resolve() == o.bids_path.resolve():
        raise ValueError(f"--out_path {out} is the source folder; a usual place is {o.bids_path / 'derivatives/seeds'}")
    if not (out / INDEX).is_file():
        if out.is_dir() and any(not path.name.startswith((LOCK, ".tmp-")) for path in out.iterdir()):
            raise ValueError(f"--out_path {out} is not empty and was not written by this command")
        return
    index = read_json(out / INDEX)
    if not isinstance(index, dict) or not {"settings", "cases"} <= index.keys():
        raise ValueError(f"{out / INDEX} was not written by this command; choose another --out_path")
    old = index["settings"]
    changed = [f"{key}: was {old.get(key)}, now {new}" for key, new in settings.items() if old.get(key) != new]
    if changed and not o.overwrite:
        raise ValueError(
            f"--out_path {out} holds seeds of other settings; --overwrite makes them again:\n  " + "\n  ".join(changed)
        )


def _as_json(data: dict[str, Any]) -> dict[str, Any]:
    """As it would come back from a file: lists for tuples."""
    return {key: _as_json(value) if isinstance(value, dict) else _lists(value) for key, value in data.items()}


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _write_if_new(path: Path, data: dict[str, Any]) -> None:
    if not path.is_file() or read_json(path) != data:
        write_json(path, data)


def _each(
    o: SeedOptions, scheme: SeedScheme, settings: dict[str, Any], sources: list[SeedSource]
) -> Iterator[tuple[str, str, str]]:
    """(key, made | kept | failed, line) of every case as it gets ready, with a progress bar and a line per failure."""
    count = min(o.num_workers or len(os.sched_getaffinity(0)), len(sources))
    with tqdm(total=len(sources), desc="seeds", unit="case", disable=None) as bar:
        for result in _results(o, scheme, settings, sources, count):
            if result[1] == "failed":
                bar.write(f"failed: {result[2]}", file=sys.stderr)
            bar.update()
            yield result


def _results(
    o: SeedOptions, scheme: SeedScheme, settings: dict[str, Any], sources: list[SeedSource], count: int
) -> Iterator[tuple[str, str, str]]:
    if count <= 1:
        for source in sources:
            yield work(o, scheme, settings, source)
        return
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"))
    try:
        futures = [pool.submit(work, o, scheme, settings, source) for source in sources]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise ValueError(
            "a worker was killed, perhaps for memory; the same command with fewer --num_workers goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def work(o: SeedOptions, scheme: SeedScheme, settings: dict[str, Any], source: SeedSource) -> tuple[str, str, str]:
    """One case from files to files: (key, made | kept | failed, line). Its errors do not stop the others."""
    try:
        for part in source.key.split("/"):
            check_name(part, "file or folder name")
        hashes = {"image": file_sha256(source.image), "label": file_sha256(source.label)}
        if not o.overwrite and _is_whole(o.out_path, source.key, hashes, settings):
            return source.key, "kept", ""
        _remove(o.out_path, source.key)
        metas, notes = _write_parts(o, scheme, source)
        sources = {
            "image": source.image.relative_to(o.bids_path).as_posix(),
            "label": source.label.relative_to(o.bids_path).as_posix(),
        }
        record = {"sources": sources, "sha256": hashes, "settings": settings, "notes": notes, "metas": metas}
        write_json(_record_file(o.out_path, source.key), record)
    except (ValueError, OSError, MemoryError) as error:
        return source.key, "failed", f"{source.key}: {str(error) or type(error).__name__}"
    return source.key, "made", ""


def _write_parts(o: SeedOptions, scheme: SeedScheme, source: SeedSource) -> tuple[list[dict[str, Any]], list[str]]:
    image, label = read_volume(source.image), read_volume(source.label)
    if image.data.shape != label.data.shape:
        raise ValueError(f"the image has shape {image.data.shape}, its label map {label.data.shape}")
    distance = float(np.abs(image.affine - label.affine).max())
    if distance > AFFINE_TOLERANCE:
        raise ValueError(
            f"the affines of image and label map differ by {distance:.4g} (both of shape {image.data.shape})"
        )
    meta_map = scheme.apply(whole_numbers(source.label, label.data), image.data)
    metas, notes = [], []
    for i, (name, _) in enumerate(scheme.metas, 1):
        mask = (meta_map == i).T  # NIfTI stores the first axis fastest; masks are fast the other way round
        splits = []
        for n in range(1, o.max_subclasses + 1):
            part = subcluster(image.data.T, mask, i, n, o.seed)
            path = seed_file(o.out_path, source.key, n, i)
            write_volume(path, part.codes.T, image.affine)
            splits.append({"means": part.means, "sizes": part.sizes, "sha256": file_sha256(path)})
            notes += [f"{name} in {n}: {note}" for note in part.notes]
        metas.append({"id": i, "name": name, "voxels": int(mask.sum()), "splits": splits})
    return metas, notes


def _record_file(folder: Path, key: str) -> Path:
    return folder / f"{key}_seeds.json"


def _is_whole(folder: Path, key: str, hashes: dict[str, str], settings: dict[str, Any]) -> bool:
    """Whether the record is of these sources and settings, and every file is what the record says."""
    path = _record_file(folder, key)
    if not path.is_file():
        return False
    try:
        record = read_json(path)
        if record["sha256"] != hashes or record["settings"] != settings:
            return False
        files = {
            seed_file(folder, key, n, meta["id"]): split["sha256"]
            for meta in record["metas"]
            for n, split in enumerate(meta["splits"], 1)
        }
    except (ValueError, KeyError, TypeError):  # a damaged record is made again, with its files
        return False
    return all(file.is_file() and file_sha256(file) == sha256 for file, sha256 in files.items())


def _remove(folder: Path, key: str) -> None:
    """Take away what an earlier run left of the case; the record last, so that it never goes before its files."""
    for path in folder.glob(f"subclasses_*/{key}_mlabel_*.nii.gz"):
        path.unlink()
    _record_file(folder, key).unlink(missing_ok=True)
