"""What all tools have in common: find -> version -> command -> outputs."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal

from dataloaders.io.nifti import VolumeError, read_volume
from pipeline.commands import ToolFailed, ToolMissing, answer, find_program, run_command

Kind = Literal["harmonise", "strip", "segment"]


@dataclass(frozen=True)
class Job:
    """One call: image (.nii.gz) -> files in folder. settings: the tool's, complete. limit: seconds."""

    image: Path
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    limit: float | None = None

    @property
    def log(self) -> Path:
        """Where everything that the tool prints is kept."""
        return self.folder / "log.txt"


@dataclass(frozen=True)
class Outcome:
    """What a tool left: `output` is the image, mask or label map that it was called for."""

    output: Path
    version: str
    program: str
    seconds: float


class Tool:
    """A stripper, segmenter or harmoniser.

    wants: the whole head or the stripped and cropped brain. table: file of pipeline/tables that says what its labels
    are. settings: names and defaults; `check` refuses others.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    wants: ClassVar[Literal["head", "brain"]] = "head"
    table: ClassVar[str] = ""
    licence: ClassVar[str]
    citation: ClassVar[str]
    get: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}

    def gets(self, settings: Mapping[str, Any]) -> str:
        """``head`` or ``brain``; a network may have been trained on either, so its settings can say so."""
        return str(settings.get("input", self.wants))

    @abstractmethod
    def find(self, settings: Mapping[str, Any]) -> Path | str | None:
        """The program, or the package that is built in; None where it is missing."""

    @abstractmethod
    def version(self, found: Path | str) -> str:
        """As the tool says itself; ``unknown`` where it does not."""

    @abstractmethod
    def run(self, job: Job) -> Outcome:
        """Do it. ToolMissing, ToolFailed."""

    def complete(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Defaults with the given settings on top; ValueError naming those that do not exist or have another type."""
        for key, value in given.items():
            if key not in self.settings:
                known = ", ".join(self.settings) or "none"
                raise ValueError(f"{where} {key}: no such setting of {self.name}; there are {known}")
            default = self.settings[key]
            kinds = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
                raise ValueError(f"{where} {key} = {value!r}: must be of the kind of {default!r}")
        values = {**self.settings, **given}
        self.check(values, where)
        return values

    def check(self, settings: Mapping[str, Any], where: str) -> None:
        """ValueError for values out of range."""

    def located(self, settings: Mapping[str, Any]) -> Path | str:
        """`find`, or ToolMissing with one line that says how to get it."""
        found = self.find(settings)
        if found is None:
            raise ToolMissing(f"{self.name} is not installed: {self.get}")
        return found


class ExternalTool(Tool):
    """A program of others. programs: names that it may have. homes: variables whose bin folders may hold it."""

    programs: ClassVar[tuple[str, ...]]
    homes: ClassVar[tuple[str, ...]] = ()
    version_arguments: ClassVar[tuple[str, ...]] = ("--version",)

    def find(self, settings: Mapping[str, Any]) -> Path | None:
        """On PATH, beside this Python, or below the tool's home folder."""
        homes = [Path(os.environ[name]) for name in self.homes if os.environ.get(name)]
        return find_program(self.programs, [place for home in homes for place in (home / "bin", home)])

    def version(self, found: Path | str) -> str:
        """The first thing that looks like a version in the program's answer."""
        match = re.search(r"\d+\.\d+(\.\d+)?[\w.+-]*", answer([found, *self.version_arguments]))
        return match[0] if match else "unknown"

    @abstractmethod
    def command(self, found: Path, job: Job) -> list[str | Path]:
        """The command line."""

    @abstractmethod
    def output(self, job: Job) -> Path:
        """The file that the tool was called for."""

    def environment(self, found: Path, job: Job) -> dict[str, str]:
        """Variables to set; threads are limited for all."""
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
        return dict.fromkeys(names, str(job.threads))

    def run(self, job: Job) -> Outcome:
        """Find, call, and judge what was left: a tool that fails may well end with 0."""
        found = Path(self.located(job.settings))
        seconds = run_command(self.command(found, job), job.folder, job.log, job.limit, self.environment(found, job))
        output = self.output(job)
        if not output.is_file():
            raise ToolFailed(f"{found.name} ended without an error but left no {output.name}; see {job.log}")
        try:
            read_volume(output)
        except VolumeError as error:
            raise ToolFailed(f"{found.name} left a damaged file: {error}") from None
        return Outcome(output, self.version(found), str(found), seconds)


class FreeSurferTool(ExternalTool):
    """Programs of FreeSurfer, which need FREESURFER_HOME."""

    homes = ("FREESURFER_HOME",)
    get = "install FreeSurfer 7.4 or newer (https://surfer.nmr.mgh.harvard.edu) and source SetUpFreeSurfer.sh"

    def version(self, found: Path | str) -> str:
        """Of FreeSurfer, from its build stamp."""
        stamp = Path(os.environ.get("FREESURFER_HOME", Path(found).parent.parent)) / "build-stamp.txt"
        return stamp.read_text(encoding="utf-8").strip() if stamp.is_file() else "unknown"

    def environment(self, found: Path, job: Job) -> dict[str, str]:
        """FREESURFER_HOME is that of the program where it is not set."""
        home = {} if os.environ.get("FREESURFER_HOME") else {"FREESURFER_HOME": str(found.parent.parent)}
        return {**super().environment(found, job), **home}


def package_version(name: str) -> str | None:
    """Version of an installed Python package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
