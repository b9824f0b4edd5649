"""A study with its plan, and what is known of each unit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from dataloaders.io.files import known_sha256, with_path
from pipeline.cases import StudyCase, find_cases
from pipeline.plan import make_plan
from pipeline.records import RECORD, Record, Unit
from pipeline.rules import RULES
from pipeline.study import Study, read_study

_MARKS = (RECORD, ".key", "blocked.json")  # the last two of earlier versions


@dataclass
class Project:
    """records: of the units that are over."""

    file: Path
    study: Study
    cases: dict[str, StudyCase]
    units: dict[str, Unit]
    records: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path) -> Project:
        """Of a study file; ValueError for whatever is wrong with it."""
        study = read_study(file)
        try:
            cases = find_cases(study)
            units = {unit.id: unit for unit in make_plan(study, cases)}
        except ValueError as error:
            raise ValueError(with_path(file, error)) from None
        project = cls(file, study, {case.id: case for case in cases}, units)
        for unit in units.values():
            project.look(unit)
        return project

    def folder(self, unit: Unit) -> Path:
        """Where the unit's results are."""
        return self.study.work / unit.id

    def chosen(self, patterns: Sequence[str]) -> list[Unit]:
        """Units that one of the patterns fits; all where there is none."""
        return [u for u in self.units.values() if not patterns or any(fnmatch(u.id, p) for p in patterns)]

    def look(self, unit: Unit) -> Record | None:
        """What is known of the unit now: that something it needs is over and not done, else what is on disk."""
        found = Record.load(self.folder(unit))
        for name in unit.needs:
            cause = self.records.get(name)
            if cause is not None and cause.state != "done":
                root = cause.reason.partition(": ")[2] if cause.state == "blocked" else cause.reason
                found = Record(unit.id, "", "blocked", f"{name} {cause.state}: {root}")
                break
        self.records.pop(unit.id, None)
        if found is not None:
            self.records[unit.id] = found
        return found

    def upstream(self, unit: Unit) -> dict[str, Record]:
        """Records of what the unit names, those that there are."""
        return {name: self.records[name] for name in unit.upstream if name in self.records}

    def key(self, unit: Unit) -> str:
        """SHA-256 of everything that the unit's result depends on now, the results before it among them."""
        parts = {
            "stage": unit.stage,
            "version": RULES[unit.stage].version,
            "settings": unit.settings,
            "upstream": {name: record.digest() for name, record in sorted(self.upstream(unit).items())},
            "files": {f"{i} {path.name}": known_sha256(path) for i, path in enumerate(unit.files)},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def current(self, unit: Unit) -> bool:
        """Whether what is known is of the unit as it is now, with all of its files."""
        record = self.records.get(unit.id)
        if record is None or record.state == "blocked":
            return record is not None
        return record.key == self.key(unit) and record.intact(self.folder(unit))

    def settled(self, unit: Unit, retry: bool = False) -> bool:
        """Whether there is nothing to run: the unit is current, or something that it needs is not done.

        A tool that was missing is looked for again; a tool that failed is tried again with `retry`.
        """
        record = self.look(unit)
        if any(name not in self.records or self.records[name].state != "done" for name in unit.needs):
            return True
        if record is None or not self.current(unit):
            return False
        return record.state in ("done", "excluded") or (record.state == "failed" and not retry)

    def refuse_foreign(self, unit: Unit) -> None:
        """ValueError where the unit's folder holds files of somebody else."""
        folder = self.folder(unit)
        if folder.is_dir() and any(folder.iterdir()) and not any((folder / mark).is_file() for mark in _MARKS):
            raise ValueError(f"{folder}: holds files that no run of this study wrote; move it, or choose another work")
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: is a file where the study wants a folder; move it, or choose another work")
