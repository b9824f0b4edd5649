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
    capped = losses.class_weights(label, N, max_weight=1.5)
    assert torch.equal(capped, weight.clamp(max=1.5))
    # The predecessor gave class 0 weight 0, so nothing told the generator where the body ends.
    assert losses.class_weights(torch.zeros(1, 2, 2, dtype=torch.long), N)[0] == 1.0


def test_weighted_cross_entropy_by_hand() -> None:
    logits = torch.randn(1, N + 1, 1, 2, dtype=torch.float64)
    label = labels([1, 3])
    weight = torch.tensor([0.0, 2.0, 0.0, 0.5])
    probability = logits.softmax(1)[0, :, 0]
    expected = (-2.0 * probability[2, 0].log() - 0.5 * probability[4, 1].log()) / 2
    assert losses.real_cross_entropy(logits, label, weight).item() == pytest.approx(expected.item(), rel=1e-6)
    fake = -probability[0].log().mean()
    assert losses.fake_cross_entropy(logits).item() == pytest.approx(fake.item(), rel=1e-6)


def test_l1_in_which_labels_count_alike() -> None:
    """Of all pixels or a few, each label's mean distance is one in three; what is not there counts for nothing."""
    label = torch.zeros(2, 8, 8, dtype=torch.int64)
    label[0, :4], label[1, 7, 7] = 1, 3
    real, fake = torch.zeros(2, 2, 8, 8), torch.zeros(2, 2, 8, 8)
    for channel, (many, half, one) in enumerate([(0.1, -0.3, 0.8), (0.2, 0.1, -0.4)]):
        fake[:, channel] = torch.tensor([many, half, 9.0, one])[label]
    expected = (0.15 + 0.2 + 0.6) / 3
    assert losses.label_l1(fake, real, label, losses.class_weights(label, N)).item() == pytest.approx(expected)


def test_labelmix_coins_are_fair_and_independent() -> None:
    """Writing coins into the map class by class re-tosses class 0 with class 1: P(equal) would be 0.74, not 0.5."""
    label = labels([0, 1, 0])
    masks = torch.stack([losses.labelmix_mask(label, N, seeded_generator(i))[0, 0, 0] for i in range(2000)])
    assert torch.equal(masks[:, 0], masks[:, 2])
    masks = masks[:, :2]
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


# -- adversarial losses ------------------------------------------------------------


def test_hinge_by_hand_with_scales_that_count_alike_whatever_their_size() -> None:
    real, fake = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[-3.0, 0.5]])
    # max(0, 1 - D): 0, 1, 2; max(0, 1 + D): 0, 1.5
    assert losses.hinge_discriminator([real], [fake]).item() == pytest.approx(1.0 + 0.75)
    assert losses.hinge_generator([fake]).item() == pytest.approx(1.25)
    reals, fakes = [torch.zeros(1, 1, 9, 9), torch.ones(1, 1, 2, 2)], [torch.zeros(1, 1, 9, 9), -torch.ones(1, 1, 2, 2)]
    assert losses.hinge_discriminator(reals, fakes).item() == pytest.approx((2.0 + 0.0) / 2)
    assert losses.hinge_generator(fakes).item() == pytest.approx((0.0 + 1.0) / 2)
    with pytest.raises(ValueError, match="zip"):
        losses.hinge_discriminator(reals, fakes[:1])


def test_logistic_losses_are_binary_cross_entropy_and_do_not_overflow() -> None:
    real, fake = torch.randn(5) * 3, torch.randn(5) * 3
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones(5)) + bce(fake, torch.zeros(5))
    torch.testing.assert_close(losses.logistic_discriminator(real, fake), expected)
    torch.testing.assert_close(losses.logistic_generator(fake), bce(fake, torch.ones(5)))
    assert losses.logistic_discriminator(torch.tensor([-1e4]), torch.tensor([1e4])).item() == pytest.approx(2e4)


def test_r1_of_a_quadratic_critic_is_the_mean_over_samples() -> None:
    scale = torch.tensor(3.0, requires_grad=True)
    images = torch.randn(2, 1, 2, 2, requires_grad=True)
    penalty = losses.r1_penalty(scale * images.square().sum((1, 2, 3)) / 2, images)
    expected = 9 * images.detach().square().sum((1, 2, 3)).mean() / 2  # gradient of sample b is s·x_b
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(penalty, scale)
    assert gradient.item() == pytest.approx(2 * expected.item() / 3, rel=1e-5)


def test_feature_matching_by_hand() -> None:
    """The mean over two scales of the sums over one and two maps; the logits at the end do not count."""
    real = [
        [torch.zeros(1, 2, 3, 3), torch.zeros(1)],
        [torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 1, 1), torch.zeros(1)],
    ]
    fake = [
        [torch.full((1, 2, 3, 3), 3.0), torch.full((1,), 100.0)],
        [torch.full((1, 4, 2, 2), -1.0), torch.full((1, 1, 1, 1), 5.0), torch.full((1,), 100.0)],
    ]
    assert losses.feature_matching(real, fake).item() == pytest.approx((3 + 1 + 5) / 2)
    assert losses.feature_matching(real, real).item() == 0.0
    for other in (fake[:1], [fake[0], fake[1][:2]]):
        with pytest.raises(ValueError, match="zip"):
            losses.feature_matching(real, other)


def test_matching_relative_to_the_size_of_maps() -> None:
    """A discriminator without norms that doubles its maps does not double the loss; the mean is over the maps."""
    real, fake = [torch.full((1, 2, 4, 4), -2.0), torch.full((1, 3, 2, 2), 50.0)], [torch.zeros(1, 2, 4, 4)]
    fake.append(torch.full((1, 3, 2, 2), 75.0))
    assert losses.relative_matching(real, fake).item() == pytest.approx((1 + 0.5) / 2)
    assert losses.relative_matching([2 * x for x in real], [2 * x for x in fake]).item() == pytest.approx(0.75)
    assert losses.relative_matching([torch.zeros(1, 1, 2, 2)], [torch.zeros(1, 1, 2, 2)]).item() == 0.0
    real[0].requires_grad_()
    fake[0].requires_grad_()
    losses.relative_matching(real, fake).backward()
    assert real[0].grad is None
    assert fake[0].grad is not None


def test_labelmix_of_a_consistent_discriminator_is_zero() -> None:
    real, fake = torch.randn(2, N + 1, 4, 4), torch.randn(2, N + 1, 4, 4)
    mask = losses.labelmix_mask(torch.randint(0, N, (2, 4, 4)), N, seeded_generator(0))
    assert losses.labelmix_consistency(mask * real + (1 - mask) * fake, real, fake, mask).item() == pytest.approx(
        0.0, abs=1e-12
    )
