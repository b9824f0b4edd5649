"""What makes a long command resumable: a folder that is claimed with its settings, and a record for each piece of work.

The claim comes before the first output and the record after the last, each written at once, so a kill at any moment costs
the pieces under way. A piece without a record is made again. Shards share a ledger.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from dataloaders.io.console import say
from dataloaders.io.files import read_json, with_path, write_json
from dataloaders.io.find import files_below
from dataloaders.io.locks import FolderLock, lock_folder
from dataloaders.io.schema import PathBelow, decode

SETTINGS = "settings.json"
LOCK_WAIT = 60.0  # seconds in which the shards that start together have claimed their folder
LINE = 160  # letters of a difference that are shown
SHOWN = 20  # faults that are printed when they occur

Output = str | Path


@dataclass(frozen=True)
class Ledger:
    """Records of pieces of work, one JSON file each: ``<folder>/<records>/<key><ending>``.

    settings: all that shapes every piece; None where each piece is claimed alone, as beside files of somebody else.
    sources, outputs: the fields of a record that say what a piece was made of, and list its files below the folder.
    renew: make again what was made of other sources, instead of refusing. facts: fields that a record must have, with their
    types (with ``| None`` what it may have); one that has others counts as none. lock: of a folder that is held.
    """

    folder: Path
    schema: str = ""
    settings: dict[str, Any] | None = None
    records: str = "records"
    ending: str = ".json"
    sources: str = "sources"
    outputs: tuple[str, ...] = ("outputs",)
    renew: bool = False
    facts: tuple[tuple[str, Any], ...] = ()
    lock: FolderLock | None = None

    @classmethod
    def claim(
        cls,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        file: str = SETTINGS,
        about: Mapping[str, Any] | None = None,
        flag: str = "--out",
        overwrite: bool = False,
        alone: bool = False,
        **how: Any,
    ) -> Self:
        """Make the folder ours: `file` in it holds the settings, and what else there is to say `about` it.

        flag: of the command line, for messages. overwrite: what was made with other settings is removed. alone: no other
        process may use the folder until this ledger is closed. how: fields of the ledger.

        ValueError in one line where the folder holds something else, or pieces made with other settings, or is in use.
        """
        ledger = cls(folder, settings=plain(settings), **{"renew": overwrite, **how})
        ledger._settings_there(file, flag)  # first, so that no lock is left in a folder of something else
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder) if alone else _waited(folder)
        try:
            ledger._take(file, about or {}, flag, overwrite)
        except BaseException:
            lock.close()
            raise
        if alone:
            return replace(ledger, lock=lock)
        lock.close()
        return ledger

    def _settings_there(self, file: str, flag: str) -> dict[str, Any] | None:
        """The settings that the folder was claimed with; None for a new one. ValueError where it is not ours."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{flag} {self.folder} is a file; choose a folder")
        content = list(self.folder.iterdir()) if self.folder.is_dir() else []  # before looking for the settings
        path = self.folder / file
        if path.is_file():  # others have a settings.json too
            found = read_json(path)
            found = found if isinstance(found, dict) else {}
            settings = found.get("settings")
            if found.get("schema", "") != self.schema or not isinstance(settings, dict):
                raise ValueError(f"{path}: was not written by this command, or is damaged; choose another {flag}")
            return settings
        if any(not found.name.startswith(".") for found in content):
            raise ValueError(
                f"{flag} {self.folder} is not empty and was not written by this command; choose another folder"
            )
        return None

    def _take(self, file: str, about: Mapping[str, Any], flag: str, overwrite: bool) -> None:
        old = self._settings_there(file, flag)
        changed = [] if old is None else differences(old, self.settings or {})
        made = self.keys() if changed else []
        if made and not overwrite:
            lines = (line if len(line) < LINE else f"{line[: LINE - 3]}..." for line in changed)
            raise ValueError(
                f"{flag} {self.folder} holds what was made with other settings: {'; '.join(lines)}. "
                "Choose another folder, or give --overwrite where the command has it"
            )
        for key in made:
            self.forget(key)
        if changed or old is None:
            head = {"schema": self.schema} if self.schema else {}
            write_json(self.folder / file, {**head, "settings": self.settings, **about})

    def close(self) -> None:
        """Let a folder go that was claimed alone."""
        if self.lock is not None:
            self.lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for a moment, waiting for other shards."""
        with _waited(self.folder):
            yield

    @property
    def digest(self) -> str:
        """SHA-256 of the settings, which the records name."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    def path(self, key: str) -> Path:
        """File of a piece's record."""
        return self.folder / self.records / f"{key}{self.ending}"

    def keys(self) -> list[str]:
        """Of all pieces that have a record or a claim, sorted."""
        root = self.folder / self.records
        found = files_below(root, (self.ending,))
        return [path.relative_to(root).as_posix().removesuffix(self.ending) for path in found]

    def all(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Keys and records of all pieces that were made with these settings, whether or not their files are there."""
        for key in self.keys():
            record = self.read(key)
            if record is not None and self._is_made(record):
                yield key, record

    def _is_made(self, record: Mapping[str, Any]) -> bool:
        return self.sources in record and record.get("settings", self.digest) in (self.digest, self.settings)

    def load(self, path: Path) -> Any:
        """Content of a record's file; ValueError or FileNotFoundError where there is none. Here JSON."""
        return read_json(path)

    def save(self, path: Path, record: dict[str, Any]) -> None:
        """Write a record's file at once."""
        write_json(path, record)

    def read(self, key: str) -> dict[str, Any] | None:
        """The record of a piece, or its claim, which lacks the sources; None where there is none of ours that is sound."""
        try:
            record = decode(dict[str, Any], self.load(self.path(key)), key)
            if record.get("schema", "") != self.schema:
                return None
            for file in self._files(record):
                decode(PathBelow, file, "output")
            for name, kind in self.facts:
                decode(kind, record.get(name), name)
        except (ValueError, TypeError, FileNotFoundError, NotADirectoryError):
            return None
        return dict(record)

    def _files(self, record: Mapping[str, Any]) -> list[str]:
        return [file for field in self.outputs for file in record.get(field, ())]

    def done(self, key: str, sources: Any = None, outputs: Iterable[Output] = ()) -> dict[str, Any] | None:
        """The record of a piece that is whole: of these sources and settings, with its files and `outputs` there.

        None where it is to be made. ValueError, unless `renew`, where it was made of other sources, and without settings
        where files lie in the place of its outputs that no record is of.
        """
        record, wanted = self.read(key), [self.folder / file for file in outputs]
        if record is None:
            there = [path for path in (self.path(key), *wanted) if path.exists()] if self.settings is None else []
            if there and not self.renew:
                raise ValueError(
                    f"{there[0]}: no record of this command is beside it; move it away, or give --overwrite"
                )
            return None
        if not self._is_made(record):
            return None
        files = [*wanted, *(self.folder / file for file in self._files(record))]
        if changed := differences({"sources": record[self.sources]}, {"sources": plain(sources)}):
            if not self.renew:
                what = ", ".join(
                    line.partition(":")[0].removeprefix("--sources.").removeprefix("--") for line in changed
                )
                raise ValueError(f"{next(iter(files), self.path(key))}: was made with other {what}; give --overwrite")
            return None
        return record if all(path.is_file() for path in files) else None

    def start(self, key: str) -> None:
        """A piece is about to be written: its old record goes first. Without settings a claim takes its place."""
        if self.settings is None:
            self.save(self.path(key), {"schema": self.schema})
        else:
            self.path(key).unlink(missing_ok=True)

    def record(self, key: str, sources: Any = None, /, **facts: Any) -> dict[str, Any]:
        """A piece is whole: write its record, the last of its files, and return it.

        facts: what else it says, with the `outputs` as paths below the folder.
        """
        record = {"schema": self.schema} if self.schema else {}
        record |= {} if self.settings is None else {"settings": self.digest}
        record |= {self.sources: plain(sources), **facts}
        self.save(self.path(key), record)
        return record

    def forget(self, key: str) -> None:
        """Remove a piece, its record first, so that this never outlives its files."""
        record = self.read(key)
        self.path(key).unlink(missing_ok=True)
        for file in self._files(record or {}):
            (self.folder / file).unlink(missing_ok=True)


@dataclass
class WorkReport:
    """What a call did: how many pieces it made, how many were there, and one line for each that failed."""

    made: int = 0
    kept: int = 0
    faults: list[str] = field(default_factory=list)

    @contextmanager
    def piece(self, source: Path) -> Iterator[None]:
        """A piece of work, of this file, whose failing does not stop the others; a full disk does.

        A defect of ours leaves its traceback.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.filename is None:
                raise
            if not isinstance(error, (ValueError, MemoryError, OSError)):
                traceback.print_exc()
            self.faults.append(with_path(source, error))
            if len(self.faults) <= SHOWN:
                say(f"error: {self.faults[-1]}")

    def line(self, made: str = "made") -> str:
        """``12 made, 3 kept, 1 failed``; and of how many the lines were shown."""
        listed = f", of which the first {SHOWN} are listed" * (len(self.faults) > SHOWN)
        return f"{self.made} {made}, {self.kept} kept, {len(self.faults)} failed{listed}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines ``--flag: was X, now Y`` for all that is not equal, with the parts of nested settings as ``--flag.part``."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"--{prefix}{key}: was {before}, now {after}")
    return lines


def plain(value: Any) -> Any:
    """As it comes back from a JSON file: tuples are lists, paths are texts."""
    return json.loads(json.dumps(value, default=str))


def _waited(folder: Path) -> FolderLock:
    """The folder's lock, once other shards have let it go."""
    end = time.monotonic() + LOCK_WAIT
    while True:
        try:
            return lock_folder(folder)
        except ValueError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
