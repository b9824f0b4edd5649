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
    "harmonise": Stage("images.harmonise", version=2),
    "strip": Stage("images.strip"),
    "crop": Stage("images.crop"),
    "segment": Stage("images.segment"),
    "tissue": Stage("images.tissue"),
    "priors": Stage("synthesis.priors", version=2),
    "synthesise": Stage("synthesis.synthesise", version=2),
    "real": Stage("gan.real", version=2),
    "gan": Stage("gan.train", resumable=True),
    "paint": Stage("gan.paint", version=2),
    "slices": Stage("testing.slices", version=2),
    "dataset": Stage("networks.dataset"),
    "plan": Stage("networks.plan"),
    "train": Stage("networks.train", resumable=True),
    "predict": Stage("networks.predict"),
    "reference": Stage("evaluating.reference", version=2),
    "evaluate": Stage("evaluating.evaluate"),
    "report": Stage("evaluating.report"),
}
