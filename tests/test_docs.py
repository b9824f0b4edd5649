"""What README and docs name is there: paths, and the flags of every command that they show."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.launch import ROOT, call

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *[p for p in [ROOT / "CONTRIBUTING.md"] if p.exists()]]
PRODUCT = ("dataloaders", "models", "evaluation", "engine", "pipeline")
FILES = (".py", ".json", ".html", ".md")
COMMAND = re.compile(r"(?:python |sbatch .*?|batch_array\.sh )((?:scripts/|benchmarks/)?\w+\.py)(.*)")


def commands(page: Path) -> list[tuple[str, str]]:
    """(script, what follows) of each command in the page's code blocks."""
    found = []
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if match := COMMAND.search(line.partition(" #")[0]):
                found.append((match[1], match[2]))
    return found


@cache
def flags(script: str, model: str = "") -> set[str]:
    """Flags that the command's --help lists, with underscores."""
    words = ["--model", model] if model else ["run"] if script == "scripts/pipeline.py" else []
    text = call(script, *words, "--help").stdout
    return {flag.replace("-", "_").replace("__", "--", 1) for flag in re.findall(r"--[a-z][\w.-]*", text)}


def known(script: str, words: str) -> set[str]:
    if script != "train.py":
        return flags(script)
    model = re.search(r"--model[ =](\w+)", words)
    named = flags(script, model[1] if model else "oasis")
    return named | {"--no_" + f[2:] for f in named}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_of_commands_exist(page: Path) -> None:
    unknown = []
    for script, rest in commands(page):
        assert (ROOT / script).is_file(), f"{page.name}: {script}"
        own, _, training = rest.partition(" -- ")
        methods = re.findall(r"""['"]\w+=(--model .*?)['"]""", own)  # utility.py's: of train.py, as what follows its --
        own = re.sub(r"""['"]\w+=--model .*?['"]""", "", own)
        trained = [*methods, *([f"--model segmenter {training}"] if training else [])]
        for command, words in ((script, own), *(("train.py", words) for words in trained)):
            given = {
                flag.replace("-", "_").replace("__", "--", 1) for flag in re.findall(r"(?<!\S)--[a-z][\w.-]*", words)
            }
            unknown += [f"{command} {flag}" for flag in given - known(command, words)] if given else []
    assert not unknown, f"{page.name}: {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|sh|toml|tsv))`", text))
    named |= set(re.findall(r"\]\(([^)#:\s]+)\)", text))
    ours = {
        path
        for path in named
        if path.partition("/")[0] in {p.name for p in ROOT.iterdir()} or path.startswith("images")
    }
    lacking = [path for path in ours if not (ROOT / path).exists() and not (page.parent / path).exists()]
    assert not lacking, f"{page.name}: {', '.join(sorted(lacking))}"


def test_the_architecture_names_what_is_there() -> None:
    """`module.name`, `Class.name` and `name` are defined in the product, in that file or class where one is said."""
    defined: set[str] = set()
    for path in (p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0] in (*PRODUCT, "config.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                defined |= {node.name, f"{path.stem}.{node.name}"}
            if isinstance(node, ast.ClassDef):
                defined |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:[a-z]+/)*((?:\w+\.)?[a-z_]\w*|[A-Z][a-z]\w*(?:\.\w+)?)`", text)
    lacking = {name for name in named if not name.endswith(FILES)} - defined
    assert not lacking, ", ".join(sorted(lacking))
