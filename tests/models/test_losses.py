"""Closed forms of the losses (rule: each loss has one)."""

from __future__ import annotations

import math

import pytest
import torch

from models.base import seeded_generator
from models.gan import losses

N = 4


def labels(*rows: list[int]) -> torch.Tensor:
    return torch.tensor([rows])


def test_class_weights_are_inverse_frequencies_and_average_to_one() -> None:
    label = labels([0, 0, 0], [1, 1, 2])
    weight = losses.class_weights(label, N)
    # B·H·W = 6 pixels, K = 3 classes: 6 / (3 · n_c)
    assert torch.allclose(weight, torch.tensor([2 / 3, 1.0, 2.0, 0.0]))
    assert weight[label].mean() == pytest.approx(1.0)


def test_air_has_a_weight_above_zero() -> None:
    """The predecessor gave class 0 weight 0, so nothing told the generator where the body ends."""
    assert losses.class_weights(torch.zeros(1, 2, 2, dtype=torch.long), N)[0] == 1.0


def test_rare_classes_are_capped() -> None:
    label = torch.zeros(1, 100, 100, dtype=torch.long)
    label[0, 0, 0] = 1
    assert losses.class_weights(label, N)[1] == 5000
    assert losses.class_weights(label, N, max_weight=100)[1] == 100


def test_uniform_logits_cost_log_n_plus_one() -> None:
    label = torch.randint(0, N, (2, 5, 5))
    logits = torch.zeros(2, N + 1, 5, 5)
    assert losses.real_cross_entropy(logits, label).item() == pytest.approx(math.log(N + 1))
    assert losses.real_cross_entropy(logits, label, losses.class_weights(label, N)).item() == pytest.approx(
        math.log(N + 1)
    )
    assert losses.fake_cross_entropy(logits).item() == pytest.approx(math.log(N + 1))


def test_weighted_cross_entropy_by_hand() -> None:
    logits = torch.randn(1, N + 1, 1, 2, dtype=torch.float64)
    label = labels([1, 3])
    weight = torch.tensor([0.0, 2.0, 0.0, 0.5])
    probability = logits.softmax(1)[0, :, 0]
    expected = (-2.0 * probability[2, 0].log() - 0.5 * probability[4, 1].log()) / 2
    assert losses.real_cross_entropy(logits, label, weight).item() == pytest.approx(expected.item(), rel=1e-6)


def test_labelmix_mask_is_constant_on_classes_and_shared_in_the_batch() -> None:
    label = torch.randint(0, N, (3, 16, 16))
    mask = losses.labelmix_mask(label, N, seeded_generator(1))
    for c in range(N):
        assert len(mask[:, 0][label == c].unique()) == 1


def test_labelmix_coins_are_fair_and_independent() -> None:
    """Writing coins into the map class by class re-tosses class 0 with class 1: P(equal) would be 0.74, not 0.5."""
    label = labels([0, 1])
    masks = torch.stack([losses.labelmix_mask(label, N, seeded_generator(i))[0, 0, 0] for i in range(2000)])
    assert masks.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.04)
    assert (masks[:, 0] == masks[:, 1]).float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_accuracy_tells_real_from_fake() -> None:
    real, fake = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    real[:, 2] = 1.0  # all real pixels are some class: right
    fake[:, 0, 0] = 1.0  # half of the fake pixels are seen through
    fake[:, 1, 1] = 1.0
    assert losses.real_fake_accuracy(real, fake).item() == 0.75


def test_image_gradient_of_a_ramp_is_its_slope() -> None:
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    slope = losses.image_gradient((0.3 * rows - 0.1 * columns)[None, None])
    assert slope.shape == (1, 2, 1, 6, 7)
    inner = slope[0, :, 0, 1:-1, 1:-1]
    assert torch.allclose(inner[0], torch.tensor(0.3), atol=1e-6)
    assert torch.allclose(inner[1], torch.tensor(-0.1), atol=1e-6)


def test_edge_loss_sees_shifts_and_signs_but_no_offset() -> None:
    image = torch.randn(1, 2, 8, 8)
    assert losses.edge(image + 0.4, image).item() == pytest.approx(0, abs=1e-6)
    assert losses.edge(-image, image).item() == pytest.approx(2 * losses.image_gradient(image).abs().mean().item())
    assert losses.edge(image.roll(1, -1), image).item() > 0.1


def test_spectrum_sees_texture_and_not_its_place() -> None:
    torch.manual_seed(0)
    image = torch.nn.functional.avg_pool2d(torch.randn(2, 1, 66, 98), 3, 1)  # (2, 1, 64, 96)
    other = torch.nn.functional.avg_pool2d(torch.randn(2, 1, 66, 98), 3, 1)
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    assert losses.spectrum(image, image).item() == pytest.approx(0, abs=1e-6)
    assert losses.spectrum(2 * image, image).item() == pytest.approx(math.log(4.01 / 1.01), rel=1e-3)
    assert losses.spectrum(other, image).item() < 0.6  # another draw of the same texture
    assert losses.spectrum(blurred, image).item() > 1  # although nearer pixel by pixel
    assert (blurred - image).abs().mean() < (other - image).abs().mean()
    grid = torch.zeros(64, 96)
    grid[::4] = grid[:, ::4] = 1  # all the missing power on the lattice
    gridded = blurred + grid * (image.std() ** 2 - blurred.std() ** 2).sqrt() / grid.std()
    assert losses.spectrum(gridded, image).item() > 1
    flat = torch.zeros(2, 1, 64, 96, requires_grad=True)
    losses.spectrum(flat + 1e-6 * other, image).backward()
    assert flat.grad.isfinite().all()
