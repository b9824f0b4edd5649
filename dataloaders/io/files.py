"""Atomic files and safe names. Every file the project writes goes through here."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import shutil
import socket
import tomllib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from dataloaders.io.locks import lock_place, runs

TEMPORARY = ".tmp-"
RESUMABLE = ".part-"


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and replaces `path`, on error removed.

    The temporary name keeps the suffixes of `path`, because writers such as nibabel choose their format by them. What
    killed processes of this machine left in the folder is removed when a process first writes there. Within a folder that
    `whole_folder` moves to its place at once, files are written as they are: nobody sees them before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if any(part.startswith(TEMPORARY) for part in path.parent.parts):
        yield path
        return
    _sweep(path.parent)
    temporary = path.with_name(f"{TEMPORARY}{_machine()}-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@cache
def _machine() -> str:
    """Tells machines apart, and containers with process numbers of their own, without their names."""
    numbers = Path("/proc/self/ns/pid")
    own = os.readlink(numbers) if numbers.is_symlink() else ""
    return f"{zlib.crc32(f'{socket.gethostname()} {own}'.encode()):08x}"


@cache
def _sweep(folder: Path) -> None:
    """Remove temporary files of this machine's processes that are dead."""
    for left in folder.glob(f"{TEMPORARY}{_machine()}-*"):
        number = left.name.removeprefix(f"{TEMPORARY}{_machine()}-").partition("-")[0]
        if number.isdigit() and not runs(int(number)):
            left.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, mark: str = "") -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its place in the end: it is whole, or as it was before.

    mark: of work that can go on; what an interrupted one with the same mark left is still in the folder, whose files are
    therefore written atomically. ValueError where another process is about to replace the same one.
    """
    staging = folder.with_name(f"{RESUMABLE if mark else TEMPORARY}{folder.name}")
    old = folder.with_name(f".old-{folder.name}")
    with lock_place(folder):
        if old.is_dir() and not folder.exists():  # killed between two moves
            old.rename(folder)
        kept = staging / ".mark"
        if not (mark and kept.is_file() and kept.read_text(encoding="utf-8") == mark):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            if mark:
                kept.write_text(mark, encoding="utf-8")
        try:
            yield staging
        except BaseException:
            if not mark:
                shutil.rmtree(staging, ignore_errors=True)
            raise
        kept.unlink(missing_ok=True)
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
    """Write UTF-8 text atomically; parts of file names that are no text as escapes."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path | str, data: Any) -> None:
    """Write JSON atomically. NaN and infinity are refused: they are not JSON and other readers choke on them."""
    write_text(path, json_text(data))


def json_text(data: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def listed(lines: Sequence[str], limit: int = 20) -> list[str]:
    """The first lines, and one that counts the others."""
    more = len(lines) - limit
    return [*lines[:limit], f"and {more} more"] if more > 0 else list(lines)


def csv_text(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A CSV table; None is an empty cell. Text that a spreadsheet would run as a formula gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_harmless(cell) for cell in row] for row in (head, *rows))
    return text.getvalue()


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file of ours, () where there is none; ValueError naming it where it is damaged."""
    if not path.is_file():
        return []
    with naming(path, "damaged"), open(path, encoding="utf-8", newline="") as file:
        try:
            return list(csv.DictReader(file))
        except csv.Error as error:
            raise ValueError(str(error)) from None


def markdown_table(head: Sequence[object], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown, its first column on the left."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def _harmless(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def with_path(path: Path | str, error: Exception | str) -> str:
    """The error's message, with the file it is about in front unless it names that already."""
    text = str(error)
    return text if str(path) in text else f"{path}: {text}"


def package_version(name: str) -> str | None:
    """Version of an installed Python package, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def naming(what: Path | str, fault: str = "") -> Iterator[None]:
    """Within, a ValueError says first what it is about: a file, unless it names that already, and `fault`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(with_path(what, f"{fault}: {error}" if fault else error)) from None


def _no_constant(name: str) -> None:
    raise json.JSONDecodeError(f"{name} is no number of JSON", name, 0)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise json.JSONDecodeError(f"{text} is too large a number", text, 0)
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is there twice")
        found[key] = value
    return found


def read_json(
    path: Path | str, object_hook: Callable[[dict[str, Any]], Any] | None = None, each_once: bool = False
) -> Any:
    """A JSON file, with or without a byte order mark; ValueError naming it where it is not JSON.

    object_hook: what becomes of each object. each_once: refuse a key that an object has twice; the last would count.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        pairs = _each_once if each_once else None
        data = json.loads(
            text, object_hook=object_hook, object_pairs_hook=pairs, parse_constant=_no_constant, parse_float=_finite
        )
        if "\\ud" in text or "\\uD" in text:  # half a character (a lone surrogate), which no file or terminal can hold
            json.dumps(data, ensure_ascii=False, default=str).encode()
        return data
    except (json.JSONDecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    except ValueError as error:
        raise ValueError(with_path(path, error)) from None


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A TOML file, with or without a byte order mark; ValueError naming it where it is none, or no such `what` is there."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such {what}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file ({error})") from None


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """The same of a large file that is asked for often: remembered while its size and time stay as they are."""
    stat = path.stat()
    return _known_sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _known_sha256(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)
