"""Options of the slices' generator: this repository's GMM with what the original study got wrong set right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dataloaders.io.schema import check, decode
from models.gmm.options import GMM_PRESETS, GmmConfig


def gmm_options(contrast: str, changes: dict[str, Any]) -> GmmConfig:
    """The generator of slices: the background is 0 as in stripped scans, and labels are deformed before they are painted.

    t1: measured means and spreads, lab2im's deformation. random: lab2im's ranges, means in 25..225, each tissue for itself.
    ValueError for options that do not exist or are out of range.
    """
    base = GMM_PRESETS["lab2im"]()
    common = replace(base, background="zero", flipping=False, partial_volume=True, normalise="max")
    # Measured means are on the scan's window, so slices keep it: none is stretched by what it happens to show.
    measured = replace(common, vary=True, covariance=True, gamma_std=0.1, normalise="window")
    options = measured if contrast == "t1" else common
    if fixed := {"preset", "priors"} & changes.keys():
        raise ValueError(f"synthesise.gmm {', '.join(sorted(fixed))}: follows from synthesise.contrast")
    made: GmmConfig = decode(GmmConfig, {**vars(options), **changes}, "synthesise.gmm")
    check(made, "synthesise.gmm.")
    return made
