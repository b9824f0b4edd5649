"""Label maps to images of random or fitted contrast, without learning: the lab2im / SynthSeg / fetal family.

sampling.py draws the parameters, render.py makes the image of them; spatial.py, intensity.py, acquisition.py and artefacts/
are the steps, each usable alone; labels.py and priors.py say what the labels are and how bright.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataloaders.labelmaps import lab2im as utils
    from dataloaders.labelmaps.image_generator import BrainGenerator, ImageGenerator
    from models.gmm.labels import LabelScheme
    from models.gmm.method import Gmm
    from models.gmm.params import Params
    from models.gmm.priors import FittedPrior, parse_prior
    from models.gmm.render import deform, paint, render_pair
    from models.gmm.sampling import GivenPriors, sample_params

# Imported when they are asked for: the options of this folder are read by every command, and the generators that users
# expect here read files, so they live with the data loaders.
_HOMES = {
    "BrainGenerator": "dataloaders.labelmaps.image_generator",
    "FittedPrior": "models.gmm.priors",
    "GivenPriors": "models.gmm.sampling",
    "Gmm": "models.gmm.method",
    "ImageGenerator": "dataloaders.labelmaps.image_generator",
    "LabelScheme": "models.gmm.labels",
    "Params": "models.gmm.params",
    "deform": "models.gmm.render",
    "paint": "models.gmm.render",
    "parse_prior": "models.gmm.priors",
    "render_pair": "models.gmm.render",
    "sample_params": "models.gmm.sampling",
    "utils": "dataloaders.labelmaps.lab2im",
}
__all__ = [
    "BrainGenerator",
    "FittedPrior",
    "GivenPriors",
    "Gmm",
    "ImageGenerator",
    "LabelScheme",
    "Params",
    "deform",
    "paint",
    "parse_prior",
    "render_pair",
    "sample_params",
    "utils",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_HOMES[name])
    return module if name == "utils" else getattr(module, name)
