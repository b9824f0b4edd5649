"""Rows of neighbouring slices (`--spade.slices_D`): how training gets them, and the discriminator that judges them."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from config import Config, parse_train
from dataloaders.io.manifest import Manifest
from dataloaders.slices import BatchLoader, Part, SliceDataset
from engine import checkpoint
from engine.run import only_trains
from models import build_method
from models.base import Batch, seeded_generator
from models.gan.spade import SpadeGan
from tests.toy import prepared_folder
from train import train

TINY = (
    "--model spade --preset spade --spade.lambda_vgg 0 --spade.channels_G 8 --spade.channels_D 4 --spade.spade_hidden 4"
)
ROWS = "--spade.slices_D 2 --spade.neighbours 1 --spade.grain"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("data"))


def options(*flags: object) -> Config:
    words = " ".join(map(str, (TINY, ROWS, *flags))).split()
    return parse_train(["--name", "t", "--dataroot", "d", *words])


def made(folder: Path, *flags: object) -> SpadeGan:
    torch.manual_seed(0)
    method = build_method(options(*flags), Manifest.load(folder).spec)
    assert isinstance(method, SpadeGan)
    return method


def loader(folder: Path, row: int, batch_size: int = 4) -> BatchLoader:
    slices = SliceDataset(folder, Manifest.load(folder), "train", flip=True, seed=3, neighbours=1)
    return BatchLoader(slices, batch_size, 3, row=row)


@pytest.mark.parametrize("row", [2, 3])
def test_training_gets_rows_of_neighbours_that_are_mirrored_alike(folder: Path, row: int) -> None:
    seen: set[tuple[str, int]] = set()
    for batch in islice(loader(folder, row, 2 * row).endless(), 40):
        for start in (0, row):
            own = slice(start, start + row)
            first, labels = batch.indices[start], batch.label[own]
            assert set(batch.cases[own]) == {batch.cases[start]}
            assert batch.indices[own] == list(range(first, first + row))
            # What a slice has above it is the next slice of the row, pixel by pixel, so both are mirrored or neither is.
            assert batch.neighbours is not None
            assert all(torch.equal(batch.neighbours[start + k, 1], labels[k + 1]) for k in range(row - 1))
            seen |= set(zip(batch.cases[own], batch.indices[own], strict=True))
    assert len(seen) == 12  # all slices of both training cases


def test_rows_resume_and_are_shared_by_ranks(folder: Path) -> None:
    whole = [batch.label for batch in islice(loader(folder, 2).endless(), 4)]
    assert torch.equal(next(loader(folder, 2).endless(start=8)).label, whole[2])
    parts = [next(loader(folder, 2).endless(part=Part(rank, 2))).label for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), whole[0])


def test_a_case_of_one_slice_stands_for_its_neighbours(folder: Path) -> None:
    """Then real and generated images of a row are the same, and there is nothing to tell them by."""
    data = Manifest.load(folder)
    single = replace(data, cases=tuple(replace(case, slices=case.slices[:1]) for case in data.cases))
    batch = next(BatchLoader(SliceDataset(folder, single, "train", neighbours=1), 4, row=2).endless())
    assert batch.indices[0::2] == batch.indices[1::2]
    fake = made(folder).generate(batch)
    assert torch.equal(fake[0::2], fake[1::2])


def test_grain_goes_on_within_a_row_as_it_does_between_slices_of_a_stack(folder: Path) -> None:
    """Correlations 2/3 of neighbours and 1/6 of those two apart, as in synthesis; none between rows."""
    method = made(folder, "--spade.slices_D", 3)
    label = torch.zeros(12, 32, 32, dtype=torch.int64)
    batch = Batch(label, None, ["a"] * 12, ["a"] * 12, list(range(12)), rng=seeded_generator(1))
    grain = method._training_grain(batch)
    assert grain is not None
    found = torch.corrcoef(grain.flatten(1))
    expected = torch.eye(12)
    for i in range(12):
        for j in range(12):
            if i != j and i // 3 == j // 3:
                expected[i, j] = 2 / 3 if abs(i - j) == 1 else 1 / 6
    assert torch.allclose(found, expected, atol=0.1)
    assert grain.std().item() == pytest.approx(1, abs=0.02)
    batch.rng = seeded_generator(1)
    assert torch.equal(torch.cat([part_grain(method, part) for part in batch.parts(2)]), grain)


def part_grain(method: SpadeGan, part: Batch) -> torch.Tensor:
    part.rng = seeded_generator(1)  # as each part of a step begins
    grain = method._training_grain(part)
    assert grain is not None
    return grain


def test_how_slices_differ_is_judged_beside_each_slice(folder: Path) -> None:
    """A stack that repeats each real slice is made of real slices; only the discriminator of rows can tell."""
    method = made(folder)
    assert list(method.players()) == ["generator", "discriminator", "row_discriminator"]
    assert list(made(folder, "--spade.slices_D 1").players()) == ["generator", "discriminator"]
    batch = next(loader(folder, 2).endless())
    smooth = replace(batch, fake=batch.real.clone())
    assert smooth.fake is not None
    smooth.fake[1::2] = smooth.fake[0::2]
    players = method.players()
    player = players["row_discriminator"]
    with only_trains(player, players):
        for _ in range(60):
            player.optimizer.zero_grad()
            torch.stack(list(player.losses(smooth).values())).sum().backward()
            player.optimizer.step()
    assert smooth.measures["row_discriminator/accuracy"] > 0.9
    assert method.of_rows is not None
    fake = smooth.fake.requires_grad_()
    torch.stack([scale[-1].mean() for scale in method.of_rows(fake, batch.label)]).sum().backward()
    assert fake.grad is not None
    assert fake.grad.abs().amax((1, 2, 3)).min() > 0
    assert {"hinge", "row", "feature"} <= players["generator"].losses(batch).keys()


@pytest.mark.slow
def test_a_run_of_rows_resumes_exactly_and_refuses_batches_that_cut_them(folder: Path, tmp_path: Path) -> None:
    def run(*flags: object) -> Path:
        words = " ".join(map(str, (TINY, ROWS, "--batch_size 4 --metrics none --freq_save_latest 4", *flags))).split()
        assert (
            train(parse_train(["--name", "t", "--dataroot", str(folder), "--checkpoints_dir", str(tmp_path), *words]))
            == 0
        )
        return tmp_path / "t"

    home = run("--num_epochs 1 --accumulate 2")
    whole = checkpoint.load_state(checkpoint.state_path(home, 12))
    run("--num_epochs 1 --accumulate 2 --which_iter 4")
    again = checkpoint.load_state(checkpoint.state_path(home, 12))
    assert all(torch.equal(value, again["method"][key]) for key, value in whole["method"].items())
    words = (
        r"--batch_size 4: .* --accumulate 4, in rows of 2 slices \(--spade.slices_D 1 for none\), so .* multiple of 8"
    )
    with pytest.raises(ValueError, match=words):
        run("--num_epochs 2 --accumulate 4")
