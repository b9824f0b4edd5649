"""Fixtures of tests that score: machines without weights, and files of weights that are none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from evaluation import evaluate_results
from evaluation.compare import Entrant, load_entrants


@pytest.fixture(scope="module")
def no_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A machine without pretrained weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("empty")))
        patch.delenv("MEDSIS_WEIGHTS", raising=False)
        yield


def scored(folders: list[Path], metrics: str) -> list[Entrant]:
    """What compare.py makes of results, by some metrics alone: all of them take ten times as long."""
    for folder in folders:
        evaluate_results(folder, metrics)
    return load_entrants(folders)


def randomised(net: nn.Module) -> nn.Module:
    """Random weights that keep activations finite and not all zero."""
    torch.manual_seed(0)
    for weight in (weight for weight in net.parameters() if weight.ndim > 1):
        nn.init.kaiming_normal_(weight)
    return net


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of pytorch-fid's network, which it builds before it loads any."""
    from pytorch_fid import inception

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with (
        mock.patch.object(inception, "load_state_dict_from_url", return_value={}),
        mock.patch.object(nn.Module, "load_state_dict"),
    ):
        torch.save(randomised(inception.fid_inception_v3()).state_dict(), path)
    return path


def save_script(net: nn.Module, path: Path) -> Path:
    """A network as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated; the format is still what people share
        torch.jit.script(net).save(str(path))
    return path
