"""The fluid around a brain as skull stripping leaves it: label maps of whole heads hold all of it, stripped scans a rim.

SynthSeg's maps have 370 ml of fluid between brain and skull, stripped T1w about 80. A network that always saw a thick dark
shell calls the outermost cortex fluid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from dataloaders.io.geometry import bounding_box
from dataloaders.io.spec import side_of
from dataloaders.labelmaps.maps import LabelMap
from models.base import uniform
from models.gmm.scheme import LabelScheme

RIM = "cortex rim"  # name, after the side, of the labels of voxels that cortex and fluid share
REACH = 2.0  # mm: fluid behind tissue that is nearer to itself than twice this is inside the brain
FAR = 12.0  # mm up to which depths are told apart


@dataclass(frozen=True)
class _Shell:
    """Fluid voxels of one map, deepest last: places (M,) int64 flat indices, depths (M,) mm from tissue. rim (R,): flat
    indices of those that become a rim, and of which label.
    """

    places: Tensor
    depths: Tensor
    rim: Tensor
    rim_labels: Tensor


class Fluid:
    """Draws how much fluid a map keeps. Told by its name (CSF, not ventricles), and only where it is around the brain.

    scheme: of the maps, with labels RIM where `rim` is above 0 (`with_rim`). margin: mm of fluid around tissue that stay,
    drawn from 0..x or low..high; () for all. rim: fluid within so many mm of tissue whose nearest is the cerebral cortex
    become its RIM.
    """

    def __init__(self, scheme: LabelScheme, margin: Sequence[float], rim: float) -> None:
        self.margin, self.rim = tuple(margin), rim
        self.background, self.labels = scheme.background, scheme.num_labels
        inner = scheme.role("csf")
        self.fluid = [i for i in inner if "ventricle" not in scheme.names[i]]
        self.tissue = [i for i in scheme.role("brain") if i not in inner]
        rims = [i for i, name in enumerate(scheme.names) if name.endswith(RIM)]
        cortex = [i for i in scheme.role("cortex") if i not in rims]
        self.rims = dict(zip(cortex, rims, strict=True)) if rims else {}
        self._shells: dict[int, _Shell] = {}

    def cut(self, index: int, label_map: LabelMap, generator: torch.Generator) -> LabelMap:
        """Map `index`, as label indices, as one sample sees it."""
        low, high = (0.0, self.margin[0]) if len(self.margin) == 1 else self.margin or (FAR, FAR)
        return self.at(index, label_map, uniform(generator, low, high))

    def at(self, index: int, label_map: LabelMap, margin: float) -> LabelMap:
        """The map with `margin` mm of fluid, with FAR all of it."""
        if index not in self._shells:
            self._shells[index] = self._shell(label_map)
        shell = self._shells[index]
        values = label_map.values.clone()
        flat = values.view(-1)
        if margin < FAR and self.background is not None:
            flat[shell.places[int(torch.searchsorted(shell.depths, margin, right=True)) :]] = self.background
        flat[shell.rim] = shell.rim_labels.to(flat.dtype)
        return replace(label_map, values=values)

    def _shell(self, label_map: LabelMap) -> _Shell:
        values = label_map.values.numpy()
        fluid, tissue = np.isin(values, self.fluid), np.isin(values, self.tissue)
        depth, rim = np.full(values.shape, FAR, np.float32), np.zeros(values.shape, np.int32)  # label 0 is no rim
        table = np.array([self.rims.get(i, 0) for i in range(self.labels)], np.int32)
        if tissue.any():
            box = bounding_box(tissue, [math.ceil(FAR / mm) for mm in label_map.spacing])
            outside, mm = ~tissue[box], label_map.spacing
            place = ndimage.distance_transform_edt(outside, mm, return_distances=False, return_indices=True)
            steps = zip(place, np.ogrid[tuple(map(slice, outside.shape))], mm, strict=True)
            near = np.sqrt(sum(((to - at).astype(np.float32) * step) ** 2 for to, at, step in steps))
            rim[box] = np.where(near <= self.rim, table[values[box][tuple(place)]], 0)
            near[ndimage.binary_fill_holes(near <= REACH) & (near > REACH)] = 0  # large ventricles that are called CSF
            depth[box] = near
        places = np.flatnonzero(fluid)
        depths = depth.ravel()[places]
        order = np.argsort(depths, kind="stable")
        beside = rim.ravel()[places]
        arrays = (places[order], depths[order], places[beside > 0], beside[beside > 0])
        return _Shell(*map(torch.from_numpy, arrays))


def with_rim(scheme: LabelScheme) -> LabelScheme:
    """The scheme with a label RIM for each of the cortex, of its output and side; unchanged without cortex or fluid."""
    cortex, partners, first = scheme.role("cortex"), scheme.partners, scheme.num_labels
    if not cortex or not scheme.role("csf"):
        return scheme
    for i in cortex:
        scheme = scheme.add_lesion(output=scheme.outputs[i], name=f"{side_of(scheme.names[i])} {RIM}".strip())
    if partners is None:
        return scheme
    others = [first + cortex.index(partners[i]) for i in cortex]
    return replace(scheme, partners=(*partners, *others))
