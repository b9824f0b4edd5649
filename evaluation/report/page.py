"""report.html: one page that needs no other file and no network, readable without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.compare import Entrant, Row, count
from evaluation.report import gallery
from evaluation.report.cards import cards, settings_section
from evaluation.report.html import data, image, key, method_keys, text
from evaluation.report.metrics_table import metrics_section
from evaluation.report.panels import PanelSet
from evaluation.report.pictures import Strip, diverging_stops, label_hex
from evaluation.report.plots import MAX_LABELS, MOST_PATIENTS
from evaluation.report.ranked import Ranking
from evaluation.report.volumes import Volumes
from evaluation.report.words import limits, verdict

# The browser itself is told to fetch nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
FILES = Path(__file__).parent


@dataclass(frozen=True)
class Content:
    """All that the page shows. Strips, ranked tiles and rankings: one per channel."""

    entrants: Sequence[Entrant]
    rows: Sequence[Row]
    panels: Sequence[PanelSet]
    strips: Sequence[Strip]
    rankings: Sequence[Ranking]
    ranked: Sequence[Strip | None]
    volumes: Volumes

    @property
    def names(self) -> list[str]:
        """Display names of the methods."""
        return [entrant.name for entrant in self.entrants]


def render(content: Content) -> str:
    """The page as one string."""
    entrants, rows = content.entrants, content.rows
    title = " vs ".join(content.names) if len(content.names) <= 3 else f"{len(content.names)} methods compared"
    sections = {
        "Methods": cards(entrants),
        "Metrics": metrics_section(entrants, rows),
        "Distance to the real set": _plots(content, "distribution"),
        "Patient by patient": _plots(content, "patients"),
        "The same slices": _strips(content),
        "Case browser": _browser(content),
        "Worst and best": _ranked(content),
        "Intensities by label": _plots(content, "intensities"),
        "Spectrum": _plots(content, "spectrum"),
        "Training": _plots(content, "training"),
        "What this does not show": "<ul class='limits'>"
        + "".join(f"<li>{text(line)}</li>" for line in limits(entrants, rows))
        + "</ul>",
        "Settings": settings_section(entrants),
    }
    sections = {name: body for name, body in sections.items() if body}
    links = " ".join(f"<a href='#{_anchor(name)}'>{text(name)}</a>" for name in sections)
    body = "".join(
        f"<section id='{_anchor(name)}'><h2>{text(name)}</h2>{html}</section>" for name, html in sections.items()
    )
    style, script = ((FILES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    n = entrants[0].metrics["n"]
    about = f"{count(n['slices'], 'slice')}, {count(n['cases'], 'case')}, {count(n['patients'], 'patient')}"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{POLICY}\">"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{text(title)} · medsis</title><link rel='icon' href='data:,'><style>{style}</style></head>"
        f"<body><main><header><h1>{text(title)}</h1><p class='soft'>{about} · {_channels(entrants)}</p>"
        f"<p class='verdict'>{text(' '.join(verdict(entrants, rows)))}</p><nav aria-label='sections'>{links}</nav></header>"
        f"{body}<footer>Written by medsis compare. Beside this file: compare.json (all numbers), figures/ (PNG, SVG), "
        f"tables/ (CSV, LaTeX).</footer></main><script>{script}</script></body></html>\n"
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _channels(entrants: Sequence[Entrant]) -> str:
    spec = entrants[0].spec
    sizes = f"{spec.size[0]}×{spec.size[1]} pixels of {spec.spacing[0]:.3g}×{spec.spacing[1]:.3g} mm"
    return text(f"{', '.join(channel.name for channel in spec.channels)} · {sizes}")


# -- plots --------------------------------------------------------------------------------------------------------

CAPTIONS = {
    "distribution": "A dot per method; dashed: the floor, the same metric between two halves of the real data that share "
    "no patient. A dot at the floor cannot be told from real images by this metric. The floor has half as many images, "
    "which raises a Fréchet distance.",
    "patients": "A dot per patient and method; lines join a patient's dots, bars are means over patients.",
    "intensities": "Intensities inside each label, pooled over slices: from left to right the real images and the methods. "
    "Line: median, dashed line: the real one; bar: quartiles; half a per cent of the pixels is cut off at each end. "
    "Widths are scaled to equal maxima.",
    "spectrum": "Radially averaged power of the slices, geometric mean over cases; shaded: the range of the real cases, "
    "where there are several. Below zero a method lacks texture of this size, above it adds some.",
    "training": "Losses are means between log lines. A dashed line is a method that is fitted at once.",
}
NO_FLOOR = "There is no floor here, because one patient's slices cannot be halved by patient."


def _plots(content: Content, section: str) -> str:
    """Panels of one section, channel by channel; empty where there are none."""
    sets = [one for one in content.panels if one.section == section]
    if not sets:
        return ""
    parts = [method_keys(content.names, real=sets[0].real)]
    for one in sets:
        parts.append(f"<h3>{text(one.heading)}</h3>" if one.heading else "")
        what = " ".join(filter(None, (section, one.heading)))
        places = range(len(one.panels))
        parts.append(_panels(one, places[: one.first], what))
        if rest := places[one.first :]:
            parts.append(
                f"<details><summary>{count(len(rest), 'more metric')}</summary>{_panels(one, rest, what)}</details>"
            )
    caption = CAPTIONS[section]
    if section == "intensities" and content.entrants[0].spec.num_labels > MAX_LABELS + 1:
        caption += f" The {MAX_LABELS} largest labels."
    patients = content.entrants[0].metrics["n"]["patients"]
    if section == "patients" and patients > MOST_PATIENTS:
        caption += f" Drawn are {MOST_PATIENTS} of {patients:,} patients, evenly spaced; the bars are over all."
    if section == "distribution" and not _any_floor(content):
        caption = f"A dot per method. {NO_FLOOR}"
    return "".join(parts) + f"<p class='caption'>{text(caption)}</p>"


def _panels(one: PanelSet, places: range, what: str) -> str:
    tiles = [
        f"<figure><figcaption>{text(one.panels[i].title)}</figcaption>"
        f"{image(one.svgs[i], f'{what} {one.panels[i].title}', 'svg+xml')}</figure>"
        for i in places
    ]
    return f"<div class='panels' style='--width:{one.size[0] * 96:.0f}px'>{''.join(tiles)}</div>"


def _any_floor(content: Content) -> bool:
    return any(row.reference(i, "floor") is not None for row in content.rows for i in range(len(content.entrants)))


# -- pictures -----------------------------------------------------------------------------------------------------


def _strips(content: Content) -> str:
    spec = content.entrants[0].spec
    parts = [_label_keys(content)]
    for channel, strip in zip(spec.channels, content.strips, strict=True):
        parts.append(
            f"<h3>{text(channel.name)}</h3>{gallery.strip_html(strip, content.names)}{gallery.scale_html(strip)}"
            f"<p class='caption'>Display window: {text(gallery.window_text(channel.unit))}. Slices are evenly spaced over "
            "the split, whatever they look like. Red: the method is too bright, blue: too dark; one scale for all methods "
            "and slices.</p>"
        )
    return "".join(parts)


def _label_keys(content: Content) -> str:
    spec = content.entrants[0].spec
    colors = label_hex(spec.num_labels)
    shown = {label for _, item in content.entrants[0].slices.values() for label in item.histogram}
    keys = [key(colors[label.id], label.name.replace("_", " ")) for label in spec.labels if label.id in shown]
    many = f"<details><summary>{len(keys)} labels</summary><div class='keys'>{''.join(keys)}</div></details>"
    return many if len(keys) > 16 else f"<div class='keys'>{''.join(keys)}</div>"


def _ranked(content: Content) -> str:
    entrants = content.entrants
    parts = []
    for c, (ranking, tiles) in enumerate(zip(content.rankings, content.ranked, strict=True)):
        parts.append(f"<h3>{text(entrants[0].spec.channels[c].name)}</h3>")
        if tiles is not None:
            shown = content.volumes.shown
            parts.append(gallery.ranking_html(ranking, tiles.rows, tiles.aspect, entrants, shown, c))
        parts.append(
            f"<p class='caption'>{text(gallery.ranking_caption(ranking, entrants[0].metrics['n']['cases']))}</p>"
        )
    return "".join(parts)


def _browser(content: Content) -> str:
    """Controls and empty canvases; page.js fills them. Without scripts, a sentence that says what to look at instead."""
    volumes = content.volumes
    names = content.names
    tiles = [("label", "label map"), ("real", "real"), *((f"generated-{i}", name) for i, name in enumerate(names))]
    tiles += [(f"difference-{i}", f"{name} − real") for i, name in enumerate(names)]
    canvases = [
        f"<figure class='{what.partition('-')[0]}'><figcaption>{text(title)}</figcaption>"
        f"<canvas data-what='{what}' role='img' aria-label='{text(title)}'></canvas></figure>"
        for what, title in tiles
    ]
    controls = (
        "<label>case <select name='case'></select></label><label>channel <select name='channel'></select></label>"
        "<label>window <select name='window'></select></label>"
        "<label><input type='checkbox' name='overlay'> label overlay</label>"
        "<label>opacity <input type='range' name='opacity' min='5' max='100' value='40'></label>"
    )
    slider = (
        "<div class='slider'><button type='button' name='previous' aria-label='previous slice'>‹</button>"
        "<input type='range' name='slice' min='0' value='0' aria-label='slice'>"
        "<button type='button' name='next' aria-label='next slice'>›</button><output name='position'></output></div>"
    )
    scales = (
        "<div class='scales'><div class='scale grey'><span data-what='low'></span><i></i><span data-what='high'></span>"
        "</div>"
        f"<div class='scale' style='--stops:{','.join(diverging_stops())}'><span data-what='minus'></span><i></i>"
        "<span data-what='plus'></span></div></div>"
    )
    stored = "Values are stored with 8 bits: " + (
        "steps of 2.5 HU from −160 to 240, 20 HU from −1024 to 1200, coarser above."
        if any(channel.unit == "HU" for channel in content.entrants[0].spec.channels)
        else "256 steps of the intensity window."
    )
    if any(case["reduced"] > 1 for case in volumes.meta["cases"]):
        stored += " Slices of more than 320 pixels are shown at a whole fraction of their resolution."
    stacks = "".join(
        f"<script type='text/plain' id='stack-{name}'>{stack}</script>" for name, stack in volumes.stacks.items()
    )
    return (
        "<noscript><p>The case browser needs scripts; the slices above and figures/ do not.</p></noscript>"
        f"<div id='browser' hidden><div class='controls'>{controls}</div>{slider}"
        f"<div class='viewer' tabindex='0' role='group' aria-label='slices; arrow keys go through them' "
        f"style='--columns:{2 + len(names)}'>{''.join(canvases[: 2 + len(names)])}"
        f"<div class='legend'><p class='readout' aria-live='off'></p>{scales}<div class='keys' data-what='labels'></div>"
        "</div>"
        f"{''.join(canvases[2 + len(names) :])}</div><p class='caption'>Arrow keys or the slider go through the volume; "
        "point at a pixel to read its values. One window and one difference scale for all methods. "
        f"{text(stored)} {text(volumes.note)}</p></div>"
        f"{data('browser-data', volumes.meta | {'stops': diverging_stops(33)})}{stacks}"
    )
