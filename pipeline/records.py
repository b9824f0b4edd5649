"""What is known about a unit of work: its identity, and the record that it leaves on disk."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dataloaders.io.files import file_sha256
from dataloaders.io.ledger import Ledger
from dataloaders.io.schema import PathBelow, decode

RECORD = "record.json"
# done: outputs are there. excluded: run, and not to be used. failed: a tool failed. missing: a tool is not installed.
# blocked: what it needs is none of these but done; never on disk, as it follows from the other records.
State = Literal["done", "excluded", "failed", "missing", "blocked"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Unit:
    """One stage of one case (or of one combination).

    needs: units that have to be done. gathers: units that have to be over, done or not. settings: everything else that
    shapes the result. files: sources.
    """

    stage: str
    name: str = ""
    case: str = ""
    needs: tuple[str, ...] = ()
    gathers: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @property
    def id(self) -> str:
        """``stage/name/case``, without the parts that are empty; also the folder below the study's."""
        return "/".join(part for part in (self.stage, self.name, self.case) if part)

    @property
    def upstream(self) -> tuple[str, ...]:
        """All units that have to be over before."""
        return (*self.needs, *self.gathers)


@dataclass(frozen=True)
class Output:
    """A file of a unit, in its folder."""

    file: PathBelow
    sha256: str
    bytes: int

    @classmethod
    def of(cls, folder: Path, file: str) -> Output:
        """As it is now."""
        return cls(file, file_sha256(folder / file), (folder / file).stat().st_size)


def ledger(folder: Path) -> Ledger:
    """Of units whose folders lie in this one, each with its record, made from its key. Their outputs are `Output`s."""
    return Ledger(folder, "medsis-unit/1", records="", ending=f"/{RECORD}", sources="key", outputs=())


@dataclass(frozen=True)
class Record:
    """What became of a unit. key: hash of everything that the result depends on; see `Project.key`.

    seconds: from begin to end; cpu_seconds: of all cores, with those of the programs that it ran.
    """

    unit: str
    key: str
    state: State
    reason: str = ""
    outputs: dict[str, Output] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    tool: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def save(self, folder: Path) -> None:
        """Write record.json, the last file of a unit."""
        said = asdict(self)
        ledger(folder.parent).record(folder.name, said.pop("key"), **said)

    @classmethod
    def load(cls, folder: Path) -> Record | None:
        """The record of a folder; None where there is none, or one that nobody can read."""
        found = ledger(folder.parent).read(folder.name) or {}
        found.pop("schema", None)
        with suppress(ValueError):
            record: Record = decode(cls, found, RECORD)
            return record
        return None

    def intact(self, folder: Path) -> bool:
        """Whether all files are there with their size; one that was cut or removed makes the unit run again."""
        places = [(folder / output.file, output.bytes) for output in self.outputs.values()]
        return all(path.is_file() and path.stat().st_size == size for path, size in places)

    def line(self) -> str:
        """For whoever watches."""
        took = f" ({self.seconds:.0f} s)" if self.seconds >= 1 else ""
        return f"{self.unit}: {self.state}{took}{': ' + self.reason if self.reason else ''}"

    def digest(self) -> dict[str, Any]:
        """What the units that come after depend on."""
        sums = {name: output.sha256 for name, output in self.outputs.items()}
        return {"state": self.state, "outputs": sums, "facts": self.facts}
