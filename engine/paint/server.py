"""The page's server, of the standard library: this machine alone, nothing from outside, one line for every fault.

Whoever asks has to be the page itself: the address it was asked by is this machine's (no name that was bound to it
elsewhere), no other site's page asks, and the address that the command prints holds a token. Each page has a session, whose
name only it knows; so tabs do not mix, and other users of the machine see nothing.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from engine.command import DEFECT, code_of
from engine.paint.session import INPUT, Session

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
HERE = ("127.0.0.1", "localhost", "::1")
MAX_REQUEST = 2**20  # bytes of JSON
MAX_FILE = 2**29  # bytes of a file that is sent
MAX_SESSIONS = 16  # the one that was not used for longest goes


class Refused(Exception):  # noqa: N818 (reads as what it is)
    """A request that is not answered, and why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class PaintServer(ThreadingHTTPServer):
    """Serves until it is interrupted. make: a session in a folder of that name. pages: path -> content type and bytes."""

    def __init__(self, host: str, port: int, make: Callable[[str], Session]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.make = make
        self.token = secrets.token_urlsafe(16)
        self.names = {*HERE, host, *([] if host in HERE else [socket.gethostname()])}
        self.sessions: dict[str, Session] = {}
        self._opening = threading.Lock()
        self.pages = {f"/{path.name}": (KINDS[path.suffix], path.read_bytes()) for path in PAGE.iterdir()}
        self.pages["/"] = self.pages["/index.html"]
        try:
            super().__init__((host, port), PageRequest)
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise ValueError(f"--host {host} --port {port}: {why}; --port 0 takes any that is free") from None

    def server_bind(self) -> None:
        """Without asking the network for this machine's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def address(self) -> str:
        """To open in a browser of this machine."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{self.server_port}/#{self.token}"

    def open(self) -> tuple[str, Session]:
        """A new session and its name; the oldest one goes where there are too many."""
        with self._opening:
            while len(self.sessions) >= MAX_SESSIONS:
                self.sessions.pop(min(self.sessions, key=lambda name: self.sessions[name].used)).close()
            name = secrets.token_urlsafe(16)
            folder = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
            session = self.sessions[name] = self.make(folder)
        return name, session

    def server_close(self) -> None:
        """Give the port back and remove what pages have sent."""
        super().server_close()
        for session in self.sessions.values():
            session.close()


class PageRequest(BaseHTTPRequestHandler):
    """One request of a page."""

    server: PaintServer
    protocol_version = "HTTP/1.1"
    server_version = sys_version = "medsis"
    timeout = 60
    disable_nagle_algorithm = True  # head and body are sent apart, and the second would wait 40 ms for the first

    def do_GET(self) -> None:
        """The page's own three files."""
        self._answered(self._page)

    def do_POST(self) -> None:
        """What the page asks for."""
        self._answered(self._api)

    def _page(self) -> None:
        self._refuse_others()
        kind, content = self.server.pages.get(urlsplit(self.path).path, ("", b""))
        if not kind:
            raise Refused(HTTPStatus.NOT_FOUND, "no such page")
        self._send(HTTPStatus.OK, f"{kind}; charset=utf-8", content)

    def _api(self) -> None:
        self._refuse_others()
        what = self.path.removeprefix("/api/")
        length = self._length(MAX_FILE if what == "upload" else MAX_REQUEST)
        if what == "open":
            self.rfile.read(length)
            if not hmac.compare_digest(self.headers.get("X-Token", "").encode(), self.server.token.encode()):
                raise Refused(
                    HTTPStatus.FORBIDDEN, "open the address that the command printed, with all that is behind #"
                )
            name, session = self.server.open()
            return self._json({"session": name, **session.opened()})
        session = self._session()
        if what == "upload":
            return self._json(self._receive(session, length))
        asked = self._asked(length)
        if what == "file":
            content = session.file(str(asked.get("name"))).read_bytes()
            return self._send(HTTPStatus.OK, "application/octet-stream", content)
        answers = {name: getattr(session, name) for name in ("begin", "act", "slice", "image", "save")}
        if what not in answers:
            raise Refused(HTTPStatus.NOT_FOUND, "no such request")
        return self._json(answers[what](asked))

    # -- who asks ---------------------------------------------------------------------------------------------------

    def _refuse_others(self) -> None:
        """Refused for names that are not this machine's (DNS rebinding) and for pages of other sites (CSRF)."""
        host = self.headers.get("Host", "")
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            name = None
        if name not in self.server.names and name != self.connection.getsockname()[0]:
            raise Refused(HTTPStatus.FORBIDDEN, "this server is reached by the address that the command printed only")
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        if origin not in (None, f"http://{host}") or site not in ("same-origin", "none"):
            raise Refused(HTTPStatus.FORBIDDEN, "pages of other sites get no answer")

    def _session(self) -> Session:
        session = self.server.sessions.get(self.headers.get("X-Session", ""))
        if session is None:
            raise Refused(
                HTTPStatus.GONE, "this page's session has ended (the server was started anew?): load the page again"
            )
        session.used = time.monotonic()
        return session

    # -- bodies -----------------------------------------------------------------------------------------------------

    def _length(self, limit: int) -> int:
        text = self.headers.get("Content-Length", "")
        if not text.isascii() or not text.isdigit() or "Transfer-Encoding" in self.headers:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "a request says how long it is")
        if len(text) > 15 or int(text) > limit:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than the limit of {limit} bytes")
        return int(text)

    def _asked(self, length: int) -> dict[str, Any]:
        try:
            asked = json.loads(self.rfile.read(length))
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            raise ValueError("a request is a JSON object")
        return asked

    def _receive(self, session: Session, length: int) -> dict[str, Any]:
        """A file, piece by piece, under a name of ours below the session's folder."""
        path = session.incoming(unquote(self.headers.get("X-Name", "")))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "wb") as file:
                while length:
                    piece = self.rfile.read(min(length, 1 << 20))
                    if not piece:
                        raise Refused(HTTPStatus.BAD_REQUEST, "the file came in part")
                    file.write(piece)
                    length -= len(piece)
            return session.receive(path)
        except ValueError as error:
            raise ValueError(str(error).replace(f"{session.folder / INPUT}/", "")) from None
        finally:
            path.unlink(missing_ok=True)

    # -- answers ----------------------------------------------------------------------------------------------------

    def _answered(self, answer: Callable[[], None]) -> None:
        """Whatever happens, the server goes on."""
        try:
            answer()
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Refused as error:
            self._fault(error.status, str(error))
        except Exception as error:
            if code_of(error) == DEFECT:
                traceback.print_exc(file=sys.stderr)
                return self._fault(HTTPStatus.INTERNAL_SERVER_ERROR, "a defect of medsis; the terminal says more")
            self._fault(HTTPStatus.BAD_REQUEST, str(error))
        return None

    def _fault(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True  # its body may not have been read
        with suppress(OSError):
            self._json({"error": why}, status)

    def _json(self, data: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, "application/json", json.dumps(data).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        headers |= {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        headers |= {"Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin"}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name of the base class)
        """Nothing: what goes wrong is said on the page."""
