"""The tutorials run on a toy map, and the code in the documentation compiles."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.toy import phantom, save_nifti

ROOT = Path(__file__).resolve().parents[1]
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
