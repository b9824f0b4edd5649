"""The arrows between folders run one way (DESIGN, section 1)."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
# `from models.gmm import ImageGenerator` is promised to users; the class reads files, so it lives in dataloaders/.
DOORS = {
    ("models/gmm/__init__.py", f"dataloaders.{name}")
    for name in ("image_generator", "image_generator.ImageGenerator", "image_generator.BrainGenerator", "lab2im")
}
OURS = {
    "config",
    "method_options",
    "spec",
    "models",
    "dataloaders",
    "engine",
    "evaluation",
    "pipeline",
    "scripts",
    "train",
    "test",
}
ALLOWED = {
    "spec.py": set(),
    "config.py": {"method_options"},
    "method_options": {"method_options"},
    "models": {"models", "spec", "config", "method_options"},
    # The generator's ImageGenerator reads files and paints them with models.gmm, whose options are in method_options.
    "dataloaders": {"dataloaders", "spec", "config", "method_options", "engine.files", "models.base", "models.gmm"},
    "evaluation": {"evaluation", "dataloaders", "spec", "engine.files", "engine.weights", "engine.runlog"},
    # Only scripts import the pipeline: it is what they run, and nothing that the others build on.
    "pipeline": {
        "pipeline",
        "dataloaders",
        "models.base",
        "models.gmm",
        "method_options",
        "evaluation",
        "engine.files",
        "engine.signals",
        "spec",
    },
    "engine": {"engine", "dataloaders", "models.base", "evaluation", "spec", "config", "method_options"},
}

# Small modules that several parts share.
OURS.add("decoding")
ALLOWED["decoding.py"] = set()
for part in ("spec.py", "config.py", "dataloaders", "evaluation", "engine", "pipeline"):
    ALLOWED[part] |= {"decoding"}
ALLOWED["dataloaders"] |= {"engine.locks", "engine.progress", "models.ranks"}
ALLOWED["evaluation"] |= {"engine.progress"}
ALLOWED["engine"] |= {"models.ranks"}
ALLOWED["pipeline"] |= {"engine.locks"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in OURS}


@pytest.mark.parametrize("part", ALLOWED)
def test_imports(part: str) -> None:
    files = [ROOT / part] if part.endswith(".py") else sorted((ROOT / part).glob("**/*.py"))
    assert files
    for file in files:
        for name in imports(file):
            if (str(file.relative_to(ROOT)), name) in DOORS:
                continue
            allowed = any(name == a or name.startswith(a + ".") for a in ALLOWED[part])
            assert allowed, f"{file.relative_to(ROOT)} imports {name}"


def test_only_one_place_reads_pickles() -> None:
    """torch.load once in all of the code, without executing anything; numpy arrays never with pickles in them."""
    found = {}
    for file in [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/**/*.py")]:
        if "tests" in file.parts:
            continue
        text = file.read_text()
        assert "allow_pickle=True" not in text, file
        assert "import pickle" not in text, file
        if "torch.load(" in text:
            found[file.relative_to(ROOT).as_posix()] = re.findall(r"torch\.load\(.*", text)
    assert found == {"engine/weights.py": ['torch.load(path, map_location="cpu", weights_only=True)']}


def test_no_path_of_anybodys_machine_is_written_down() -> None:
    """The predecessor had private paths in nine files."""
    private = re.compile(r"/(home|Users|misc|mnt|scratch|work)/[a-z]")
    for file in [
        *ROOT.glob("*.py"),
        *ROOT.glob("*/**/*.py"),
        *ROOT.glob("docs/*.md"),
        ROOT / "README.md",
        ROOT / "batch.sh",
    ]:
        if ".venv" not in file.parts and file.name != "test_layering.py":
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
