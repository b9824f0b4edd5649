"""Pictures in the page: the same slices in all methods, and each method's worst and best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from evaluation.compare import Entrant, count
from evaluation.report import plots
from evaluation.report.html import image, text
from evaluation.report.names import decimals, name_of, number
from evaluation.report.panels import laid_out
from evaluation.report.pictures import HU_WINDOWS, Strip, Tiles, diverging_stops, webp
from evaluation.report.ranked import APART, LEAST_BODY, Ranked, Ranking
from evaluation.report.volumes import Key


def titles(names: Sequence[str]) -> list[str]:
    """Captions of the tiles of one slice."""
    return ["label map", "real", *names, *(f"{name} − real" for name in names)]


def characters(strips: Sequence[Strip], ranked: Sequence[Strip | None]) -> int:
    """About how many characters the pictures take in the page, from the first slice of each strip."""

    def of(strip: Strip, pictures: Sequence[NDArray[np.uint8]]) -> float:
        return len(strip.rows) * sum(len(webp(pixels)) for pixels in pictures) * 4 / 3

    total = sum(of(s, [s.rows[0].real, *s.rows[0].generated, *s.rows[0].difference]) for s in strips)
    triples = [s for s in ranked if s is not None]
    total += sum(of(s, [s.rows[0].real, s.rows[0].generated[0], s.rows[0].difference[0]]) for s in triples)
    return round(total)


def strip_html(strip: Strip, names: Sequence[str]) -> str:
    """A grid of tiles. Captions stand over the first row; where the window is narrow, over every tile."""
    tiles = []
    for r, row in enumerate(strip.rows):
        where = f"{row.case}, slice {row.index}"
        tiles.append(f"<div class='where'>{text(where)}</div>")
        pictures = [row.label, row.real, *row.generated, *row.difference]
        for i, (title, pixels) in enumerate(zip(titles(names), pictures, strict=True)):
            kinds = " ".join(["repeated"] * (r > 0) + ["map"] * (i >= 2 + len(names)))
            tiles.append(
                f"<figure class='{kinds}'><figcaption>{text(title)}</figcaption>"
                f"{image(webp(pixels, exact=i == 0), f'{title}, {where}')}</figure>"
            )
    columns = 2 + 2 * len(names) if len(names) < 4 else 2 + len(names)
    return f"<div class='strip' style='--columns:{columns};--aspect:{strip.aspect:.4f}'>{''.join(tiles)}</div>"


def scale_html(strip: Strip) -> str:
    """The scale of the differences."""
    ends = f"<span>−{strip.limit:.3g}</span><i></i><span>+{strip.limit:.3g} {text(strip.unit)}</span>"
    return f"<div class='scale' style='--stops:{','.join(diverging_stops())}'>{ends}</div>"


def window_text(unit: str) -> str:
    """The display window in words."""
    low, high = HU_WINDOWS["soft tissue"]
    return f"[{low:g}, {high:g}] HU (soft tissue)" if unit == "HU" else "the case's own intensity window"


def strip_figure(strip: Strip, names: Sequence[str]) -> Figure:
    """The same as one sheet."""
    heads = titles(names)
    width = 1.25
    height = width / strip.aspect
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure = Figure(figsize=(width * len(heads), (height + 0.06) * len(strip.rows) + 0.75), layout=layout)
    axes = figure.subplots(len(strip.rows), len(heads), squeeze=False)
    for r, row in enumerate(strip.rows):
        pictures = [row.label, row.real, *row.generated, *row.difference]
        for c, pixels in enumerate(pictures):
            one = axes[r, c]
            one.imshow(pixels, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation="nearest")
            one.set_xticks([])
            one.set_yticks([])
            one.spines[:].set_visible(False)
            if r == 0:
                one.set_title(heads[c], fontsize=8, color=plots.INK)
        axes[r, 0].set_ylabel(f"{row.case}\nslice {row.index}", fontsize=7, color=plots.SOFT)
    figure.supxlabel(
        f"differences: blue −{strip.limit:.3g}, red +{strip.limit:.3g} {strip.unit}", fontsize=8, color=plots.SOFT
    )
    return laid_out(figure)


def ranking_figure(ranking: Ranking, strip: Strip, names: Sequence[str]) -> Figure:
    """Worst and best of all methods as one sheet: three columns a method (real, generated, difference)."""
    places = decimals([one.value for one in ranking.found])
    by_method = [
        [(one, tiles) for one, tiles in zip(ranking.found, strip.rows, strict=True) if one.method == i]
        for i in range(len(names))
    ]
    lines = max(len(found) for found in by_method)
    width = 1.25
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03, wspace=0, hspace=0)
    figure = Figure(figsize=(3 * width * len(names), (width / strip.aspect + 0.35) * lines + 0.5), layout=layout)
    axes = figure.subplots(lines, 3 * len(names), squeeze=False)
    for one in axes.ravel():
        one.set_axis_off()
    for i, found in enumerate(by_method):
        for line, (one, tiles) in enumerate(found):
            for c, pixels in enumerate((tiles.real, tiles.generated[i], tiles.difference[i])):
                axes[line, 3 * i + c].imshow(
                    pixels, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation="nearest"
                )
            kind, value = "worst" if one.worst else "best", number(one.value, places)
            title = f"{names[i]}: {kind} {value} {ranking.unit}\n{one.case.id}, slice {one.item.index}"
            axes[line, 3 * i].set_title(title, fontsize=7, color=plots.INK, loc="left")
    figure.supxlabel(
        f"real, generated, difference (blue −{strip.limit:.3g}, red +{strip.limit:.3g} {strip.unit}); by "
        f"{name_of(ranking.metric)}",
        fontsize=8,
        color=plots.SOFT,
    )
    return laid_out(figure)


# -- worst and best -----------------------------------------------------------------------------------------------


def ranking_html(
    ranking: Ranking,
    tiles: Sequence[Tiles],
    aspect: float,
    entrants: Sequence[Entrant],
    shown: frozenset[Key],
    channel: int,
) -> str:
    """Per method a line of its worst and of its best, each with the real image, its own and the difference."""
    places = decimals([one.value for one in ranking.found])
    blocks = []
    for i, entrant in enumerate(entrants):
        items = "".join(
            _item(one, of, ranking, places, shown, channel)
            for one, of in zip(ranking.found, tiles, strict=True)
            if one.method == i
        )
        name = f"<i class='key' style='--c:{plots.color_of(i)}'></i>{text(entrant.name)}"
        blocks.append(f"<h4>{name}</h4><div class='ranked' style='--aspect:{aspect:.4f}'>{items}</div>")
    return "".join(blocks)


def _item(one: Ranked, tiles: Tiles, ranking: Ranking, places: int, shown: frozenset[Key], channel: int) -> str:
    value = f"{number(one.value, places)} {ranking.unit}".strip()
    kind = "worst" if one.worst else "best"
    where = f"{one.case.id}, slice {one.item.index}"
    pictures = (
        ("real", tiles.real),
        ("generated", tiles.generated[one.method]),
        ("difference", tiles.difference[one.method]),
    )
    figures = "".join(
        f"<figure class='{'map' if what == 'difference' else ''}'>{image(webp(pixels), f'{what}, {where}')}"
        f"<figcaption>{what}</figcaption></figure>"
        for what, pixels in pictures
    )
    link = ""
    if (one.case.id, one.item.index) in shown:
        link = (
            f" <button type='button' class='show' hidden data-case='{text(one.case.id)}' data-slice='{one.item.index}' "
            f"data-channel='{channel}'>browse</button>"
        )
    return (
        f"<section class='{kind}'><p><b>{kind}</b> {text(value)} <span class='soft'>{text(where)}</span>{link}</p>"
        f"<div class='triple'>{figures}</div></section>"
    )


def ranking_caption(ranking: Ranking, cases: int) -> str:
    """How they were chosen."""
    if ranking.missing:
        return f"n/a: {ranking.missing}."
    how = (
        "Cases are ranked by the mean over their slices; shown is the slice nearest to that mean."
        if ranking.what == "cases"
        else f"With {count(cases, 'case')}, single slices are ranked, those shown at least {APART} slices apart."
    )
    how += f" Slices with less than {LEAST_BODY:.0%} of the median body are left out."
    return f"By {name_of(ranking.metric)} ({ranking.metric}). {how} Display window and difference scale as above."
