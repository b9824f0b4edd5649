from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

import config
from dataloaders.io.manifest import Manifest
from dataloaders.slices import BatchLoader, SliceDataset
from engine.methods.base import workflow_of
from engine.results import Draws
from engine.run import only_trains
from models import build_method
from models.base import Batch, Method, SampleRandom, seeded_generator
from models.gan.adversarial import Gan
from models.gmm import Gmm
from tests.toy import prepared_folder, published, toy_spec

TINY = ["--oasis.channels_G", "8", "--oasis.channels_D", "4", "--oasis.spade_hidden", "4", "--oasis.z_dim", "4"]
TINY += ["--oasis.channels_W", "4", "--spade.channels_G", "8", "--spade.channels_D", "4", "--spade.spade_hidden", "4"]
TINY += ["--spade.lambda_vgg", "0"]
# Every way to build an adversarial method that changes what its synthesis does.
VARIANTS = {
    "oasis": "",
    "clade": "--oasis.norm clade",
    "haar": "--oasis.generator haar --oasis.grain",
    "critic": "--oasis.critic wavelet --oasis.lambda_feature 1",
    "grain": "--oasis.grain",
    "25d": "--oasis.neighbours 1 --oasis.slice_position",
    "25d-clade": "--oasis.neighbours 2 --oasis.norm clade --oasis.z_dim 0 --oasis.slice_position",
    "unpaired": "--oasis.unpaired --oasis.lambda_mask 1",
    "all losses": "--oasis.lambda_mask 1 --oasis.lambda_l1 1 --oasis.lambda_label_l1 1 --oasis.lambda_edge 1"
    " --oasis.lambda_feature 1 --oasis.no-reuse_fake",
    "spade": "--model spade",
    "plain": "--no-tuned",
}
METHODS = {**VARIANTS, "gmm": "--model gmm"}
# Players and their losses, where they are not those of plain OASIS.
OASIS = {"generator": "segmentation", "discriminator": "fake real labelmix"}
CRITIC = {**OASIS, "generator": "segmentation critic feature", "critic": "logistic", "penalty": "r1"}
TERMS = {
    "critic": CRITIC,
    "unpaired": {**CRITIC, "generator": "segmentation critic mask", "discriminator": "segmentation"},
    "all losses": {**OASIS, "generator": "segmentation mask l1 label_l1 edge feature"},
    "spade": {"generator": "hinge feature", "discriminator": "hinge"},
}


def options(*flags: str) -> config.Config:
    return config.parse_train(["--name", "t", "--dataroot", "d", *TINY, *published(*flags)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_folder(tmp_path_factory.mktemp("data"), channels=2)


def loader(folder: Path, method: Method, split: str, batch_size: int = 2) -> BatchLoader:
    neighbours = method.options.neighbours if isinstance(method, Gan) else 0
    return BatchLoader(SliceDataset(folder, Manifest.load(folder), split, neighbours=neighbours), batch_size)


def make(folder: Path, name: str = "oasis", *flags: str) -> Method:
    """A method or a variant, with flags beside its own."""
    torch.manual_seed(0)
    method = build_method(options(*METHODS[name].split(), *flags), Manifest.load(folder).spec)
    training = loader(folder, method, "train", 4)
    if isinstance(method, Gmm):
        method.fit(training.once())
    method.calibrate(training.once())
    method.before_synthesis(training.once())
    return method


def training_batch(folder: Path, method: Method) -> Batch:
    return next(loader(folder, method, "train").endless())


def synthesize(
    method: Method, folder: Path, batch_size: int, reverse: bool = False
) -> dict[tuple[str, int], torch.Tensor]:
    test = loader(folder, method, "test", batch_size)
    images = {}
    for batch in test._batches(list(range(len(test)))[:: -1 if reverse else 1]):
        keys = list(zip(batch.cases, batch.indices, strict=True))
        out = method.synthesize(batch, [SampleRandom.of(0, *key) for key in keys])
        images |= dict(zip(keys, out, strict=True))
    return images


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_images_depend_on_what_is_released_and_not_on_batch_size_or_order(name: str, folder: Path) -> None:
    method = make(folder, name).eval()
    one = synthesize(method, folder, 1)
    assert len(one) == 6
    for other in (synthesize(method, folder, 4), synthesize(method, folder, 3, reverse=True)):
        for key, image in one.items():
            assert image.shape == (2, 32, 32)
            assert image.abs().max() <= 1
            # Convolutions may sum in another order for another batch size; a 16-bit level is 3e-5.
            assert torch.allclose(image, other[key], atol=2e-5), key
    tensors = {key: value.clone() for key, value in method.release().items()}
    torch.manual_seed(99)
    released = build_method(options(*METHODS[name].split()), method.spec).eval()
    released.load_release(tensors)
    again = synthesize(released, folder, 1)
    assert all(torch.equal(image, again[key]) for key, image in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_player_has_its_losses_and_moves_only_its_own_network_and_all_of_it(
    name: str, half: bool, folder: Path
) -> None:
    """Dead parameters (1.6 M in the predecessor's main generator) break distributed training.

    Losses and gradients stay float32 and finite under bf16 autocast.
    """
    method = make(folder, name)
    players, terms = method.players(), {}
    batch, trained = training_batch(folder, method), set()
    for key, player in players.items():
        with only_trains(player, players):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                losses = player.losses(batch)
            assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
            torch.stack(list(losses.values())).sum().backward()
        terms[key] = set(losses)
        for rival in players.values():
            moved = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in rival.net.parameters()]
            assert any(moved) == (rival.net is player.net)
            assert all(p.requires_grad for p in rival.net.parameters())
        for rival in players.values():
            found = {p for p in rival.net.parameters() if p.grad is not None}
            assert all(p.grad.isfinite().all() for p in found)
            trained |= found
            rival.net.zero_grad(set_to_none=True)
    assert terms == {key: set(words.split()) for key, words in TERMS.get(name, OASIS).items()}
    assert trained == {p for player in players.values() for p in player.net.parameters()}
    assert 0 <= batch.measures.popitem()[1] <= 1


@pytest.mark.slow
def test_a_compiled_step(folder: Path) -> None:
    """R1 needs a double backward, which torch.compile does not have: its pass runs uncompiled."""
    method = make(folder, "critic")
    players = method.players()
    players["critic"].net.compile(backend="aot_eager")
    for name in ("critic", "penalty"):
        with only_trains(players[name], players):
            losses = players[name].losses(training_batch(folder, method))
            torch.stack(list(losses.values())).sum().backward()
        assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.slow
def test_methods_say_whether_labels_can_be_resampled(folder: Path) -> None:
    spec = Manifest.load(folder).spec
    expected = {"": True, "--oasis.z_dim 0": False, "--model spade": False, "--model gmm": True}
    expected["--model gmm --gmm.no-vary"] = False
    for flags, able in expected.items():
        assert build_method(options(*flags.split()), spec).resamples == able, flags


def test_fake_is_reused_or_drawn_anew(folder: Path) -> None:
    for flag, same in (("--oasis.reuse_fake", True), ("--oasis.no-reuse_fake", False)):
        method = make(folder, "oasis", flag)
        batch = training_batch(folder, method)
        method.players()["generator"].losses(batch)
        first = batch.fake
        assert not first.requires_grad
        assert torch.equal(method.fake_for_discriminators(batch), first) == same


def test_r1_is_scaled_by_its_interval(folder: Path) -> None:
    """gamma / 2 · E|grad|² · every: the predecessor multiplied the GAN loss instead."""
    values = {}
    for every in (1, 8):
        method = make(folder, "oasis", "--oasis.critic", "wavelet", "--oasis.r1_every", str(every))
        with torch.no_grad():
            for p in method.critic.parameters():
                p.mul_(3)
        player = method.players()["penalty"]
        assert player.every == every
        values[every] = player.losses(training_batch(folder, method))["r1"].item()
        lazy = player.optimizer.param_groups[0]
        assert lazy["lr"] == pytest.approx(4e-4 * every / (every + 1))
        assert lazy["betas"][1] == pytest.approx(0.999 ** (every / (every + 1)))
    assert values[8] == pytest.approx(8 * values[1], rel=1e-4)
    assert values[1] > 0
    height, width = method.spec.size
    assert method.r1_gamma == pytest.approx(0.0002 * height * width / method.config.batch_size)
    assert make(folder, "oasis", "--oasis.critic", "wavelet", "--oasis.r1_gamma", "10").r1_gamma == 10


@pytest.mark.slow
@pytest.mark.parametrize("model", ["oasis", "spade"])
def test_a_mask_threshold_that_separates_no_bodies_is_said_by_the_methods_own_options(model: str, folder: Path) -> None:
    data = Manifest.load(folder)
    batches = list(BatchLoader(SliceDataset(folder, data, "train"), 4).once())

    def said(threshold: str = "", weight: int = 1) -> str:
        flags = f"--model {model} --{model}.lambda_mask {weight}"
        flags += f" --{model}.mask_threshold {threshold}" if threshold else ""
        return build_method(options(*flags.split()), data.spec).calibrate(batches)

    assert said() == said("-0.5") == said(weight=0) == ""
    assert said("0.95").startswith(f"--{model}.mask_threshold 0.95 separates the bodies")
    for batch in batches:  # white background, as of a radiograph
        batch.image = torch.where(batch.label[:, None] > 0, batch.image.clamp(max=0.5), 1.0)
    assert re.search(rf"^the best threshold .* at a Dice of 0\.[0-7]\d with .*--{model}\.lambda_mask", said())
    assert f"--{model}.mask_threshold -0.5 separates" in said("-0.5")
    batches[:] = [replace(batch, image=torch.zeros_like(batch.real)) for batch in batches]
    with pytest.raises(ValueError, match=rf"^--{model}.lambda_mask 1: .* give --{model}.mask_threshold or other data$"):
        said()


@pytest.mark.slow
def test_perceptual_loss_needs_its_weights_and_leaves_them_out_of_the_state(folder: Path) -> None:
    flags = ["--oasis.lambda_vgg", "2"]
    method = build_method(options(*flags), Manifest.load(folder).spec)
    assert workflow_of(options(*flags)).pretrained() == ["vgg19"]
    assert workflow_of(options()).pretrained() == []
    torch.manual_seed(0)
    method.load_pretrained("vgg19", torchvision.models.vgg19(weights=None).features.state_dict(prefix="features."))
    before = set(method.state_dict())
    losses = method.players()["generator"].losses(training_batch(folder, method))
    assert losses["vgg"] > 0
    assert set(method.state_dict()) == before == set(build_method(options(), method.spec).state_dict())


@pytest.mark.parametrize("network", ["discriminator", "critic"])
def test_features_are_matched_in_the_critic_or_else_in_the_unet(
    network: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--oasis.critic", "wavelet"] if network == "critic" else []
    method = make(folder, "oasis", "--oasis.lambda_feature", "2", *flags).eval()  # spectral norms stand still
    batch = training_batch(folder, method)

    def feature_loss(fake: torch.Tensor) -> torch.Tensor:
        monkeypatch.setattr(method, "generate", lambda batch: fake)
        return method.players()["generator"].losses(batch)["feature"]

    fake = (batch.real * 0.9).requires_grad_()
    loss = feature_loss(fake)
    pairs = [getattr(method, network)(image)[1] for image in (batch.real, fake)]
    expected = [(y - x).abs().mean() / x.abs().mean() for x, y in zip(*pairs, strict=True)]
    torch.testing.assert_close(loss, 2 * torch.stack(expected).mean())
    loss.backward()
    assert fake.grad.abs().sum() > 0
    assert feature_loss(batch.real) == 0


@pytest.mark.parametrize("name", ["oasis", "spade"])
def test_the_spectral_gain_scales_the_first_weights_of_both_players(name: str, folder: Path) -> None:
    """Of every convolution behind a spectral norm; SPADE's discriminator once kept the published 0.02 whatever was asked."""

    def first_weights(gain: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        method = build_method(
            options("--model", name, f"--{name}.spectral_gain", str(gain)), Manifest.load(folder).spec
        )
        state = method.state_dict()
        return {key: value for key, value in state.items() if key.endswith("parametrizations.weight.original")}

    published, asked = first_weights(0.02), first_weights(1.0)
    assert {key.split(".")[0] for key in asked} >= {"generator", "discriminator"}
    for key, weight in asked.items():
        torch.testing.assert_close(weight, published[key] * 50)


@pytest.mark.parametrize("name", ["oasis", "haar", "clade", "gmm"])
def test_one_label_can_be_resampled(name: str, folder: Path) -> None:
    """Another draw for one label changes its pixels; the same draw gives the same image; no labels give the plain one."""
    method = make(folder, name).eval()
    batch = next(loader(folder, method, "test").once())
    inside = batch.label[:, None].expand(-1, 2, -1, -1) == 3

    def image(labels: dict[int, int]) -> torch.Tensor:
        keys = zip(batch.cases, batch.indices, strict=True)
        randoms = [SampleRandom.of(0, *key) for key in keys]
        for random in randoms:
            random.labels = {label: seeded_generator("draw", draw, label) for label, draw in labels.items()}
        return method.synthesize(batch, randoms)

    plain, first, again, second = image({}), image({3: 1}), image({3: 1}), image({3: 2})
    assert torch.equal(first, again)
    assert (first - plain)[inside].abs().mean() > 0
    assert not torch.equal(first, second)
    if name == "gmm":
        method.config = replace(method.config, blur=(0.0,))
        assert torch.equal(image({3: 1})[~inside], image({})[~inside])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oasis", "spade"])
def test_a_discriminator_overfitted_to_scans_takes_them_for_more_real_than_noise(name: str, folder: Path) -> None:
    """`realness`, which the membership test asks: one number a slice, of its image and labels alone."""
    method = make(folder, name)
    batch = training_batch(folder, method)
    assert batch.real is not None
    noise = replace(batch, image=torch.rand_like(batch.real) * 2 - 1)

    def lead() -> torch.Tensor:
        """Realness of the scans less that of noise with the same labels."""
        return method.realness(batch) - method.realness(noise)

    before, player = lead(), method.players()["discriminator"]
    optimizer = torch.optim.Adam(player.net.parameters(), 1e-3)
    for _ in range(12):
        optimizer.zero_grad()
        torch.stack(list(player.losses(batch).values())).sum().backward()
        optimizer.step()
    after = lead()
    assert (after > before.clamp(min=0)).all()
    method.eval()  # as privacy.py has it: in training, spectral norms move with every look
    turned = replace(batch, image=batch.real.flip(0), label=batch.label.flip(0))
    first = method.realness(batch)
    assert not first.requires_grad
    assert torch.allclose(first, method.realness(turned).flip(0), atol=1e-5)
    assert make(folder, "gmm").realness(batch) is None


def test_previews_leave_the_training_state_alone(folder: Path) -> None:
    method = make(folder, "oasis")
    before = {key: value.clone() for key, value in method.generator.state_dict().items()}
    batch = training_batch(folder, method)
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
        method = Gmm(options("--model", "gmm", "--gmm.blur", "0", robust), spec)
        method.fit([batch])
        assert (method.mean_center[0] / 127.5 - 1).tolist() == pytest.approx(means.tolist(), abs=5e-3)
        assert (method.std_center[0] / 127.5).tolist() == pytest.approx(stds.tolist(), rel=0.05, abs=1e-3)
        assert method.mean_spread.abs().max() == 0  # one subject
        out = method.synthesize(batch, [SampleRandom.of(0, "a", i) for i in range(4)])[:, 0]
        for i in range(3):
            assert out[label == i].mean().item() == pytest.approx(means[i].item(), abs=0.01)
            assert out[label == i].std().item() == pytest.approx(stds[i].item(), rel=0.1)


def set_prior(method: Gmm, mean: float, std: float, spread: float) -> None:
    for name in ("mean_deviations", "std_deviations", "std_spread"):
        getattr(method, name).fill_(0.0)
    for name, value in (("mean_center", mean), ("std_center", std), ("mean_spread", spread)):
        getattr(method, name).fill_(value)


@pytest.mark.slow
def test_gmm_fit_of_many_small_slices_needs_little_memory() -> None:
    """Plain folders count each slice as a patient of its own; their whole histograms would be 330 MB."""
    spec, memory = toy_spec(1, (16, 16), labels=5), []

    def resident() -> float:
        """In MB."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    def batches() -> Iterator[Batch]:
        memory.append(resident())
        for number in range(0, 2000, 100):
            label = torch.randint(5, (100, 16, 16), generator=seeded_generator(number))
            image = torch.rand(100, 1, 16, 16, generator=seeded_generator(number, "image")) * 2 - 1
            ids = [f"p{number + i}" for i in range(100)]
            yield Batch(label=label, image=image, cases=ids, patients=ids, indices=[0] * 100)
        memory.append(resident())

    method = Gmm(options(), spec)
    method.fit(batches())
    assert memory[1] - memory[0] < 150
    assert method.prior.mean_deviations.shape[0] == 2000


def test_gmm_fit_does_not_depend_on_the_order_of_patients() -> None:
    """Slices of one patient need not follow each other."""
    label = torch.randint(5, (6, 16, 16), generator=seeded_generator(1))
    image = torch.rand(6, 1, 16, 16, generator=seeded_generator(2)) * 2 - 1
    found = []
    for order in ([0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5]):
        patients = [["a", "a", "a", "b", "b", "b"][i] for i in order]
        method = Gmm(options(), toy_spec(1, (16, 16), labels=5))
        method.fit([Batch(label[order], image[order], ["c"] * 6, patients, order)])
        found.append(method.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_gmm_style_is_shared_by_a_case_and_grain_is_not() -> None:
    method = Gmm(options("--model", "gmm", "--gmm.blur", "0"), toy_spec(labels=2))
    set_prior(method, mean=127.5, std=0.0, spread=25.0)
    batch = Batch(torch.ones(3, 32, 32, dtype=torch.long), None, ["a", "a", "b"], ["a", "a", "b"], [0, 1, 0])
    out = method.synthesize(batch, [SampleRandom.of(0, c, i) for c, i in (("a", 0), ("a", 1), ("b", 0))])
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])
    method.std_center.fill_(12.75)
    out = method.synthesize(batch, [SampleRandom.of(0, c, i) for c, i in (("a", 0), ("a", 1), ("b", 0))])
    assert not torch.equal(out[0], out[1])


def test_grain_changes_from_pixel_to_pixel_and_goes_on_in_the_next_slice(folder: Path) -> None:
    method = make(folder, "oasis", "--oasis.grain")
    batch = next(loader(folder, method, "val").once())
    streams = [Draws(0).of(case, index) for case, index in (("a", 5), ("a", 6), ("a", 8), ("b", 6))]
    maps, far = method.grain(batch, streams[:2]), method.grain(batch, streams[2:])
    assert maps.std().item() == pytest.approx(1, abs=0.05)
    alike = [
        torch.corrcoef(torch.stack([maps[1].flatten(), other.flatten()]))[0, 1].item() for other in (maps[0], *far)
    ]
    assert alike == pytest.approx([4 / 6, 1 / 6, 0], abs=0.05)
    with torch.no_grad():
        label, noise = batch.label, torch.zeros(2, method.noise_length)
        flat = method.average(label, noise)
        for block in method.average.blocks[-3:]:
            assert block.grain.abs().max() == 0  # without effect before the first step
            block.grain.fill_(1.0)
        grainy = method.average(label, noise, maps)
    assert (grainy - flat).abs().mean() > 1e-4
