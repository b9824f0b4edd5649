"""Label maps to images of random or fitted contrast, without learning: the lab2im / SynthSeg / fetal family.

sampling.py draws the parameters, render.py makes the image of them; spatial.py, intensity.py and artefacts/ are the
steps, each usable alone; labels.py and priors.py say what the labels are and how bright.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataloaders.labelmaps import lab2im as utils  # noqa: F401 (a door by another name)
    from dataloaders.labelmaps.image_generator import BrainGenerator as BrainGenerator
    from dataloaders.labelmaps.image_generator import ImageGenerator as ImageGenerator
    from models.gmm.labels import LabelScheme as LabelScheme
    from models.gmm.method import Gmm as Gmm
    from models.gmm.params import Params as Params
    from models.gmm.priors import FittedPrior as FittedPrior
    from models.gmm.priors import GivenPriors as GivenPriors
    from models.gmm.priors import parse_prior as parse_prior
    from models.gmm.render import deform as deform
    from models.gmm.render import paint as paint
    from models.gmm.render import render_pair as render_pair
    from models.gmm.sampling import sample_params as sample_params

# Imported when they are asked for: the options of this folder are read by every command, and the generators that users
# expect here read files, so they live with the data loaders.
_HOMES = {
    "dataloaders.labelmaps.image_generator": ("BrainGenerator", "ImageGenerator"),
    "models.gmm.labels": ("LabelScheme",),
    "models.gmm.method": ("Gmm",),
    "models.gmm.params": ("Params",),
    "models.gmm.priors": ("FittedPrior", "GivenPriors", "parse_prior"),
    "models.gmm.render": ("deform", "paint", "render_pair"),
    "models.gmm.sampling": ("sample_params",),
}


def __getattr__(name: str) -> Any:
    if name == "utils":
        return import_module("dataloaders.labelmaps.lab2im")
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
