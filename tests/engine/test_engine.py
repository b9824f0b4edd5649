from __future__ import annotations

import json
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from dataloaders.io.files import read_json
from dataloaders.io.runlog import RunLog, read_log
from dataloaders.labelmaps.labels import read_label_table
from dataloaders.labelmaps.maps import LabelMaps
from dataloaders.segmenter.scans import find_scans
from engine import checkpoint
from engine.command import exit_code
from engine.run import match_parameters
from pipeline.study import read_study
from pipeline.tissue import read_table
from tests.toy import save_nifti


def test_lists_tables_and_settings_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As Excel and Windows' editors save them."""
    marked = "\ufeff"
    save_nifti(tmp_path / "a.nii.gz", np.ones((4, 4, 4), np.uint8))
    for name, text in {
        "split.json": '{"train": ["a"]}',
        "maps.txt": str(tmp_path / "a.nii.gz"),
        "table.csv": "id,name\n1,bone\n",
        "study.toml": f'name = "x"\n[[case]]\nid = "a"\nt1 = "{tmp_path / "a.nii.gz"}"\n',
        "tissue.toml": "[GM]\na = 1\n[WM]\nb = 2\n[CSF]\nc = 3\n",
    }.items():
        (tmp_path / name).write_text(marked + text, encoding="utf-8")
    assert read_json(tmp_path / "split.json") == {"train": ["a"]}
    assert LabelMaps(tmp_path / "maps.txt").name(0) == "a"
    assert [scan.files[0].name for scan in find_scans([tmp_path / "maps.txt"], (), ("T1w",))[0]] == ["a.nii.gz"]
    assert [label.name for label in read_label_table(tmp_path / "table.csv")] == ["background", "bone"]
    assert read_study(tmp_path / "study.toml").name == "x"
    assert read_table(tmp_path / "tissue.toml").labels[2].source == (2,)


def test_states_are_kept_in_order_and_thinned(tmp_path: Path) -> None:
    for images in range(10, 1010, 10):
        checkpoint.save_state(tmp_path, images, {"x": torch.tensor(images)})
    kept = [int(p.stem.removeprefix("state-")) for p in checkpoint.list_states(tmp_path)]
    assert kept[-3:] == [980, 990, 1000]
    assert len(kept) <= 3 + 7  # of the powers of two from 16 to 1024
    # At any time there was a state about a half, a quarter, an eighth of the way back.
    for back in (32, 64, 128, 256, 512):
        assert any(back / 2 <= 1000 - images <= 2 * back for images in kept), (back, kept)
    assert checkpoint.load_state(checkpoint.list_states(tmp_path)[-1])["x"] == 1000


def test_the_best_state_stays_and_is_one(tmp_path: Path) -> None:
    for images in range(10, 210, 10):
        path = checkpoint.save_state(tmp_path, images, {"x": torch.tensor(images)})
        if images in (20, 50):
            checkpoint.keep_as_best(path)
    assert [p.name for p in tmp_path.glob("state-best-*")] == ["state-best-0000000050.pt"]
    best = checkpoint.best_state(tmp_path)
    assert checkpoint.load_state(best)["images"] == 50
    checkpoint.state_path(tmp_path, 50).unlink(missing_ok=True)
    checkpoint.go_back_to(best)  # the only one left of that moment
    assert checkpoint.best_state(tmp_path) == best
    assert checkpoint.load_state(checkpoint.list_states(tmp_path)[-1])["x"] == 50
    checkpoint.go_back_to(checkpoint.save_state(tmp_path, 40, {"x": torch.tensor(40)}))
    assert checkpoint.best_state(tmp_path) is None
    assert checkpoint.images_of(checkpoint.list_states(tmp_path)[-1]) == 40


def test_weights_are_read_as_they_were_or_refused(tmp_path: Path) -> None:
    def saved(*values: float) -> checkpoint.Weights:
        weights = checkpoint.Weights({"fine": torch.ones(3), "w": torch.tensor(values)}, {"lr": 1}, {"size": [9]}, 77)
        checkpoint.save_weights(checkpoint.weights_path(tmp_path, "best"), weights)
        return weights

    weights, loaded = saved(1, 2), checkpoint.load_weights(tmp_path, "best")
    assert torch.equal(loaded.tensors["w"], weights.tensors["w"])
    assert (loaded.config, loaded.spec, loaded.images) == ({"lr": 1}, {"size": [9]}, 77)
    with pytest.raises(checkpoint.CheckpointError, match=r"no weights called '500'; there are: best"):
        checkpoint.load_weights(tmp_path, "500")
    (tmp_path / "weights-latest.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(checkpoint.CheckpointError, match="damaged or foreign"):
        checkpoint.load_weights(tmp_path, "latest")
    for value in (float("nan"), float("inf")):
        saved(1, value)
        with pytest.raises(ValueError, match=r"weights-best.*: 1 of 2 tensors hold NaN or infinity \(w\)"):
            checkpoint.load_weights(tmp_path, "best")


def test_the_log_rewinds_and_survives_a_cut_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path)
    for images in (10, 20, 30):
        log.record({"kind": "train", "images": images, "losses": {"a": float("inf") if images == 20 else 1.0}})
    with open(log.path, "a") as file:
        file.write('{"kind": "tr')
    assert [r["images"] for r in read_log(log.path)] == [10, 20, 30]
    assert "incomplete record" in capsys.readouterr().err
    log.rewind(20)
    records = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [r["images"] for r in records] == [10, 20]
    assert records[1]["losses"]["a"] is None
    log.plot()
    assert (tmp_path / "curves.png").stat().st_size > 1000
    log.close()


def test_the_steep_start_of_a_run_does_not_flatten_its_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[str, tuple[float, float]] = {}
    save = Figure.savefig

    def look(figure: Figure, *args: object, **options: object) -> None:
        limits.update({panel.get_title(): panel.get_ylim() for panel in figure.axes})
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", look)
    log = RunLog(tmp_path)
    for i, loss in enumerate([100.0, 50.0, *np.linspace(1, 0, 28)]):
        log.record({"kind": "train", "images": i, "losses": {"long": loss} | ({"short": loss} if i < 10 else {})})
    log.plot()
    log.close()
    long, short = limits["long"], limits["short"]
    assert -0.1 < long[0] < 0 < 0.9 < long[1] < 1.1
    assert short[1] > 100


def test_optimiser_states_take_the_layout_of_their_parameters() -> None:
    """Saved channels-last on a GPU and resumed on a CPU, fused Adam would mix up the moments of its weights."""
    torch.manual_seed(0)
    start, gradients = torch.randn(4, 3, 3, 3), [torch.randn(4, 3, 3, 3) for _ in range(2)]

    def parameter(values: torch.Tensor, layout: torch.memory_format) -> tuple[torch.nn.Parameter, torch.optim.Adam]:
        p = torch.nn.Parameter(values.clone().contiguous(memory_format=layout))
        return p, torch.optim.Adam([p], lr=0.1, fused=True)

    def step(p: torch.nn.Parameter, optimizer: torch.optim.Adam, gradient: torch.Tensor) -> None:
        p.grad = torch.empty_like(p).copy_(gradient)
        optimizer.step()

    p, optimizer = parameter(start, torch.channels_last)
    step(p, optimizer, gradients[0])
    q, resumed = parameter(p.detach(), torch.contiguous_format)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    match_parameters(resumed, fused=True)
    step(p, optimizer, gradients[1])
    step(q, resumed, gradients[1])
    torch.testing.assert_close(p, q)
    match_parameters(resumed, fused=False)
    assert not resumed.param_groups[0]["fused"]
    resumed.state[q]["exp_avg"] = torch.zeros(3)  # a fused step would read beyond it
    with pytest.raises(ValueError, match=r"has \(3,\) for a parameter of .* of another version"):
        match_parameters(resumed, fused=True)


def test_warnings_of_commands_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    assert exit_code(lambda: 0) == 0
    assert warnings.formatwarning("maps are odd", UserWarning, "file.py", 3) == "warning: maps are odd\n"
    assert "file.py:3: RuntimeWarning: overflow" in warnings.formatwarning("overflow", RuntimeWarning, "file.py", 3)
