from __future__ import annotations

import pytest
import torch
from torch import nn

from models.ema import ema_copy, ema_update, recalibrate_batchnorm
from models.gan.blocks import ResidualBlock
from models.gan.condition import Condition
from models.gan.discriminator import OasisDiscriminator
from models.gan.generator import SpadeGenerator
from models.gan.norms import NormOptions, Spade
from models.gan.options import GanConfig, OasisConfig


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def small(size: tuple[int, int] = (32, 64), labels: int = 5, channels: int = 2, **options: object) -> SpadeGenerator:
    o = GanConfig(spade_hidden=4, channels_G=4, **options)  # type: ignore[arg-type]
    return SpadeGenerator(NormOptions(o, labels, 3), channels, size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "num_labels", "z_dim", "middle_block", "expected"),
    [
        ("image", 38, 64, False, 71_190_467),
        ("image", 183, 64, False, 75_199_427),
        ("image", 183, 0, False, 73_429_955),
        ("image", 151, 0, True, 96_492_483),
        ("haar", 38, 64, False, 54_341_171),
    ],
)
def test_published_generator_parameters(
    kind: str, num_labels: int, z_dim: int, middle_block: bool, expected: int
) -> None:
    """OASIS: 71.2 and 75.2 M with 3-D noise, 73.4 M without; SPADE: 96.5 M (supplement). 256², 64 channels, RGB."""
    norms = NormOptions(GanConfig(generator=kind), num_labels, z_dim)  # type: ignore[arg-type]
    with torch.device("meta"):
        assert parameters(SpadeGenerator(norms, 3, (256, 256), middle_block)) == expected


@pytest.mark.slow
def test_published_discriminator_parameters() -> None:
    with torch.device("meta"):
        net = OasisDiscriminator(38, 3, (256, 256), OasisConfig())
    assert parameters(net) == 22_251_559  # 22.25 M
    assert [block.conv_0.in_channels for block in net.up] == [512, 1024, 512, 512, 256, 256]
    assert [block.conv_0.out_channels for block in net.up] == [512, 256, 256, 128, 128, 64]


def test_spectral_norm_is_on_the_published_layers() -> None:
    block = ResidualBlock(8, 4, NormOptions(GanConfig(spade_hidden=4), 3, 3))
    for name in ("conv_0", "conv_1", "conv_s"):
        assert hasattr(getattr(block, name), "parametrizations")
    assert not hasattr(block.norm_0.gamma, "parametrizations")
    net = OasisDiscriminator(3, 1, (32, 32), OasisConfig(channels_D=4))
    plain = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and not hasattr(m, "parametrizations")]
    assert plain == ["to_logits"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (256, 256), (96, 160), (32, 544), (224, 192)])
def test_sizes(size: tuple[int, int]) -> None:
    label = torch.randint(0, 5, (2, *size))
    image = small(size)(label, torch.randn(2, 3))
    assert image.shape == (2, 2, *size)
    assert image.abs().max() <= 1
    assert OasisDiscriminator(5, 2, size, OasisConfig(channels_D=4))(image)[0].shape == (2, 6, *size)


def test_spade_formula() -> None:
    """norm(x)·(1 + gamma) + beta: with gamma = beta = 0 it is the norm alone."""
    layer = Spade(4, 6, 8, 3, "instance")
    for conv in (layer.gamma, layer.beta):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    x, condition = torch.randn(2, 4, 16, 16) * 3 + 5, Condition(torch.randint(0, 6, (2, 1, 16, 16)), 6, None)
    y = layer(x, condition)
    assert y.mean((2, 3)).abs().max() < 1e-5
    assert torch.allclose(y.var((2, 3), unbiased=False), torch.ones(2, 4), atol=1e-3)
    nn.init.ones_(layer.beta.bias)
    assert torch.allclose(layer(x, condition), y + 1, atol=1e-5)


def test_coarser_conditions_take_the_nearest_pixel_as_torch_does() -> None:
    label = torch.randint(0, 6, (2, 3, 32, 48))
    coarse = Condition(label, 6, None).at((8, 12))
    assert torch.equal(coarse.label.float(), nn.functional.interpolate(label.float(), (8, 12), mode="nearest"))
    assert coarse.at((32, 48)).label is label


def test_parameters_keep_their_order() -> None:
    """States of optimisers know parameters by their number: another order gives each the memory of another one."""
    block = ResidualBlock(8, 4, NormOptions(GanConfig(spade_hidden=4), 3, 3), grain=True)
    assert [name for name, _ in block.named_children()] == ["norm_0", "conv_0", "norm_1", "conv_1", "conv_s", "norm_s"]
    net = small((32, 32))
    assert [name for name, _ in net.named_children()] == ["stem", "blocks", "to_image"]


def test_ema_lerps_parameters_and_copies_buffers() -> None:
    net = small((32, 32))
    average = ema_copy(net)
    before = {k: v.clone() for k, v in average.named_parameters()}
    net.train()
    net(torch.randint(0, 5, (2, 32, 32)), torch.randn(2, 3))  # moves batch statistics and spectral vectors
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    ema_update(average, net, 0.9, step=1000)
    for (name, a), p in zip(average.named_parameters(), net.parameters(), strict=True):
        assert torch.allclose(a, 0.9 * before[name] + 0.1 * p, atol=1e-6), name
    for (name, a), b in zip(average.named_buffers(), net.buffers(), strict=True):  # averaged spectral vectors shrink
        assert torch.equal(a, b), name


@pytest.mark.parametrize("decay", [0.0, 0.99, 0.999, 0.9999])
def test_average_of_a_short_run_has_forgotten_its_random_start(decay: float) -> None:
    """260 steps, as a demo has in its first minute; without a warm-up .9999 would keep 97 % of the first weights."""
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(net.weight, 1.0)
    average = ema_copy(net)
    torch.nn.init.constant_(net.weight, 0.0)
    for step in range(260):
        ema_update(average, net, decay, step)
    assert abs(average.weight.item()) < 1e-6


def test_recalibration_gives_the_statistics_of_the_given_batches() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False)).eval()
    batches = [torch.randn(4, 1, 8, 8) * (k + 1) for k in range(3)]
    recalibrate_batchnorm(net, iter([lambda b=b: net(b) for b in batches]))
    hidden = [net[0](b) for b in batches]
    expected = torch.stack([h.mean((0, 2, 3)) for h in hidden]).mean(0)
    assert torch.allclose(net[1].running_mean, expected, atol=1e-6)
    assert not net[1].training
    assert net[1].momentum == 0.1


def test_recalibration_that_fails_leaves_the_norms_in_evaluation() -> None:
    """A training outlives a disk that could not be read once (`Run.maybe_save`)."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False)).eval()
    with pytest.raises(ZeroDivisionError):
        recalibrate_batchnorm(net, iter([lambda: 1 / 0]))
    assert not net[1].training
    assert net[1].momentum == 0.1
