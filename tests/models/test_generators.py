"""The generator family: published sizes, what tuned arithmetic must equal, noise and neighbours."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from evaluation.metrics.lattice import PERIODS, line_powers, lines
from models.gan.condition import Condition
from models.gan.discriminator import OasisDiscriminator
from models.gan.generator import SpadeGenerator
from models.gan.haar import HaarConv, haar, inverse_haar
from models.gan.norms import NormOptions
from models.gan.options import GanConfig, OasisConfig

pytestmark = pytest.mark.slow
LINE_PERIODS = lines()[1]


def of(num_labels: int, z_dim: int, **options: object) -> NormOptions:
    return NormOptions(GanConfig(**options), num_labels, z_dim)  # type: ignore[arg-type]


def make(name: str, norms: NormOptions, size: tuple[int, int] = (64, 96), channels: int = 8) -> SpadeGenerator:
    torch.manual_seed(0)
    o = replace(norms.options, channels_G=channels, spectral_gain=1.0, generator=name)  # type: ignore[arg-type]
    net = SpadeGenerator(replace(norms, options=o), 2, size)
    # Published initial weights hardly react to the label; these do.
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape) / max(1, parameter[0].numel()) ** 0.5)
        for _ in range(15):  # running statistics, and spectral vectors of these weights
            net(labels(norms.slices, size), torch.randn(2, norms.z_dim) if norms.z_dim else None)
    return net


def labels(slices: int = 1, size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    """Two label maps of nested boxes, with and without label at the border."""
    label = torch.zeros(2, slices, *size, dtype=torch.long)
    label[:, :, 10:40, 20:70] = 1
    label[:, :, 20:30, 30:50] = 2
    label[1, :, 25:64, 0:30] = 3
    for k in range(1, slices):
        label[:, k] = label[:, 0].roll(k, 1)
    return label


@pytest.mark.parametrize("name", ["image", "haar"])
@pytest.mark.parametrize("kind", ["spade", "clade"])
@pytest.mark.parametrize("beneath", ["batch", "instance", "group"])
def test_every_generator_takes_every_norm_and_uses_all_its_parameters(name: str, kind: str, beneath: str) -> None:
    net = make(name, of(5, 3, norm=kind, param_free_norm=beneath, spade_hidden=4), (32, 64))
    image = net(labels(size=(32, 64)), torch.randn(2, 3))
    assert image.shape == (2, 2, 32, 64)
    assert image.abs().max() <= 1
    image.square().sum().backward()
    unused = [n for n, p in net.named_parameters() if p.grad is None]
    assert not unused


@pytest.mark.parametrize("shape", [(8,), (8, 6), (4, 6, 8)])
def test_inverse_is_exact_and_energy_is_kept(shape: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    y = haar(x)
    assert y.shape == (2, 3 * 2 ** len(shape), *(side // 2 for side in shape))
    torch.testing.assert_close(inverse_haar(y), x, atol=1e-14, rtol=0)
    torch.testing.assert_close(haar(inverse_haar(y)), y, atol=1e-14, rtol=0)
    assert y.square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-13)


def test_bands_are_those_of_the_filters() -> None:
    """Order LL, LH, HL, HH, the rows' letter first, as separable correlation with l = [1, 1]/√2 and h = [-1, 1]/√2."""
    x = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    low, high = (torch.tensor([sign, 1.0], dtype=torch.float64) / 2**0.5 for sign in (1.0, -1.0))
    expected = []
    for rows, columns in ((low, low), (low, high), (high, low), (high, high)):
        kernel = torch.outer(rows, columns)[None, None]
        bands = [torch.nn.functional.conv2d(x[:, c : c + 1], kernel, stride=2) for c in range(2)]
        expected.append(torch.cat(bands, 1))
    torch.testing.assert_close(haar(x), torch.cat(expected, 1), atol=1e-14, rtol=0)


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
@pytest.mark.parametrize("shift", [0, 1])
def test_convolution_of_coefficients_keeps_flat_images_flat(size: tuple[int, int], shift: int) -> None:
    """Whatever its weights; a plain one gives every 2×2 pixels the same pattern. It equals a convolution of bands."""
    torch.manual_seed(0)
    conv = HaarConv(2, 3, 3, padding=1, shift=shift)
    flat = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 20, 20)
    inner = conv(flat)[..., 5:-5, 5:-5]
    torch.testing.assert_close(inner, inner[..., :1, :1].expand_as(inner))
    assert inner.abs().min() > 0.01
    image = torch.randn(1, 2, *size)
    y = conv(image)
    assert y.shape == (1, 3, *size)
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        for c in range(2):
            for band in range(4):
                conv.weight[band * 3 + c, band * 2 + c, 1, 1] = 1
    torch.testing.assert_close(conv(image)[:, :2], image)


@pytest.mark.parametrize("name", ["image", "haar"])
def test_an_untrained_generator_has_no_grid(name: str) -> None:
    """Energy at 2, 4 and 8 pixels over that beside it, on maps of blobs; 5, 41 and 6 with plain convolutions of
    coefficients (its details from constants), 3.3 at 2 pixels where coefficients are enlarged without interpolation.
    """
    net = make(name, of(5, 0, spade_hidden=8, param_free_norm="instance"), (128, 128))
    rng, powers = np.random.default_rng(0), np.zeros((2, 63))
    for _ in range(12):
        blobs = np.stack([gaussian_filter(rng.normal(size=(128, 128)), 4) for _ in range(5)]).argmax(0)
        with torch.no_grad():
            image = net(torch.from_numpy(blobs)[None, None], None)[0]
        powers += sum(line_powers(channel.numpy()) for channel in image)
    excess = np.log(powers[0] / powers[1])
    found = {period: np.exp(excess[period == LINE_PERIODS].mean()) for period in PERIODS}
    assert max(found.values()) < 2, found


# -- tuned arithmetic ---------------------------------------------------------------------------------------------


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp(min=1e-12)).item()


CASES = [("image", {}), ("image", {"neighbours": 1}), ("image", {"z_dim": 0}), ("image", {"spade_ks": 1})]
CASES += [("image", {"param_free_norm": "batch"}), ("haar", {"neighbours": 1})]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_tuned_generator_equals_the_plain_one(name: str, options: dict[str, object]) -> None:
    """Images, gradients and statistics, float32: gamma and beta in one convolution."""
    norms = of(5, **{"z_dim": 3, "spade_hidden": 8, "param_free_norm": "instance", **options})  # type: ignore[arg-type]
    tuned, plain = make(name, norms), make(name, replace(norms, tuned=False))
    plain.load_state_dict(tuned.state_dict())
    label, noise = labels(norms.slices), torch.randn(2, norms.z_dim) if norms.z_dim else None
    images = [net(label, noise) for net in (tuned, plain)]
    assert 0.05 < images[1].std() < 0.9
    assert relative(*images) < 1e-5
    weight = torch.randn_like(images[0])
    for image in images:
        (image * weight).sum().backward()
    for (key, a), b in zip(tuned.named_parameters(), plain.parameters(), strict=True):
        # A bias before a normalisation has no gradient but rounding noise; compare against the largest there is.
        scale = max(b.grad.norm().item(), 1e-4 * max(p.grad.norm().item() for p in plain.parameters()))
        assert (a.grad - b.grad).norm().item() / scale < 2e-3, key
    for a, b in zip(tuned.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("noise", ["none", "image", "class"])
@pytest.mark.parametrize(("slices", "kernel"), [(1, 1), (1, 3), (3, 3), (1, 5)])
@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 3e-2)])
def test_labels_looked_up_are_their_convolution(
    noise: str, slices: int, kernel: int, bf16: bool, tolerance: float
) -> None:
    """At every size, also at the border, where a window reaches beyond the image; and so are their gradients."""
    torch.manual_seed(0)
    z_dim = 0 if noise == "none" else 2
    options = {"spade_hidden": 8, "spade_ks": kernel, "neighbours": slices // 2, "param_free_norm": "instance"}
    layer = of(4, z_dim, **options).make(6)
    drawn = {"none": None, "image": torch.randn(2, z_dim), "class": torch.randn(2, 4, z_dim)}[noise]
    condition = Condition(labels(slices), 4, drawn)
    for size in ((64, 96), (8, 12)):
        weight = torch.randn(2, 6, *size)
        outputs, gradients = [], []
        for tuned in (True, False):
            layer.tuned = tuned
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                scale, shift = layer.modulation(condition.at(size))
            outputs.append(torch.stack([scale, shift]).float())
            gradients.append(torch.autograd.grad((scale * weight + shift).sum(), list(layer.parameters())))
        assert 0.01 < outputs[0].std() < 10
        if not bf16:
            torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
        for ours, theirs in [tuple(outputs), *zip(*gradients, strict=True)]:
            assert relative(ours, theirs) < tolerance


def test_tuned_discriminator_equals_the_plain_one() -> None:
    torch.manual_seed(0)
    tuned = OasisDiscriminator(5, 2, (64, 96), OasisConfig(channels_D=8, spectral_gain=1.0))
    plain = OasisDiscriminator(5, 2, (64, 96), OasisConfig(channels_D=8, spectral_gain=1.0), tuned=False)
    plain.load_state_dict(tuned.state_dict())
    image = torch.randn(2, 2, 64, 96)
    outputs = [net(image)[0] for net in (tuned, plain)]
    assert relative(*outputs) < 1e-5
    for output in outputs:
        output.square().sum().backward()
    for (key, a), b in zip(tuned.named_parameters(), plain.named_parameters(), strict=True):
        assert relative(a.grad, b[1].grad) < 1e-3, key


# -- noise, neighbours --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image", "haar"])
@pytest.mark.parametrize("kind", ["spade", "clade"])
def test_noise_by_image_and_by_class_agree(name: str, kind: str) -> None:
    net = make(name, of(5, 3, spade_hidden=8, norm=kind, param_free_norm="instance")).eval()
    label, z = labels(), torch.randn(2, 3)
    image = net(label, z)
    assert relative(net(label, z[:, None].expand(-1, 5, -1)), image) < 1e-5
    assert relative(net(label, torch.randn(2, 3)), image) > 1e-3


def test_clade_starts_with_classes_that_differ_more_than_draws() -> None:
    torch.manual_seed(0)
    layer = of(8, 16, norm="clade", param_free_norm="instance").make(32)
    classes = layer.table.std(dim=1).mean()
    draws = layer.noise(torch.randn(64, 16)).std(dim=0).mean()  # a draw sums over its length
    assert classes > 3 * draws > 0


def test_clade_looks_up_by_class_and_place() -> None:
    norms = of(4, 0, norm="clade", param_free_norm="instance")
    layer = norms.make(2)
    nn.init.zeros_(layer.position.weight)
    nn.init.zeros_(layer.position.bias)
    net = make("image", replace(norms, z_dim=1), (32, 32), 4)
    label = torch.zeros(1, 1, 8, 8, dtype=torch.long)
    label[..., 4:] = 1
    with torch.no_grad():
        layer.table.zero_()
        layer.table[0, 1] = torch.tensor([0.5, 1.0, 2.0, 3.0])  # gamma, gamma, beta, beta of class 1
    x = torch.randn(1, 2, 8, 8)
    condition = make("image", replace(norms), (32, 32), 4).condition(label, None)
    y, plain = layer(x, condition), layer.norm(x)
    torch.testing.assert_close(y[..., :4], plain[..., :4])
    torch.testing.assert_close(y[:, 0, :, 4:], plain[:, 0, :, 4:] * 1.5 + 2)
    torch.testing.assert_close(y[:, 1, :, 4:], plain[:, 1, :, 4:] * 2.0 + 3)
    nn.init.ones_(layer.position.weight)
    assert not torch.allclose(layer(x, condition)[..., 4:], y[..., 4:])
    assert deepcopy(net)(labels(size=(32, 32))).isfinite().all()


def test_position_map_is_the_offset_from_the_class_centroid() -> None:
    net = make("image", of(4, 0, spade_hidden=4), (32, 32), 4)
    label = torch.zeros(1, 1, 32, 32, dtype=torch.long)
    label[:, :, 10:21, 4:7] = 1  # centre at row 15, column 5
    offsets = net.condition(label, None).offsets[0]
    assert offsets[0, 15, 5] == 0
    assert offsets[:, 10, 4].tolist() == [-1, -1]
    assert offsets[:, 20, 6].tolist() == [1, 1]
    assert offsets.abs().max() == 1
