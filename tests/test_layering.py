"""The rules of the house: imports run one way, and what else a reader may rely on."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.launch import run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
# From the ground up: a file imports from its own layer and those before it. The first pattern that fits is a file's layer.
METHODS = ("gan", "gmm", "lesion", "segmenter")
LAYERS = [
    ("dataloaders/io/*", "dataloaders/__init__.py"),
    ("models/*/options.py", "models/__init__.py", *(f"models/{m}/__init__.py" for m in METHODS)),
    ("config.py",),
    ("models/*",),
    ("dataloaders/*",),
    ("evaluation/*",),
    ("engine/*",),
    ("pipeline/*",),
    ("train.py", "test.py", "scripts/*", "benchmarks/*"),
]


def layer(file: str) -> int:
    return next(i for i, patterns in enumerate(LAYERS) if any(fnmatch(file, pattern) for pattern in patterns))


def product_files() -> list[Path]:
    folders = ("dataloaders", "models", "evaluation", "engine", "pipeline", "scripts", "benchmarks")
    return [*ROOT.glob("*.py"), *(p for f in folders for p in ROOT.glob(f"{f}/**/*.py"))]


def imported(file: Path) -> set[str]:
    """Files of ours that are imported when this one is: imports within functions and for type checkers do not count."""
    found = set()
    nodes = list(ast.parse(file.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = name.replace(".", "/")
            found |= {where for where in (f"{path}.py", f"{path}/__init__.py") if (ROOT / where).is_file()}
    return found


def test_imports_run_downward() -> None:
    upward = []
    for file in product_files():
        name = file.relative_to(ROOT).as_posix()
        upward += [f"{name} imports {other}" for other in sorted(imported(file)) if layer(other) > layer(name)]
    assert not upward, "\n".join(upward)


@cache
def of_the_product() -> dict[str, ast.Module]:
    files = [path for path in product_files() if "benchmarks" not in path.parts]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in files}


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[str, Any]]:
    """Of the product, with their file."""
    for name, tree in of_the_product().items():
        yield from ((name, node) for node in ast.walk(tree) if isinstance(node, kinds))


def test_no_class_name_occurs_twice() -> None:
    names = Counter(node.name for _, node in nodes(ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_method_is_named_outside_the_registry() -> None:
    """A comparison of --model with a method's name is a branch that belongs to that method."""
    named = re.compile(r"(?=.*[\"'](oasis|spade|gmm|lesion|segmenter)[\"']).*(model|method)", re.DOTALL)
    assert [f"{name}:{node.lineno}" for name, node in nodes(ast.Compare) if named.match(ast.unparse(node))] == []


def test_no_function_is_long() -> None:
    """Fifty lines of code, docstring and signature apart."""
    long = []
    for name, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
        lines = (node.end_lineno or 0) - first.lineno + 1
        long += [f"{name}: {node.name} has {lines}"] if lines > 50 else []
    assert long == []


def test_nothing_is_there_for_tests_alone() -> None:
    """A public name of a file is used by the product, or promised in the documentation."""
    texts = [path.read_text() for path in [*product_files(), *ROOT.glob("docs/**/*.py"), *ROOT.glob("docs/*.md")]]
    words = Counter(re.findall(r"\w+", "\n".join(texts)))
    top = [node for tree in of_the_product().values() for node in tree.body]
    names = [node.name for node in top if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert [name for name in names if words[name] < 2] == []


def test_private_names_stay_in_their_file() -> None:
    imports = [(name, alias.name) for name, node in nodes(ast.ImportFrom) for alias in node.names]
    assert [(name, what) for name, what in imports if what.startswith("_")] == []


def test_only_one_place_reads_pickles() -> None:
    """torch.load once in all of the code, without executing anything; numpy arrays never with pickles in them."""
    found = {}
    for file in [*product_files(), *ROOT.glob("docs/**/*.py")]:
        text = file.read_text()
        assert not re.search("allow_pickle=True|import pickle", text), file
        if "torch.load(" in text:
            found[file.relative_to(ROOT).as_posix()] = re.findall(r"torch\.load\(.*", text)
    assert found == {"dataloaders/io/weights.py": ['torch.load(path, map_location="cpu", weights_only=True)']}


def test_no_path_of_anybodys_machine_is_written_down() -> None:
    """The predecessor had private paths in nine files."""
    private = re.compile(r"/(home|Users|misc|mnt|scratch|work)/[a-z]")
    texts = [*ROOT.glob("docs/*.md"), *ROOT.glob("tests/**/*.py"), ROOT / "README.md", ROOT / "batch.sh"]
    for file in {*product_files(), *ROOT.glob("docs/**/*.py"), *texts} - {Path(__file__)}:
        assert not private.search(file.read_text()), file


def test_everything_that_is_installed_is_pinned_with_its_hashes() -> None:
    """What the project names and whatever that needs here, by the metadata of what is installed."""
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith(("#", " ")):
            name, version = re.fullmatch(r"([\w.-]+)==(\S+)(?: ;.*)? \\", line).groups()  # type: ignore[union-attr]
            pins[canonicalize_name(name)] = [version]
        elif line.strip().startswith("--hash"):
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?", line), line
            pins[canonicalize_name(name)].append(line)
    assert all(len(found) > 1 for found in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *extras["dev"], *extras["pipeline"]]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        need = wanted.pop()
        key = canonicalize_name(need.name), frozenset(need.extras)
        if key in seen:
            continue
        seen.add(key)
        assert key[0] in pins, f"{need} is not pinned"
        try:
            found = metadata.distribution(key[0])
        except metadata.PackageNotFoundError:
            continue  # of another system, or an extra that this environment was built without
        for text in found.requires or []:
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in (*need.extras, "")):
                wanted.append(inner)
    assert len(seen) > 80


@pytest.mark.parametrize("script", ["prepare_data", "make_seeds"])
def test_commands_that_train_nothing_start_without_torch(script: str) -> None:
    """It takes seconds to import, in every process of an array of hundreds, and before a typing error is told."""
    code = f"""import runpy, sys
sys.argv = ["{script}.py", "--help"]
try:
    runpy.run_path("scripts/{script}.py", run_name="__main__")
except SystemExit:
    assert "torch" not in sys.modules"""
    run("-c", code)
