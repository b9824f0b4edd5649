"""Fetch pretrained weights once, on a machine with internet: ``python scripts/download_weights.py [--check]``."""

from __future__ import annotations

import socket
import sys
import urllib.error
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine.signals  # noqa: F401  # isort: skip

from dataloaders.io.files import atomic_path
from dataloaders.io.schema import options_of
from dataloaders.io.weights import KNOWN, MissingWeights, WeightFile, download_folder, resolve


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """List, check or fetch the weight files of FID, LPIPS and the VGG loss. No other command touches the network."""

    keys: tuple[Literal["inception", "alexnet", "vgg19"], ...] = ("inception", "alexnet")
    """Files to fetch or check."""
    out: Path | None = None
    """Destination; $MEDSIS_WEIGHTS where that is set, else torch's cache: every command finds them in either."""
    check: bool = False
    """Only say which files are there; exit code 1 if any is missing."""


def fetch(file: WeightFile, folder: Path) -> None:
    """Download, verify the hash, put it in its place. OSError or ValueError with one line on failure."""
    print(
        f"{file.filename}: {file.size_mb} MB, SHA-256 {file.sha256}, {file.licence}, for {file.used_for}\n"
        f"  from {file.url}\n  to   {folder / file.filename}"
    )
    import torch.hub  # seconds to import

    socket.setdefaulttimeout(30)
    with atomic_path(folder / file.filename) as temporary:
        try:
            torch.hub.download_url_to_file(file.url, str(temporary), file.sha256)
        except urllib.error.URLError as error:
            raise OSError(
                f"{file.url} cannot be reached ({error.reason}); fetch it elsewhere and copy it there"
            ) from None
        except RuntimeError as error:  # another hash
            raise ValueError(f"{file.url}: {error}; not kept") from None


def main() -> int:
    """Exit codes: 0 fine, 1 missing or not fetched."""
    options, missing = options_of(DownloadOptions), 0
    for key in options.keys:
        # A folder that a download would only create is no place to look.
        folder = options.out if options.out is not None and options.out.exists() else None
        try:
            print(f"present  {resolve(key, folder)}")
        except MissingWeights as absent:
            if options.check:
                print(f"missing  {absent}")
                missing = 1
                continue
            try:
                fetch(KNOWN[key], options.out or download_folder())
            except (OSError, ValueError) as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
    return missing


if __name__ == "__main__":
    sys.exit(main())
