"""SPADE's patch discriminator and the wavelet critic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.gan.haar import haar
from models.gan.options import SpadeConfig
from models.gan.patch_discriminator import MultiscalePatchDiscriminator
from models.gan.wavelet_discriminator import (
    Blur,
    EqualConv,
    EqualLinear,
    WaveletDiscriminator,
    activate,
    critic_levels,
    minibatch_deviation,
)


def patches(**options: float) -> MultiscalePatchDiscriminator:
    torch.manual_seed(0)
    return MultiscalePatchDiscriminator(3, 2, SpadeConfig(**{"channels_D": 4} | options))  # type: ignore[arg-type]


def pair(batch: int = 2, size: tuple[int, int] = (64, 64)) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(batch, 2, *size) * 2 - 1, torch.randint(0, 3, (batch, *size))


def test_maps_and_logits() -> None:
    maps = patches()(*pair(size=(64, 96)))
    sides = [[(33, 49), (17, 25), (9, 13), (10, 14), (11, 15)], [(17, 25), (9, 13), (5, 7), (6, 8), (7, 9)]]
    for scale, expected in zip(maps, sides, strict=True):
        assert [tuple(m.shape) for m in scale] == [
            (2, k, *side) for k, side in zip([4, 8, 16, 32, 1], expected, strict=True)
        ]
    assert [len(scale) for scale in patches(num_D=3)(*pair())] == [5, 5, 5]


def test_labels_serve_real_and_generated_images_alike() -> None:
    """As published, images and labels side by side in one convolution; the labels' sum is computed once for both."""
    net = patches().eval()
    image, label = pair(4)
    both = net(image, label[:2])
    for maps, alone in zip(both, zip(net(image[:2], label[:2]), net(image[2:], label[:2]), strict=True), strict=True):
        for found, parts in zip(maps, zip(*alone, strict=True), strict=True):
            torch.testing.assert_close(found, torch.cat(parts), rtol=1e-4, atol=1e-5)
    first = net.nets[0].first
    wanted = first(torch.cat([image[:2], nn.functional.one_hot(label[:2], 3).permute(0, 3, 1, 2).float()], dim=1))
    torch.testing.assert_close(both[0][0][:2], nn.functional.leaky_relu(wanted, 0.2), rtol=1e-4, atol=1e-5)


def test_the_next_scale_reads_the_average_of_three_by_three() -> None:
    net = patches().eval()
    seen: list[torch.Tensor] = []
    net.nets[1].register_forward_hook(lambda _, inputs, __: seen.append(torch.cat(inputs, dim=1)))
    image, label = pair(1)
    net(image, label)
    assert seen[0].shape == (1, 5, 32, 32)
    torch.testing.assert_close(seen[0][0, :2, 4, 6], image[0, :, 7:10, 11:14].mean((1, 2)))
    torch.testing.assert_close(seen[0][0, :2, 0, 0], image[0, :, :2, :2].mean((1, 2)))  # padding is not counted
    torch.testing.assert_close(seen[0][:, 2:].sum(1), torch.ones(1, 32, 32))  # the labels' shares


def test_hidden_maps_are_normalised_per_sample() -> None:
    net = patches()
    before: list[torch.Tensor] = []
    net.nets[0].norms[1].register_forward_hook(lambda _, __, output: before.append(output))
    net(*pair(3))
    assert before[0].mean((2, 3)).abs().max() < 1e-4
    assert torch.allclose(before[0].var((2, 3), unbiased=False), torch.ones(3, 16), atol=0.05)


def test_weak_texture_tells_much_more_where_detail_is_read_too() -> None:
    """As a share of what intensities and edges of the same image tell, since norms take away how large everything is."""

    def share(detail: float) -> float:
        net = patches(detail_D=detail, spectral_gain=1.0).eval()
        even = torch.linspace(-1, 1, 64).expand(2, 2, 64, 64).clone()
        label = torch.zeros(2, 64, 64, dtype=torch.long)
        label[:, 20:40, 20:40] = 1
        plain, grainy = (net(even + level * torch.randn(2, 2, 64, 64), label)[0][0] for level in (0, 0.02))
        return ((grainy - plain).std() / plain.std()).item()

    assert share(10) > 4 * share(0)
    net, (image, label) = patches(detail_D=10), pair()
    first = net.nets[0].first
    assert first.in_channels == 3 + 2 * 2
    with torch.no_grad():
        first.weight[:, :2] = 0
        first.weight[:, 4:] = 0
    maps = [net(shifted, label)[0][0] for shifted in (image, image + 0.5, -image)]
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-3, atol=1e-4)  # no intensity, only what pixels differ by
    assert (maps[0] - maps[2]).abs().max() > 0.1


def wavelets(size: tuple[int, int] = (32, 32), in_channels: int = 1, channels: int = 4) -> WaveletDiscriminator:
    torch.manual_seed(0)
    return WaveletDiscriminator(in_channels, size, channels)


SIZES = [((256, 256), 5, (4, 4)), ((32, 32), 2, (4, 4)), ((512, 256), 5, (8, 4)), ((96, 160), 4, (3, 5))]
SIZES += [((224, 192), 4, (7, 6)), ((64, 288), 3, (4, 18))]


@pytest.mark.parametrize(("size", "levels", "coarsest"), SIZES)
def test_sizes(size: tuple[int, int], levels: int, coarsest: tuple[int, int]) -> None:
    assert critic_levels(size) == (levels, coarsest)
    net = wavelets(size, in_channels=2, channels=2)
    scores, maps = net(torch.randn(2, 2, *size))
    assert scores.shape == (2,)
    assert [m.shape for m in maps] == [(2, 8, size[0] >> i, size[1] >> i) for i in range(2, levels + 2)]
    assert maps[-1].shape[2:] == coarsest
    assert torch.equal(net(torch.zeros(1, 2, *size))[0], net(torch.zeros(1, 2, *size))[0])


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
    net = wavelets((64, 64), in_channels=2)
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
    net = wavelets(in_channels=2).double()
    image = torch.randn(3, 2, 32, 32, dtype=torch.float64, requires_grad=True)
    weights = {name: p for name, p in net.named_parameters() if name.endswith("weight")}

    def penalty(*given: torch.Tensor) -> torch.Tensor:
        scores, _ = torch.func.functional_call(net, dict(zip(weights, given, strict=True)), image)
        (gradient,) = torch.autograd.grad(scores.sum(), image, create_graph=True)
        return gradient.square().sum()

    assert torch.autograd.gradcheck(penalty, tuple(weights.values()), fast_mode=True)


def test_equalised_layers_and_activations_keep_the_scale() -> None:
    """N(0, 1) weights times 1/√fan_in keep the variance of their input, whatever their width."""
    torch.manual_seed(0)
    for layer, x in ((EqualConv(64, 256, 3, padding=0), (4, 64, 16, 16)), (EqualLinear(1000, 500), (64, 1000))):
        assert layer.weight.std().item() == pytest.approx(1.0, abs=0.02)
        assert layer(torch.randn(x)).std().item() == pytest.approx(1.0, abs=0.1)
    assert activate(torch.tensor([1.0, -1.0])).tolist() == pytest.approx([2**0.5, -0.2 * 2**0.5])
