"""Derivatives of BIDS that we write: how a folder describes itself, and where a scan's files lie in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataloaders.io.files import package_version, read_json, write_json, write_text


def describe_bids(out: Path, name: str, ignored: Sequence[str], links: Mapping[str, str] | None = None) -> None:
    """Say that the folder is a BIDS derivative, and which of its files (`ignored`) BIDS knows nothing about.

    links: data sets that BIDS URIs name, and where they lie, relative to `out`.
    """
    program = {"Name": "medsis"} | ({"Version": own} if (own := package_version("medsis")) else {})
    path = out / "dataset_description.json"
    old = read_json(path) if path.is_file() else None
    fresh: dict[str, Any] = {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [program],
    }
    new = fresh if old is None else old
    if links:
        new = {**new, "DatasetLinks": {**new.get("DatasetLinks", {}), **links}}
    if new != old:
        write_json(path, new)
    if old is None:
        write_text(out / ".bidsignore", "".join(f"{item}\n" for item in ignored))


def bids_place(path: Path, name: str) -> tuple[str, str] | None:
    """(folder, beginning of the file names) of a map in ``sub-*/[ses-*/]anat``; None elsewhere."""
    match = re.search(r"(?:^|/)(sub-[A-Za-z0-9]+)/(?:(ses-[A-Za-z0-9]+)/)?anat/[^/]+$", path.absolute().as_posix())
    if match is None:
        return None
    parts = [part for part in match.groups() if part]
    kept = [part for part in name.split("_") if re.fullmatch(r"(?!sub-|ses-|desc-)[A-Za-z0-9]+-[A-Za-z0-9]+", part)]
    return "/".join([*parts, "anat"]), "_".join([*parts, *kept])
