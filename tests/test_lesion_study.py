"""The study's own arithmetic, and that its segmenter learns, on phantoms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.lesion_figures import _tile, spots
from benchmarks.lesion_study import Example, StudyOptions, interval, table, test_segmenter, train_segmenter
from tests.toy_lesions import patient

test_segmenter.__test__ = False  # type: ignore[attr-defined]  # it tests a network, not this code


def options(**changes: object) -> StudyOptions:
    where = {"bids": Path("b"), "name": "n", "train": "a", "test": "b", "out": Path("o")}
    return StudyOptions(**where, **{"steps": 60, "batch_size": 6, "patch": 32} | changes)  # type: ignore[arg-type]


def phantom(seed: int) -> Example:
    p = patient(seed, lesions=10)
    images = np.stack([image * (0.8 / level) - 1 for image, level in ((p.t1, 220), (p.flair, 90))]).astype(np.float32)
    as_tensor = [torch.from_numpy(x) for x in (images, p.lesion, p.tissue > 0)]
    return Example(as_tensor[0].permute(0, 3, 2, 1).contiguous(), *(x.permute(2, 1, 0) for x in as_tensor[1:]))


@pytest.mark.slow
def test_the_segmenter_finds_lesions_of_another_phantom() -> None:
    cpu = torch.device("cpu")
    net = train_segmenter(options(), [phantom(1)], ("real", 0), cpu)
    scores = test_segmenter(net, phantom(2), cpu)
    assert scores["dice"] > 0.25, scores  # it has seen 60 steps
    assert scores["lesion_sensitivity"] > 0.5
    assert set(scores) >= {"sensitivity", "precision", "lesion_precision", "lesion_f1"}


def test_trainings_depend_on_their_key_alone() -> None:
    cpu = torch.device("cpu")
    nets = [
        train_segmenter(options(steps=2), [phantom(1)], key, cpu) for key in (("real", 0), ("real", 0), ("real", 1))
    ]
    a, b, c = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_intervals_are_students() -> None:
    mean, half = interval([0.4, 0.5, 0.6])
    assert mean == pytest.approx(0.5)
    assert half == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert np.isnan(interval([0.4])[1])
    assert table({"real": [{"dice": 0.4}]}).splitlines()[2] == "| real | 0.400 |"
    lines = table({"real": [{"dice": 0.4}, {"dice": 0.6}]}).splitlines()
    assert lines[0] == "| trained on | dice |"
    assert lines[2].startswith("| real | 0.500 ± ")


def test_tiles_show_the_voxel_they_are_named_for() -> None:
    volume = np.zeros((20, 30))
    volume[5, 7] = 1.0
    shown = volume.T[::-1, ::-1]  # as geometry.plane shows an axial slice
    tile = _tile(shown, 5, 7, 4, 1.0)
    bright = np.argwhere(tile > 128).mean(0) / tile.shape[0]
    assert bright == pytest.approx([4.5 / 8, 4.5 / 8], abs=0.01)
    mask = np.zeros((40, 40, 12), bool)
    mask[4:9, 4:9, 3] = mask[30:33, 30:33, 8] = mask[10:12, 5:7, 3] = True
    assert spots(mask, 3, 10) == [(6, 6, 3), (31, 31, 8)]
