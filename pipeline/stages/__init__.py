"""What is done for a unit, stage by stage. The code of a stage is imported when it is run: most do without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from pipeline.context import Context, Made


@dataclass(frozen=True)
class Stage:
    """function: ``module.name`` in this folder. version: raised when the code changes its results.

    resumable: an interrupted unit goes on in its folder.
    """

    function: str
    version: int = 1
    resumable: bool = False

    @property
    def run(self) -> Callable[[Context], Made]:
        """The function."""
        module, _, name = self.function.rpartition(".")
        found: Callable[[Context], Made] = getattr(import_module(f"pipeline.stages.{module}"), name)
        return found


STAGES: dict[str, Stage] = {
    "harmonise": Stage("images.harmonise"),
    "strip": Stage("images.strip"),
    "crop": Stage("images.crop"),
    "segment": Stage("images.segment"),
    "tissue": Stage("images.tissue"),
    "priors": Stage("synthesis.priors"),
    "synthesise": Stage("synthesis.synthesise"),
    "real": Stage("gan.real"),
    "gan": Stage("gan.train", resumable=True),
    "paint": Stage("gan.paint"),
    "slices": Stage("testing.slices"),
    "dataset": Stage("networks.dataset"),
    "plan": Stage("networks.plan"),
    "train": Stage("networks.train", resumable=True),
    "predict": Stage("networks.predict"),
    "reference": Stage("evaluating.reference"),
    "evaluate": Stage("evaluating.evaluate"),
    "report": Stage("evaluating.report"),
}
