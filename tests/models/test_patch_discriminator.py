from __future__ import annotations

import torch
from torch import nn

from models.gan.options import SpadeConfig
from models.gan.patch_discriminator import MultiscalePatchDiscriminator


def small(**options: int) -> MultiscalePatchDiscriminator:
    torch.manual_seed(0)
    return MultiscalePatchDiscriminator(3, 2, SpadeConfig(channels_D=4, **options))  # type: ignore[arg-type]


def pair(batch: int = 2, size: tuple[int, int] = (64, 64)) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(batch, 2, *size) * 2 - 1, torch.randint(0, 3, (batch, *size))


def test_maps_and_logits() -> None:
    maps = small()(*pair(size=(64, 96)))
    sides = [[(33, 49), (17, 25), (9, 13), (10, 14), (11, 15)], [(17, 25), (9, 13), (5, 7), (6, 8), (7, 9)]]
    for scale, expected in zip(maps, sides, strict=True):
        assert [tuple(m.shape) for m in scale] == [
            (2, k, *side) for k, side in zip([4, 8, 16, 32, 1], expected, strict=True)
        ]
    assert [len(scale) for scale in small(num_D=3)(*pair())] == [5, 5, 5]


def test_labels_serve_real_and_generated_images_alike() -> None:
    """As published, images and labels side by side in one convolution; the labels' sum is computed once for both."""
    net = small().eval()
    image, label = pair(4)
    both = net(image, label[:2])
    for maps, alone in zip(both, zip(net(image[:2], label[:2]), net(image[2:], label[:2]), strict=True), strict=True):
        for found, parts in zip(maps, zip(*alone, strict=True), strict=True):
            torch.testing.assert_close(found, torch.cat(parts), rtol=1e-4, atol=1e-5)
    first = net.nets[0].first
    wanted = first(torch.cat([image[:2], nn.functional.one_hot(label[:2], 3).permute(0, 3, 1, 2).float()], dim=1))
    torch.testing.assert_close(both[0][0][:2], nn.functional.leaky_relu(wanted, 0.2), rtol=1e-4, atol=1e-5)


def test_the_next_scale_reads_the_average_of_three_by_three() -> None:
    net = small().eval()
    seen: list[torch.Tensor] = []
    net.nets[1].register_forward_hook(lambda _, inputs, __: seen.append(torch.cat(inputs, dim=1)))
    image, label = pair(1)
    net(image, label)
    assert seen[0].shape == (1, 5, 32, 32)
    torch.testing.assert_close(seen[0][0, :2, 4, 6], image[0, :, 7:10, 11:14].mean((1, 2)))
    torch.testing.assert_close(seen[0][0, :2, 0, 0], image[0, :, :2, :2].mean((1, 2)))  # padding is not counted
    torch.testing.assert_close(seen[0][:, 2:].sum(1), torch.ones(1, 32, 32))  # the labels' shares


def test_hidden_maps_are_normalised_per_sample() -> None:
    net = small()
    before: list[torch.Tensor] = []
    net.nets[0].norms[1].register_forward_hook(lambda _, __, output: before.append(output))
    net(*pair(3))
    assert before[0].mean((2, 3)).abs().max() < 1e-4
    assert torch.allclose(before[0].var((2, 3), unbiased=False), torch.ones(3, 16), atol=0.05)
