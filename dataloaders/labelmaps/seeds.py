"""Seeds for the GMM generator: tissues split by intensity, so that few labels still give an image with structure.

A label map with three tissues makes flat images with edges only where labels end. Here the labels of real scans are
fused to a few meta-labels (CSF, grey matter, white matter, non-brain), and the voxels of each are split by a Gaussian
mixture of the scan's intensities into 1, 2, … sub-clusters. A voxel's seed is ``10 * meta + cluster``. For every image
the generator draws how many sub-clusters each meta-label has. Idea: Brain-ID (Liu et al., ECCV 2024) and FetalSynthSeg
(Zalevskyi et al., MICCAI 2024).
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataloaders.io.files import naming, read_json, read_toml
from dataloaders.io.schema import NAME, decode
from dataloaders.io.spec import Label
from dataloaders.labelmaps.label_tables import READERS, id_list, table_rows
from dataloaders.labelmaps.labels import ClassTable, count_labels

if TYPE_CHECKING:
    import torch

MAX_META = 9  # the largest code, 10 * 9 + 9, fits every 8-bit type
MAX_SUBCLASSES = 10  # clusters 0..9 of 10 * meta + cluster
MAX_LABEL = 65535
FIT_VOXELS = 20_000  # the mixture is fitted to at most so many voxels, then sorts all of them
N_INIT = 5
INDEX = "seeds.json"
_PREDICT_CHUNK = 1_000_000


@dataclass(frozen=True)
class SeedScheme:
    """Meta-labels in the order of their ids 1..M: (name, label ids).

    Id 0 in a meta-label stands for the voxels without label where the image is not 0 (skull, uterus, mother).
    `background`: further ids that count as 0.
    """

    name: str
    metas: tuple[tuple[str, tuple[int, ...]], ...]
    background: tuple[int, ...] = ()

    def apply(self, labels: NDArray[np.integer], image: NDArray) -> NDArray[np.uint8]:
        """Meta-label ids 0..M of label ids >= 0 and the image, all of one shape. Voxels that are not finite become 0.

        Raises ValueError that lists the labels of no meta-label with their voxel counts.
        """
        metas = [Label(i, name, tuple(j for j in ids if j)) for i, (name, ids) in enumerate(self.metas, 1)]
        table = ClassTable((Label(0, "background", (0, *self.background)), *metas))
        if unknown := table.unknown(count_labels(labels)):
            listing = ", ".join(f"{i} ({n} voxels)" for i, n in unknown.items())
            raise ValueError(f"labels that the annotation {self.name!r} does not list: {listing}")
        found = table.apply(labels).astype(np.uint8)
        # what has no label where the image is not 0
        if outside := next((i for i, (_, ids) in enumerate(self.metas, 1) if 0 in ids), 0):
            found[(found == 0) & (image != 0)] = outside
        found[~np.isfinite(image)] = 0
        return found


def find_scheme(annotation: str) -> SeedScheme:
    """A scheme of seeds.toml by name, or one of the names of a table (see `label_tables.table_rows`).

    The name ``background`` collects ids to ignore. ValueError names the file and what is wrong.
    """
    known = read_toml(Path(__file__).with_suffix(".toml"), "table")
    groups: dict[str, list[int]] = {}
    if annotation in known:
        groups = {name: id_list(ids, name, 0) for name, ids in known[annotation].items()}
    elif Path(annotation).suffix not in READERS:
        raise ValueError(
            f"--annotation {annotation}: expected {', '.join(known)}, or a table that ends in {', '.join(READERS)}"
        )
    else:
        for row in table_rows(annotation, "--annotation"):
            groups.setdefault(row.name, []).append(row.id)
    scheme, background = Path(annotation).name, groups.pop("background", [])
    if not 1 <= len(groups) <= MAX_META:
        raise ValueError(f"--annotation {scheme}: {len(groups)} meta-labels; 1 to {MAX_META} are allowed")
    for name, ids in groups.items():
        NAME.of(name, f"--annotation {scheme}: meta-label")
        if wrong := [i for i in ids if not 0 <= i <= MAX_LABEL]:
            raise ValueError(f"--annotation {scheme}: labels must be 0 to {MAX_LABEL}, found {wrong[0]}")
    return SeedScheme(
        scheme, tuple((name, tuple(ids)) for name, ids in groups.items()), tuple(filter(None, background))
    )


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


@dataclass(frozen=True)
class SeedCase:
    """Seeds of one image on disk. key: its place in the tree, ``sub-01/anat/sub-01_T2w``. clusters: by the id of each
    meta-label, how many clusters its splits into 1, 2, … really have.
    """

    folder: Path
    key: str
    clusters: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def file(self, n: int, meta: int) -> Path:
        """Seeds of meta-label `meta` split into `n`: ``<folder>/subclasses_<n>/<key>_mlabel_<meta>.nii.gz``."""
        return self.folder / f"subclasses_{n}" / f"{self.key}_mlabel_{meta}.nii.gz"

    @property
    def record(self) -> Path:
        """What the seeds were made of, written after them: ``<folder>/<key>_seeds.json``."""
        return self.folder / f"{self.key}_seeds.json"


def load_seeds(folder: Path | str) -> tuple[SeedCase, ...]:
    """All subjects of a folder of scripts/make_seeds.py, in the order of its index. ValueError where it is none."""
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder}: no {INDEX}; make the folder with scripts/make_seeds.py")
    cases = []
    for key in _field(folder / INDEX, "cases", list[str]):
        for part in key.split("/"):
            NAME.of(part, f"{folder / INDEX}: case")
        metas = _field(SeedCase(folder, key).record, "metas", list[dict[str, Any]])
        clusters = {meta["id"]: tuple(len(split["means"]) for split in meta["splits"]) for meta in metas}
        cases.append(SeedCase(folder, key, clusters))
    return tuple(cases)


def _field(path: Path, key: str, kind: Any) -> Any:
    """Of a file of scripts/make_seeds.py; ValueError naming it where that is damaged or another's."""
    with naming(path, "was not written by make_seeds.py, or is damaged"):
        return decode(kind, decode(dict[str, Any], read_json(path), "").get(key), key)


def draw_subclasses(
    case: SeedCase, generator: torch.Generator, minimum: int = 1, maximum: int | None = None
) -> list[int]:
    """Number of sub-clusters of each meta-label, uniform in [minimum, maximum], by default all that the folder has.

    Only `generator` (on the CPU) decides: one draw per meta-label, whatever the subject. ValueError for a range that the
    folder does not have.
    """
    import torch  # here, so that making seeds starts without it

    available = min(map(len, case.clusters.values()))
    maximum = available if maximum is None else maximum
    if not 1 <= minimum <= maximum <= available:
        raise ValueError(f"{minimum} to {maximum} sub-clusters: {case.folder} has 1 to {available}")
    return torch.randint(minimum, maximum + 1, (len(case.clusters),), generator=generator).tolist()
