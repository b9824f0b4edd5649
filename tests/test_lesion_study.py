"""The study's own arithmetic, and that its segmenter learns, on phantoms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.lesion_study import Example, StudyOptions, test_segmenter, train_segmenter
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
