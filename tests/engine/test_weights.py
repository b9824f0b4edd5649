"""Pretrained weight files: where they are looked for, how they are verified and fetched."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dataloaders.io.weights import KNOWN, MissingWeights, WeightFile, resolve
from tests.launch import call

run = partial(call, "scripts/download_weights.py")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[WeightFile, Path]:
    """A small test-made file that stands for the alexnet weights, and the folder that holds it; nothing elsewhere."""
    source = tmp_path / "source" / "alexnet-owt-7be5be79.pth"
    source.parent.mkdir()
    torch.save({"features.0.bias": torch.arange(3.0)}, source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    file = replace(KNOWN["alexnet"], sha256=digest, url=source.as_uri())
    monkeypatch.setitem(KNOWN, "alexnet", file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("MEDSIS_WEIGHTS", raising=False)
    return file, source


def copy(source: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    return Path(shutil.copy(source, folder))


def test_explicit_then_environment_then_cache(
    made: tuple[WeightFile, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source = made
    cache = copy(source, tmp_path / "torch" / "hub" / "checkpoints")
    assert resolve("alexnet") == cache
    named = copy(source, tmp_path / "named")
    monkeypatch.setenv("MEDSIS_WEIGHTS", str(named.parent))
    assert resolve("alexnet") == named
    given = copy(source, tmp_path / "given")
    assert resolve("alexnet", given.parent) == given
    assert resolve("alexnet", given) == given


def test_missing_says_what_where_and_how(made: tuple[WeightFile, Path], tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    with pytest.raises(MissingWeights) as caught:
        resolve("alexnet", tmp_path / "given")
    message, named = str(caught.value), ("LPIPS", "alexnet-owt-7be5be79.pth", "--keys alexnet")
    for part in (*named, str(tmp_path / "given"), str(tmp_path / "torch")):
        assert part in message
    assert "\n" not in message
    assert caught.value.reason == "weights missing: alexnet-owt-7be5be79.pth"
    with pytest.raises(MissingWeights, match="no such file or folder"):
        resolve("alexnet", tmp_path / "nowhere")


def test_published_names_carry_their_hash() -> None:
    for file in KNOWN.values():
        assert len(file.sha256) == 64
        assert f"-{file.sha256[:8]}." in file.filename
        assert bool(file.package) != file.url.endswith(file.filename)


# -- scripts/download_weights.py ----------------------------------------------------------------------------------


def test_download_verifies_and_check_reports(made: tuple[WeightFile, Path], tmp_path: Path) -> None:
    file, _ = made
    out = tmp_path / "weights"
    assert "missing" in run("--keys", "alexnet", "--out", str(out), "--check", code=1).stdout
    listed = run("--keys", "alexnet", "--out", str(out)).stdout
    assert [path.name for path in out.iterdir()] == [file.filename]
    for part in (file.filename, file.sha256, file.licence, str(out), "233 MB"):
        assert part in listed
    assert "present" in run("--keys", "alexnet", "--out", str(out), "--check").stdout
    run("--keys", "alexnet", "--out", str(out))  # nothing to do


def test_download_without_network_is_one_line(made: tuple[WeightFile, Path], tmp_path: Path) -> None:
    _, source = made
    source.unlink()
    error = run("--keys", "alexnet", "--out", str(tmp_path / "out"), code=1).stderr.strip()
    assert error.startswith("error: ")
    assert error.count("\n") == 0
    assert not list((tmp_path / "out").iterdir())


def test_all_digits_of_the_hash_count(made: tuple[WeightFile, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose SHA-256 only begins as it should, as anybody can make one, is another file."""
    file, source = made
    other = file.sha256[:-1] + ("0" if file.sha256[-1] != "0" else "1")
    monkeypatch.setitem(KNOWN, "alexnet", replace(file, sha256=other))
    with pytest.raises(MissingWeights, match=f"SHA-256 is {file.sha256}"):
        resolve("alexnet", source)
