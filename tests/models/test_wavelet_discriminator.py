from __future__ import annotations

import pytest
import torch
from torch import nn

from models.gan.haar import haar
from models.gan.wavelet_discriminator import (
    Blur,
    EqualConv,
    EqualLinear,
    WaveletDiscriminator,
    activate,
    critic_levels,
    minibatch_deviation,
)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def small(size: tuple[int, int] = (32, 32), in_channels: int = 1, channels: int = 4) -> WaveletDiscriminator:
    torch.manual_seed(0)
    return WaveletDiscriminator(in_channels, size, channels)


def test_published_parameters() -> None:
    """26.2 M at 256² with three channels, counted by hand layer by layer."""
    with torch.device("meta"):
        net = WaveletDiscriminator(3, (256, 256))
    from_wavelet = 13 * (128 + 5 * 512)  # 12 -> width, and a bias
    first = (9 * 128 + 1) * 128 + (9 * 128 + 1) * 512
    others = 4 * 2 * (9 * 512 + 1) * 512
    head = (9 * 513 + 1) * 512 + (8192 + 1) * 512 + 513
    assert parameters(net) == from_wavelet + first + others + head == 26_211_073
    assert [block.down.weight.shape[:2] for block in net.down] == [(512, 128), *[(512, 512)] * 4]


@pytest.mark.parametrize(
    ("size", "levels", "coarsest"),
    [
        ((256, 256), 5, (4, 4)),
        ((32, 32), 2, (4, 4)),
        ((512, 256), 5, (8, 4)),
        ((96, 160), 4, (3, 5)),
        ((224, 192), 4, (7, 6)),
        ((64, 288), 3, (4, 18)),
    ],
)
def test_sizes(size: tuple[int, int], levels: int, coarsest: tuple[int, int]) -> None:
    assert critic_levels(size) == (levels, coarsest)
    net = small(size, in_channels=2, channels=2)
    scores, maps = net(torch.randn(2, 2, *size))
    assert scores.shape == (2,)
    assert [m.shape for m in maps] == [(2, 8, size[0] >> i, size[1] >> i) for i in range(2, levels + 2)]
    assert maps[-1].shape[2:] == coarsest
    assert torch.equal(net(torch.zeros(1, 2, *size))[0], net(torch.zeros(1, 2, *size))[0])


def test_an_image_of_another_size_is_refused() -> None:
    """32×64 and 64×32 have equally many pixels, so no layer would notice."""
    with pytest.raises(AssertionError):
        small((32, 64))(torch.zeros(1, 1, 64, 32))


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (7, 1), (8, 4), (9, 3)])
def test_minibatch_deviation_formula(batch: int, group: int) -> None:
    x = torch.randn(batch, 3, 2, 5)
    y = minibatch_deviation(x)
    assert torch.equal(y[:, :3], x)
    for b in range(batch):
        first = b // group * group
        expected = (x[first : first + group].var(0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[b, 3], expected.expand(2, 5))


def test_blur_of_a_point_and_of_a_constant() -> None:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    x = torch.zeros(1, 2, 8, 8)
    x[0, 1, 3, 4] = 1
    y = Blur()(x)
    assert y.shape == (1, 2, 9, 9)
    assert y[0, 0].abs().max() == 0
    torch.testing.assert_close(y[0, 1, 2:6, 3:7], torch.outer(taps, taps))
    assert y.sum() == pytest.approx(1.0)
    halved = Blur(stride=2)(torch.ones(1, 1, 8, 8))
    assert halved.shape == (1, 1, 4, 4)
    torch.testing.assert_close(halved[0, 0, 1:3, 1:3], torch.ones(2, 2))
    # Pixel j of the half is centred between pixels 2j and 2j + 1: 1/8, 3/8, 3/8, 1/8 of 2j - 1 ... 2j + 2.
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    torch.testing.assert_close(Blur(stride=2)(ramp)[0, 0, 1, 1:3], torch.tensor([2.5, 4.5]))


def test_coarse_levels_read_the_wavelets_of_the_halved_image() -> None:
    net = small((64, 64), in_channels=2)
    seen: list[torch.Tensor] = []
    for layer in net.from_wavelet:
        layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    image = torch.randn(1, 2, 64, 64)
    net(image)
    assert len(seen) == 4
    for coefficients in seen:
        torch.testing.assert_close(coefficients, haar(image), rtol=1e-4, atol=1e-5)
        image = Blur(stride=2)(image)


def test_r1_can_be_differentiated_by_the_weights() -> None:
    """The double backward against a difference quotient, with three samples that share their deviation."""
    net = small(in_channels=2).double()
    image = torch.randn(3, 2, 32, 32, dtype=torch.float64, requires_grad=True)
    weights = {name: p for name, p in net.named_parameters() if name.endswith("weight")}

    def penalty(*given: torch.Tensor) -> torch.Tensor:
        scores, _ = torch.func.functional_call(net, dict(zip(weights, given, strict=True)), image)
        (gradient,) = torch.autograd.grad(scores.sum(), image, create_graph=True)
        return gradient.square().sum()

    assert torch.autograd.gradcheck(penalty, tuple(weights.values()), fast_mode=True)


def test_equalised_layers_start_at_unit_variance() -> None:
    """N(0, 1) weights times 1/√fan_in keep the variance of their input, whatever their width."""
    torch.manual_seed(0)
    conv, linear = EqualConv(64, 256, 3, padding=0), EqualLinear(1000, 500)
    assert conv.weight.std().item() == pytest.approx(1.0, abs=0.02)
    assert linear.weight.std().item() == pytest.approx(1.0, abs=0.02)
    assert conv(torch.randn(4, 64, 16, 16)).std().item() == pytest.approx(1.0, abs=0.1)
    assert linear(torch.randn(64, 1000)).std().item() == pytest.approx(1.0, abs=0.1)


def test_activation_keeps_the_scale() -> None:
    assert activate(torch.tensor([1.0, -1.0])).tolist() == pytest.approx([2**0.5, -0.2 * 2**0.5])
