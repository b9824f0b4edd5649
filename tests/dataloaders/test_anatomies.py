"""New anatomies: between the maps they are made of, without folds, the same every time, registered once."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from scipy import ndimage

from dataloaders.labelmaps import anatomies
from dataloaders.labelmaps.anatomies import Anatomies, places
from dataloaders.labelmaps.image_generator import ImageGenerator
from dataloaders.labelmaps.map_registration import affine_of_labels, exponential, sampled, shares
from dataloaders.labelmaps.maps import LabelMap, LabelMaps
from models.gmm.scheme import LabelScheme

SHAPE = (32, 38, 30)
SCHEME = LabelScheme.from_values((0, 2, 3, 4, 10, 41, 42, 43, 49))  # both sides of a cerebrum, FreeSurfer's ids


def head(shape: tuple[int, ...], scale: float = 1.0, ventricle: float = 0.24, shift: float = 0.0) -> np.ndarray:
    """Cortex, white matter, a ventricle and below it a thalamus, on the left and on the right, in 2-D or 3-D."""
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    centred = [(axis - (n - 1) / 2 - shift) / (0.42 * scale * n) for axis, n in zip(axes, shape, strict=True)]
    label = np.zeros(shape, np.int32)

    def draw(left: int, right: int, radius: float, side: float, up: float) -> None:
        for value, centre in ((left, -side), (right, side)):
            around = [c - o for c, o in zip(centred, (centre, up, *[0.0] * (len(shape) - 2)), strict=True)]
            inside = np.sqrt(sum(np.broadcast_to(c, shape) ** 2 for c in around)) < radius
            half = np.broadcast_to(centred[0] < 0, shape)
            label[inside & (half if centre < 0 or value == left else ~half)] = value

    draw(3, 42, 1.0, 0.0, 0.0)
    draw(2, 41, 0.78, 0.0, 0.0)
    draw(4, 43, ventricle, 0.33, 0.15 + 0.08 * shift)
    draw(10, 49, 0.22 + 0.03 * shift, 0.3, -0.3)
    return label


def three(shape: tuple[int, ...]) -> list[np.ndarray]:
    return [head(shape), head(shape, 1.1, 0.18, 1.5), head(shape, 0.95, 0.27, -1.0)]


@pytest.fixture(scope="module", params=[(40, 48), SHAPE], ids=["2-D", "3-D"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Anatomies:
    return Anatomies(three(request.param), SCHEME, 6, 1, tmp_path_factory.mktemp("fields"))


def volumes(label_map: LabelMap) -> torch.Tensor:
    return torch.bincount(label_map.values.flatten().int(), minlength=SCHEME.num_labels).double()


def jacobian(where: torch.Tensor) -> torch.Tensor:
    rows = [torch.stack(torch.gradient(axis)) for axis in where]
    return torch.linalg.det(torch.stack(rows).movedim((0, 1), (-2, -1)))


def test_nothing_folds_and_anatomies_lie_among_the_given(made: Anatomies) -> None:
    given = torch.stack([volumes(made[i]) for i in range(made.given)])
    low, high = given.min(0).values, given.max(0).values
    moved = 0
    for k in range(made.count):
        label_map = made[made.given + k]
        assert label_map.name == f"anatomy{k:05d}"
        found = volumes(label_map)
        assert (found[1:] > 0.75 * low[1:]).all()
        assert (found[1:] < 1.3 * high[1:]).all()
        moved += not any(torch.equal(label_map.values, made[i].values) for i in range(made.given))
        for label in range(1, SCHEME.num_labels):  # one piece each, as in the given maps
            pieces = ndimage.label(label_map.values.numpy() == label, np.ones((3,) * label_map.values.ndim))[0]
            sizes = np.bincount(pieces.ravel())[1:]
            assert sizes.max() > 0.98 * sizes.sum()
        side = label_map.values.numpy()
        left = [i for i, name in enumerate(SCHEME.names) if name.startswith("left")]
        right = [i for i, name in enumerate(SCHEME.names) if name.startswith("right")]
        assert np.argwhere(np.isin(side, left))[:, 0].mean() < np.argwhere(np.isin(side, right))[:, 0].mean()
    assert moved >= 3


def test_deformations_are_diffeomorphic_also_beyond_the_maps(made: Anatomies) -> None:
    for k in range(4):
        generator = torch.Generator().manual_seed(k)
        velocity = 1.5 * made.draw_velocity(generator)
        own = made.fields[k % 3]
        displacement = made.displacement(own, velocity, made.draw_sizes(own, generator))
        _, where = places(made[k % 3], displacement, made.frame, own.matrix)
        fine = torch.nn.functional.interpolate(
            where[None], scale_factor=2, mode="trilinear" if len(where) == 3 else "bilinear", align_corners=True
        )[0]
        assert float(jacobian(fine).min()) > 0


def test_sizes_change_by_the_factor_that_was_drawn(made: Anatomies) -> None:
    own, nodes = made.fields[0], made.frame.nodes()
    tables = torch.zeros(SCHEME.num_labels, 2)
    for column, indices in enumerate(anatomies.parts(SCHEME).values()):
        tables[list(indices), column] = 1
    masks = shares(made[0], tables, made.frame, own.matrix)
    for (name, size), mask in zip(anatomies.SIZES.items(), masks, strict=True):
        for factor in (-size.change, size.change / 2):
            field = exponential(-factor * own.sizes[name].float())
            after = sampled(mask[None], nodes + field).sum()
            assert 0.5 < np.log(float(after / mask.sum())) / factor < 1.5, (name, factor)


def test_an_anatomy_is_the_same_every_time_and_registered_once(made: Anatomies) -> None:
    values = np.array(SCHEME.values)
    maps = [values[made[i].values.numpy()] for i in range(3)]
    with mock.patch.object(anatomies, "register_labels", side_effect=AssertionError("registered again")):
        again = Anatomies(maps, SCHEME, 2, 1, made.folder)
        assert torch.equal(again[4].values, made[4].values)
        other = Anatomies(maps, SCHEME, 2, 2, made.folder)
        assert not torch.equal(other[4].values, made[4].values)
        with pytest.raises(AssertionError, match="registered again"):
            Anatomies([m[::-1] for m in maps], SCHEME, 2, 1, made.folder)
        for path in made.folder.iterdir():
            path.write_bytes(path.read_bytes()[:100])  # damaged: made again, not read
        with pytest.raises(AssertionError, match="registered again"):
            Anatomies(maps, SCHEME, 2, 1, made.folder)


def test_one_map_changes_its_sizes_alone_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    one = Anatomies([head((120, 144))], SCHEME, 3, 0)
    assert "of one label map, so they differ in the size of cortex and ventricles alone" in capsys.readouterr().err
    assert len({float(volumes(one[k])[SCHEME.names.index("left lateral ventricle")]) for k in range(4)}) > 2
    plain = LabelScheme.from_lists((0, 1, 2), names=("background", "liver", "kidney"))
    with pytest.raises(ValueError, match=r"^map0: new anatomies need two label maps, or labels named"):
        Anatomies([head((40, 48)) // 20], plain, 2, 0)


def test_an_affine_map_is_found_by_labels() -> None:
    matrix = torch.tensor([[1.05, 0.1, 0.0, 2.0], [-0.12, 0.95, 0.05, -1.5], [0.02, 0.0, 1.1, 1.0]])
    still = head(SHAPE)
    inverse = torch.linalg.inv(matrix[:, :3]).numpy()
    moving = ndimage.affine_transform(still, inverse, -inverse @ matrix[:, 3].numpy(), order=0)
    maps = LabelMaps([still, moving])
    maps.use(SCHEME)
    found = affine_of_labels(maps[0], maps[1], SCHEME)
    assert torch.allclose(found[:, :3], matrix[:, :3], atol=0.06)
    places = torch.tensor([[12.0, 20.0, 15.0, 1.0], [28.0, 30.0, 20.0, 1.0]]).T
    assert float((found @ places - matrix @ places).abs().max()) < 1.0
    empty = LabelMaps([np.zeros(SHAPE, np.int32)])
    empty.use(SCHEME)
    with pytest.raises(ValueError, match="map0: has no labels that could be registered"):
        affine_of_labels(maps[0], empty[0], SCHEME)


def test_the_generator_paints_them(tmp_path: Path) -> None:
    generator = ImageGenerator(three((40, 48)), scheme=SCHEME, anatomies=5, seed=3, fields=tmp_path, preset="synthseg")
    assert {generator.map_index(k) for k in range(60)} == set(range(8))
    number = next(k for k in range(60) if generator.map_index(k) > 2)
    image, label = generator.sample(number)
    assert image.shape == label.shape == (40, 48)
    assert generator.sample(number).source.name.startswith("anatomy")
    with pytest.raises(ValueError, match="anatomies and subjects_prob cannot"):
        ImageGenerator(three((40, 48)), scheme=SCHEME, anatomies=5, subjects_prob=[1, 1, 2])
