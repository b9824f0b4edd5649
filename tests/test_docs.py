"""What README and docs name is there: paths, flags of every command that they show; their code compiles, tutorials run."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.launch import ROOT, call
from tests.toy import phantom, save_nifti

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
    model = re.search(r"--model[ =](\w+)", words) or re.search(r"--(oasis|lesion|segmenter|gmm)\.", words)
    named = flags(script, model[1] if model else "spade")
    return named | {"--no_" + f[2:] for f in named}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_of_commands_exist(page: Path) -> None:
    unknown = []
    for script, rest in commands(page):
        assert (ROOT / script).is_file(), f"{page.name}: {script}"
        own, _, training = rest.partition(" -- ")
        # utility.py's methods: options of train.py, as what follows its --
        methods = re.findall(r"""['"]\w+=(?:--maps all )?(--model .*?)['"]""", own)
        own = re.sub(r"""['"]\w+=(--maps all )?--model .*?['"]""", "", own)
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
    folders = ("", *(f"{folder}/**/" for folder in (*PRODUCT, "scripts", "benchmarks", "tests", "docs")))
    modules = {path.name for folder in folders for path in ROOT.glob(f"{folder}*.py")}
    lacking += set(re.findall(r"`(\w+\.py)`", text)) - modules
    assert not lacking, f"{page.name}: {', '.join(sorted(lacking))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_labelled_scans_are_credited_as_their_terms_ask(page: Path) -> None:
    for paragraph in page.read_text(encoding="utf-8").split("\n\n"):
        text = " ".join(paragraph.split())
        if "Neuromorphometrics, Inc." in text:
            assert "OASIS project" in text, text
            assert "under academic subscription" in text, text
            assert "CC BY-NC 3.0" in text, text


SHOWN = {  # pictures of scans, and whose they are
    "Neuromorphometrics": (
        "gan_1mm",
        "gan_people",
        "gan_slices",
        "paint",
        "pipeline_predictions",
        "segmenter_tissue",
        "tissue_atlas",
    ),
    "Lesjak": ("lesions_sub-07", "lesions_sub-19", "paint_lesions", "pipeline_strip", "segmenter_contrasts"),
    "TotalSegmentator": ("gan_ct",),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_with_pictures_of_scans_say_whose_they_are(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for owner, pictures in SHOWN.items():
        if any(f"images/{name}.png" in text for name in pictures):
            assert owner in text


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


TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))


@pytest.fixture
def map_file(tmp_path: Path) -> Path:
    return save_nifti(tmp_path / "map.nii.gz", phantom(0, (20, 24, 16))[0].astype(np.uint8))


def run(script: Path, *arguments: object) -> None:
    with mock.patch.object(sys, "argv", [str(script), *map(str, arguments)]):
        runpy.run_path(str(script), run_name="__main__")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial(script: Path, map_file: Path, tmp_path: Path) -> None:
    assert len(script.read_text().splitlines()) < 50
    run(script, map_file, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_t1_like_from_arrays_and_from_an_image(map_file: Path, tmp_path: Path) -> None:
    script = ROOT / "docs" / "tutorials" / "03_t1_like.py"
    folder = tmp_path / "priors"
    folder.mkdir()
    arrays = {"generation_labels": np.arange(5), "generation_classes_contrast_specific": np.array([0, 1, 2, 3, 3])}
    arrays |= {f"prior_{name}_t1": np.array([[0, 60, 100, 150], [1, 2, 2, 2]]) for name in ("means", "stds")}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    with pytest.raises(ValueError, match="n_neutral_labels must lie in 0"):  # the tutorial's 18 are SynthSeg's
        run(script, map_file, tmp_path / "a.png", folder)
    labels = [*range(18), 20, 21]
    np.save(folder / "generation_labels.npy", labels)
    np.save(folder / "generation_classes_contrast_specific.npy", [0, 1, 2, *[3] * 17])
    run(script, map_file, tmp_path / "a.png", folder)
    image = phantom(0, (20, 24, 16))[1]
    run(script, map_file, tmp_path / "b.png", save_nifti(tmp_path / "image.nii.gz", image), map_file)
    assert (tmp_path / "a.png").is_file()
    assert (tmp_path / "b.json").is_file()


def test_code_in_the_documentation_compiles() -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)):
            compile(block, f"{page.name}, block {i}", "exec")
