"""The comparison report: report.html, compare.json, figures/ and tables/ of several results folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from dataloaders.io.files import atomic_path, read_json, write_json, write_text
from evaluation.compare import Entrant, metric_rows
from evaluation.report import gallery, gather, pictures, ranked, volumes
from evaluation.report.page import Content, render
from evaluation.report.panels import file_stem, panel_sets, png, sheet, svg
from evaluation.report.pictures import Strip
from evaluation.report.ranked import Ranking
from evaluation.report.tables import csv_tables, latex_tables, to_json

__all__ = ["content", "render", "write_report"]


def write_report(entrants: Sequence[Entrant], out: Path, rank_by: str = ranked.DEFAULT) -> Path:
    """Write report.html, compare.json, figures/ and tables/ to `out`; returns the report's path.

    rank_by: metric with a value per slice by which worst and best are chosen.
    """
    with rc_context({"text.parse_math": False}):  # names are texts: a $ in them is no formula
        page = content(entrants, rank_by)
        files = _write_figures(page, out) + _write_tables(page, out)
        write_json(out / "compare.json", to_json(entrants, page.rows, files))
        path = out / "report.html"
        write_text(path, render(page))
    return path


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


def content(entrants: Sequence[Entrant], rank_by: str = ranked.DEFAULT) -> Content:
    """Everything that page and files show."""
    channels = range(entrants[0].spec.num_channels)
    rows = metric_rows(entrants)
    chosen = pictures.chosen_slices(entrants[0])
    strips = [pictures.strip(entrants, c, chosen) for c in channels]
    rankings = [ranked.rank(entrants, c, rank_by) for c in channels]
    tiles = [_ranked_tiles(entrants, c, ranking, strips[c].limit) for c, ranking in enumerate(rankings)]
    wanted = dict.fromkeys((one.case.id, one.item.index) for ranking in rankings for one in ranking.found)
    panels = panel_sets(entrants, rows, gather.gather(entrants))
    plots = round(sum(len(svg) for one in panels for svg in one.svgs) * 4 / 3)
    budget = volumes.budget_beside(gallery.characters(strips, tiles), plots)
    held = volumes.pack(entrants, [(strip.limit, strip.unit) for strip in strips], list(wanted), budget)
    return Content(entrants, rows, panels, strips, rankings, tiles, held)


def _ranked_tiles(entrants: Sequence[Entrant], channel: int, ranking: Ranking, limit: float) -> Strip | None:
    if not ranking.found:
        return None
    return pictures.strip(entrants, channel, [(one.case, one.item) for one in ranking.found], limit)


def _write_figures(page: Content, out: Path) -> list[str]:
    figures = {one.stem: sheet(one, page.names) for one in page.panels}
    for c, channel in enumerate(page.entrants[0].spec.channels):
        stem, ranked_strip = file_stem(channel.name), page.ranked[c]
        figures[f"slices_{stem}"] = gallery.strip_figure(page.strips[c], page.names)
        if ranked_strip is not None:
            figures[f"worst_best_{stem}"] = gallery.ranking_figure(page.rankings[c], ranked_strip, page.names)
    return [name for stem, figure in figures.items() for name in _write_figure(out, stem, figure)]


def _write_figure(out: Path, stem: str, figure: Figure) -> list[str]:
    names = []
    for suffix, content in (("png", png(figure)), ("svg", svg(figure))):
        names.append(f"figures/{stem}.{suffix}")
        with atomic_path(out / names[-1]) as temporary:
            temporary.write_bytes(content)
    return names


def _write_tables(page: Content, out: Path) -> list[str]:
    tables = csv_tables(page.entrants, page.rows) | latex_tables(page.entrants, page.rows)
    for name, text in tables.items():
        write_text(out / "tables" / name, text)
    return [f"tables/{name}" for name in tables]
