"""What is known about a unit of work: its identity, its key, and the record that it leaves on disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dataloaders.io.files import read_json, write_json
from dataloaders.io.nifti import file_sha256
from dataloaders.io.schema import PathBelow, decode

SCHEMA = "medsis-unit/1"
RECORD = "record.json"
BLOCKED = "blocked.json"  # beside the record of an earlier result, which counts again when the way is free
# done: outputs are there. excluded: run, and not to be used. failed: a tool failed. missing: a tool is not installed.
# blocked: what it needs is not done.
State = Literal["done", "excluded", "failed", "missing", "blocked"]
STATES: tuple[State, ...] = ("done", "excluded", "failed", "missing", "blocked")


@dataclass(frozen=True)
class Unit:
    """One stage of one case (or of one combination).

    needs: units that have to be done. gathers: units that have to be over, done or not. settings: everything else that
    shapes the result. files: sources.
    """

    stage: str
    name: str
    case: str
    needs: tuple[str, ...] = ()
    gathers: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @property
    def id(self) -> str:
        """``stage/name/case``, without the parts that are empty; also the folder below the study's."""
        return "/".join(part for part in (self.stage, self.name, self.case) if part)


@dataclass(frozen=True)
class Record:
    """What became of a unit. outputs: name -> file in the unit's folder, with SHA-256 and bytes.

    seconds: from begin to end; cpu_seconds: of all cores, with those of the programs that it ran.
    """

    unit: str
    key: str
    state: State
    reason: str = ""
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    tool: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def save(self, folder: Path) -> None:
        """Write record.json, the last file of a unit; of a blocked one blocked.json."""
        write_json(folder / (BLOCKED if self.state == "blocked" else RECORD), {"schema": SCHEMA, **asdict(self)})

    def digest(self) -> dict[str, Any]:
        """What the units that come after depend on."""
        sums = {name: item["sha256"] for name, item in self.outputs.items()}
        return {"state": self.state, "outputs": sums, "facts": self.facts}


def load_record(folder: Path) -> Record | None:
    """The record of a folder; None where there is none, or one that nobody can read."""
    path = folder / (BLOCKED if (folder / BLOCKED).is_file() else RECORD)
    if not path.is_file():
        return None
    try:
        data = dict(read_json(path))
        if data.pop("schema", None) != SCHEMA:
            return None
        record: Record = decode(Record, data, str(path))
        for item in record.outputs.values():
            decode(PathBelow, item["file"], "file")
            decode(int, item["bytes"], "bytes")
            decode(str, item["sha256"], "sha256")
        return record
    except (ValueError, TypeError, KeyError):
        return None


def outputs_intact(folder: Path, record: Record) -> bool:
    """Whether all files of a record are there with their size; one that was cut or removed makes the unit run again."""
    for item in record.outputs.values():
        path = folder / item["file"]
        if not path.is_file() or path.stat().st_size != item["bytes"]:
            return False
    return True


def describe_outputs(folder: Path, names: dict[str, str]) -> dict[str, dict[str, Any]]:
    """name -> file, as `Record.outputs` has them."""
    described = {}
    for name, file in names.items():
        path = folder / file
        described[name] = {"file": file, "sha256": file_sha256(path), "bytes": path.stat().st_size}
    return described


def key_of(unit: Unit, version: int, upstream: dict[str, Record], hashes: dict[str, str]) -> str:
    """SHA-256 of everything that the result depends on.

    version: of the stage's code. upstream: records of needs and gathers. hashes: of the unit's source files.
    """
    parts = {
        "stage": unit.stage,
        "version": version,
        "settings": unit.settings,
        "upstream": {name: record.digest() for name, record in sorted(upstream.items())},
        "files": hashes,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class FileHashes:
    """SHA-256 of source files, remembered by size and time of change, so that a second run does not read them again."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        self.known: dict[str, list[Any]] = {}
        if memory.is_file():
            try:
                self.known = dict(read_json(memory))
            except (ValueError, TypeError):
                self.known = {}

    def of(self, path: Path) -> str:
        """SHA-256; OSError where the file is not there."""
        stat = path.stat()
        mark = [stat.st_size, stat.st_mtime_ns]
        found = self.known.get(str(path))
        if found is None or found[:2] != mark:
            found = self.known[str(path)] = [*mark, file_sha256(path)]
        return str(found[2])

    def save(self) -> None:
        """Remember for the next run."""
        write_json(self.memory, self.known)
