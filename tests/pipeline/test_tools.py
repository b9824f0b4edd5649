from __future__ import annotations

import os
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataloaders.io.nifti import Volume, read_volume
from evaluation.metrics.segmentation import dice
from pipeline.programs import ToolFailed, ToolMissing, run_command
from pipeline.tissue import on_grid, read_labels
from pipeline.tools import TOOLS
from pipeline.tools.base import ToolCall
from pipeline.tools.ours import padded_grid, trim
from tests.pipeline import fakes
from tests.pipeline.conftest import Fakes
from tests.pipeline.heads import MM, affine, head
from tests.toy import save_nifti

EXTERNAL = ("deepbet", "bet", "synthstrip", "hdbet", "synthsr", "synthseg", "samseg", "fastsurfer", "fast")
MODES = {
    "fail": r"ended with 1: Error: no space left in the scanner; see .*log\.txt",
    "nothing": "without an error but left no",  # SynthSR prints its errors and ends with 0
    "partial": "left a damaged file",
}
each_tool = pytest.mark.parametrize("name", EXTERNAL)


def call(tmp_path: Path, name: str, image: Any = None, limit: float = 30.0, **settings: Any) -> ToolCall:
    """On a toy head, or its brain where the tool wants that."""
    tool = TOOLS[name]
    (tmp_path / "unit").mkdir(exist_ok=True)
    image = head(0, skull=tool.wants == "head")[0] if image is None else image
    path = save_nifti(tmp_path / "image.nii.gz", image.astype(np.float32), affine())
    return ToolCall(path, tmp_path / "unit", tool.complete(settings, "tools:"), limit=limit)


@pytest.mark.slow
@each_tool
def test_a_tool_is_called_as_it_wants_and_its_output_found(name: str, tmp_path: Path, tools: Fakes) -> None:
    """The fakes refuse unknown or missing arguments, as the tools do; FreeSurfer's also without FREESURFER_HOME."""
    assert "FREESURFER_HOME" not in os.environ
    output, about = TOOLS[name].run(call(tmp_path, name))
    program = TOOLS[name].programs[0]
    assert [found[0] for found in tools.calls] == [program]
    assert read_volume(output).data.any()
    assert (tmp_path / "unit" / "log.txt").read_text().startswith("$ ")
    assert (Path(about["program"]).name, about["name"]) == (program, name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), list(zip(EXTERNAL, cycle(MODES), strict=False)))
def test_a_tool_that_fails_says_why(name: str, mode: str, tmp_path: Path, tools: Fakes) -> None:
    tools.mode(TOOLS[name].programs[0], mode)
    with pytest.raises(ToolFailed, match=MODES[mode]):
        TOOLS[name].run(call(tmp_path, name))


@pytest.mark.usefixtures("bare")
def test_a_missing_tool_is_one_line_that_says_how_to_get_it(tmp_path: Path) -> None:
    missing = dict.fromkeys(EXTERNAL, "") | {"own": "checkpoint", "synthseg-torch": "weights"}
    for name, weights in missing.items():
        tool = TOOLS[name]
        with pytest.raises(ToolMissing, match=f"^{name} is not installed: ") as caught:
            tool.run(call(tmp_path, name))
        assert str(caught.value).endswith(tool.get)
        assert "\n" not in tool.get
        if weights:  # nothing is ever downloaded
            with pytest.raises(ToolMissing, match=f"{name}: {weights} = .*none: no such file or folder; "):
                tool.run(call(tmp_path, name, **{weights: str(tmp_path / "none")}))


@pytest.mark.slow
def test_a_tool_that_hangs_is_stopped_with_its_children(tmp_path: Path, tools: Fakes) -> None:
    tools.mode("fast", "hang")
    with pytest.raises(ToolFailed, match="fast ran longer than 6 s and was stopped"):
        TOOLS["fast"].run(call(tmp_path, "fast", limit=6.0))
    assert not Path(f"{tools.log}.awake").exists()  # stopped, not waited for
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path(f"{tools.log}.pid").read_text()), 0)


def test_nothing_reaches_a_shell(tmp_path: Path) -> None:
    """A path is one word, whatever is in it."""
    odd = tmp_path / "a; touch victim $(touch victim)"
    odd.mkdir()
    run_command(["/bin/ls", odd], tmp_path, tmp_path / "log.txt", 10)
    assert not (tmp_path / "victim").exists()
    words = TOOLS["fast"].arguments(ToolCall(odd / "{x} y.nii.gz", odd))
    assert words == ["-t", "1", "-n", "3", "-o", f"{odd}/fast", f"{odd}/{{x}} y.nii.gz"]


@pytest.mark.slow
def test_bet_gets_cubes_with_air_around_and_its_mask_comes_back(tmp_path: Path, tools: Fakes) -> None:
    """The fake stops on other voxels and on a head at the image's edge, where brainextractor crashes."""
    output, _ = TOOLS["bet"].run(call(tmp_path, "bet", trim=False))
    mask, (image, tissue) = read_volume(output), head(0)
    assert mask.data.shape == tissue.shape
    np.testing.assert_allclose(mask.affine, affine())
    assert dice((tissue > 0).astype(np.uint8), mask.data.astype(np.uint8), [1])[1] > 0.97
    volume = Volume(image, affine())
    padded = padded_grid(volume, 2.0, 30.0)
    back = on_grid(padded.data, padded.affine, volume, labels=False)
    assert np.corrcoef(back.ravel(), image.ravel())[0, 1] > 0.96
    assert not padded.data[:14].any()


def test_trim_takes_scalp_off_and_leaves_brain() -> None:
    image, tissue = head(1)
    brain = tissue > 0
    sloppy = brain.copy()
    sloppy[10:46, 10:54, 30:] |= image[10:46, 10:54, 30:] > 200  # a cap of scalp
    trimmed = trim(image, sloppy, np.array(MM))
    assert (sloppy & ~brain).sum() > 500
    assert (trimmed & ~brain).sum() < 0.1 * (sloppy & ~brain).sum()
    assert (trimmed & brain)[tissue > 1].sum() > 0.99 * (tissue > 1).sum()  # the outermost CSF may go


@pytest.mark.slow
def test_labels_come_back_on_the_scans_grid_by_nearest_neighbour_only(tmp_path: Path, tools: Fakes) -> None:
    """FastSurfer's from LIA; linear interpolation would put 1 and 2 between 0 and 3."""
    output, _ = TOOLS["fastsurfer"].run(call(tmp_path, "fastsurfer"))
    image, tissue = head(0)
    assert (np.isin(read_labels(output, Volume(image, affine())), [41]) == (tissue == 3)).mean() > 0.97
    fine = np.diag([1.7, 2.1, 2.9, 1.0])
    fine[:3, 3] = affine()[:3, 3]
    path = save_nifti(tmp_path / "labels.nii.gz", np.where(tissue > 0, 3, 0).astype(np.int32), affine())
    assert set(np.unique(read_labels(path, Volume(np.zeros((90, 80, 50), np.float32), fine)))) == {0, 3}
    path = save_nifti(tmp_path / "half.nii.gz", tissue.astype(np.float32) * 0.5, affine())
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        read_labels(path, Volume(image, affine()))


@pytest.mark.parametrize("name", ["hmrf", "atlas"])
def test_built_in_segmenters_refuse_what_has_no_tissues(name: str, tmp_path: Path) -> None:
    with pytest.raises(ToolFailed):
        TOOLS[name].run(call(tmp_path, name, head(0)[1] > 0))


def test_our_own_segmenter_is_called_by_its_command(
    tmp_path: Path, tools: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.install(tmp_path / "scripts", "segment.py")
    monkeypatch.setattr("pipeline.tools.base.ROOT", tmp_path)
    (tmp_path / "exp").mkdir()
    output, _ = TOOLS["own"].run(call(tmp_path, "own", checkpoint=str(tmp_path / "exp")))
    assert set(np.unique(read_volume(output).data)) == {0, 1, 2, 3}
