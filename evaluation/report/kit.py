"""What every report is made of: pages from templates, tables, keys, and the colours that they share.

Whatever comes from a file is text until a template writes it, and templates escape.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from dataloaders.io.files import csv_text
from dataloaders.overview import counted

TEMPLATES = Path(__file__).parent / "templates"
METHOD_COLORS = (
    *("#0b6e99", "#c2571a", "#5b8c2a", "#7a4fa3", "#a3294f"),
    *("#3d5a80", "#8a6d00", "#1f8f7a", "#b0559a", "#5c4b3a"),
)
REAL_COLOR, REAL_INK = "#c9ccd1", "#6b7480"
INK, SOFT, LINE = "#1c2430", "#5a6472", "#b9bfc7"


def color_of(i: int) -> str:
    """Colour of method i."""
    return METHOD_COLORS[i % len(METHOD_COLORS)]


_LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "−": "$-$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "±": r"$\pm$",
    **{raised: f"$^{{{plain}}}$" for plain, raised in zip("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)},
    "µ": r"$\mu$",
    "…": r"\ldots{}",
    "–": "--",
}


def latex(text: object) -> str:
    """`text` as LaTeX prints it."""
    return "".join(_LATEX.get(letter, letter if letter.isprintable() else " ") for letter in str(text))


def joined(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def source(data: bytes) -> Markup:
    """Attributes of an <img> that holds a picture (WebP or SVG) itself, with its size, so that nothing moves as it loads."""
    if data.startswith(b"RIFF"):
        kind, (width, height) = "webp", Image.open(io.BytesIO(data)).size
    else:
        kind, found = "svg+xml", re.search(rb'viewBox="0 0 (\S+) (\S+)"', data)
        width, height = (round(float(side) * 4 / 3) for side in (found.groups() if found else (b"300", b"150")))
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Markup(f'src="{url}" width="{width}" height="{height}"')


def render(template: str, folder: Path = TEMPLATES, **content: Any) -> str:
    """A page or a text; its template is in `folder`, those that all pages share beside it or in `TEMPLATES`."""
    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"source": source, "latex": latex, "braced": "{{{}}}".format}
    environment.filters |= {"counted": counted, "joined": joined}
    environment.globals["asset"] = lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    return environment.get_template(template).render(**content)


@dataclass(frozen=True)
class Key:
    """A coloured square and what it stands for."""

    color: str
    text: str


@dataclass(frozen=True)
class Heading:
    """Of a column or row. better: which way is. color: of the square before it. sort: as ``number``, ``text`` or not."""

    text: str
    unit: str = ""
    better: str | None = None
    color: str = ""
    sort: str = ""


@dataclass(frozen=True)
class Cell:
    """A number, or what stands in its place.

    text: for people. value: for CSV files, and to sort by; None is an empty cell. small: in small print below. kind:
    ``best``, ``na``, ``bad`` or nothing. title: what a pointer is told. note: number of a footnote.
    """

    text: str
    value: float | str | None = None
    small: tuple[str, ...] = ()
    kind: str = ""
    title: str = ""
    note: int = 0
    clear: bool = False


@dataclass(frozen=True)
class Table:
    """columns: the first is that of the rows' heads. rows, foot: a head and its cells; plain text is a cell or head too."""

    columns: Sequence[Heading | str]
    rows: Sequence[Sequence[Any]]
    foot: Sequence[Sequence[Any]] = ()
    caption: str = ""
    note: str = ""
    kind: str = ""

    def holds_text(self, column: int) -> bool:
        """Whether cells of a column are words, which stand on the left."""
        return any(isinstance(row[column], str) or row[column].kind.startswith("text") for row in self.rows)

    def transposed(self, corner: Heading, feet: int) -> Table:
        """Rows as columns; the last `feet` columns become the foot."""
        lines = [[head, *cells] for head, *cells in zip(self.columns, *self.rows, strict=True)][1:]
        body = len(lines) - feet
        return Table(
            [corner, *(row[0] for row in self.rows)], lines[:body], lines[body:], self.caption, self.note, self.kind
        )

    def csv(self) -> str:
        """As a CSV file."""
        lines = ([cell.value if isinstance(cell, Cell) else _text(cell) for cell in row] for row in self.rows)
        return csv_text([_text(head) for head in self.columns], lines)


def _text(head: Heading | str) -> str:
    return head.text if isinstance(head, Heading) else head


def measured(
    value: float | None, digits: int = 3, kind: str = "", small: tuple[str, ...] = (), title: str = ""
) -> Cell:
    """A number with so many decimals; n/a where there is none."""
    return Cell("n/a", kind="na") if value is None else Cell(f"{value:.{digits}f}", value, small, kind, title)


def missing(n: int) -> list[Cell]:
    """A line of cells without a value."""
    return [Cell("n/a", kind="na")] * n
