"""Tensors to tensors: networks, losses, generators. No files, no command line, no logging."""

from __future__ import annotations

from config import Config
from models.base import Method
from models.gan import VGG
from models.gmm import Gmm
from models.lesion import LesionUnet
from models.oasis import Oasis
from models.segmenter import Segmenter
from models.spade import SpadeGan
from spec import DataSpec

METHODS: dict[str, type[Oasis] | type[SpadeGan] | type[Gmm] | type[LesionUnet] | type[Segmenter]] = {
    "oasis": Oasis,
    "spade": SpadeGan,
    "gmm": Gmm,
    "lesion": LesionUnet,
    "segmenter": Segmenter,
}


def wanted_weights(config: Config) -> list[str]:
    """Keys of the pretrained weight files that training will need, from the options alone."""
    return [VGG] if config.gan is not None and config.gan.lambda_vgg > 0 else []


def build_method(config: Config, spec: DataSpec) -> Method:
    """The method named by `config.model`, with fresh weights."""
    return METHODS[config.model](config, spec)
