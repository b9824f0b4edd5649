"""A page as PDF, all that is folded printed open, by the Chromium that is installed, without network."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from dataloaders.io.files import atomic_path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --hide-scrollbars --virtual-time-budget=20000"
).split()
SECONDS = 300


def find_browser() -> str | None:
    """Path of a Chromium or Chrome; None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def browse(page: Path | str, *flags: str) -> subprocess.CompletedProcess[str]:
    """A headless Chromium on a page, a file or an address of this machine, with a profile that is thrown away.

    FileNotFoundError without one.
    """
    browser = find_browser()
    if browser is None:
        raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is installed")
    root = ["--no-sandbox"] * (os.geteuid() == 0)  # which Chromium refuses to run in otherwise
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        address = page.resolve().as_uri() if isinstance(page, Path) else page
        command = [browser, *FLAGS, *root, f"--user-data-dir={profile}", *flags, address]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def print_pdf(page: Path) -> str:
    """Write `page` beside itself as PDF; returns a line that says where it is, or why there is none."""
    pdf = page.with_suffix(".pdf")
    try:
        with atomic_path(pdf) as temporary:
            done = browse(page, "--no-pdf-header-footer", f"--print-to-pdf={temporary}")
            if not temporary.is_file() or temporary.read_bytes()[:5] != b"%PDF-":
                raise OSError(f"Chromium wrote none (exit code {done.returncode})")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no PDF: {error}; open {page.resolve()} in a browser and print it"
    return f"PDF: {pdf.resolve()}"
