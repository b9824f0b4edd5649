"""Several processes that train one model: they are one process with a larger batch, and end together."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import signal
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from dataloaders.io import ranks
from dataloaders.io.manifest import Manifest
from dataloaders.io.ranks import Place, first_of_nodelist, place
from dataloaders.io.runlog import read_log
from dataloaders.slices import Part, SliceDataset, drawn_index
from engine.checkpoint import list_states, load_state
from tests.launch import ROOT, finish, free_port, run, start_ranks, wait_for_state
from tests.toy import prepared_folder, published

pytestmark = pytest.mark.slow

TINY = """--gpu_ids -1 --batch_size 4 --num_epochs 1 --freq_print 4 --freq_fid 1000 --freq_save_latest 8 --metrics mae
 --lr_g 1e-4 --oasis.channels_G 8 --oasis.channels_D 4 --oasis.channels_W 4 --oasis.spade_hidden 4 --oasis.z_dim 4
 --oasis.spectral_gain 1 --spade.channels_G 8 --spade.channels_D 4 --spade.spade_hidden 4 --spade.lambda_vgg 0
 --spade.spectral_gain 1 --spade.lambda_feature 0.1"""
SEVERAL = ROOT / "tests" / "smooth_train.py"
VARIANTS = {
    "oasis": "--model oasis",
    # A minibatch deviation over four images, two on each rank; the mask loss looks at the first slices.
    "critic": "--oasis.generator haar --oasis.critic wavelet --oasis.r1_every 2 --oasis.lambda_mask 1",
    "unpaired": "--oasis.unpaired --oasis.norm clade",
    "spade": "--model spade --spade.lambda_l1 1 --spade.lambda_label_l1 1 --spade.no-reuse_fake",
    "gmm": "--model gmm",
    # Batch norm and batch Dice over both ranks, dropout by image.
    "segmenter": """--model segmenter --segmenter.norm batch --segmenter.dropout 0.2 --segmenter.features 4 4 8
 --segmenter.patch 32 --segmenter.depth 8 --segmenter.neighbours 0 --segmenter.epoch_samples 16 --segmenter.no-augment""",
    # Patches that differ in number, and in the sum of their weights, between the ranks.
    "lesion": """--model lesion --lesion.width 4 --lesion.patch 8 --lesion.patches 16 --lesion.lesion_weight 5
 --lesion.lambda_variance 1 --lesion.sampling grid --lesion.stride 8""",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training patients with five slices each: fifteen slices, so batches of four reach into the next epoch.

    Every slice has the one after it as its copy without lesions; what it shows does not matter here.
    """
    root = prepared_folder(tmp_path_factory.mktemp("data"), patients=5, slices=5, channels=2, size=32)
    manifest = Manifest.load(root)
    cases = []
    for case in manifest.cases:
        after = [*case.slices[1:], case.slices[0]]
        slices = [replace(item, filled=other.images) for item, other in zip(case.slices, after, strict=True)]
        cases.append(replace(case, slices=tuple(slices)))
    Manifest(manifest.spec, tuple(cases), {"split": "patients", "options": {"fill": "lesion"}}).save(root)
    return root


def options(data: Path, runs: Path, name: str, extra: str = "") -> str:
    return (
        f"--name {name} --dataroot {data} --checkpoints_dir {runs} {' '.join(published(*TINY.split(), *extra.split()))}"
    )


def run_list(data: Path, runs: Path, wanted: dict[str, str]) -> Path:
    """What `SEVERAL` reads: runs of these names with these further options."""
    path = runs / "runs.txt"
    path.write_text("\n".join(options(data, runs, name, extra) for name, extra in wanted.items()))
    return path


@pytest.fixture(scope="module")
def one_and_two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """All variants trained by one process and by two."""
    folders = []
    for count in (1, 2):
        folder = tmp_path_factory.mktemp(f"ranks{count}")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if count == 2 else []
        run(*launcher, SEVERAL, run_list(data, folder, VARIANTS))
        folders.append(folder)
    return folders[0], folders[1]


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_with_half_the_batch_are_one_with_all_of_it(name: str, one_and_two: tuple[Path, Path]) -> None:
    """Weights, moving average, buffers, optimisers and the whole log agree to rounding."""
    one, two = (folder / name for folder in one_and_two)
    whole, halves = (load_state(list_states(folder)[-1]) for folder in (one, two))
    assert whole["images"] == halves["images"]
    for key, tensor in whole["method"].items():
        other, variance = halves["method"][key], key.endswith("running_var")
        # SPADE's hinges and L1 enlarge rounding: on some CPUs weights differ by a thousandth, and variances with them.
        atol = 2e-3 if variance else 2e-4
        torch.testing.assert_close(other, tensor, atol=atol, rtol=2e-4, equal_nan=True, msg=key)
        assert not variance or (other - tensor).norm() <= 5e-3 * tensor.norm(), key
    for player, optimizer in whole["optimizers"].items():
        for number, values in optimizer["state"].items():
            for key, value in values.items():
                other = halves["optimizers"][player]["state"][number][key]
                assert (other - value).norm() <= 0.05 * value.norm() + 1e-4, (player, number, key)
    # The first step has no history to enlarge rounding: losses and gradients agree closely.
    tolerances = itertools.chain([1e-4], itertools.repeat(1e-2))
    records = zip(read_log(one / "metrics.jsonl"), read_log(two / "metrics.jsonl"), strict=True)
    for (mine, theirs), tolerance in zip(records, tolerances, strict=False):
        assert (mine["kind"], mine["images"]) == (theirs["kind"], theirs["images"])
        for group in ("losses", "measures", "metrics", "gradient_norm"):
            assert mine.get(group, {}).keys() == theirs.get(group, {}).keys()
            for key, value in mine.get(group, {}).items():
                same = pytest.approx(value, rel=tolerance, abs=tolerance / 10)
                assert theirs[group][key] == same, (mine["images"], group, key)


def test_the_fit_of_two_ranks_is_that_of_one_bit_for_bit(one_and_two: tuple[Path, Path]) -> None:
    one, two = (load_state(list_states(folder / "gmm")[-1])["method"] for folder in one_and_two)
    assert all(torch.equal(tensor.nan_to_num(7), two[key].nan_to_num(7)) for key, tensor in one.items())


def test_only_the_first_rank_writes(one_and_two: tuple[Path, Path]) -> None:
    one, two = (folder / "oasis" for folder in one_and_two)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert "processes: 2" in (two / "environment.txt").read_text()
    lines = (two / "log.txt").read_text().splitlines()
    assert len(lines) == len((one / "log.txt").read_text().splitlines())
    assert len(list((two / "tensorboard").iterdir())) == 1


def start(data: Path, runs: Path, **epochs: int) -> list[subprocess.Popen[str]]:
    """Two ranks that train runs of these names one after the other."""
    extra = "--freq_fid 4000 --freq_save_latest 20 --freq_print 20"
    wanted = {name: f"--num_epochs {count} {extra}" for name, count in epochs.items()}
    return start_ranks(2, SEVERAL, run_list(data, runs, wanted))


def test_all_ranks_stop_at_the_signal_of_one_and_resume_bit_for_bit(data: Path, tmp_path: Path) -> None:
    """The time limit's signal reaches rank 1 only; both save and exit with 85; the resumed run ends as a whole one."""
    ranks = start(data, tmp_path, stopped=400)
    wait_for_state(ranks[0], tmp_path / "stopped")
    ranks[1].send_signal(signal.SIGUSR2)
    ended = finish(ranks)
    assert [code for code, _, _ in ended] == [85, 85], ended
    assert "state saved" in ended[0][1]
    epochs = load_state(list_states(tmp_path / "stopped")[-1])["images"] // 15 + 2
    again = finish(start(data, tmp_path, stopped=epochs, whole=epochs))
    assert [code for code, _, _ in again] == [0, 0], again
    assert "resumed at" in again[0][1]
    whole, parts = (load_state(list_states(tmp_path / name)[-1]) for name in ("whole", "stopped"))
    assert whole["images"] == parts["images"]
    assert all(torch.equal(tensor, parts["method"][key]) for key, tensor in whole["method"].items())


def test_a_killed_rank_ends_the_others_with_one_line(data: Path, tmp_path: Path) -> None:
    ranks = start(data, tmp_path, killed=400)
    wait_for_state(ranks[0], tmp_path / "killed")
    ranks[1].kill()
    (code, _, err), (killed, _, _) = finish(ranks)
    assert killed == -signal.SIGKILL
    assert code == 7
    assert "another process of this training has ended" in err
    assert "Traceback" not in err
    assert load_state(list_states(tmp_path / "killed")[-1])["images"] >= 20


def test_a_missing_slice_is_named_by_the_rank_that_needs_it_and_ends_both(data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    position = list(itertools.islice(Part(1, 2).positions(0, 4), 5))[4]  # rank 1, first of its third batch
    index = drawn_index(15, 42, "order", position)
    victim = copy / SliceDataset(copy, Manifest.load(copy), "train").entries[index][1].label
    victim.unlink()
    words = shlex.split(options(copy, tmp_path, "broken", "--freq_save_latest 1000 --cache_gb 0"))
    (code, _, err), (own, _, said) = finish(start_ranks(2, "train.py", *words))
    assert (code, own) == (7, 2), err + said
    assert f"error: {victim}: unreadable PNG" in said
    assert "another process of this training has ended" in err
    assert "Traceback" not in err + said


def test_an_error_of_the_first_rank_ends_all_with_its_code(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    ended = finish(start(data, tmp_path, mine=1))
    assert [code for code, _, _ in ended] == [2, 2], ended
    assert "not a run folder" in ended[0][2]
    assert "error" not in ended[1][2]


# -- who and where ----------------------------------------------------------------------------------------------------


def test_the_place_of_a_process() -> None:
    assert place({}) is None
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
    assert place(torchrun) == Place(3, 4, 1, "a", 29500)
    # What Slurm gives a batch script, where no task was started by srun: a process on its own.
    batch = {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert place(batch) is None
    step = batch | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "localhost"}
    assert place(step) == Place(1, 2, 0, "localhost", 20041)
    unknown = step | {"SLURM_STEP_NODELIST": "no-such-node[1-2]", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}
    assert place(unknown) == Place(1, 2, 0, "10.0.0.7", 20041)
    assert place(step | {"MASTER_ADDR": "first", "MASTER_PORT": "5"}) == Place(1, 2, 0, "first", 5)
    assert place(batch | {"SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[1-2]", "n1"), ("gpu[07-09,12],cpu1", "gpu07"), ("a,b", "a"), ("r[3,5]n-ib", "r3n-ib")],
)
def test_the_first_of_slurms_node_names(nodes: str, first: str) -> None:
    assert first_of_nodelist(nodes) == first


@pytest.mark.parametrize(("ranks", "start"), [(1, 0), (2, 0), (4, 8), (2, 13)])
def test_ranks_share_every_batch_without_repetition(ranks: int, start: int) -> None:
    """Batch k of all ranks together, in their order, is batch k of one process."""
    alone = list(range(start, start + 40))
    by_rank = [list(itertools.islice(Part(r, ranks).positions(start, 8), 40 // ranks)) for r in range(ranks)]
    share = 8 // ranks
    together = [key for k in range(0, 40 // ranks, share) for own in by_rank for key in own[k : k + share]]
    assert together == alone


def test_processes_that_nobody_joins_say_so(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setattr(ranks, "MEETING", timedelta(seconds=1))
    with pytest.raises(ranks.LostRank, match=r"rank 1 of 2 could not meet the others at 127\.0\.0\.1"):
        ranks.join(place(os.environ), torch.device("cpu"))
