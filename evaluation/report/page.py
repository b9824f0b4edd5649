"""The comparison report of several results folders: report.html, compare.json, figures/ and tables/.

The page needs no other file and no network, and can be read without scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from dataloaders.io.files import atomic_path, read_json, write_json, write_text
from dataloaders.io.pictures import hex_color, label_colors
from evaluation.compare import Entrant, Row, metric_rows
from evaluation.report import ranked, tables
from evaluation.report.cards import cards, settings_table
from evaluation.report.gather import gather
from evaluation.report.kit import REAL_COLOR, Key, color_of, render
from evaluation.report.memory import Remembered, remembered
from evaluation.report.panels import PanelSet, file_stem, panel_sets, png, sheet, svg
from evaluation.report.pictures import HU_WINDOWS, Strip, chosen_slices, diverging_stops, strip, tile_sheet
from evaluation.report.plots import MAX_LABELS, MOST_PATIENTS
from evaluation.report.ranked import Ranking
from evaluation.report.volumes import Volumes, budget_beside, pack
from evaluation.report.words import certainty, limits

RUNS = Path("checkpoints")


@dataclass(frozen=True)
class ChannelPictures:
    """Of one channel: evenly spaced slices, and each method's worst and best."""

    number: int
    name: str
    unit: str
    strip: Strip
    ranking: Ranking

    @property
    def window(self) -> str:
        """The display window in words."""
        low, high = HU_WINDOWS["soft tissue"]
        return f"[{low:g}, {high:g}] HU (soft tissue)" if self.unit == "HU" else "the case's own intensity window"


@dataclass(frozen=True)
class Content:
    """All that the page shows."""

    entrants: Sequence[Entrant]
    rows: Sequence[Row]
    panels: Sequence[PanelSet]
    channels: Sequence[ChannelPictures]
    volumes: Volumes
    memory: Sequence[Remembered] = ()

    @property
    def names(self) -> list[str]:
        """Display names of the methods."""
        return [entrant.name for entrant in self.entrants]


def gather_content(entrants: Sequence[Entrant], rank_by: str = ranked.DEFAULT, runs: Path = RUNS) -> Content:
    """Everything that page and files show. runs: folder of run folders, where records of privacy.py lie."""
    memory = remembered(entrants, runs)
    rows, chosen = metric_rows(entrants), chosen_slices(entrants[0])
    channels = []
    for c, channel in enumerate(entrants[0].spec.channels):
        shown = strip(entrants, c, chosen)
        ranking = ranked.rank(entrants, c, rank_by, shown.limit)
        channels.append(ChannelPictures(c, channel.name, channel.unit, shown, ranking))
    panels = panel_sets(entrants, rows, gather(entrants), memory)
    tiles = [tile for of in channels for row in of.strip.rows for tile in row.all]
    tiles += [tile for of in channels for one in of.ranking.found for tile in one.tiles]
    plots = round(sum(len(svg) for one in panels for svg in one.svgs) * 4 / 3)
    wanted = dict.fromkeys((one.case.id, one.item.index) for of in channels for one in of.ranking.found)
    scales = [(of.strip.limit, of.strip.unit) for of in channels]
    pictures = [tile.data for tile in tiles] + [one.pairs for one in memory if one.pairs]
    budget = budget_beside(round(sum(map(len, pictures)) * 4 / 3), plots)
    return Content(entrants, rows, panels, channels, pack(entrants, scales, [*wanted], budget), memory)


def render_page(content: Content) -> str:
    """The page as one string."""
    entrants, rows, names = content.entrants, content.rows, content.names
    spec, n = entrants[0].spec, entrants[0].metrics["n"]
    settings, of_methods = entrants[0].metrics.get("settings") or {}, cards(entrants)
    notes: list[str] = []
    methods = [Key(color_of(i), name) for i, name in enumerate(names)]
    sections = dict.fromkeys(one.section for one in content.panels)
    return render(
        "compare.html",
        title=" vs ".join(names) if len(names) <= 3 else f"{len(names)} methods compared",
        n=n,
        spec=spec,
        kinds=[Key(card.color, f"{card.name}: {card.kind}") for card in of_methods],
        first=tables.first_table(entrants, rows),
        certainty=certainty(rows, n["patients"]) if len(entrants) > 1 else "",
        marks=tables.marks(rows),
        limits=limits(entrants, rows),
        cards=of_methods,
        settings=[settings_table(entrants, shared) for shared in (False, True)],
        metrics=tables.page_tables(entrants, rows, notes),
        notes=notes,
        region=settings.get("region"),
        repeats=settings.get("repeats"),
        memory=content.memory,
        long_table=tables.long_table(entrants, rows),
        methods=methods,
        real=Key(REAL_COLOR, "real"),
        panels={section: [one for one in content.panels if one.section == section] for section in sections},
        most_labels=MAX_LABELS if spec.num_labels > MAX_LABELS + 1 else 0,
        drawn_patients=MOST_PATIENTS if n["patients"] > MOST_PATIENTS else 0,
        channels=content.channels,
        labels=_label_keys(entrants[0]),
        stops=",".join(diverging_stops()),
        hounsfield=any(channel.unit == "HU" for channel in spec.channels),
        volumes=content.volumes,
        browser=content.volumes.meta | {"stops": diverging_stops(33)},
    )


def _label_keys(entrant: Entrant) -> list[Key]:
    """Of the labels that are in any slice."""
    colors = label_colors(entrant.spec.labels)
    shown = {label for _, item in entrant.slices.values() for label in item.histogram}
    labels = [label for label in entrant.spec.labels if label.id in shown]
    return [Key(hex_color(colors[label.id]), label.name.replace("_", " ")) for label in labels]


# -- files ------------------------------------------------------------------------------------------------------


def write_report(entrants: Sequence[Entrant], out: Path, rank_by: str = ranked.DEFAULT, runs: Path = RUNS) -> Path:
    """Write report.html, compare.json, figures/ and tables/ to `out`; returns the report's path.

    rank_by: metric with a value per slice by which worst and best are chosen. runs: folder of run folders.
    """
    with rc_context({"text.parse_math": False}):  # names are texts: a $ in them is no formula
        content = gather_content(entrants, rank_by, runs)
        files = [name for stem, figure in _figures(content) for name in _write_figure(out, stem, figure)]
    texts = tables.csv_tables(entrants, content.rows) | tables.latex_tables(entrants, content.rows)
    for name, text in texts.items():
        write_text(out / "tables" / name, text)
    listed = [*files, *(f"tables/{name}" for name in texts)]
    write_json(out / "compare.json", tables.to_json(entrants, content.rows, listed))
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
