from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dataloaders.io.nifti import Volume, read_volume
from evaluation.metrics.segmentation import dice
from pipeline.commands import ToolFailed, ToolMissing, last_line, run_command
from pipeline.tools import TOOLS
from pipeline.tools.base import ToolCall
from pipeline.tools.bet import padded_grid, trim
from pipeline.tools.builtin import mixture
from pipeline.volumes import on_grid, read_labels
from tests.pipeline.conftest import Fakes
from tests.pipeline.heads import MM, SHAPE, affine, head
from tests.toy import save_nifti

EXTERNAL = ("bet", "synthstrip", "hdbet", "synthsr", "synthseg", "samseg", "fastsurfer", "fast")
PROGRAMS = {
    "bet": "brainextractor",
    "synthstrip": "mri_synthstrip",
    "hdbet": "hd-bet",
    "synthsr": "mri_synthsr",
    "synthseg": "mri_synthseg",
    "samseg": "run_samseg",
    "fastsurfer": "run_fastsurfer.sh",
    "fast": "fast",
}


def job(tmp_path: Path, name: str, limit: float = 30.0, **settings: Any) -> ToolCall:
    """A call on a toy head, or its brain where the tool wants that."""
    tool = TOOLS[name]
    folder = tmp_path / "unit"
    folder.mkdir(exist_ok=True)
    image, _ = head(0, skull=tool.wants == "head")
    path = save_nifti(tmp_path / "image.nii.gz", image, affine())
    return ToolCall(path, folder, tool.complete(settings, "tools:"), limit=limit)


@pytest.mark.parametrize("name", EXTERNAL)
def test_a_tool_is_called_as_it_wants_and_its_output_found(name: str, tmp_path: Path, tools: Fakes) -> None:
    """The fakes refuse unknown or missing arguments, as the tools do."""
    output, about = TOOLS[name].run(job(tmp_path, name))
    assert [call[0] for call in tools.calls] == [PROGRAMS[name]]
    assert read_volume(output).data.any()
    assert (tmp_path / "unit" / "log.txt").read_text().startswith("$ ")
    assert Path(about["program"]).name == PROGRAMS[name]


@pytest.mark.parametrize("name", EXTERNAL)
def test_a_tool_that_fails_ends_in_its_own_words(name: str, tmp_path: Path, tools: Fakes) -> None:
    tools.mode(PROGRAMS[name], "fail")
    with pytest.raises(ToolFailed, match=r"ended with 1: Error: no space left in the scanner; see .*log\.txt"):
        TOOLS[name].run(job(tmp_path, name))


@pytest.mark.parametrize("name", EXTERNAL)
def test_success_without_output_is_a_failure(name: str, tmp_path: Path, tools: Fakes) -> None:
    """SynthSR prints its errors and ends with 0."""
    tools.mode(PROGRAMS[name], "nothing")
    with pytest.raises(ToolFailed, match="without an error but left no"):
        TOOLS[name].run(job(tmp_path, name))


@pytest.mark.parametrize("name", EXTERNAL)
def test_a_cut_output_is_a_failure(name: str, tmp_path: Path, tools: Fakes) -> None:
    tools.mode(PROGRAMS[name], "partial")
    with pytest.raises(ToolFailed, match="left a damaged file"):
        TOOLS[name].run(job(tmp_path, name))


@pytest.mark.parametrize("name", EXTERNAL)
@pytest.mark.usefixtures("bare")
def test_a_missing_tool_is_one_line_that_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(ToolMissing) as caught:
        TOOLS[name].run(job(tmp_path, name))
    assert "\n" not in str(caught.value)
    assert TOOLS[name].get in str(caught.value)


def test_a_tool_that_hangs_is_stopped_with_its_children(tmp_path: Path, tools: Fakes) -> None:
    tools.mode("fast", "hang")
    start = time.monotonic()
    with pytest.raises(ToolFailed, match="fast ran longer than 6 s and was stopped"):
        TOOLS["fast"].run(job(tmp_path, "fast", limit=6.0))
    assert time.monotonic() - start < 30
    pid = int(Path(f"{tools.log}.pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_nothing_reaches_a_shell(tmp_path: Path) -> None:
    """A path is one word, whatever is in it."""
    victim = tmp_path / "victim"
    odd = tmp_path / f"a; touch {victim.name} $(touch {victim.name})"
    odd.mkdir()
    run_command(["/bin/ls", odd], tmp_path, tmp_path / "log.txt", 10)
    assert not victim.exists()


def test_the_last_line_is_not_a_progress_bar(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"$ tool --x\nIteration: 1\rIteration: 2\rIteration: 3\nValueError: no\n\n")
    assert last_line(log) == "ValueError: no"
    log.write_bytes(b"$ tool --x\n")
    assert last_line(log) == "it printed nothing"


def test_freesurfer_home_is_told_to_its_tools(tmp_path: Path, tools: Fakes) -> None:
    assert "FREESURFER_HOME" not in os.environ
    TOOLS["synthstrip"].run(job(tmp_path, "synthstrip"))  # the fake stops without it, as the tool does


def test_bet_gets_cubes_with_air_around_and_its_mask_comes_back(tmp_path: Path, tools: Fakes) -> None:
    """The fake stops on other voxels and on a head at the image's edge, where brainextractor crashes."""
    output, _ = TOOLS["bet"].run(job(tmp_path, "bet", trim=False))
    mask = read_volume(output)
    _, tissue = head(0)
    assert mask.data.shape == tissue.shape
    np.testing.assert_allclose(mask.affine, affine())
    assert dice((tissue > 0).astype(np.uint8), mask.data.astype(np.uint8), [1])[1] > 0.97


def test_padding_keeps_places() -> None:
    image, _ = head(0)
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


def test_a_whole_head_goes_to_fastsurfer(tmp_path: Path, tools: Fakes) -> None:
    """Its authors ask for one; the fake refuses a stripped brain."""
    output, _ = TOOLS["fastsurfer"].run(job(tmp_path, "fastsurfer"))
    image, tissue = head(0)
    labels = read_labels(output, Volume(image, affine()))
    assert TOOLS["fastsurfer"].wants == "head"
    assert (np.isin(labels, [41]) == (tissue == 3)).mean() > 0.97  # conformed to LIA, and back on the scan's grid


def test_labels_move_by_nearest_neighbour_only(tmp_path: Path) -> None:
    """Linear interpolation puts 1 and 2 between 0 and 3."""
    _, tissue = head(0)
    three = np.where(tissue > 0, 3, 0).astype(np.int32)
    fine = np.diag([1.7, 2.1, 2.9, 1.0])
    fine[:3, 3] = affine()[:3, 3]
    path = save_nifti(tmp_path / "labels.nii.gz", three, affine())
    moved = read_labels(path, Volume(np.zeros((90, 80, 50), np.float32), fine))
    assert set(np.unique(moved)) == {0, 3}


def test_interpolated_labels_are_refused(tmp_path: Path) -> None:
    _, tissue = head(0)
    path = save_nifti(tmp_path / "labels.nii.gz", tissue.astype(np.float32) * 0.5, affine())
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        read_labels(path, Volume(np.zeros(tissue.shape, np.float32), affine()))


def test_mgz_is_read_with_distrust(tmp_path: Path) -> None:
    path = tmp_path / "a.mgz"
    nib.MGHImage(np.random.default_rng(0).random((9, 9, 9), np.float32), np.eye(4)).to_filename(path)
    assert read_volume(path).data.shape == (9, 9, 9)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"a\.mgz: truncated or damaged"):
        read_volume(path)


def test_hmrf_finds_the_tissues(tmp_path: Path) -> None:
    folder = tmp_path / "unit"
    folder.mkdir()
    image, tissue = head(0, skull=False)
    brain = np.where(tissue > 0, np.maximum(image, 1), 0)
    path = save_nifti(tmp_path / "brain.nii.gz", brain.astype(np.float32), affine())
    output, _ = TOOLS["hmrf"].run(ToolCall(path, folder))
    scores = dice(tissue, read_volume(output).data, [1, 2, 3])
    assert min(scores.values()) > 0.97


@pytest.mark.parametrize("name", ["hmrf", "atlas"])
def test_built_in_segmenters_refuse_what_has_no_tissues(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "unit"
    folder.mkdir()
    _, tissue = head(0)
    path = save_nifti(tmp_path / "flat.nii.gz", (tissue > 0).astype(np.float32), affine())
    with pytest.raises(ToolFailed):
        TOOLS[name].run(ToolCall(path, folder))


def test_mixture_follows_intensities_and_places() -> None:
    """Three Gaussians that overlap: with equal shares the threshold lies between the means; a place can overrule it."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 4000)
    values = np.array([50.0, 100.0, 150.0])[truth] + rng.normal(0, 12, truth.size)
    start = np.where(np.arange(3)[:, None] == np.digitize(values, [75, 125]), 0.8, 0.1)
    labels = mixture(values, start / start.sum(0)).argmax(0)
    assert (labels == truth).mean() > 0.96
    told = np.where(np.arange(3)[:, None] == truth, 0.98, 0.01)
    assert (mixture(values, told).argmax(0) == truth).mean() > (labels == truth).mean()
    with pytest.raises(ToolFailed, match="do not rise from CSF to white matter"):
        mixture(values, told[::-1])


def test_atlas_finds_the_tissues_of_a_brain_that_lies_elsewhere(tmp_path: Path) -> None:
    """The template itself, turned by 8 degrees, 5 % larger, shifted, on a coarse grid: its own tissues come back."""
    from dataloaders.prepare.sources import embedded_volumes

    volumes = embedded_volumes(("T1w",))
    place = affine()
    turn = np.eye(4)
    angle = np.radians(8)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, :3] *= 1.05
    turn[:3, 3] = [6.0, -9.0, 4.0]
    grid = Volume(np.zeros(SHAPE, np.float32), place)
    moved = turn @ volumes["T1w"].affine
    image = on_grid(volumes["T1w"].data, moved, grid, labels=False)
    truth = on_grid(volumes["label"].data, moved, grid, labels=True)
    path = save_nifti(tmp_path / "brain.nii.gz", np.where(truth > 0, image + 1, 0).astype(np.float32), place)
    (tmp_path / "unit").mkdir()
    labels = read_volume(TOOLS["atlas"].run(ToolCall(path, tmp_path / "unit"))[0]).data
    scores = dice(truth.astype(np.uint8), labels, [1, 2, 3])
    assert scores[2] > 0.8
    assert scores[3] > 0.8
    assert scores[1] > 0.6


FAKE_SEGMENT = """
import argparse, json, sys
import nibabel as nib, numpy as np
parser = argparse.ArgumentParser(allow_abbrev=False)
for flag in ("--input", "--output", "--checkpoint", "--device", "--threads"):
    parser.add_argument(flag, required=True)
parser.add_argument("--no-qc", action="store_true")
o = parser.parse_args()
image = nib.load(o.input)
data = np.asarray(image.dataobj)
ids = np.where(data > 30, np.array([3, 1, 2])[np.digitize(data, [85, 135])], 0)
nib.Nifti1Image(ids.astype(np.uint8), image.affine).to_filename(o.output)
"""


def test_our_own_segmenter_is_called_by_its_command(
    tmp_path: Path, tools: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "scripts" / "segment.py"
    script.parent.mkdir()
    script.write_text(FAKE_SEGMENT)
    monkeypatch.setattr("pipeline.tools.base.ROOT", tmp_path)
    run_folder = tmp_path / "checkpoints" / "exp"
    with pytest.raises(ToolMissing, match=r"own: checkpoint = .*exp: no such file or folder"):
        TOOLS["own"].run(job(tmp_path, "own", checkpoint=str(run_folder)))
    with pytest.raises(ToolMissing, match="own is not installed: train one"):
        TOOLS["own"].run(job(tmp_path, "own"))
    run_folder.mkdir(parents=True)
    output, _ = TOOLS["own"].run(job(tmp_path, "own", checkpoint=str(run_folder)))
    assert set(np.unique(read_volume(output).data)) == {0, 1, 2, 3}


def test_torch_synthseg_never_downloads(tmp_path: Path, tools: Fakes) -> None:
    with pytest.raises(ToolMissing, match=r"no such file or folder; fetch dipy's synthseg weights"):
        TOOLS["synthseg-torch"].run(job(tmp_path, "synthseg-torch", weights=str(tmp_path / "none.pth")))
    with pytest.raises(ToolMissing, match="synthseg-torch is not installed: fetch"):
        TOOLS["synthseg-torch"].run(job(tmp_path, "synthseg-torch"))
