"""Lines of code by folder, without blank lines, comments and docstrings: ``make count``."""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("models", "dataloaders", "engine", "evaluation", "pipeline", "scripts")
APART = ("tests", "benchmarks", "docs")  # counted, but no part of the product
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text: str) -> int:
    """Lines that hold any code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            docstrings.update(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def main() -> None:
    """Print the table; with a folder, that of its files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="list the files of this folder, longest first")
    chosen = parser.parse_args().folder
    if chosen:
        files = {path: code_lines(path.read_text(encoding="utf-8")) for path in (ROOT / chosen).rglob("*.py")}
        for path, lines in sorted(files.items(), key=lambda entry: -entry[1]):
            print(f"{lines:6,} {path.relative_to(ROOT)}")
        return
    counts: Counter[str] = Counter()
    for folder in (*FOLDERS, *APART):
        counts[folder] = sum(code_lines(path.read_text(encoding="utf-8")) for path in (ROOT / folder).rglob("*.py"))
    counts["root"] = sum(code_lines(path.read_text(encoding="utf-8")) for path in ROOT.glob("*.py"))
    for folder in (*FOLDERS, "root"):
        print(f"{folder:12} {counts[folder]:6,}")
    print(f"{'all':12} {sum(counts[folder] for folder in (*FOLDERS, 'root')):6,}")
    for folder in APART:
        print(f"({folder:10}) {counts[folder]:6,}")


if __name__ == "__main__":
    main()
