"""Atomic files and safe names. Every file the project writes goes through here."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it can safely be one path component; raise ValueError otherwise.

    Case ids and run names become folders and files: separators, ``..`` and leading dots could leave the folder.
    """
    if not _SAFE_NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            f"{what} {name!r} is not allowed: use 1-100 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit, without '..'"
        )
    return name


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files with these endings in a folder and those below it, sorted.

    Links to folders are followed, once each: a data set is often a folder of links to subjects.
    """
    seen: set[str] = set()
    files = []
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        files += [Path(place, name) for name in names if name.endswith(suffixes)]
    return sorted(file for file in files if file.is_file())


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and replaces `path`, on error removed.

    The temporary name keeps the suffixes of `path`, because writers such as nibabel choose their format by them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its place in the end: it is whole, or as it was before."""
    staging, old = folder.with_name(f".tmp-{folder.name}"), folder.with_name(f".old-{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, data: Any) -> None:
    """Write JSON atomically. NaN and infinity are refused: they are not JSON and other readers choke on them."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def with_path(path: Path | str, error: Exception) -> str:
    """The error's message, with the file it is about in front unless it names that already."""
    text = str(error)
    return text if str(path) in text else f"{path}: {text}"


def _no_constant(name: str) -> None:
    raise json.JSONDecodeError(f"{name} is no number of JSON", name, 0)


def read_json(path: Path | str, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Read a JSON file; raise ValueError naming the file where it is not JSON. object_hook: what becomes of each object."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, object_hook=object_hook, parse_constant=_no_constant)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
