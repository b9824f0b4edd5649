"""report.html: one self-contained page that compares results folders."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from engine.files import write_json, write_text
from evaluation import figures
from evaluation.compare import NAMES, Entrant, Row, limits, metric_rows, to_json, verdict

CSS = """
:root{--ink:#1c2430;--soft:#5a6472;--line:#e3e7ec;--wash:#f6f8fa;--best:#e9f3ed}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1120px;margin:0 auto;padding:36px 24px 64px}
h1{font-size:1.8rem;line-height:1.2;margin:0 0 .5rem;letter-spacing:-.01em}
h2{font-size:1.2rem;margin:2.6rem 0 .7rem;padding-top:1.1rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.3rem 0 .5rem}
.soft{color:var(--soft)}
.methods{list-style:none;margin:0 0 1.2rem;padding:0;color:var(--soft);font-size:.92rem}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.45em;background:var(--c);
vertical-align:-.05em;box-shadow:inset 0 0 0 1px #0002}
.verdict{background:var(--wash);border-left:3px solid #0b6e99;padding:.9rem 1.2rem;border-radius:0 6px 6px 0;margin:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.36rem .8rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}
thead th{color:var(--soft);font-weight:600;border-bottom:2px solid var(--line)}
tr.group th{padding-top:1rem;font-weight:650;border-bottom-color:#cfd6de}
td.best{background:var(--best);font-weight:650}
td small,th small{color:var(--soft);font-weight:400;white-space:nowrap}
td.na{color:var(--soft)}
td.text{text-align:left;overflow-wrap:anywhere}
sup{font-size:.7em;line-height:0}
.notes{color:var(--soft);font-size:.85rem;padding-left:1.3rem;margin:.5rem 0}
p.notes{padding:0}
.keys{display:flex;flex-wrap:wrap;gap:.25rem 1rem;font-size:.85rem;color:var(--soft);margin:.5rem 0}
.strip{display:grid;grid-template-columns:repeat(var(--columns),minmax(0,1fr));gap:4px}
.strip figure{margin:0}
.strip img{display:block;width:100%;aspect-ratio:var(--aspect)}
.strip .map img{box-shadow:inset 0 0 0 1px var(--line);border:1px solid var(--line)}
.strip figcaption{font-size:.75rem;color:var(--soft);line-height:1.3;margin:0 0 2px;overflow:hidden;
text-overflow:ellipsis;white-space:nowrap}
.strip .where{grid-column:1/-1;font-size:.75rem;color:var(--soft);margin-top:.35rem}
.strip figure.repeated figcaption{display:none}
.scale{display:flex;align-items:center;gap:.6rem;font-size:.8rem;color:var(--soft);max-width:26rem;margin:.7rem 0 .2rem}
.scale i{flex:1;height:.7rem;border:1px solid var(--line);background:linear-gradient(90deg,var(--stops))}
.settings th{text-align:left}
.panels{align-items:end;display:grid;
grid-template-columns:repeat(auto-fill,minmax(min(240px,100%),1fr));gap:1rem 1.4rem}
.panels figure{margin:0}
.panels img{display:block;width:100%;height:auto}
.panels figcaption{font-size:.82rem;font-weight:600;margin-bottom:.1rem}
.caption{color:var(--soft);font-size:.85rem;margin:.4rem 0 1.2rem}
summary{cursor:pointer;color:var(--soft);margin:.6rem 0}
footer{margin-top:3rem;color:var(--soft);font-size:.82rem}
@media(max-width:700px){main{padding:22px 14px 40px}h1{font-size:1.4rem}th,td{padding:.34rem .4rem}
td+td small{display:block}.strip{grid-template-columns:repeat(2,minmax(0,1fr))}
.strip figure.repeated figcaption{display:block}}
@media print{h2{break-after:avoid}.strip,.panels figure{break-inside:avoid}}
"""


def write_report(entrants: Sequence[Entrant], out: Path) -> Path:
    """Write report.html and compare.json to `out`; returns the report's path."""
    rows = metric_rows(entrants)
    write_json(out / "compare.json", to_json(entrants, rows))
    path = out / "report.html"
    write_text(path, render(entrants, rows))
    return path


def render(entrants: Sequence[Entrant], rows: Sequence[Row]) -> str:
    """The page as one string; no part of it refers to another file or to the network."""
    title = " vs ".join(entrant.name for entrant in entrants)
    sections = [
        f"<h1>{escape(title)}</h1>{_methods(entrants)}",
        f"<p class='verdict'>{escape(' '.join(verdict(entrants, rows)))}</p>",
        "<h2>Metrics</h2>" + _table(entrants, rows),
        "<h2>The same slices</h2>" + _strips(entrants),
        "<h2>Intensities by label</h2>" + _label_plots(entrants),
        _curves(entrants),
        "<h2>Settings</h2>" + _settings(entrants),
        "<h2>What this does not show</h2><ul>"
        + "".join(f"<li>{escape(s)}</li>" for s in limits(entrants, rows))
        + "</ul>",
        "<footer>Written by medsis compare. All numbers are in compare.json beside this file.</footer>",
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)} · medsis</title><link rel='icon' href='data:,'><style>{CSS}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _key(color: str, text: str) -> str:
    return f"<span><i class='key' style='--c:{color}'></i>{escape(text)}</span>"


def _methods(entrants: Sequence[Entrant]) -> str:
    """What each name stands for."""
    lines = []
    for entrant, color in zip(entrants, figures.METHOD_COLORS, strict=False):
        p = entrant.manifest.provenance
        facts = [str(p["method"])] if p.get("method") else []
        facts += [f"{p['checkpoint']} weights"] if p.get("checkpoint") else []
        facts += [f"{p['images_seen']:,} images seen"] if p.get("images_seen") else []
        facts += [f"{p['seconds_per_slice']:.2g} s a slice"] if p.get("seconds_per_slice") else []
        lines.append(f"<li>{_key(color, entrant.name)}: {escape(', '.join(facts) or 'nothing known')}</li>")
    return f"<ul class='methods'>{''.join(lines)}</ul>"


# -- metrics ------------------------------------------------------------------------------------------------------


def _table(entrants: Sequence[Entrant], rows: Sequence[Row]) -> str:
    notes: list[str] = []
    head = "".join(f"<th>{escape(e.name)}</th>" for e in entrants)
    body, channel = [], object()
    for row in rows:
        if row.channel != channel:
            channel = row.channel
            name = escape(row.channel) if row.channel else "All channels"
            body.append(f"<tr class='group'><th colspan='{len(entrants) + 1}'>{name}</th></tr>")
        cells = "".join(_cell(entry, row.best == i, notes) for i, entry in enumerate(row.entries))
        body.append(f"<tr><td>{_metric_cell(row)}</td>{cells}</tr>")
    legend = "↑ higher, ↓ lower is better; the best value is shaded"
    if any(row.better is None for row in rows):
        legend += "; without an arrow neither is better: 1 is as in the real images"
    if any(entry and entry.get("ci95") for row in rows for entry in row.entries):
        legend += (
            "; brackets: 95 % bootstrap interval over patients; "
            "● the interval of the difference to the next best leaves out zero"
        )
    else:
        legend += "; ± standard deviation between slices, which is not an interval"
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        "<div class='scroll'><table>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f"<p class='notes'>{legend}.</p>" + (f"<ol class='notes'>{listed}</ol>" if notes else "")
    )


def _metric_cell(row: Row) -> str:
    sign = {"higher": "↑", "lower": "↓"}
    arrow = f" <span title='{row.better} is better'>{sign[row.better]}</span>" if row.better else ""
    unit = f" <small>{escape(row.unit)}</small>" if row.unit else ""
    return f"{escape(NAMES.get(row.metric, row.metric))}{arrow}{unit}{' <small>●</small>' if row.clear else ''}"


def _cell(entry: dict[str, Any] | None, best: bool, notes: list[str]) -> str:
    if entry is None or entry["value"] is None:
        reason = "not measured" if entry is None else entry["reason"]
        if reason not in notes:
            notes.append(reason)
        return f"<td class='na' title='{escape(reason, quote=True)}'>n/a<sup>{notes.index(reason) + 1}</sup></td>"
    spread = ""
    if entry["ci95"]:
        spread = f" <small>[{entry['ci95'][0]:.4g}, {entry['ci95'][1]:.4g}]</small>"
    elif entry.get("slice_sd") is not None:
        spread = f" <small>± {entry['slice_sd']:.2g}</small>"
    return f"<td class='{'best' if best else ''}'>{entry['value']:.4g}{spread}</td>"


# -- pictures -----------------------------------------------------------------------------------------------------


def _strips(entrants: Sequence[Entrant]) -> str:
    spec = entrants[0].spec
    colors = figures.label_hex(spec.num_labels)
    shown = {label for _, item in figures.chosen_slices(entrants[0]) for label in item.histogram}
    keys = [_key(colors[label.id], label.name.replace("_", " ")) for label in spec.labels if label.id in shown]
    parts = [f"<div class='keys'>{''.join(keys)}</div>"]
    for c, channel in enumerate(spec.channels):
        low, high = figures.SOFT_TISSUE_HU
        window = f"[{low:g}, {high:g}] HU" if channel.unit == "HU" else "the case's own"
        strip = figures.strip(entrants, c)
        parts.append(
            f"<h3>{escape(channel.name)}</h3>{_strip(strip, [entrant.name for entrant in entrants])}{_scale(strip)}"
            f"<p class='caption'>Display window: {window}. Slices are evenly spaced over the split, whatever they look "
            "like. Red: the method is too bright, blue: too dark; one scale for all methods and slices.</p>"
        )
    return "".join(parts)


def _strip(strip: figures.Strip, names: Sequence[str]) -> str:
    """A grid of tiles. Captions stand over the first row; where the window is narrow, over every tile."""
    titles = ["label map", "real", *names, *(f"{name} − real" for name in names)]
    tiles = []
    for r, row in enumerate(strip.rows):
        tiles.append(f"<div class='where'>{escape(row.title)}</div>")
        for i, (title, png) in enumerate(
            zip(titles, (row.label, row.real, *row.generated, *row.difference), strict=True)
        ):
            kinds = " ".join(["repeated"] * (r > 0) + ["map"] * (i >= 2 + len(names)))
            tiles.append(
                f"<figure class='{kinds}'><figcaption>{escape(title)}</figcaption>"
                f"{_image(png, f'{title}, {row.title}')}</figure>"
            )
    style = f"--columns:{len(titles) if len(names) < 4 else 2 + len(names)};--aspect:{strip.aspect:.4f}"
    return f"<div class='strip' style='{style}'>{''.join(tiles)}</div>"


def _scale(strip: figures.Strip) -> str:
    unit = escape(strip.unit)
    ends = f"<span>−{strip.limit:.3g}</span><i></i><span>+{strip.limit:.3g} {unit}</span>"
    return f"<div class='scale' style='--stops:{figures.difference_gradient()}'>{ends}</div>"


def _label_plots(entrants: Sequence[Entrant]) -> str:
    parts = [_method_keys(entrants, real=True)]
    for c, found in enumerate(figures.distributions(entrants)):
        name = entrants[0].spec.channels[c].name
        panels = figures.label_panels(entrants, c, found)
        parts.append(f"<h3>{escape(name)}</h3>{_panels(panels, f'intensities, {name}')}")
    most = f" The {figures.MAX_PANELS} largest labels." if entrants[0].spec.num_labels > figures.MAX_PANELS + 1 else ""
    text = "Distribution of the intensities inside each label, pooled over slices. Very high peaks are cut off."
    return "".join(parts) + f"<p class='caption'>{text}{most}</p>"


def _curves(entrants: Sequence[Entrant]) -> str:
    panels = figures.curve_panels(entrants)
    if not panels:
        return ""
    text = "Losses are means between log lines. A dashed line is a method that is fitted at once."
    keys = _method_keys(entrants, real=False)
    return f"<h2>Training</h2>{keys}{_panels(panels, 'training curve')}<p class='caption'>{text}</p>"


def _method_keys(entrants: Sequence[Entrant], real: bool) -> str:
    keys = [_key(color, entrant.name) for entrant, color in zip(entrants, figures.METHOD_COLORS, strict=False)]
    return f"<div class='keys'>{_key(figures.REAL_COLOR, 'real') if real else ''}{''.join(keys)}</div>"


def _panels(panels: Sequence[tuple[str, bytes]], what: str) -> str:
    figure = "<figure><figcaption>{}</figcaption>{}</figure>"
    tiles = [figure.format(escape(title), _image(png, f"{what}: {title}")) for title, png in panels]
    return f"<div class='panels'>{''.join(tiles)}</div>"


def _image(png: bytes, alt: str) -> str:
    return f"<img alt='{escape(alt, quote=True)}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


# -- settings -----------------------------------------------------------------------------------------------------


def _settings(entrants: Sequence[Entrant]) -> str:
    """What differs between the methods stands open, what they share is folded away."""
    settings = [_flat(entrant.manifest.provenance) for entrant in entrants]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    shared = [key for key in keys if len(entrants) > 1 and len({one.get(key) for one in settings}) == 1]
    own = [key for key in keys if key not in shared]
    page = _settings_table(entrants, settings, own) if own else "<p>No setting differs.</p>"
    if shared:
        page += (
            f"<details><summary>the same for all</summary>{_settings_table(entrants[:1], settings, shared)}</details>"
        )
    return page


def _settings_table(entrants: Sequence[Entrant], settings: Sequence[dict[str, str]], keys: Sequence[str]) -> str:
    names = [entrant.name for entrant in entrants] if len(entrants) > 1 else ["value"]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><td>{escape(key)}</td>"
        + "".join(f"<td class='text'>{escape(one.get(key, '–'))}</td>" for one in settings[: len(names)])
        + "</tr>"
        for key in keys
    )
    return (
        "<div class='scroll'><table class='settings'>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _flat(provenance: dict[str, Any]) -> dict[str, str]:
    """Settings worth a row; of the nested method options only those of the method that ran."""
    method = provenance.get("method")
    known = ("method", "checkpoint", "images_seen", "seconds_per_slice")
    flat = {str(key): str(provenance[key]) for key in known if key in provenance}
    for key, value in (provenance.get("config") or {}).items():
        if isinstance(value, dict):
            if key == method:
                flat |= {f"{key}.{name}": str(item) for name, item in value.items()}
        elif not key.startswith("freq_"):
            flat[key] = str(value)
    return flat | {key: str(value) for key, value in (provenance.get("environment") or {}).items()}
