"""Label maps to images of random or fitted contrast, without learning: the lab2im / SynthSeg / fetal family.

sampling.py draws the parameters, render.py makes the image of them; spatial.py, intensity.py, acquisition.py and artefacts/
are the steps, each usable alone; labels.py and priors.py say what the labels are and how bright.
"""

from typing import TYPE_CHECKING, Any

from models.gmm.labels import LabelScheme
from models.gmm.method import Gmm
from models.gmm.params import Params
from models.gmm.priors import FittedPrior, parse_prior
from models.gmm.render import deform, paint, render, render_pair
from models.gmm.sampling import GivenPriors, sample_params

if TYPE_CHECKING:
    from dataloaders import lab2im as utils
    from dataloaders.image_generator import BrainGenerator, ImageGenerator

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
    "render",
    "render_pair",
    "sample_params",
    "utils",
]


def __getattr__(name: str) -> Any:
    """The generators read files, so they live with the data loaders; here is only the door that users expect."""
    if name in ("ImageGenerator", "BrainGenerator"):
        from dataloaders import image_generator

        return getattr(image_generator, name)
    if name == "utils":
        from dataloaders import lab2im

        return lab2im
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
