"""Small pieces of HTML. Everything that comes from a file passes through `text`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from evaluation.report.plots import REAL_COLOR, color_of


def text(value: object) -> str:
    """Escaped, for content and for attributes in either quote."""
    return escape(str(value), quote=True)


def key(color: str, label: str) -> str:
    """A coloured square and a name."""
    return f"<span><i class='key' style='--c:{color}'></i>{text(label)}</span>"


def method_keys(names: Sequence[str], real: bool) -> str:
    """Colours of the methods, and of the real images."""
    keys = [key(color_of(i), name) for i, name in enumerate(names)]
    return f"<div class='keys'>{key(REAL_COLOR, 'real') if real else ''}{''.join(keys)}</div>"


def image(data: bytes, alt: str, kind: str = "webp") -> str:
    """An embedded picture; kind: webp, png or svg+xml."""
    return f"<img alt='{text(alt)}' src='data:image/{kind};base64,{base64.b64encode(data).decode()}'>"


def data(element_id: str, value: Any) -> str:
    """JSON for the page's script; `<` is written so that no text in it can end the element."""
    content = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), allow_nan=False)
    content = content.replace("<", "\\u003c")
    return f"<script type='application/json' id='{text(element_id)}'>{content}</script>"


def table(head: Sequence[str], body: Sequence[Sequence[str]], kind: str) -> str:
    """A plain table of finished HTML cells; the first column holds row headers."""
    top = "".join(f"<th scope='col'>{cell}</th>" for cell in head)
    lines = "".join(
        f"<tr><th scope='row'>{first}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for first, *cells in body
    )
    return scroll(f"<table class='{kind}'><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>")


def scroll(content: str) -> str:
    """A box that scrolls sideways by itself, by keyboard too, so that the page never does."""
    return f"<div class='scroll' tabindex='0' role='group' aria-label='table'>{content}</div>"
