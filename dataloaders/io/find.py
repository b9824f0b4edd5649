"""Finding files: the one place that says which there are in a folder, a pattern, a list or a BIDS data set.

Hidden files, such as macOS's ``._x``, never count; images that are not read are said; links to folders are followed once.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dataloaders.io.console import warn_once
from dataloaders.io.nifti import SUFFIXES, stem

# What people call pictures and volumes; files of other kinds lie beside data for good reasons.
_IMAGES = ".png .jpg .jpeg .bmp .gif .tif .tiff .npy .npz .nii .nii.gz .img .hdr .mgz .mgh .mha .nrrd .dcm".split()
NO_IMAGES = ("dseg", "mask", "probseg", "defacemask")  # endings of BIDS files that are no scans
_Suffixes = str | tuple[str, ...]


def find_files(
    where: str | Path, suffixes: _Suffixes = SUFFIXES, below: bool = False, notes: list[str] | None = None
) -> list[Path]:
    """Files that `where` names: those of a folder (below: with its sub-folders), quoted pattern or .txt list, or itself.

    Sorted, and none where nothing is there; but a list keeps its order and what it names that is not there, a fault of its
    own when it is read. notes: gets the lines about images of folders that are not read, which are else warnings.
    """
    path = Path(where)
    if path.is_dir():
        if notes is None:
            warn_of_unread(path, suffixes, below)
        elif unread := not_read(path, suffixes, below):
            notes.append(unread)
        return files_below(path, suffixes) if below else files_in(path, suffixes)
    if path.suffix == ".txt" and path.is_file():
        return [file for line in read_list(path) for file in find_files(line, suffixes, below, notes) or [line]]
    named = [path] if path.exists() else [Path(name) for name in glob.glob(str(where), recursive=True)]
    return sorted(file for file in named if _is_wanted(file, suffixes))


def read_list(path: Path) -> list[Path]:
    """Paths of a text file, one a line, with or without a byte order mark; blank lines and those with # are none."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return [Path(line) for line in lines if line and not line.startswith("#")]


def files_in(folder: Path, suffixes: _Suffixes, flag: str = "") -> list[Path]:
    """Files with these endings in a folder, sorted; ValueError naming the option `flag` where there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"{flag} {folder}: no such folder".lstrip())
    return sorted(path for path in folder.iterdir() if _is_wanted(path, suffixes))


def files_below(folder: Path, suffixes: _Suffixes) -> list[Path]:
    """Files with these endings in a folder and those below it, sorted, but for hidden folders.

    Links to folders are followed, once each: a data set is often a folder of links to subjects.
    """
    return sorted(path for path in _entries_below(folder) if _is_wanted(path, suffixes))


def not_read(folder: Path, suffixes: _Suffixes, below: bool = False) -> str:
    """One line on the images of a folder (and those below it) that do not end in `suffixes`, by kind; '' if there are none.

    Links to nothing, and where only the folder itself is read its sub-folders, count too.
    """
    kinds: dict[str, list[str]] = {}
    for path in sorted(_entries_below(folder) if below else folder.iterdir()):
        if path.name.startswith(".") or _is_wanted(path, suffixes):
            continue
        ending = next((path.name[-len(end) :] for end in reversed(_IMAGES) if path.name.lower().endswith(end)), None)
        if path.is_dir():
            kinds.setdefault("sub-folders", []).append(f"{path.name}/")
        elif ending and not path.exists():
            kinds.setdefault("links to files that are not there (git annex get fetches them)", []).append(path.name)
        elif ending:
            kinds.setdefault(ending, []).append(path.name)
    if not kinds:
        return ""
    shown = [f"{len(names)} {kind} ({names[0]}{', …' if len(names) > 1 else ''})" for kind, names in kinds.items()]
    wanted = suffixes if isinstance(suffixes, str) else ", ".join(suffixes)
    return f"{folder}: not read, since only {wanted} files are: " + ", ".join(shown)


def warn_of_unread(folder: Path, suffixes: _Suffixes, below: bool = False) -> None:
    """Say what images a folder holds that are not read; see `not_read`."""
    if unread := not_read(folder, suffixes, below):
        warn_once(unread)


def _is_wanted(path: Path, suffixes: _Suffixes) -> bool:
    return path.name.endswith(suffixes) and not path.name.startswith(".") and path.is_file()


def _entries_below(folder: Path) -> Iterator[Path]:
    """Files and broken links below a folder, without those in hidden folders."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in names)


def without_twins(paths: Sequence[Path]) -> list[Path]:
    """The files; ValueError where two of a folder differ in their suffix alone (x.nii, x.nii.gz): one would count twice."""
    found: dict[Path, Path] = {}
    for path in paths:
        other = found.setdefault(path.parent / stem(path), path)
        if other is not path:
            raise ValueError(f"{path.parent}: both {other.name} and {path.name}; remove one")
    return list(paths)


def case_names(paths: Sequence[Path], where: str = "") -> list[str]:
    """Names of cases: the files' stems, or with one folder a patient the parts of the paths that differ.

    The folders count where several files have one name, as ``a/ct.nii.gz`` and ``b/ct.nii.gz``, and for a pattern `where`
    whose folders have the wildcards, as ``*/ct.nii.gz``, so that one file alone has the name that it has among others.
    """
    stems = [stem(path) for path in paths]
    folder, _, name = where.rpartition("/")
    if len(set(stems)) == len(stems) and not (glob.has_magic(folder) and not glob.has_magic(name)):
        return stems
    parts = [(*path.parent.parts, own) for path, own in zip(paths, stems, strict=True)]
    pattern = Path(where).parts
    if glob.has_magic(folder) and "**" not in where and {len(p) for p in parts} == {len(pattern)}:
        differ = [i for i, part in enumerate(pattern) if glob.has_magic(part)]
        named = ["_".join(own[i] for i in differ) for own in parts]
        if len(set(named)) == len(named):
            parts = [tuple(own[i] for i in differ) for own in parts]
    while len(parts) > 1 and len({own[0] for own in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [own[1:] for own in parts]
    while len(parts) > 1 and len({own[-1] for own in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [own[:-1] for own in parts]
    if len({len(own) for own in parts}) == 1 and len(parts) > 1:  # ses-1 of all sessions says nothing
        kept = [i for i in range(len(parts[0])) if len({own[i] for own in parts}) > 1]
        parts = [tuple(own[i] for i in kept) for own in parts] if kept else parts
    return ["_".join(own) for own in parts]


# -- BIDS ---------------------------------------------------------------------------------------------------------


def is_bids(folder: Path) -> bool:
    """Whether a folder is laid out as a BIDS data set."""
    return folder.is_dir() and any(child.is_dir() and child.name.startswith("sub-") for child in folder.iterdir())


def anatomical(files: Iterable[Path], root: Path) -> list[Path]:
    """Those in ``sub-*/[ses-*/]anat`` of the data set `root`, or of one below a folder that is none; no derivatives."""
    within = [path for path in files if path.parent.name == "anat"]
    parts = {path: path.relative_to(root).parts for path in within}
    within = [path for path in within if not {"derivatives", "sourcedata"} & {*parts[path]}]
    return [path for path in within if parts[path][0].startswith("sub-")] if is_bids(root) else within


def entities(path: Path) -> dict[str, str]:
    """``run-2`` and the like of a file's name."""
    return dict(part.split("-", 1) for part in stem(path).split("_") if "-" in part)


def suffix(path: Path) -> str:
    """What a name ends in: ``T1w`` of ``sub-01_T1w.nii.gz``."""
    return stem(path).rpartition("_")[2]


def subject_session(path: Path) -> str:
    """``sub-01`` or ``sub-01_ses-a`` of a file's name, '' of one that is no subject's."""
    of = entities(path) if path.name.startswith("sub-") else {}
    return f"sub-{of['sub']}" + (f"_ses-{of['ses']}" if "ses" in of else "") if "sub" in of else ""


def label_map_of(image: str, names: Collection[str], ending: str = "dseg") -> str | None:
    """Of the names of files that of an image's label map: ``<image>_dseg``, or ``<name>_dseg`` of ``<name>_T2w``."""
    return next((n for n in (f"{image}_{ending}", f"{image.rpartition('_')[0]}_{ending}") if n in names), None)


def label_pairs(
    images: Iterable[Path], maps: Sequence[Path], ending: str = "dseg"
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Images with their label maps by name (`label_map_of`), and a line for each file without a partner."""
    named = {stem(path): path for path in maps}
    pairs, alone = [], []
    for image in images:
        name = stem(image)
        if (own := label_map_of(name, named, ending)) is not None:
            pairs.append((image, named[own]))
        else:
            alone.append(f"{image}: no label map {name}_{ending} or {name.rpartition('_')[0]}_{ending}")
    used = {label for _, label in pairs}
    return pairs, alone + [f"{path}: no image for this label map" for path in maps if path not in used]


def entity_filters(wanted: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` texts as a table; ValueError for others."""
    if bad := [text for text in wanted if not re.fullmatch(r"[A-Za-z]+=[A-Za-z0-9]*", text)]:
        raise ValueError(f"--bids_filter {bad[0]}: must be KEY=VALUE as run=2, or KEY= for files without KEY")
    return dict(text.partition("=")[::2] for text in wanted)


def passes(path: Path, filters: Mapping[str, str]) -> bool:
    """Whether a file has none of the filtered entities, or the wanted values; ``run=`` is for files without a run."""
    of = entities(path)
    return all(of.get(key, value) == value for key, value in filters.items())
