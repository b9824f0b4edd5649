"""What a rule gets and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataloaders.io.nifti import Volume, read_volume
from pipeline.cases import StudyCase
from pipeline.records import Record, Unit
from pipeline.study import Study

LOG = "log.txt"  # in a unit's folder: what its program printed


@dataclass(frozen=True)
class Made:
    """outputs: name -> file in the unit's folder. facts: plain values for reports. tool: name, version, program."""

    outputs: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    tool: dict[str, str] = field(default_factory=dict)


class Excluded(Exception):  # noqa: N818 (no error: a result that must not be used, with its reason)
    """A case that goes no further; what was made is kept, to be looked at."""

    def __init__(self, reason: str, made: Made | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.made = made or Made({})


@dataclass(frozen=True)
class Context:
    """Of one unit. folder: written by the rule, renamed when it is done. records: of all units that it names."""

    study: Study
    cases: Mapping[str, StudyCase]
    unit: Unit
    folder: Path
    records: Mapping[str, Record]

    @property
    def case(self) -> StudyCase:
        """The unit's."""
        return self.cases[self.unit.case]

    def home(self, unit: str) -> Path:
        """The folder of another unit."""
        return self.study.work / unit

    def path(self, unit: str, output: str) -> Path:
        """A file of another unit."""
        return self.home(unit) / self.records[unit].outputs[output].file

    def volume(self, unit: str, output: str) -> Volume:
        """A volume of another unit."""
        return read_volume(self.path(unit, output))

    def facts(self, unit: str) -> dict[str, Any]:
        """Facts of another unit."""
        return self.records[unit].facts

    def of(self, stage: str, case: str = "") -> dict[str, Record]:
        """Records of a stage's units by their ids, in the order of these; of one case where it is named."""
        ending = f"/{case}" if case else ""
        return {n: r for n, r in sorted(self.records.items()) if n.startswith(f"{stage}/") and n.endswith(ending)}

    def needed(self, stage: str) -> str:
        """The id of the unit of a stage that this one needs."""
        return next(name for name in self.unit.needs if name.split("/")[0] == stage)

    def done(self, names: Iterable[str]) -> list[str]:
        """Those that are done."""
        return [name for name in names if name in self.records and self.records[name].state == "done"]

    def gathered(self, stage: str) -> list[str]:
        """Units of a stage that this one gathers and that are done."""
        return [name for name in self.done(self.unit.gathers) if name.split("/")[0] == stage]
