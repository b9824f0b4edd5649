"""The page that paints under test: its server, requests as the page sends them, and a script's hands in a browser."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.paint.server import PaintServer
from engine.paint.session import Session
from engine.paint.studio import Studio


@contextmanager
def serving(studio: Studio, folder: Path) -> Iterator[PaintServer]:
    """A server that answers while the block runs."""
    server = PaintServer("127.0.0.1", 0, lambda name: Session(studio, folder / name, threading.Lock()))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def stroke(label: int = 3, z: int = 2, size: int = 5, points: Any = ((10, 10), (20, 14))) -> dict[str, Any]:
    return {"kind": "stroke", "slice": z, "label": label, "size": size, "points": [list(p) for p in points]}


def post(
    server: PaintServer, path: str, body: Any, headers: dict[str, str], length: str | None = None
) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("POST", path, content, {"Content-Length": length or str(len(content)), **headers})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def opened(server: PaintServer) -> dict[str, str]:
    status, answer = post(server, "/api/open", {}, {"X-Token": server.token})
    assert status == 200
    return {"X-Session": answer["session"]}


PAINT = """
await wait(() => document.documentElement.dataset.ready);
const map = document.getElementById("map"), $ = (s) => document.querySelector(s);
const canvases = () => [...document.querySelectorAll("#panels canvas")];
const look = (canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return [...data].filter((_, i) => i % 4 < 3);
};
const drawn = (n) => wait(() => Number(document.documentElement.dataset.drawn) >= n && !$(".busy"));
const event = (kind, x, y, more = {}) => {
  const box = map.getBoundingClientRect();
  map.dispatchEvent(new PointerEvent(kind, { bubbles: true, isPrimary: true, button: 0, ...more,
    clientX: box.left + ((x + 0.5) / map.width) * box.width, clientY: box.top + ((y + 0.5) / map.height) * box.height }));
};
const key = (name, more = {}) => map.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, ...more }));
await drawn(0);
"""
