"""Label tables of any kind of file, and the built-in ones, as rows of id, name and colour.

A new format is one more function of `READERS`, from a path to rows.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dataloaders.io.files import read_json, read_toml, with_path
from dataloaders.io.schema import TEXT, Must
from models.gmm import freesurfer

TABLES = Path(__file__).parent / "tables"
# Of one space of ids: aseg, aparc+aseg, a2009s (Destrieux), wmparc, SynthSeg and FastSurfer
FREESURFER = ("freesurfer", "aseg", "aparc", "destrieux", "a2009s", "wmparc", "synthseg", "fastsurfer")
BUILT_IN = dict.fromkeys(FREESURFER, freesurfer.TABLE)
BUILT_IN |= {name: TABLES / f"{name}.tsv" for name in sorted(path.stem for path in TABLES.glob("*.tsv"))}
TISSUES = ("GM", "WM", "CSF")  # sections of a table of tissues, beside none
# BIDS' column mapping
MAPPING = ["background", "grey_matter", "white_matter", "csf", "bone", "soft_tissue", "non_brain", "lesion"]
MAPPING += ["cortical_grey_matter", "subcortical_grey_matter", "brainstem", "cerebellum"]
_MAX_ID = 2**31 - 2  # one more is what stands for ids beyond a table, and label maps are int32
_ID = Must(f"from 0 to {_MAX_ID}", lambda number: 0 <= number <= _MAX_ID)
_NAME = Must("text in one line", lambda name: isinstance(name, str) and bool(name.strip()) and TEXT.test(name))
# Columns of delimited tables, in small letters: BIDS' and plain ones, then 3D Slicer's
_IDS, _RGB = ("index", "id", "labelvalue"), ("color_r", "color_g", "color_b")
_LUT = re.compile(r"(\S+)\s+(\S.*?)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)(\s+-?\d+)?")  # FreeSurfer, 3D Slicer
_SNAP = re.compile(r'(\d+)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)\s+[\d.]+\s+\d+\s+\d+\s+"(.*)"')  # ITK-SNAP


class LabelRow(NamedTuple):
    """What a table says of one id. where: line or entry of the file. color: ``#rrggbb``; tissue: by BIDS' column mapping;
    both "" where it says none.
    """

    id: int
    name: str
    where: str
    color: str = ""
    tissue: str = ""


def table_rows(table: Path | str, flag: str = "table") -> list[LabelRow]:
    """Rows of a built-in table (`BUILT_IN`) or of a file, in its order.

    BIDS' dseg.tsv (index, name, color, mapping) and other TSV and CSV files with an id and a name, 3D Slicer's too; .txt,
    .ctbl and .label of FreeSurfer (LUT), 3D Slicer and ITK-SNAP; JSON {"name": id or [ids]} or {"id": "name"}; TOML of
    tissues: GM, WM, CSF, none of ``"structure" = [ids, "first-last"]``. An id may be a colour, ``#rrggbb``.
    ValueError naming flag, file and row, for an id that is listed twice too.
    """
    if str(table) in BUILT_IN:
        return [row._replace(name=row.name.replace(" ", "_")) for row in _delimited(BUILT_IN[str(table)])]
    path = Path(table)
    if path.suffix not in READERS or not path.is_file():
        *kinds, last = READERS
        raise ValueError(
            f"{flag} {path}: must be an existing {', '.join(kinds)} or {last} file, or one of {', '.join(BUILT_IN)}"
        )
    seen: dict[int, LabelRow] = {}
    try:
        rows = list(READERS[path.suffix](path))
        if not rows:
            raise ValueError(f"{path}: names no ids")
        for row in rows:
            _ID.of(row.id, f"{path}: {row.where}: id")
            _NAME.of(row.name, f"{path}: {row.where}: name")
            if (first := seen.setdefault(row.id, row)) is not row:
                raise ValueError(
                    f"{path}: {row.where}: id {row.id} again, {row.name!r}; {first.where} says {first.name!r}"
                )
    except UnicodeDecodeError:
        raise ValueError(f"{flag} {path}: is no text") from None
    except ValueError as error:
        raise ValueError(f"{flag} {with_path(path, error)}") from None
    return rows


def _delimited(path: Path) -> Iterator[LabelRow]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        tabs = path.suffix == ".tsv"  # in which BIDS quotes nothing, so that a quote within a cell is only that
        quoting: Literal[0, 3] = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
        reader = csv.DictReader(file, delimiter="\t" if tabs else ",", restval="", quoting=quoting)
        found = reader.fieldnames or ()
        reader.fieldnames = columns = [_bare(column).lower() for column in found]
        number = next((column for column in _IDS if column in columns), None)
        if number is None or "name" not in columns:
            raise ValueError(f"{path}: needs the columns index (or id, LabelValue) and name, found {', '.join(found)}")
        for cells in reader:
            entries = {key: _bare(cells[key]) for key in columns}
            where = f"line {reader.line_num}"
            color = entries.get("color", "")
            if {*_RGB} <= entries.keys():
                color = _hex([entries[key] for key in _RGB], f"{path}: {where}")
            elif color.lower() in ("", "n/a"):
                color = ""
            elif not re.fullmatch(r"#[0-9A-Fa-f]{6}", color):
                raise ValueError(f"{path}: {where}: color {color!r}; must be #rrggbb, from #000000 to #ffffff, or n/a")
            mapping = entries.get("mapping", "")
            if mapping.lower() not in ("", "n/a", *map(str, range(len(MAPPING)))):
                raise ValueError(f"{path}: {where}: mapping {mapping!r}; must be from 0 to {len(MAPPING) - 1}, or n/a")
            tissue = MAPPING[int(mapping)] if mapping.isdecimal() else ""
            name = "" if entries["name"].lower() == "n/a" else entries["name"]
            yield _row(path, where, entries[number], name, color)._replace(tissue=tissue)


def _bare(cell: str) -> str:
    """Without blanks around it, nor the quotes around a whole cell that some programs write."""
    text = cell.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def _text(path: Path) -> Iterator[LabelRow]:
    kinds: dict[bool, str] = {}  # with opacity, without: the first line
    for i, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        text, where = line.strip(), f"line {i}"
        if not text or text[0] == "#":
            continue
        if snap := _SNAP.fullmatch(text):
            number, *rgb, name = snap.groups()
        elif lut := _LUT.fullmatch(text):
            number, name, *rgb, opacity = lut.groups()
            kinds.setdefault(opacity is not None, where)
            if len(kinds) > 1:  # a number before the colour may then be the name's
                raise ValueError(
                    f"{path}: {kinds[True]} has an opacity and {kinds[False]} has none; give it in all or none"
                )
        else:
            raise ValueError(
                f"{path}: {where}: {text[:60]!r}; must be id, name, red, green, blue, opacity (FreeSurfer, 3D Slicer), or "
                'id, red, green, blue, opacity, two switches, "name" (ITK-SNAP)'
            )
        yield _row(path, where, number, name.strip('" '), _hex(rgb, f"{path}: {where}"))


def _row(path: Path, where: str, number: str, name: str, color: str) -> LabelRow:
    """Of a line of a table. ValueError for an id that is none, and without a name."""
    if name:
        with contextlib.suppress(ValueError):
            return LabelRow(_number(number), name, where, color.lower())
    raise ValueError(f"{path}: {where}: id {number!r}, name {name!r}; must be a whole number of 0 or more and a name")


def _hex(rgb: Sequence[str], where: str) -> str:
    if not all(part.isdecimal() and int(part) <= 255 for part in rgb):
        raise ValueError(f"{where}: colour {' '.join(rgb)}; must be red, green and blue from 0 to 255")
    return "#" + bytes(int(part) for part in rgb).hex()


def _json(path: Path) -> list[LabelRow]:
    data = read_json(path, each_once=True)
    try:
        if all(str(key).isdigit() for key in data):
            return [LabelRow(int(key), name, repr(key)) for key, name in data.items()]
        listed = {name: ids if isinstance(ids, list) else [ids] for name, ids in data.items()}
        return [LabelRow(_number(i), name, repr(name)) for name, ids in listed.items() for i in ids]
    except (TypeError, ValueError, AttributeError):
        raise ValueError(f'{path}: expected {{"name": id or [ids]}} or {{"id": "name"}}') from None


def _number(entry: Any) -> int:
    """An id of a table; a colour ``#rrggbb`` is the id that it has in colour-coded label maps."""
    if isinstance(entry, str) and re.fullmatch(r"#[0-9A-Fa-f]{6}", entry):
        return int(entry[1:], 16)
    if isinstance(entry, bool) or not (entry.isdecimal() if isinstance(entry, str) else int(entry) == entry):
        raise ValueError(f"{entry!r} is no id")
    return int(entry)


def _tissues(path: Path) -> Iterator[LabelRow]:
    for section, structures in read_toml(path, "label table").items():
        if section not in (*TISSUES, "none") or not isinstance(structures, dict):
            raise ValueError(f"{path}: section {section!r}: must be one of {', '.join(TISSUES)}, none")
        tissue = "background" if section == "none" else section
        for name, entries in structures.items():
            for number in id_list(entries, f"{path}: {name}"):
                yield LabelRow(number, tissue, f"{section}: {name!r}")


def id_list(entries: Any, where: str, lowest: int = 1) -> list[int]:
    """Ids of a TOML entry: numbers of `lowest` or more and ``"first-last"``; ValueError, which begins with `where`."""
    numbers: list[int] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        span = re.fullmatch(r"(\d+)-(\d+)", entry) if isinstance(entry, str) else None
        if span is not None and int(span[1]) <= int(span[2]):
            numbers += range(int(span[1]), int(span[2]) + 1)
        elif isinstance(entry, int) and not isinstance(entry, bool) and entry >= lowest:
            numbers.append(entry)
        else:
            raise ValueError(f'{where} = {entries!r}: must be positive ids or "first-last"')
    return numbers


COLOUR_TABLES = (".txt", ".ctbl", ".label")  # they list all there may be, as built-in ones do
READERS: dict[str, Callable[[Path], Iterable[LabelRow]]] = {
    ".tsv": _delimited,
    ".csv": _delimited,
    ".json": _json,
    ".toml": _tissues,
}
READERS |= dict.fromkeys(COLOUR_TABLES, _text)
