"""scripts/privacy.py on toy runs, and what it refuses in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from markupsafe import escape

from dataloaders.io.manifest import Manifest
from tests.launch import call
from tests.test_faults import train
from tests.toy import prepared_folder

pytestmark = pytest.mark.slow


def with_splits(root: Path, *splits: str) -> Path:
    manifest = Manifest.load(root)
    cases = tuple(replace(case, split=split) for case, split in zip(manifest.cases, splits, strict=True))  # type: ignore[arg-type]
    replace(manifest, cases=cases).save(root)
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("privacy")
    data = with_splits(prepared_folder(home / "data", patients=6, slices=4), *3 * ["train"], "val", *2 * ["test"])
    call(*train(data, home / "runs", "exp", "--num_epochs 1"))
    call(*train(data, home / "runs", "gmm", "--model gmm"))
    return home


def privacy(home: Path, name: str, *extra: object, code: int = 0) -> str:
    where = ["--name", name, "--checkpoints_dir", home / "runs", "--gpu_ids", "-1", *extra]
    done = call("scripts/privacy.py", *where, code=code)
    return done.stderr if code else done.stdout


@pytest.mark.parametrize(("name", "judged"), [("exp", True), ("gmm", False)])
def test_a_run_is_tested_and_its_card_says_so(name: str, judged: bool, home: Path, tmp_path: Path) -> None:
    said = privacy(home, name, "--dataroot", home / "data", "--slices", "2", "--ckpt_iter", "latest")
    folder = home / "runs" / name / "privacy"
    assert {path.name for path in folder.iterdir()} >= {"privacy.md", "privacy.csv", "nearest.csv", "closest.png"}
    found = json.loads((folder / "privacy.json").read_text())
    assert found["verdict"] in said
    assert ("discriminator was not tested" in said) != judged
    assert found["counts"] == {"slices": 12, "left_out": 0}
    aucs = [row for row in found["measures"] if row["measure"].startswith("AUC by")]
    assert len(aucs) == 4 + judged
    assert all(row["people"] == "3 / 3" for row in aucs)
    assert len((folder / "nearest.csv").read_text().splitlines()) == 13
    results, report = tmp_path / "results", tmp_path / "report"
    runs = ["--checkpoints_dir", home / "runs"]
    test = ["--name", name, "--dataroot", home / "data", *runs, "--results_dir", results, "--metrics", "mae_body"]
    call("test.py", *test, "--ckpt_iter", "latest", "--gpu_ids", "-1")
    call("scripts/compare.py", results / name, "--out", report, *runs)
    page = (report / "report.html").read_text()
    assert escape(found["verdict"]) in page
    assert page.count('class="pairs"') == 1
    assert "the closest pairs of" in page
    assert (report / "figures" / "memory.png").is_file()
    call("scripts/export_model.py", "--name", name, "--checkpoints_dir", home / "runs", "--out", tmp_path)
    assert found["verdict"] in (tmp_path / name / "README.md").read_text()


def test_what_cannot_be_tested_is_refused_in_one_line(home: Path, tmp_path: Path) -> None:
    other = prepared_folder(tmp_path / "other", patients=6, slices=4)
    cases = [
        ("gmm", ["--dataroot", other], "not the data that 'gmm' was trained on"),
        ("gmm", ["--dataroot", home / "data", "--canaries", "sub-0[0-3]"], "1 held-out people in val and test"),
        ("gmm", ["--dataroot", home / "data", "--canaries", "nobody"], "0 training people in train"),
        ("gmm", ["--dataroot", home / "data", "--canaries", "("], "--canaries (: no regular expression: missing )"),
        ("gmm", ["--dataroot", home / "nothing"], "neither manifest.json"),
        ("nobody", ["--dataroot", home / "data"], "no such run"),
    ]
    for name, flags, why in cases:
        error = privacy(home, name, *flags, code=2)
        assert why in error
        assert len(error.strip().splitlines()) == 1
