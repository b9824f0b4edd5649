from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from models.ema import ema_copy, ema_update, recalibrate_batchnorm
from models.gan.blocks import ResidualBlock
from models.gan.condition import Condition
from models.gan.discriminator import OasisDiscriminator
from models.gan.generator import SpadeGenerator
from models.gan.norms import InstanceNorm, NormOptions, Spade
from models.gan.options import GanConfig, OasisConfig, SpadeConfig
from models.gan.patch_discriminator import MultiscalePatchDiscriminator
from models.gan.wavelet_discriminator import WaveletDiscriminator
from models.layers import SyncedBatchNorm3d, with_synced_norms


def small(size: tuple[int, int] = (32, 64), labels: int = 5, channels: int = 2, **options: object) -> SpadeGenerator:
    o = GanConfig(spade_hidden=4, channels_G=4, **options)  # type: ignore[arg-type]
    return SpadeGenerator(NormOptions(o, labels, 3), channels, size)


def published_generator(kind: str, num_labels: int, z_dim: int, middle_block: bool = False) -> SpadeGenerator:
    norms = NormOptions(GanConfig(generator=kind), num_labels, z_dim)  # type: ignore[arg-type]
    return SpadeGenerator(norms, 3, (256, 256), middle_block)


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks without memory, and without the power iterations of spectral norm, which take seconds even so."""
    monkeypatch.setattr("torch.nn.utils.parametrizations._SpectralNorm._power_method", lambda *_: None)
    with torch.device("meta"):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: published_generator("image", 38, 64), 71_190_467),  # OASIS with 3-D noise
        (lambda: published_generator("image", 183, 64), 75_199_427),
        (lambda: published_generator("image", 183, 0), 73_429_955),  # without noise
        (lambda: published_generator("image", 151, 0, middle_block=True), 96_492_483),  # SPADE (supplement)
        (lambda: published_generator("haar", 38, 64), 54_341_171),
        (lambda: OasisDiscriminator(38, 3, (256, 256), OasisConfig()), 22_251_559),
        (lambda: MultiscalePatchDiscriminator(151, 3, SpadeConfig()), 5_836_930),  # ADE20K; no bias before a norm
        (lambda: WaveletDiscriminator(3, (256, 256)), 26_211_073),
    ],
)
def test_published_numbers_of_parameters(build: Callable[[], nn.Module], expected: int) -> None:
    """At 256², 64 channels, RGB."""
    assert sum(p.numel() for p in build().parameters()) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("meta")
def test_widths_of_the_published_discriminator() -> None:
    net = OasisDiscriminator(38, 3, (256, 256), OasisConfig())
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


def test_recalibration_gives_the_statistics_of_the_given_batches_and_leaves_evaluation_even_where_it_fails() -> None:
    """A training outlives a disk that could not be read once (`Run.maybe_save`)."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False)).eval()
    batches = [torch.randn(4, 1, 8, 8) * (k + 1) for k in range(3)]
    recalibrate_batchnorm(net, iter([lambda b=b: net(b) for b in batches]))
    hidden = [net[0](b) for b in batches]
    expected = torch.stack([h.mean((0, 2, 3)) for h in hidden]).mean(0)
    assert torch.allclose(net[1].running_mean, expected, atol=1e-6)
    assert (net[1].training, net[1].momentum) == (False, 0.1)
    with pytest.raises(ZeroDivisionError):
        recalibrate_batchnorm(net, iter([lambda: 1 / 0]))
    assert (net[1].training, net[1].momentum) == (False, 0.1)


def test_instance_norm_equals_torchs() -> None:
    x = torch.randn(2, 3, 8, 9) * 4 + 7
    for layout in (torch.contiguous_format, torch.channels_last):
        y = InstanceNorm()(x.contiguous(memory_format=layout))
        torch.testing.assert_close(y, nn.InstanceNorm2d(3)(x), atol=1e-5, rtol=1e-5)


def test_batch_norms_of_a_foreign_network_are_replaced_in_place() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3, eps=0.5)), nn.BatchNorm3d(3, affine=False))
    net(torch.randn(2, 2, 4, 4, 4))  # so that running statistics are not those of the start
    x, names = torch.randn(2, 2, 3, 3, 3), list(net.state_dict())
    expected = net.eval()(x)
    synced = with_synced_norms(net)
    assert [type(m) for m in synced.modules() if isinstance(m, nn.BatchNorm3d)] == [SyncedBatchNorm3d] * 2
    assert list(synced.state_dict()) == names
    assert torch.equal(synced.eval()(x), expected)
