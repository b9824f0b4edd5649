from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import config
from dataloaders.dataset import SliceDataset, SliceLoader
from dataloaders.manifest import Manifest
from engine.run import only_trains
from models import METHODS, build_method
from models.base import Batch, Method, SampleRandom, seeded_generator
from models.gmm import BINS, Gmm, gaussian_blur, histogram_moments, label_histograms
from tests.toy import prepared_folder, toy_spec

TINY = ["--oasis.channels_G", "4", "--oasis.channels_D", "4", "--oasis.spade_hidden", "4", "--oasis.z_dim", "4"]


def options(*flags: str) -> config.Config:
    return config.parse_train(["--name", "t", "--dataroot", "d", *TINY, *flags])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("data"), channels=2)


def make(name: str, folder: Path, *flags: str) -> Method:
    data = Manifest.load(folder)
    torch.manual_seed(0)
    method = build_method(options("--model", name, *flags), data.spec)
    training = SliceLoader(SliceDataset(folder, data, "train"), 4)
    if isinstance(method, Gmm):
        method.fit(training.once())
    method.before_synthesis(training.once())
    return method


def synthesize(
    method: Method, folder: Path, batch_size: int, reverse: bool = False
) -> dict[tuple[str, int], torch.Tensor]:
    loader = SliceLoader(SliceDataset(folder, Manifest.load(folder), "test"), batch_size)
    if reverse:
        loader.dataset.entries.reverse()
    images = {}
    for batch in loader.once():
        keys = list(zip(batch.cases, batch.indices, strict=True))
        out = method.synthesize(batch, [SampleRandom.of(0, *key) for key in keys])
        images |= dict(zip(keys, out, strict=True))
    return images


@pytest.mark.parametrize("name", METHODS)
def test_images_do_not_depend_on_batch_size_or_order(name: str, folder: Path) -> None:
    method = make(name, folder).eval()
    one = synthesize(method, folder, 1)
    assert len(one) == 6
    for other in (synthesize(method, folder, 4), synthesize(method, folder, 3, reverse=True)):
        for key, image in one.items():
            assert image.shape == (2, 32, 32)
            assert image.abs().max() <= 1
            # Convolutions may sum in another order for another batch size; a 16-bit level is 3e-5.
            assert torch.allclose(image, other[key], atol=2e-5), key


@pytest.mark.parametrize("name", METHODS)
def test_release_holds_all_that_synthesis_needs(name: str, folder: Path) -> None:
    method = make(name, folder).eval()
    tensors = {key: value.clone() for key, value in method.release().items()}
    torch.manual_seed(99)
    other = build_method(options("--model", name), method.spec).eval()
    other.load_release(tensors)
    a, b = synthesize(method, folder, 2), synthesize(other, folder, 2)
    assert all(torch.equal(a[key], b[key]) for key in a)


def training_batch(folder: Path) -> Batch:
    data = Manifest.load(folder)
    return next(SliceLoader(SliceDataset(folder, data, "train"), 2).endless())


def test_a_player_moves_only_its_own_network(folder: Path) -> None:
    method = make("oasis", folder)
    players = method.players()
    assert list(players) == ["generator", "discriminator"]
    for name, player in players.items():
        with only_trains(player, players):
            losses = player.losses(training_batch(folder))
            torch.stack(list(losses.values())).sum().backward()
        for other, rival in players.items():
            moved = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in rival.net.parameters()]
            assert any(moved) == (other == name), (name, other)
            assert all(p.requires_grad for p in rival.net.parameters())
        for rival in players.values():
            rival.net.zero_grad(set_to_none=True)


def test_discriminator_losses_are_published_terms(folder: Path) -> None:
    with_mix = make("oasis", folder).players()["discriminator"].losses(training_batch(folder))
    assert set(with_mix) == {"fake", "real", "labelmix"}
    without = make("oasis", folder, "--oasis.lambda_labelmix", "0").players()["discriminator"]
    assert set(without.losses(training_batch(folder))) == {"fake", "real"}


def test_previews_leave_the_training_state_alone(folder: Path) -> None:
    method = make("oasis", folder)
    before = {key: value.clone() for key, value in method.generator.state_dict().items()}
    batch = training_batch(folder)
    batch.rng = seeded_generator(0)
    assert method.current(batch).shape == (2, 2, 32, 32)
    after = method.generator.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_gmm_fits_and_gives_back_known_gaussians() -> None:
    spec = toy_spec(channels=1, size=(64, 64), labels=3)
    rng = np.random.default_rng(0)
    label = torch.from_numpy(rng.integers(0, 3, (4, 64, 64)))
    means, stds = torch.tensor([-0.9, -0.2, 0.5]), torch.tensor([0.01, 0.05, 0.1])
    image = means[label] + stds[label] * torch.from_numpy(rng.normal(size=(4, 64, 64))).float()
    batch = Batch(label, image[:, None], ["a"] * 4, ["p"] * 4, [0, 1, 2, 3])
    for robust in ("--gmm.robust", "--gmm.no-robust"):
        method = Gmm(options("--gmm.blur", "0", robust), spec)
        method.fit([batch])
        assert method.mean_center[0].tolist() == pytest.approx(means.tolist(), abs=5e-3)
        assert method.std_center[0].tolist() == pytest.approx(stds.tolist(), rel=0.05, abs=1e-3)
        assert method.mean_spread.abs().max() == 0  # one subject
        out = method.synthesize(batch, [SampleRandom.of(0, "a", i) for i in range(4)])[:, 0]
        for i in range(3):
            assert out[label == i].mean().item() == pytest.approx(means[i].item(), abs=0.01)
            assert out[label == i].std().item() == pytest.approx(stds[i].item(), rel=0.1)


def test_gmm_blur_keeps_the_standard_deviation_inside_a_label() -> None:
    """Smoothing noise without a gain leaves a fraction of its spread (cornucopia, table of defects, 14)."""
    method = Gmm(options("--gmm.blur", "1.0", "--gmm.no-vary"), toy_spec(size=(128, 128), labels=2))
    for name, value in (("mean_center", 0.0), ("std_center", 0.1), ("mean_spread", 0.0), ("std_spread", 0.0)):
        getattr(method, name).fill_(value)
    batch = Batch(torch.ones(1, 128, 128, dtype=torch.long), None, ["a"], ["p"], [0])
    assert method.synthesize(batch, [SampleRandom.of(0, "a", 0)]).std().item() == pytest.approx(0.1, rel=0.05)


def test_gmm_prior_is_over_subjects() -> None:
    spec = toy_spec(size=(32, 32), labels=2)
    label = torch.ones(3, 32, 32, dtype=torch.long)
    label[:, 0] = 0
    image = torch.tensor([-0.2, 0.0, 0.4])[:, None, None, None].expand(3, 1, 32, 32).clone()
    method = Gmm(options(), spec)
    method.fit([Batch(label, image, ["a", "b", "c"], ["a", "b", "c"], [0, 0, 0])])
    assert method.mean_center[0, 1].item() == pytest.approx(np.mean([-0.2, 0.0, 0.4]), abs=1e-3)
    assert method.mean_spread[0, 1].item() == pytest.approx(np.std([-0.2, 0.0, 0.4], ddof=1), abs=1e-3)


def test_gmm_style_is_shared_by_a_case_and_grain_is_not() -> None:
    method = Gmm(options("--gmm.blur", "0"), toy_spec(labels=2))
    for name, value in (("mean_center", 0.0), ("std_center", 0.0), ("mean_spread", 0.2), ("std_spread", 0.0)):
        getattr(method, name).fill_(value)
    batch = Batch(torch.ones(3, 32, 32, dtype=torch.long), None, ["a", "a", "b"], ["a", "a", "b"], [0, 1, 0])
    out = method.synthesize(batch, [SampleRandom.of(0, c, i) for c, i in (("a", 0), ("a", 1), ("b", 0))])
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])
    method.std_center.fill_(0.1)
    out = method.synthesize(batch, [SampleRandom.of(0, c, i) for c, i in (("a", 0), ("a", 1), ("b", 0))])
    assert not torch.equal(out[0], out[1])


def test_gmm_gives_unseen_labels_the_mean_of_the_others_and_says_so() -> None:
    method = Gmm(options("--gmm.blur", "0"), toy_spec(labels=4))
    label = torch.zeros(1, 32, 32, dtype=torch.long)
    label[0, :8], label[0, 8:16] = 1, 2
    image = torch.where(label == 1, -0.2, torch.where(label == 2, 0.6, -1.0))[:, None]
    with pytest.warns(UserWarning, match="no training slice shows white_matter"):
        method.fit([Batch(label, image, ["a"], ["a"], [0])])
    label[0, 20, 20] = 3
    out = method.synthesize(Batch(label, None, ["b"], ["b"], [0]), [SampleRandom.of(0, "b", 0)])
    assert out[0, 0, 20, 20].item() == pytest.approx(0.2, abs=0.01)
    assert not out.isnan().any()


def test_histogram_moments_against_numpy() -> None:
    rng = np.random.default_rng(1)
    values = np.clip(rng.normal(0.1, 0.2, (64, 64)), -1, 1).astype(np.float32)
    counts = label_histograms(torch.zeros(64, 64, dtype=torch.long), torch.from_numpy(values)[None], 2)
    assert counts.shape == (1, 2, BINS)
    center, spread = histogram_moments(counts, robust=True)
    median = np.median(values)
    assert center[0, 0].item() == pytest.approx(median, abs=1e-3)
    assert spread[0, 0].item() == pytest.approx(1.4826 * np.median(np.abs(values - median)), abs=1e-3)
    assert torch.isnan(center[0, 1])


def test_blur_keeps_constants_up_to_the_edge() -> None:
    assert torch.allclose(gaussian_blur(torch.full((1, 2, 9, 7), 0.3), 1.5), torch.full((1, 2, 9, 7), 0.3), atol=1e-6)
