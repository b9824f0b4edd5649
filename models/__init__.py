"""Tensors to tensors: networks, losses, generators. No files, no command line, no logging."""

from __future__ import annotations

from config import Config
from models.base import Method
from models.gmm import Gmm
from models.lesion import LesionUnet
from models.oasis import Oasis
from models.spade import SpadeGan
from spec import DataSpec

METHODS: dict[str, type[Oasis] | type[SpadeGan] | type[Gmm] | type[LesionUnet]] = {
    "oasis": Oasis,
    "spade": SpadeGan,
    "gmm": Gmm,
    "lesion": LesionUnet,
}


def build_method(config: Config, spec: DataSpec) -> Method:
    """The method named by `config.model`, with fresh weights."""
    return METHODS[config.model](config, spec)
