"""The comparison report: report.html, compare.json, figures/ and tables/ of several results folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from dataloaders.io.files import atomic_path, read_json, write_json, write_text
from evaluation.compare import Entrant
from evaluation.report import ranked
from evaluation.report.page import RUNS, Content, gather_content, render_page
from evaluation.report.panels import file_stem, png, sheet, svg
from evaluation.report.pictures import tile_sheet
from evaluation.report.tables import csv_tables, latex_tables, to_json

__all__ = ["gather_content", "refuse_foreign", "render_page", "write_report"]


def write_report(entrants: Sequence[Entrant], out: Path, rank_by: str = ranked.DEFAULT, runs: Path = RUNS) -> Path:
    """Write report.html, compare.json, figures/ and tables/ to `out`; returns the report's path.

    rank_by: metric with a value per slice by which worst and best are chosen. runs: folder of run folders.
    """
    with rc_context({"text.parse_math": False}):  # names are texts: a $ in them is no formula
        content = gather_content(entrants, rank_by, runs)
        files = [name for stem, figure in _figures(content) for name in _write_figure(out, stem, figure)]
    tables = csv_tables(entrants, content.rows) | latex_tables(entrants, content.rows)
    for name, text in tables.items():
        write_text(out / "tables" / name, text)
    write_json(out / "compare.json", to_json(entrants, content.rows, [*files, *(f"tables/{name}" for name in tables)]))
    write_text(out / "report.html", render_page(content))
    return out / "report.html"


def refuse_foreign(out: Path) -> None:
    """ValueError where the report would replace files of somebody else: those of a report have its compare.json."""
    there = [path for path in (out / "compare.json", out / "report.html") if path.exists()]
    try:
        found = read_json(there[0]) if there else None
    except ValueError:
        found = None
    schema = found.get("schema") if isinstance(found, dict) else None
    if there and not str(schema).startswith("medsis-compare/"):
        raise ValueError(f"{there[0]}: was not written by this command; choose another folder, or move it")


def _figures(content: Content) -> list[tuple[str, Figure]]:
    """(stem, figure): plots and pictures of the page."""
    figures = [(one.stem, sheet(one, content.names)) for one in content.panels]
    for channel in content.channels:
        strip, stem = channel.strip, file_stem(channel.name)
        rows = [
            (row.where.replace(", ", "\n"), [("" if r else tile.title, tile) for tile in row.all])
            for r, row in enumerate(strip.rows)
        ]
        figures.append((f"slices_{stem}", tile_sheet(rows, strip.aspect, f"differences: {strip.scale}")))
        if channel.ranking.found:
            figures.append((f"worst_best_{stem}", ranked.ranking_figure(channel.ranking, content.names)))
    return figures


def _write_figure(out: Path, stem: str, figure: Figure) -> list[str]:
    names = []
    for suffix, data in (("png", png(figure)), ("svg", svg(figure))):
        names.append(f"figures/{stem}.{suffix}")
        with atomic_path(out / names[-1]) as temporary:
            temporary.write_bytes(data)
    return names
