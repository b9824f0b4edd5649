"""Training patches of the segmenter: real scans, results folders and the generator on the fly, in a stated mix.

Patch number p is always the same: which source, which volume and where it is cut depend on (seed, p) alone, so order,
batch size, workers and resumption change nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dataloaders.io.cache import Cache
from dataloaders.io.geometry import ACROSS
from dataloaders.io.intensity import robust_unit
from dataloaders.labelmaps.classes import Classes
from dataloaders.labelmaps.image_generator import ImageGenerator, warn_unmirrored
from dataloaders.segmenter.case_volumes import CaseFile, LabelledScan
from models.base import Batch, seeded_generator
from models.gmm.options import GmmConfig
from models.gmm.params import Params
from models.gmm.render import output_labels, render_pair, repaint
from models.gmm.sampling import sample_params
from models.gmm.scheme import LabelScheme
from models.segmenter.options import SegmenterConfig

SPOTS = 256  # voxels of each class of a map that patches may be laid over
PLAIN = GmmConfig(blur=(0.0,), normalise="minmax")  # cuts patches and changes nothing
STREAMS = 16  # volumes that 2-D patches are taken from in turn


@dataclass(frozen=True)
class Drawn:
    """A cut-out as a network's training sees it, RAS axes: image (C, *S) float32 in [0, 1], label (*S) whole class ids.

    number: of a training patch, whose 2-D image has the slices beside as channels.
    """

    image: NDArray[np.float32]
    label: NDArray
    source: str
    number: int = -1


class PatchSource(Protocol):
    """An endless source of cut-outs by number."""

    def draw(self, number: int) -> Drawn:
        """Cut-out `number`, always the same."""
        ...


def window_shape(o: SegmenterConfig) -> tuple[int, ...]:
    """Voxels of a cut-out along RAS axes: the patch, for a 2-D network with `depth` slices across."""
    if o.dims == 3:
        return o.spatial_patch
    shape = list(o.spatial_patch)
    shape.insert(ACROSS[o.axis], max(o.depth, o.stack))
    return tuple(shape)


class GeneratedVolumes:
    """The GMM generator on the fly, as several generators in one: label maps with seeds and without, for example.

    learned: scheme whose outputs are the classes, where they are others than those that say what is painted.
    """

    def __init__(
        self,
        generators: Sequence[ImageGenerator],
        o: SegmenterConfig,
        seed: int,
        classes: Classes,
        learned: LabelScheme | None = None,
    ) -> None:
        self.generators, self.o, self.seed = list(generators), o, seed
        self.classes, self.learned = classes, learned
        self._spots: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def draw(self, number: int) -> Drawn:
        """See `PatchSource`."""
        weights = torch.tensor([float(len(generator.maps)) for generator in self.generators])
        chosen = int(torch.multinomial(weights, 1, generator=seeded_generator(self.seed, "map", number)))
        generator = self.generators[chosen]
        learned = self.learned or generator.scheme
        label_map, params = generator.params(number)
        values = generator.maps.ready(label_map).values
        key = (chosen, generator.map_index(number))
        if key not in self._spots:
            self._spots[key] = spots(output_labels(values, learned))
        params = aim(params, self._spots[key], self.o.foreground, seeded_generator(self.seed, "aim", number))
        image, label = render_pair(values.to(generator.device), params, learned)
        if image.ndim == 3:  # of one slice
            across = ACROSS[self.o.axis]
            image, label = image.unsqueeze(across + 1), label.unsqueeze(across)
        return drawn(image.cpu(), torch.from_numpy(self.classes.placed(label.cpu().numpy())), f"gmm-{label_map.name}")


class CaseVolumes:
    """Images from disk: cut, and with `augment` deformed, biased, blurred and darkened as the generator does its own.

    The last few scans stay in memory, up to `cache_gb`.
    """

    def __init__(
        self,
        cases: Sequence[CaseFile],
        cache_gb: float,
        scheme: LabelScheme,
        o: SegmenterConfig,
        gmm: GmmConfig,
        seed: int,
    ) -> None:
        self.cases, self.scheme, self.o, self.seed = cases, scheme, o, seed
        self._cache: Cache[LabelledScan] = Cache(cache_gb, LabelledScan.nbytes)
        self.options = gmm if o.augment else PLAIN
        warn_unmirrored(self.options, scheme)
        self._spots: dict[int, Tensor] = {}

    def draw(self, number: int) -> Drawn:
        """See `PatchSource`."""
        generator = seeded_generator(self.seed, "case", number)
        index = int(torch.randint(len(self.cases), (), generator=generator))
        case = self._cache.get(index, self.cases[index].read)
        image, label = torch.from_numpy(case.image), torch.from_numpy(case.label.astype(np.int32))
        flat = 3 if label.shape[-1] == 1 else 0  # of one slice
        if flat:
            image, label = image[..., 0], label[..., 0]
        wanted = window_shape(self.o)[: label.ndim]
        params = sample_params(
            label,
            generator,
            options=replace(self.options, output_shape=wanted, target_res=(), output_div_by_n=1, priors="random"),
            scheme=self.scheme,
            channels=len(image),
            spacing=np.sqrt((case.affine[:3, :3] ** 2).sum(axis=0)).tolist()[: label.ndim],
        )
        if index not in self._spots:
            self._spots[index] = spots(label)
        params = aim(params, self._spots[index], self.o.foreground, generator)
        image, label = repaint(image, label, params, self.scheme)
        if flat:
            image, label = image.unsqueeze(-1), label.unsqueeze(-1)
        return drawn(image, label, case.case)


class MixedVolumes:
    """`share` of the numbers from one source, the others from another."""

    def __init__(self, first: PatchSource, other: PatchSource, share: float, seed: int) -> None:
        self.first, self.other, self.share, self.seed = first, other, share, seed

    def draw(self, number: int) -> Drawn:
        """See `PatchSource`."""
        toss = float(torch.rand((), generator=seeded_generator(self.seed, "mix", number)))
        return (self.first if toss < self.share else self.other).draw(number)


def drawn(image: Tensor, label: Tensor, source: str) -> Drawn:
    """A cut-out with every channel on the network's scale."""
    scaled = np.stack([robust_unit(channel) for channel in image.numpy()])
    return Drawn(scaled, label.long().numpy(), source)


def spots(label: Tensor) -> Tensor:
    """Voxels of a map of classes (*S) for patches to be laid over, (M, n) int64: as many of each class but background.

    Drawn by class, small structures are seen as often as the cortex; see nnU-Net's sampling (Isensee et al., 2021).
    """
    flat, found = label.flatten(), []
    inside = flat.nonzero().flatten()
    values, order = flat[inside].sort(stable=True)
    for own in inside[order].split(values.unique_consecutive(return_counts=True)[1].tolist()):
        found.append(own[torch.linspace(0, len(own) - 1, SPOTS).long()])
    places = torch.cat(found) if found else flat.new_zeros(0).long()
    return torch.stack(torch.unravel_index(places, label.shape), 1)


def aim(params: Params, spots: Tensor, foreground: float, generator: torch.Generator) -> Params:
    """The parameters with the window over one of the spots, with probability `foreground`; inside the map where it fits."""
    toss, place = float(torch.rand((), generator=generator)), torch.rand((), generator=generator)
    jitter = torch.rand(len(params.shape), generator=generator)
    if toss >= foreground or len(spots) == 0:
        return params
    spot = spots[int(place * len(spots))]
    start = []
    for axis, (size, part) in enumerate(zip(params.shape, params.crop_shape, strict=True)):
        if size <= part:
            start.append(params.crop_start[axis])
            continue
        # the spot lies in the middle half of the window
        offset = int(part * (0.25 + 0.5 * float(jitter[axis])))
        start.append(min(max(int(spot[axis]) - offset, 0), size - part))
    return replace(params, crop_start=tuple(start))


class PatchDataset(Dataset[Drawn]):
    """Patches by number, which is the position in training; as many as --num_epochs counts as one pass.

    2-D: several slices are cut from each drawn volume, and neighbouring numbers from different volumes: a batch of one
    volume has one anatomy and one contrast, and learns far less.
    """

    def __init__(self, volumes: PatchSource, o: SegmenterConfig, seed: int) -> None:
        self.volumes, self.o, self.seed = volumes, o, seed
        self._kept: dict[int, tuple[int, Drawn, NDArray[np.bool_]]] = {}

    def __len__(self) -> int:
        return self.o.epoch_samples

    def __getitem__(self, key: tuple[int, int]) -> Drawn:
        number = key[1]  # there is no end of patches, so none is drawn again
        if self.o.dims == 3:
            return replace(self.volumes.draw(number), number=number)
        found, seen = self._volume_of(number)
        index = self._choose(seen, seeded_generator(self.seed, "slice", number))
        image, label = stacked_slice(found.image, found.label, index, self.o)
        return Drawn(image, label, f"{found.source}_z{index}", number)

    def collate(self, patches: Sequence[Drawn]) -> Batch:
        """Patches -> Batch."""
        return Batch(
            label=torch.from_numpy(np.stack([patch.label for patch in patches])),
            image=torch.from_numpy(np.stack([patch.image for patch in patches])),
            cases=[patch.source for patch in patches],
            patients=[patch.source for patch in patches],
            indices=[patch.number for patch in patches],
        )

    def _volume_of(self, number: int) -> tuple[Drawn, NDArray[np.bool_]]:
        """The volume of a 2-D patch, and which of its slices (columns) hold which class (rows).

        Streams in turn, whose volumes change one after the other, not all at once.
        """
        turn, stream = divmod(number, STREAMS)
        slices = self.o.slices_per_volume
        volume = (turn + stream * slices // STREAMS) // slices * STREAMS + stream
        kept = self._kept.get(stream)
        if kept is None or kept[0] != volume:
            drawn = self.volumes.draw(volume)
            planes = np.moveaxis(drawn.label, ACROSS[self.o.axis], 0)
            counts = [np.bincount(part.ravel(), minlength=int(drawn.label.max()) + 1) for part in planes]
            kept = (volume, replace(drawn, label=drawn.label.astype(np.int16)), np.stack(counts, 1) > 0)
            self._kept[stream] = kept
        return kept[1:]

    def _choose(self, seen: NDArray[np.bool_], generator: torch.Generator) -> int:
        """A slice; with probability `foreground` one that has a class other than background, each class as often."""
        toss, place = torch.rand(2, generator=generator).tolist()
        classes = np.flatnonzero(seen[1:].any(axis=1)) + 1
        if toss >= self.o.foreground or not classes.size:
            return int(place * seen.shape[1])
        number, rest = divmod(place * classes.size, 1)
        slices = np.flatnonzero(seen[classes[int(number)]])
        return int(slices[int(rest * slices.size)])


def stacked_slice(
    image: NDArray[np.float32], label: NDArray, index: int, o: SegmenterConfig
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Slice `index` across the axis with its neighbours: (C, X, Y, Z) -> (C·(2k + 1), A, B), and its label (A, B)."""
    across = ACROSS[o.axis]
    return neighbour_stack(image, index, o), np.take(label, index, across).astype(np.int64)


def neighbour_stack(image: NDArray[np.float32], index: int, o: SegmenterConfig) -> NDArray[np.float32]:
    """The image part of `stacked_slice`; at the ends of the volume its last slice stands in for those beyond."""
    across = ACROSS[o.axis] + 1
    wanted = np.clip(np.arange(index - o.neighbours, index + o.neighbours + 1), 0, image.shape[across] - 1)
    stack = np.moveaxis(np.take(image, wanted, across), across, 1)
    return np.ascontiguousarray(stack.reshape(-1, *stack.shape[2:]))
