"""Label maps to images of random or fitted contrast, without learning: the lab2im / SynthSeg / fetal family.

sampling.py draws the parameters, render.py makes the image of them; spatial.py, intensity.py and artefacts/ are the
steps, each usable alone; scheme.py and priors.py say what the labels are and how bright.
"""

from importlib import import_module
from typing import Any

# Imported when they are asked for: the options of this folder are read by every command, and the generators that users
# expect here read files, so they live with the data loaders.
_HOMES = {
    "dataloaders.labelmaps.image_generator": ("BrainGenerator", "ImageGenerator"),
    "models.gmm.scheme": ("LabelScheme",),
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
