from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss

from config import starting_values
from dataloaders.io.schema import check
from models.base import Batch, seeded_generator
from models.layers import give_streams, with_image_dropout
from models.segmenter.method import Segmenter, build_network
from models.segmenter.options import SegmenterConfig
from tests.toy import toy_spec

TINY = SegmenterConfig(network="basic", features=(4, 4, 4, 4, 4), patch=(32,))


def method(labels: int = 3, **own: object) -> Segmenter:
    torch.manual_seed(0)
    common = replace(starting_values("segmenter"), name="x", dataroot=Path("x"), num_epochs=2, batch_size=2)
    return Segmenter(replace(common, segmenter=replace(TINY, **own)), toy_spec(labels=labels))  # type: ignore[arg-type]


def batch(step: int) -> Batch:
    image = torch.rand(2, 1, 32, 32, generator=seeded_generator("batch", step))
    label = (image[:, 0] * 3).long().clamp(max=2)
    return Batch(label, image, ["a"] * 2, ["a"] * 2, [0] * 2, rng=seeded_generator("step", step))


@pytest.mark.parametrize("together", [True, False])
def test_losses_are_those_of_monai(together: bool) -> None:
    """A class that is absent from one patch counts as MONAI has it."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 8, 8, generator=generator)
    label = torch.randint(0, 3, (2, 8, 8), generator=generator)
    label[1, 0] = 3
    weights = {"lambda_dice": 0.7, "lambda_ce": 2.0}
    ours = method(labels=4, batch_dice=together, **weights).losses_of(logits, label)
    log_dice = ours.pop("log_dice").item()
    theirs = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=together, **weights)
    assert sum(ours.values()).item() == pytest.approx(theirs(logits, label[:, None]).item(), rel=1e-6)
    each = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=together, reduction="none")
    dice = 1 - each(logits, label[:, None]).flatten(int(not together))  # (3,) or (2, 3)
    if not together:
        dice[0, 2] = 1  # the class that the first patch lacks does not count
    assert log_dice == pytest.approx(-0.2 * dice.log().mean().item(), rel=1e-6)


def test_a_small_class_that_was_given_up_has_a_slope() -> None:
    """Four of 4,096 pixels with probability 1e-6: the logarithm pulls its logits up as far as a likely class's."""
    label = torch.zeros(1, 64, 64, dtype=torch.int64)
    label[0, 30:32, 30:32] = 1
    slopes = {}
    for weight in "lambda_dice", "lambda_log_dice":
        logits = torch.tensor([[0.0], [-13.8]]).expand(2, 4096).reshape(1, 2, 64, 64).clone().requires_grad_()
        one = {"lambda_dice": 0.0, "lambda_log_dice": 0.0, "lambda_ce": 0.0, weight: 1.0}
        sum(method(labels=2, **one).losses_of(logits, label).values()).backward()
        slopes[weight] = -logits.grad[0, 1, 30:32, 30:32].sum().item()
    assert slopes["lambda_dice"] < 1e-5
    assert slopes["lambda_log_dice"] == pytest.approx(0.448, abs=0.001)  # 2·overlap / (2·overlap + e)


def test_dropout_belongs_to_the_image() -> None:
    """Its noise is the same alone and in any batch; a share p is 0, and the mean stays."""
    net = with_image_dropout(torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Dropout(0.3))).train()
    x = torch.ones(3, 4, 50, 50)
    give_streams(net, ["a", "b", "c"], x.device)
    whole = net(x)
    give_streams(net, ["c"], x.device)
    assert torch.equal(net(x[2:]), whole[2:])
    assert not torch.equal(whole[0], whole[1])
    assert (whole == 0).float().mean().item() == pytest.approx(1 - 0.7**2, abs=0.01)
    assert whole.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(net.eval()(x), x)


@pytest.mark.parametrize("network", ["unet", "basic", "dynunet"])
@pytest.mark.parametrize("dims", [2, 3])
def test_every_network_keeps_the_grid(network: str, dims: int) -> None:
    o = replace(TINY, network=network, dims=dims)
    out = build_network(o, o.stack, 5).eval()(torch.rand(1, o.stack, *(32,) * dims))
    assert out.shape == (1, 5, *(32,) * dims)


def kernels(net: torch.nn.Module) -> list[tuple[int, int]]:
    found = (m for m in net.modules() if isinstance(m, (torch.nn.Conv3d, torch.nn.ConvTranspose3d)))
    return [(m.in_channels, m.out_channels) for m in found]


def test_presets_are_the_published_networks() -> None:
    fetal = build_network(starting_values("segmenter", "fetalsynthseg").segmenter, 1, 8)
    assert kernels(fetal)[0] == (1, 32)
    assert {out for _, out in kernels(fetal)} == {32, 64, 128, 256, 512, 8}
    assert sum(isinstance(m, torch.nn.modules.dropout._DropoutNd) and m.p == 0.1 for m in fetal.modules()) > 0
    assert any(isinstance(m, torch.nn.InstanceNorm3d) for m in fetal.modules())
    synthseg = build_network(starting_values("segmenter", "synthseg").segmenter, 1, 4)
    assert {24, 48, 96, 192, 384} <= {out for _, out in kernels(synthseg)}
    assert any(isinstance(m, torch.nn.ELU) for m in synthseg.modules())
    assert any(isinstance(m, torch.nn.BatchNorm3d) for m in synthseg.modules())
    for name in ("fetalsynthseg", "synthseg"):
        preset = starting_values("segmenter", name)
        assert (preset.batch_size, preset.segmenter.lr, preset.gmm.priors) == (1, 1e-4, "random")


def test_learning_rates() -> None:
    cosine = method(lr=1.0, epoch_samples=8)  # 8 steps
    rates = []
    for step in range(8):
        rates.append(cosine.optimizer.param_groups[0]["lr"])
        cosine.after_step(step)
    assert rates[4] == pytest.approx(0.5)
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)])
    plateau = method(lr=1.0, schedule="plateau", lr_patience=3)
    for stale in (0, 1, 2, 3, 4, 0, 1, 2, 3):
        plateau.after_evaluation(stale)
    assert plateau.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_its_release_predicts_the_same() -> None:
    """That it learns: tests/test_segmenter_end_to_end.py."""
    net, other = method(lr=0.02, schedule="constant", neighbours=0), method(neighbours=0)
    player, image = net.players()["segmenter"], batch(step=99).real
    for step in range(3):
        sum(player.losses(batch(step=step)).values()).backward()
        player.optimizer.step()
        net.after_step(step)
    assert not torch.equal(net.logits(image), other.logits(image))
    other.load_release(net.release())
    assert torch.equal(net.logits(image), other.logits(image))
    assert int(net.steps) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": (40,)}, "--segmenter.patch 40: must be one or 2 multiples of 16"),
        ({"features": (8, 16)}, "--segmenter.features 8 16: must be five numbers for basic"),
        ({"lambda_dice": 0.0, "lambda_log_dice": 0.0, "lambda_ce": 0.0}, "nothing would be learned"),
        ({"results": (Path("a"),)}, "of no use with --segmenter.real_fraction 1"),
        ({"results": (Path("a"),), "label_maps": Path("b"), "real_fraction": 0.5}, "cannot both be given"),
    ],
)
def test_options_out_of_range_are_one_line(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(replace(TINY, **change), "segmenter.")
