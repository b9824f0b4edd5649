"""Fluid around a brain: cut to what stripping leaves, never ventricles; a rim of it is the cortex's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dataloaders.labelmaps.fluid import FAR, with_rim
from dataloaders.labelmaps.image_generator import ImageGenerator
from models.base import seeded_generator
from models.gmm.options import stripped_brain
from models.gmm.scheme import LabelScheme


def head(ventricle: int) -> np.ndarray:
    """Concentric: fluid (24) to 20 mm, cortex (3) to 12, white matter (2) to 10, a ventricle to 6."""
    radius = np.sqrt(sum((axis - 23.5) ** 2 for axis in np.ogrid[:48, :48, :48]))
    label = np.zeros(radius.shape, np.int32)
    for value, mm in ((24, 20), (3, 12), (2, 10), (ventricle, 6)):
        label[radius <= mm] = value
    return label


@pytest.mark.parametrize("ventricle", [4, 24])
def test_fluid_is_cut_around_the_brain_alone(ventricle: int) -> None:
    label = head(ventricle)
    scheme = with_rim(LabelScheme.from_values((0, 2, 3, 4, 24)))
    generator = ImageGenerator(label, scheme=scheme, fluid_margin=(3.0,), rim=1.0, seed=1)
    fluid, label_map = generator.fluid, generator.maps[0]
    radius = np.sqrt(sum((axis - 23.5) ** 2 for axis in np.ogrid[:48, :48, :48]))
    found = torch.tensor(scheme.values)[fluid.at(0, label_map, 3.0).values.long()].numpy()
    assert (found[radius <= 12] == label[radius <= 12]).all()  # a ventricle by any name stays
    rim = found == scheme.values[-1]
    assert rim.sum() > 1000
    assert radius[rim].max() < 13.5
    kept = found == 24
    assert 14 < radius[kept].max() <= 15.5
    assert (found[radius > 15.5] == 0).all()
    everything = torch.tensor(scheme.values)[fluid.at(0, label_map, FAR).values.long()].numpy()
    assert ((everything == 0) == (label == 0)).all()
    cuts = {int((fluid.cut(0, label_map, seeded_generator(k)).values == scheme.background).sum()) for k in range(8)}
    assert len(cuts) > 3  # anew for each sample


def test_the_rim_is_learned_as_cortex_and_cut_fluid_is_dark() -> None:
    scheme = with_rim(LabelScheme.from_values((0, 2, 3, 4, 24)))
    options = stripped_brain()
    fixed = {"affine": None, "velocity": None, "flip": False}
    cut = ImageGenerator(head(4), scheme=scheme, options=options, fluid_margin=(2.0, 2.0), rim=1.0, seed=3)
    whole = ImageGenerator(head(4), scheme=scheme, options=options, seed=3)
    (image, label), (_, before) = cut.sample(0, fixed), whole.sample(0, fixed)
    assert (label == 3).sum() > 1.2 * (before == 3).sum()
    assert ((label == 24) <= (before == 24)).all()
    assert np.median(image[(label == 0) & (before == 24)]) < 1e-6
    assert with_rim(LabelScheme.from_values((0, 1))).names == LabelScheme.from_values((0, 1)).names


@pytest.mark.parametrize("named", ["left cortex|right cortex", "Cortex_L|Cortex_R", "ctx-lh-cortex|ctx-rh-cortex"])
def test_rims_have_the_side_of_their_cortex(named: str) -> None:
    scheme = LabelScheme.from_values((0, 2, 41, 3, 42, 24))
    names = dict(zip(scheme.values, scheme.names, strict=True)) | dict(zip((3, 42), named.split("|"), strict=True))
    scheme = with_rim(replace(scheme, names=tuple(names[value] for value in scheme.values)))
    left, right = (scheme.names.index(f"{side} cortex rim") for side in ("left", "right"))
    assert (scheme.outputs[left], scheme.outputs[right]) == (3, 42)
    assert (scheme.partners[left], scheme.partners[right]) == (right, left)
