"""The mask loss is differentiable, and training with it moves outlines."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from models.gan import mask_loss
from models.gan.generator import SpadeGenerator
from models.gan.norms import NormOptions
from models.gan.options import GanConfig
from models.masks import filled

AIR, TISSUE, LUNG = -1.0, 0.2, -0.95
SMALL = GanConfig(spade_hidden=8, param_free_norm="instance", channels_G=8, spectral_gain=1.0)


def ellipse(rows: float, columns: float, shift: int = 0, size: int = 32) -> torch.Tensor:
    """(size, size) bool."""
    y, x = torch.meshgrid(torch.arange(size) - size / 2, torch.arange(size) - size / 2 - shift, indexing="ij")
    return (y / rows) ** 2 + (x / columns) ** 2 < 1


def scan(outline: torch.Tensor, hole: torch.Tensor | None = None) -> torch.Tensor:
    image = torch.where(outline, TISSUE, AIR)
    return image if hole is None else torch.where(hole, LUNG, image)


LABEL = torch.stack([ellipse(12, 10), ellipse(8, 13)]).long()
IMAGE = torch.stack([scan(ellipse(12, 10), ellipse(3, 3)), scan(ellipse(8, 13))])[:, None]
THRESHOLD = -0.6


def test_holes_are_filled_as_scipy_does() -> None:
    outline, hole = ellipse(12, 10), ellipse(3, 4)
    mask = torch.stack([outline & ~hole, torch.zeros(32, 32, dtype=torch.bool)])
    expected = ndimage.binary_fill_holes(mask[0].numpy())
    assert torch.equal(filled(mask)[0], torch.from_numpy(expected))
    assert not filled(mask)[1].any()  # one image does not touch its neighbour


@pytest.mark.parametrize("form", ["dice", "bce"])
def test_gradient_reaches_wrong_pixels_and_points_the_right_way(form: str) -> None:
    """The predecessor's mask loss had none at all: 8-bit casts and numpy morphology."""
    image = (IMAGE.roll(3, -1) * 0.5 - 0.3).requires_grad_()  # less extreme, so that sigmoids are not flat
    threshold = -0.6
    mask_loss.mask_loss(image, LABEL, threshold, form).backward()
    gradient = image.grad[:, 0]
    outside = (image.detach()[:, 0] > threshold) & (LABEL == 0)
    missing = (image.detach()[:, 0] < threshold) & (LABEL > 0)
    assert gradient[outside].min() > 0  # must become darker
    rim = missing & ~mask_loss.body_logits(image.detach(), threshold)[1]
    assert gradient[rim].max() < 0  # must become brighter
    holes = mask_loss.body_logits(image.detach(), threshold)[1]
    assert holes.any()
    assert gradient[holes].abs().max() == 0


def test_closed_forms() -> None:
    label = torch.zeros(1, 4, 4, dtype=torch.long)
    label[:, :2] = 1
    image = torch.full((1, 1, 4, 4), THRESHOLD)  # every pixel half body
    assert mask_loss.mask_loss(image, label, THRESHOLD, "dice").item() == pytest.approx(1 - 2 * 4 / (8 + 8))
    expected = torch.log(torch.tensor(2.0)).item() * 0.1
    assert mask_loss.softness(THRESHOLD) == pytest.approx(0.1)
    assert mask_loss.mask_loss(image, label, THRESHOLD, "bce").item() == pytest.approx(expected, rel=1e-5)
    assert mask_loss.mask_loss(image, torch.zeros_like(label), THRESHOLD, "dice").item() == 0


def test_thresholds_separate_body_from_air() -> None:
    images = IMAGE + 0.01 * torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert AIR + 0.05 < mask_loss.paired_threshold(images, LABEL) < TISSUE
    alone = mask_loss.unpaired_threshold(images)
    assert AIR + 0.05 < alone < TISSUE
    assert mask_loss.agreement(images, LABEL, alone) > 0.995
    # Right beside the peak of the air the sigmoid would be a step: no slope where the body is too large.
    large = (images.roll(3, -1) * 0.5 - 0.3).requires_grad_()
    mask_loss.mask_loss(large, LABEL, alone).backward()
    wrong = (large.detach()[:, 0] > alone) & (LABEL == 0)
    assert large.grad[:, 0][wrong].min() > 1e-6
    assert mask_loss.agreement(images, LABEL, mask_loss.paired_threshold(images, LABEL)) > 0.995
    assert mask_loss.agreement(images.roll(3, -1), LABEL, THRESHOLD) < 0.9


@pytest.mark.slow
def test_training_with_it_lowers_the_outline_error_of_misaligned_data() -> None:
    """Real images lie two pixels beside their labels; L1 alone learns that outline, with the mask loss the label's wins."""
    errors = {}
    target = torch.stack([scan(ellipse(12, 10, shift=2)), scan(ellipse(8, 13, shift=2))])[:, None]
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        net = SpadeGenerator(NormOptions(SMALL, 2, 0), 1, (32, 32))
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(60):
            image = net(LABEL)
            outline = mask_loss.mask_loss(image, LABEL, THRESHOLD, GanConfig().mask_loss)
            loss = (image - target).abs().mean() + weight * outline
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors[weight] = 1 - mask_loss.agreement(net(LABEL).detach(), LABEL, THRESHOLD)
    assert errors[0.0] > 0.05
    assert errors[3.0] < 0.5 * errors[0.0]


def test_default_form_has_a_slope_everywhere_at_the_first_output_of_a_generator() -> None:
    """An untrained generator paints mid-grey everywhere; soft Dice has a slope of 1e-7 there, and the air stays grey."""
    torch.manual_seed(0)
    net = SpadeGenerator(NormOptions(SMALL, 2, 0), 1, (32, 32))
    image = net(LABEL).detach().requires_grad_()
    assert image.abs().max() < 0.2
    mask_loss.mask_loss(image, LABEL, THRESHOLD, GanConfig().mask_loss).backward()
    air = image.grad[:, 0][LABEL == 0]
    assert air.min() > 0.5 / image.numel()  # at least half of the slope of a pixel's share in the mean
