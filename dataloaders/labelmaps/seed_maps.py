"""Label maps whose tissues are split by seeds, anew for each sample: intensities follow the seeds, output labels the map.

FetalSynthSeg's way (gmm.md 2.2): a few coarse labels look like no scan, because every edge of the image is an edge of the
labels. Here each voxel's generation label is the pair of its label and its seed, so that one look-up deforms both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dataloaders.io.cache import Cache
from dataloaders.io.geometry import off_grid, to_ras
from dataloaders.io.nifti import Volume, read_volume, stem
from dataloaders.io.spec import BACKGROUND
from dataloaders.labelmaps.maps import LabelMap, LabelMaps, Source, as_indices, expanded
from dataloaders.labelmaps.seeds import SeedCase, draw_subclasses, load_seeds
from models.gmm.scheme import LabelScheme


def pair_scheme(base: LabelScheme, codes: Sequence[int]) -> LabelScheme:
    """One generation label per (label of `base`, code); index = label index · number of codes + code index.

    Classes and ties are the codes' (`LabelScheme.seeds`), output, name and side are the label's.
    """
    seeds = LabelScheme.seeds(codes)
    many = len(codes)
    pairs = [(i, j) for i in range(base.num_labels) for j in range(many)]
    return LabelScheme(
        values=tuple(range(len(pairs))),
        names=tuple(base.names[i] for i, _ in pairs),
        classes=tuple(seeds.classes[j] for _, j in pairs),
        outputs=tuple(base.outputs[i] for i, _ in pairs),
        partners=None if base.partners is None else tuple(base.partners[i] * many + j for i, j in pairs),
        ties=seeds.ties,
    )


class SeedMaps(LabelMaps):
    """Label maps with their seeds. Maps without seeds are left out; ValueError where none has any.

    labels: as for `LabelMaps`, files only. folder: of scripts/make_seeds.py. subclasses: least and most clusters of each
    tissue, drawn for each sample; the most defaults to what there is.
    """

    def __init__(
        self,
        labels: Source,
        folder: Path | str,
        base: LabelScheme,
        subclasses: tuple[int, int | None] = (1, None),
        cache_gb: float = 1.0,
    ) -> None:
        known = seeded(expanded(labels), folder)
        super().__init__(list(known), cache_gb / 2)
        self.base, self.subclasses, self.cases = base, subclasses, list(known.values())
        metas = {(meta, max(clusters)) for case in self.cases for meta, clusters in case.clusters.items()}
        self.codes = (
            BACKGROUND,
            *sorted({10 * meta + c for meta, most in metas for c in range(most)}),
        )  # all there are
        self.use(base)
        self.drawn = pair_scheme(base, self.codes)  # each label with each seed
        self._volumes: Cache[Volume] = Cache(cache_gb / 2, _nbytes, least=4)

    def draw(self, index: int, generator: torch.Generator) -> LabelMap:
        """Map `index` with freshly drawn seeds, as indices of `drawn`. ValueError where grids differ."""
        return self._pairs(index, self[index], draw_subclasses(self.cases[index], generator, *self.subclasses))

    def ready(self, label_map: LabelMap, subclasses: Sequence[int] = ()) -> LabelMap:
        """The map with the seeds of these numbers of clusters. ValueError for a map of a file without them."""
        name, counts = label_map.path or label_map.name, tuple(subclasses)
        if label_map.subclasses:
            if counts not in ((), label_map.subclasses):
                raise ValueError(f"{name}: was drawn with subclasses {label_map.subclasses}, found {counts}")
            return label_map
        if not counts:
            raise ValueError(f"{name}: without seeds, but this generator has seeds; give subclasses of the record")
        index = self.find(label_map)
        most = [len(clusters) for clusters in self.cases[index].clusters.values()]
        if len(counts) != len(most) or not all(1 <= n <= m for n, m in zip(counts, most, strict=True)):
            allowed = ", ".join(f"1 to {m}" for m in most)
            raise ValueError(f"{name}: subclasses {counts}: must be {len(most)} numbers, {allowed}")
        return self._pairs(index, label_map, counts)

    def _pairs(self, index: int, label_map: LabelMap, counts: Sequence[int]) -> LabelMap:
        case, label_map = self.cases[index], as_indices(label_map, self.base)
        seeds = sum(self._volume(index, n, meta, label_map) for n, meta in zip(counts, case.clusters, strict=True))
        assert isinstance(seeds, np.ndarray)
        table = torch.zeros(256, dtype=torch.int32)
        table[list(self.codes)] = torch.arange(len(self.codes), dtype=torch.int32)
        code = table[torch.from_numpy(seeds).long()]
        pairs = label_map.values.int() * len(self.codes) + code
        values = pairs.to(self.drawn.index_dtype)
        return replace(label_map, values=values, subclasses=tuple(counts))

    def _volume(self, index: int, n: int, meta: int, label_map: LabelMap) -> NDArray[np.uint8]:
        """Codes (*S) of a meta-label on the grid of its map; ValueError, naming both, where that is another."""
        path = self.cases[index].file(n, meta)

        def read() -> Volume:
            volume = read_volume(path)
            data, affine = to_ras(volume.data, volume.affine)
            return Volume(np.ascontiguousarray(data), affine)

        seeds = self._volumes.get((index, n, meta), read)
        name = f"its label map {label_map.path}"
        if fault := off_grid(seeds.data.shape, seeds.affine, label_map.shape, label_map.affine, name):
            raise ValueError(f"{path}: seeds in RAS axes: {fault}")
        return seeds.data.reshape(label_map.values.shape)


def _nbytes(volume: Volume) -> int:
    return volume.data.nbytes


def seeded(paths: Sequence[Source], folder: Path | str) -> dict[Path, SeedCase]:
    """The label files that have seeds, with their cases; ValueError where none has any, and for arrays."""
    cases = {Path(case.key).name: case for case in load_seeds(folder)}
    known = {path: cases[name] for path in paths if (name := _seed_name(path, cases)) is not None}
    if not known:
        raise ValueError(f"{folder}: none of the {len(paths)} label maps has seeds here")
    return known


def _seed_name(path: Source, cases: dict[str, SeedCase]) -> str | None:
    """Name of the case whose image a label file belongs to: its own name without ``_dseg``, or with the image's suffix."""
    if not isinstance(path, Path):
        raise ValueError("seeds go with label maps in files, not with arrays")
    name = stem(path).removesuffix("_dseg")
    if name in cases:
        return name
    return next((case for case in cases if case.rpartition("_")[0] == name), None)
