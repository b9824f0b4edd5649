"""Warnings to the user, one line each."""

from __future__ import annotations

import functools
import sys


@functools.cache
def warn_once(text: str) -> None:
    """A training run evaluates many times; the same warning is worth one line."""
    print(f"warning: {text}", file=sys.stderr)
