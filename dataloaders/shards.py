"""``--shard i/n``: how the work of a job array is shared out."""

from __future__ import annotations

import re


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of ``i/n`` with i from 0 to n - 1; ValueError for another form."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise ValueError(f"--shard {text}: must be i/n with i from 0 to n-1, such as 0/4")
    return int(match[1]), int(match[2])
