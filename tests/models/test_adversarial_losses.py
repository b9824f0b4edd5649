"""Closed forms of the adversarial losses (rule: each loss has one)."""

from __future__ import annotations

import pytest
import torch

from models.gan import losses


def test_hinge_of_the_discriminator_by_hand() -> None:
    real, fake = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[-3.0, 0.5]])
    # max(0, 1 - D): 0, 1, 2; max(0, 1 + D): 0, 1.5
    assert losses.hinge_discriminator([real], [fake]).item() == pytest.approx(1.0 + 0.75)
    assert losses.hinge_discriminator([torch.full((2, 1, 3, 3), 1.5)], [torch.full((2, 1, 3, 3), -1.5)]).item() == 0.0


def test_hinge_of_the_generator_is_minus_the_mean() -> None:
    assert losses.hinge_generator([torch.tensor([1.0, -4.0])]).item() == pytest.approx(1.5)


def test_scales_count_alike_whatever_their_size() -> None:
    real, fake = [torch.zeros(1, 1, 9, 9), torch.ones(1, 1, 2, 2)], [torch.zeros(1, 1, 9, 9), -torch.ones(1, 1, 2, 2)]
    assert losses.hinge_discriminator(real, fake).item() == pytest.approx((2.0 + 0.0) / 2)
    assert losses.hinge_generator(fake).item() == pytest.approx((0.0 + 1.0) / 2)
    with pytest.raises(ValueError, match="zip"):
        losses.hinge_discriminator(real, fake[:1])


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
