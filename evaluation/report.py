"""report.html: one self-contained page that compares results folders."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from engine.files import write_json, write_text
from evaluation import figures
from evaluation.compare import Entrant, limits, metric_name, metric_rows, separated, to_json, verdict

CSS = """
:root{--ink:#1c2430;--soft:#5a6472;--line:#e3e7ec;--wash:#f6f8fa;--best:#e8f3ec}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .35rem;letter-spacing:-.01em}
h2{font-size:1.15rem;margin:2.4rem 0 .6rem;padding-top:1rem;border-top:1px solid var(--line)}
p.lead{color:var(--soft);margin:.2rem 0 1.2rem}
.verdict{background:var(--wash);border-left:3px solid #0b6e99;padding:.8rem 1.1rem;border-radius:0 6px 6px 0}
.verdict p{margin:.25rem 0}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.42rem .8rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
thead th{color:var(--soft);font-weight:600;border-bottom:2px solid var(--line)}
td.best{background:var(--best);font-weight:650}
td small,th small{color:var(--soft);font-weight:400}
td.na{color:var(--soft)}
sup{font-size:.7em}
.notes{color:var(--soft);font-size:.85rem;padding-left:1.2rem}
.swatches{display:flex;flex-wrap:wrap;gap:.3rem 1rem;font-size:.85rem;color:var(--soft);margin:.5rem 0}
.swatches span::before{content:"";display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em;
background:var(--c);vertical-align:-.05em;border:1px solid #0002}
figure{margin:.6rem 0}figure img{display:block;width:100%;height:auto}
figure.wide img{min-width:720px}
figcaption{color:var(--soft);font-size:.85rem;margin-top:.35rem}
td.wrap{white-space:normal;text-align:left}
footer{margin-top:3rem;color:var(--soft);font-size:.82rem}
@media(max-width:600px){main{padding:20px 14px 40px}h1{font-size:1.35rem}th,td{padding:.38rem .5rem}}
"""


def write_report(entrants: list[Entrant], out: Path) -> Path:
    """Write report.html and compare.json to `out`; returns the report's path."""
    rows = metric_rows(entrants)
    write_json(out / "compare.json", to_json(entrants, rows))
    path = out / "report.html"
    write_text(path, render(entrants, rows))
    return path


def render(entrants: list[Entrant], rows: list[dict[str, Any]]) -> str:
    """The page as one string; no part of it refers to another file or to the network."""
    title = " vs ".join(entrant.name for entrant in entrants)
    sections = [
        f"<h1>{escape(title)}</h1><p class='lead'>Label map to image, compared on the same slices.</p>",
        "<div class='verdict'>" + "".join(f"<p>{escape(s)}</p>" for s in verdict(entrants, rows)) + "</div>",
        "<h2>Metrics</h2>" + _table(entrants, rows),
        "<h2>The same slices</h2>" + _strips(entrants),
        "<h2>Intensities by label</h2>" + _label_plots(entrants),
        _curves(entrants),
        "<h2>Settings</h2>" + _settings(entrants),
        "<h2>What this does not show</h2><ul>"
        + "".join(f"<li>{escape(s)}</li>" for s in limits(entrants, rows))
        + "</ul>",
        "<footer>Written by medsis compare. Numbers in compare.json beside this file.</footer>",
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)} · medsis</title><link rel='icon' href='data:,'><style>{CSS}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _table(entrants: list[Entrant], rows: list[dict[str, Any]]) -> str:
    notes: list[str] = []
    head = "".join(f"<th>{escape(e.name)}</th>" for e in entrants)
    body = []
    for row in rows:
        cells = "".join(_cell(entry, row["best"] == i, notes) for i, entry in enumerate(row["entries"]))
        arrow = "↑" if row["better"] == "higher" else "↓"
        meaning = f"{row['better']} is better"
        mark = " ●" if separated(row) else ""
        body.append(f"<tr><td>{_metric_name(row)} <span title='{meaning}'>{arrow}</span>{mark}</td>{cells}</tr>")
    legend = "↑ higher, ↓ lower is better; best value shaded; brackets: 95 % bootstrap interval over patients"
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        f"<div class='scroll'><table><thead><tr><th>metric</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f"<p class='notes' style='padding:0'>{legend}; ● intervals apart.</p>"
        + (f"<ol class='notes'>{listed}</ol>" if notes else "")
    )


def _metric_name(row: dict[str, Any]) -> str:
    unit = f" <small>{escape(row['unit'])}</small>" if row["unit"] else ""
    return escape(metric_name(row["key"])) + unit


def _cell(entry: dict[str, Any] | None, best: bool, notes: list[str]) -> str:
    if entry is None or entry["value"] is None:
        reason = "not measured" if entry is None else entry["reason"]
        if reason not in notes:
            notes.append(reason)
        return f"<td class='na' title='{escape(reason, quote=True)}'>n/a<sup>{notes.index(reason) + 1}</sup></td>"
    interval = f" <small>[{entry['ci95'][0]:.4g}, {entry['ci95'][1]:.4g}]</small>" if entry["ci95"] else ""
    spread = entry.get("slice_sd")
    if not interval and spread is not None:
        interval = (
            f" <small title='standard deviation between slices, not an interval'>(slice s.d. {spread:.2g})</small>"
        )
    return f"<td class='{'best' if best else ''}'>{entry['value']:.4g}{interval}</td>"


def _strips(entrants: list[Entrant]) -> str:
    spec = entrants[0].spec
    colors = figures.label_hex(spec.num_labels)
    shown = {label for _, item in figures.chosen_slices(entrants[0]) for label in item.histogram}
    legend = "".join(
        f"<span style='--c:{colors[label.id]}'>{escape(label.name.replace('_', ' '))}</span>"
        for label in spec.labels
        if label.id in shown
    )
    parts = [f"<div class='swatches'>{legend}</div>"]
    for c, channel in enumerate(spec.channels):
        low_high = figures.SOFT_TISSUE_HU
        window = f"window [{low_high[0]:g}, {low_high[1]:g}] HU" if channel.unit == "HU" else "the case's own window"
        caption = (
            f"{channel.name}, {window}. Evenly spaced slices of the split, chosen before looking. "
            "Differences are signed, on one scale for all methods: red is too bright, blue too dark."
        )
        parts.append(_figure(figures.strips(entrants, c), caption, f"slices of {channel.name}", wide=True))
    return "".join(parts)


def _label_plots(entrants: list[Entrant]) -> str:
    parts = []
    for c, channel in enumerate(entrants[0].spec.channels):
        caption = (
            f"{channel.name}: distribution of intensities inside each label, pooled over slices; grey area is real."
        )
        parts.append(_figure(figures.label_plots(entrants, c), caption, f"intensities of {channel.name}"))
    return "".join(parts)


def _curves(entrants: list[Entrant]) -> str:
    picture = figures.curves(entrants)
    return (
        "" if picture is None else "<h2>Training</h2>" + _figure(picture, "Means between log lines.", "training curves")
    )


def _figure(png: bytes, caption: str, alt: str, wide: bool = False) -> str:
    data = base64.b64encode(png).decode()
    image = f"<img alt='{escape(alt, quote=True)}' src='data:image/png;base64,{data}'>"
    name = " class='wide'" if wide else ""
    return f"<figure{name}><div class='scroll'>{image}</div><figcaption>{escape(caption)}</figcaption></figure>"


def _settings(entrants: list[Entrant]) -> str:
    settings = [_flat(entrant.manifest.provenance) for entrant in entrants]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    head = "".join(f"<th>{escape(e.name)}</th>" for e in entrants)
    body = "".join(
        f"<tr><td>{escape(key)}</td>"
        + "".join(f"<td class='wrap'>{escape(one.get(key, '–'))}</td>" for one in settings)
        + "</tr>"
        for key in keys
    )
    return (
        "<details><summary>all settings and versions</summary><div class='scroll'>"
        f"<table><thead><tr><th>setting</th>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _flat(provenance: dict[str, Any]) -> dict[str, str]:
    """Settings worth a row; of the nested method options only those of the method that ran."""
    method = provenance.get("method")
    flat = {
        key: str(provenance[key])
        for key in ("method", "checkpoint", "images_seen", "seconds_per_slice")
        if key in provenance
    }
    for key, value in (provenance.get("config") or {}).items():
        if isinstance(value, dict):
            if key == method:
                flat |= {f"{key}.{name}": str(item) for name, item in value.items()}
        elif not key.startswith("freq_"):
            flat[key] = str(value)
    return flat | {key: str(value) for key, value in (provenance.get("environment") or {}).items()}
