"""Tensors to tensors: networks, losses, generators. No files, no command line, no logging."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config import Config
    from dataloaders.io.spec import DataSpec
    from models.base import Method

METHODS = {  # --model -> where its class is; imported when it is built
    "oasis": "models.gan.oasis:Oasis",
    "spade": "models.gan.spade:SpadeGan",
    "gmm": "models.gmm.method:Gmm",
    "lesion": "models.lesion.method:LesionUnet",
    "segmenter": "models.segmenter.method:Segmenter",
}


def wanted_weights(config: Config) -> list[str]:
    """Keys of the pretrained weight files that training will need, from the options alone."""
    if config.gan is None or config.gan.lambda_vgg <= 0:
        return []
    from models.gan.adversarial import VGG

    return [VGG]


def build_method(config: Config, spec: DataSpec) -> Method:
    """The method named by `config.model`, with fresh weights."""
    module, _, name = METHODS[config.model].partition(":")
    return getattr(import_module(module), name)(config, spec)
