"""Pictures of a study's report: predictions, brain masks and tissue maps of every scan, synthetic slices."""

from __future__ import annotations

import base64
from html import escape

import numpy as np

from dataloaders.io.manifest import Manifest
from dataloaders.io.png import read_png
from pipeline import figures
from pipeline.context import Context


def predictions(context: Context) -> str:
    """Of every test scan: the slices that networks saw, the reference, and what each network made of them."""
    networks = context.done(sorted(name for name in context.records if name.startswith("predict/")))
    parts = []
    for case in sorted(case.id for case in context.cases.values() if case.split == "test"):
        shown = {
            f"network trained on {name.split('/')[1]}": context.volume(name, output)
            for name in networks
            for output in context.records[name].outputs
            if output.startswith("slices/") and output.endswith(f"/{case}")
        }
        if not shown:
            continue
        brain = next(iter(shown.values())).data > 0
        if context.done([f"reference/{case}"]):
            shown = {"reference": context.volume(f"reference/{case}", "reference"), **shown}
        at = figures.heights(brain)
        tiles = [_figure(figures.scan_strip(context.volume(f"harmonise/{case}", "image"), brain, at), "scan")]
        tiles += [_figure(figures.tissue_strip(v.data, v.affine, at), caption) for caption, v in shown.items()]
        parts.append(f"<h3>{escape(case)}</h3><div class='case'>{''.join(tiles)}</div>")
    return _keys() + "".join(parts) if parts else ""


def case_pictures(context: Context) -> str:
    """Of every scan: its brain masks and tissue maps."""
    parts = [_keys()]
    for case in sorted(context.cases):
        tiles = _tiles(context, case)
        if tiles:
            parts.append(f"<h3>{escape(case)}</h3><div class='case'>{''.join(tiles)}</div>")
    return "".join(parts)


def _tiles(context: Context, case: str) -> list[str]:
    scan = f"harmonise/{case}"
    if not context.done([scan]):
        return []
    image = context.volume(scan, "image")
    tiles = []
    at: list[int] | None = None
    for name, record in sorted(context.records.items()):
        stage, _, rest = name.partition("/")
        if not rest.endswith(f"/{case}") or not record.outputs:
            continue
        label = rest.split("/")[0]
        if stage == "strip" and "mask" in record.outputs:
            mask = context.volume(name, "mask").data > 0
            at = at or figures.heights(mask)
            given = " (given)" if record.tool.get("name") == "given" else ""
            caption = f"{label}{given}, {record.facts['litres']:.2f} l"
            tiles.append(_figure(figures.scan_strip(image, mask, at), caption))
        elif stage == "tissue" and "tissue" in record.outputs:
            found = context.volume(name, "tissue")
            at = at or figures.heights(found.data > 0)
            caption = label if record.state == "done" else f"{label}: {record.reason}"
            tiles.append(_figure(figures.tissue_strip(found.data, found.affine, at), caption))
    return tiles


def samples(context: Context) -> str:
    """The first synthetic slices of every combination."""
    tiles = []
    seen: dict[str, int] = {}
    for name in context.done(sorted(context.records)):
        stage, _, rest = name.partition("/")
        combination = rest.split("/")[0]
        if stage not in ("synthesise", "paint") or seen.get(combination, 0) >= 3:
            continue
        seen[combination] = seen.get(combination, 0) + 1
        case = Manifest.load(context.home(name)).cases[0]
        item = case.slices[0]
        image, label = (read_png(context.home(name) / path) for path in (item.images[0], item.label))
        tiles.append(_figure(figures.pair_tile(image.astype(np.float64), label), f"{combination}, from {case.id}"))
    return f"<div class='case'>{''.join(tiles)}</div>" if tiles else "<p>None.</p>"


def _keys() -> str:
    keys = "".join(
        f"<span><i class='key' style='--c:{color}'></i>{name}</span>" for name, color in figures.COLORS.items()
    )
    return f"<div class='keys'>{keys}<span><i class='key' style='--c:#ffc400'></i>brain mask</span></div>"


def _figure(png: bytes, caption: str) -> str:
    return f"<figure>{_img(png, caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def _img(png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f"<img alt='{escape(text, quote=True)}' src='data:image/png;base64,{data}'>"
