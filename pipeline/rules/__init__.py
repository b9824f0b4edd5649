"""What is done for which unit. The code of a rule is imported when it is run: most do without torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from pipeline.context import Context, Made


@dataclass(frozen=True)
class Rule:
    """rank: rules of one rank do not wait for each other. function: ``module.name`` in this folder.

    version: raised when the code changes its results. resumable: an interrupted unit goes on in its folder.
    """

    rank: int
    function: str
    version: int = 1
    resumable: bool = False

    def run(self, context: Context) -> Made:
        """Do it."""
        module, _, name = self.function.rpartition(".")
        made: Made = getattr(import_module(f"pipeline.rules.{module}"), name)(context)
        return made


# By stage, in the order of the work.
RULES: dict[str, Rule] = {
    "harmonise": Rule(1, "images.harmonise", version=2),
    "strip": Rule(2, "images.strip"),
    "crop": Rule(3, "images.crop"),
    "slices": Rule(3, "slices.real_slices", version=2),
    "segment": Rule(4, "images.segment"),
    "tissue": Rule(5, "images.tissue"),
    "priors": Rule(6, "synthesis.priors", version=2),
    "real": Rule(6, "gan.real", version=2),
    "reference": Rule(6, "evaluating.reference", version=2),
    "gan": Rule(7, "gan.train", resumable=True),
    "synthesise": Rule(7, "synthesis.synthesise", version=2),
    "paint": Rule(8, "gan.paint", version=2),
    "dataset": Rule(9, "networks.dataset"),
    "plan": Rule(10, "networks.plan"),
    "train": Rule(11, "networks.train", resumable=True),
    "predict": Rule(12, "networks.predict"),
    "evaluate": Rule(13, "evaluating.evaluate"),
    "report": Rule(14, "evaluating.report"),
}
