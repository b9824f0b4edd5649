"""Fixtures of tests that score: machines without weights, and random weights in the published form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest


@pytest.fixture(scope="module")
def no_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A machine without pretrained weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("empty")))
        patch.delenv("MEDSIS_WEIGHTS", raising=False)
        yield


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of pytorch-fid's network, which it builds before it loads any."""
    import torch
    from pytorch_fid import inception

    from tests.evaluation.helpers import randomised

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with (
        mock.patch.object(inception, "load_state_dict_from_url", return_value={}),
        mock.patch.object(torch.nn.Module, "load_state_dict"),
    ):
        torch.save(randomised(inception.fid_inception_v3()).state_dict(), path)
    return path
