"""A page in headless Chromium: what it looks like to a script that clicks in it, and whether it complains."""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from evaluation.report.pdf import browse, find_browser

# Before anything of the page runs, so that no complaint is missed.
WATCH = """<script>
window.complaints = [];
window.addEventListener("error", (e) => window.complaints.push("error: " + (e.message || e.target.outerHTML)), true);
window.addEventListener("unhandledrejection", (e) => window.complaints.push("rejected: " + e.reason));
document.addEventListener("securitypolicyviolation", (e) => window.complaints.push("policy: " + e.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...of) => window.complaints.push(kind + ": " + of.join(" "));
</script>"""
RUN = """<script>
(async () => {
  const wait = (done) => new Promise((resolve) => {
    const started = Date.now();
    const look = () => (done() || Date.now() - started > 10000 ? resolve() : setTimeout(look, 5));
    look();
  });
  let result;
  try { result = await (async () => { %s })(); } catch (error) { result = { failed: String(error.stack) }; }
  parent.postMessage(JSON.stringify({ result, complaints: window.complaints }), "*");
})();
</script>"""
# A window cannot be narrower than 500 pixels, a frame can.
FRAME = """<!doctype html><body style='margin:0'><script>
window.addEventListener("message", ({ data }) => {
  document.body.innerHTML = "<pre id=answer></pre>";
  document.getElementById("answer").textContent = data;
});
</script><iframe src='asked.html' style='border:0;width:%dpx;height:%dpx'></iframe></body>"""
DARK = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]
STILL = """<!doctype html><body><iframe sandbox='allow-same-origin' style='border:0;width:1300px;height:900px'></iframe>
<script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {
  const page = frame.contentDocument;
  const result = (() => { %s })();
  document.body.innerHTML = "<pre id=answer></pre>";
  document.getElementById("answer").textContent = JSON.stringify({ result, complaints: [] });
});
frame.srcdoc = %s;
</script></body>"""


def find() -> str:
    """Path of a Chromium; skips where there is none, fails where one is required (MEDSIS_REQUIRE_CHROMIUM=1)."""
    found = find_browser()
    if found is None:
        if os.environ.get("MEDSIS_REQUIRE_CHROMIUM") == "1":
            pytest.fail("MEDSIS_REQUIRE_CHROMIUM=1 but no Chromium is on the path")
        pytest.skip("no Chromium on the path")
    return found


def ask(page: Path, script: str, width: int = 1300, height: int = 900, dark: bool = False) -> dict[str, Any]:
    """Open a copy of `page` from disk, run `script` (the body of an async function) in it, and return its result.

    The result has to be JSON. Fails where the page or the browser complained: exceptions, console errors and warnings,
    anything that the page's policy kept it from fetching.
    """
    copy = page.with_name("asked.html")
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{WATCH}", 1)
    copy.write_text(text.replace("</body>", RUN % script + "</body>"), encoding="utf-8")
    frame = page.with_name("frame.html")
    frame.write_text(FRAME % (width, height), encoding="utf-8")
    return _answer(frame, width, height, *DARK * dark)


def ask_server(
    address: str, pages: dict[str, tuple[str, bytes]], script: str, width: int = 1300, dark: bool = False
) -> dict[str, Any]:
    """As `ask`, of a page of a server: `pages`, path -> type and bytes, is what it serves, the page itself at ``/``.

    The server's policy stays; that it is kept is what a complaint is about. No name but this machine's is found. Below 500
    pixels the page is shown in a frame, which the policy has to allow.
    """
    kind, page = pages["/index.html"]
    watch, run = (text.removeprefix("<script>").removesuffix("</script>") for text in (WATCH, RUN % script))
    done = """window.addEventListener("message", (event) => {
      const pre = Object.assign(document.createElement("pre"), { id: "answer", textContent: event.data });
      document.body.replaceChildren(pre);
    });"""
    pages |= {"/watch.js": ("text/javascript", watch.encode()), "/ask.js": ("text/javascript", run.encode())}
    pages |= {"/done.js": ("text/javascript", done.encode())}
    page = page.replace(b"<head>", b'<head><script src="watch.js"></script>')
    page = page.replace(b"</head>", b'<script src="done.js"></script><script src="ask.js" defer></script></head>')
    pages["/"] = pages["/asked.html"] = kind, page
    if width < 500:
        token = address.partition("#")[2]
        frame = f"<iframe width={width} height=900 src='asked.html#{token}'></iframe>"
        pages["/"] = kind, f"<!doctype html><script src='done.js'></script><body>{frame}".encode()
    flags = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", *DARK * dark]
    return _answer(address, 1300, 900, *flags)


def ask_without_scripts(page: Path, script: str) -> dict[str, Any]:
    """Open `page` with scripts switched off and run `script` outside of it, where `page` is its document."""
    frame = page.with_name("still.html")
    source = json.dumps(page.read_text(encoding="utf-8")).replace("<", "\\u003c")
    frame.write_text(STILL % (script, source), encoding="utf-8")
    return _answer(frame, 1300, 900)


def _answer(page: Path | str, width: int, height: int, *flags: str) -> dict[str, Any]:
    find()
    done = browse(page, f"--window-size={width},{height}", *flags, "--dump-dom")
    assert done.returncode == 0, done.stderr[-2000:]
    answer = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert answer, "the page did not answer"
    told = json.loads(html.unescape(answer[1]))
    assert told["complaints"] == []
    assert "failed" not in (told["result"] or {}), told["result"]["failed"]
    return told["result"]  # type: ignore[no-any-return]
