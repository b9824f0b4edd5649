"""Networks that are made on the spot, and results that are scored in part."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from evaluation import evaluate_results
from evaluation.compare import Entrant, load_entrants


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


def save_script(net: nn.Module, path: Path) -> Path:
    """A network as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated; the format is still what people share
        torch.jit.script(net).save(str(path))
    return path
