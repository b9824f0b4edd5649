"""What all tools have in common: find -> version -> command -> output."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dataloaders.io.files import package_version
from dataloaders.io.nifti import VolumeError, read_volume
from pipeline.programs import ToolFailed, ToolMissing, answer, find_program, run_command

Kind = Literal["harmonise", "strip", "segment", "train"]
ROOT = Path(__file__).resolve().parents[2]
PYTHON = str(Path(sys.executable).absolute())
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


@dataclass(frozen=True)
class ToolCall:
    """image (.nii.gz) -> files in folder. settings: the tool's, complete. limit: seconds."""

    image: Path
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    limit: float | None = None

    @property
    def log(self) -> Path:
        """Where everything that the tool prints is kept."""
        return self.folder / "log.txt"


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A stripper, segmenter or harmoniser, as a table of tools.toml says it.

    wants: the whole head or the stripped and cropped brain. given: its labels came with the scan. table: file of the
    label tables that says what its labels are.
    settings: names and defaults. limits: of a setting, as (above, below) or as the words that are allowed.
    programs: names that it may have; this Python where there are none. home: variable that says where its suite is
    installed. stamp: file there that holds the version, of suites whose programs (in home/bin) need that variable.
    package: Python package that knows the version. weights: setting that names the file or folder without which it is
    nothing.
    command: arguments with {image}, {folder}, {threads}, {root} (of medsis) and {settings} in them; on, off: more of
    them for settings that are true, or not. output: the file of the folder that it was called for.
    """

    name: str
    kind: Kind
    licence: str
    citation: str
    get: str
    wants: Literal["head", "brain"] = "head"
    given: bool = False
    table: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    programs: tuple[str, ...] = ()
    home: str = ""
    stamp: str = ""
    package: str = ""
    weights: str = ""
    command: str = ""
    on: dict[str, str] = field(default_factory=dict)
    off: dict[str, str] = field(default_factory=dict)
    output: str = "labels.nii.gz"

    def gets(self, settings: Mapping[str, Any]) -> str:
        """``head`` or ``brain``; a network may have been trained on either, so its settings can say so."""
        return str(settings.get("input", self.wants))

    def complete(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Defaults with the given settings on top; ValueError naming those that do not exist, and wrong values."""
        for key, value in given.items():
            if key not in self.settings:
                known = ", ".join(self.settings) or "none"
                raise ValueError(f"{where} {key}: no such setting of {self.name}; there are {known}")
            default, allowed = self.settings[key], self.limits.get(key, ())
            kinds = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
                raise ValueError(f"{where} {key} = {value!r}: must be of the kind of {default!r}")
            if isinstance(value, str) and allowed and value not in allowed:
                raise ValueError(f"{where} {key} = {value!r}: must be {' or '.join(allowed)}")
            if not isinstance(value, str) and allowed and not allowed[0] < value < allowed[1]:
                raise ValueError(f"{where} {key} = {value}: must lie between {allowed[0]} and {allowed[1]}")
        return {**self.settings, **given}

    def find(self) -> Path | str | None:
        """The program on PATH, beside this Python, or below its home; None where it is missing."""
        home = os.environ.get(self.home) if self.home else None
        return find_program(self.programs or [PYTHON], [Path(home, "bin"), Path(home)] if home else [])

    def located(self, settings: Mapping[str, Any]) -> Path | str:
        """`find`, or ToolMissing with one line that says how to get it, or the weights that it needs."""
        weights = settings[self.weights] if self.weights else ""
        if weights and not Path(weights).exists():
            raise ToolMissing(f"{self.name}: {self.weights} = {weights}: no such file or folder; {self.get}")
        found = self.find()
        if found is None or (self.weights and not weights):
            raise ToolMissing(f"{self.name} is not installed: {self.get}")
        return found

    def version(self, found: Path | str) -> str:
        """Of its package, of its suite, or the first thing that looks like one in its answer; ``unknown`` without."""
        if self.package:
            return package_version(self.package) or "unknown"
        if self.stamp:
            stamp = self._home(found) / self.stamp
            return stamp.read_text(encoding="utf-8").strip() if stamp.is_file() else "unknown"
        match = re.search(r"\d+\.\d+(\.\d+)?[\w.+-]*", answer([found, "--version"]))
        return match[0] if match else "unknown"

    def _home(self, found: Path | str) -> Path:
        return Path(os.environ.get(self.home) or Path(found).parent.parent)

    def about(self, found: Path | str) -> dict[str, str]:
        """For records and reports."""
        known = {"name": self.name, "version": self.version(found), "program": str(found)}
        return {**known, "licence": self.licence, "citation": self.citation}

    def arguments(self, call: ToolCall) -> list[str]:
        """The command line without the program; a value is one word, whatever is in it."""
        values = {**call.settings, "image": call.image, "folder": call.folder, "threads": call.threads, "root": ROOT}
        words = self.command.split()
        for texts, wanted in ((self.on, True), (self.off, False)):
            words += [word for key, text in texts.items() if bool(values[key]) is wanted for word in text.split()]
        return [word.format(**values) for word in words]

    def run(self, call: ToolCall) -> tuple[Path, dict[str, str]]:
        """Call it: the output, and `about`. ToolMissing, ToolFailed.

        What it left is judged, not its exit code alone: a tool that fails may well end with 0.
        """
        found = Path(self.located(call.settings))
        variables = {**dict.fromkeys(_THREADS, str(call.threads)), "FSLOUTPUTTYPE": "NIFTI_GZ"}
        variables |= {self.home: str(self._home(found))} if self.stamp else {}
        variables |= {"PYTHONPATH": str(ROOT)} if str(found) == PYTHON else {}
        run_command([found, *self.arguments(call)], call.folder, call.log, call.limit, variables)
        output = call.folder / self.output
        if not output.is_file():
            raise ToolFailed(f"{found.name} ended without an error but left no {output.name}; see {call.log}")
        try:
            read_volume(output)
        except VolumeError as error:
            raise ToolFailed(f"{found.name} left a damaged file: {error}") from None
        return output, self.about(found)
