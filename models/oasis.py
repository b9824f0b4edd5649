"""OASIS as a method: its players and their losses, its moving average, its synthesis."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from config import Config
from models import losses
from models.base import Batch, Method, Player, SampleRandom, seeded_generator
from models.discriminator import OasisDiscriminator
from models.ema import ema_copy, ema_update, recalibrate_batchnorm
from models.generator import OasisGenerator
from spec import DataSpec


class Oasis(Method):
    """Adversarial label-to-image synthesis with a segmentation discriminator (Schönfeld et al., ICLR 2021)."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        o = config.oasis
        self.generator = OasisGenerator(
            spec.num_labels,
            spec.num_channels,
            spec.size,
            o.channels_G,
            o.z_dim,
            o.spade_hidden,
            o.spade_ks,
            o.param_free_norm,
            o.spectral_gain,
        )
        self.discriminator = OasisDiscriminator(
            spec.num_labels, spec.num_channels, spec.size, o.channels_D, o.spectral_gain
        )
        self.average = ema_copy(self.generator)

    def players(self) -> dict[str, Player]:
        """Generator first, then discriminator, as published; Adam (0, 0.999) with two learning rates."""
        c, betas = self.config, (self.config.beta1, self.config.beta2)
        adam_g = torch.optim.Adam(self.generator.parameters(), lr=c.lr_g, betas=betas)
        adam_d = torch.optim.Adam(self.discriminator.parameters(), lr=c.lr_d, betas=betas)
        return {
            "generator": Player(self.generator, adam_g, self.generator_losses),
            "discriminator": Player(self.discriminator, adam_d, self.discriminator_losses),
        }

    def generator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The generator wants every pixel of its image to be taken for a real pixel of its label (eq. 3)."""
        logits = self.discriminator(self.generate(batch))
        return {"segmentation": losses.real_cross_entropy(logits, batch.label, self.weights(batch))}

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Real pixels to their class, generated ones to "fake" (eq. 1), consistent under LabelMix (eq. 4)."""
        assert batch.image is not None
        with torch.no_grad():
            fake = self.generate(batch)
        real_logits, fake_logits = self.discriminator(batch.image), self.discriminator(fake)
        result = {
            "fake": losses.fake_cross_entropy(fake_logits),
            "real": losses.real_cross_entropy(real_logits, batch.label, self.weights(batch)),
        }
        if self.config.oasis.lambda_labelmix > 0:
            mask = losses.labelmix_mask(batch.label, self.spec.num_labels, batch.rng)
            mixed_logits = self.discriminator(mask * batch.image + (1 - mask) * fake)
            consistency = losses.labelmix_consistency(mixed_logits, real_logits, fake_logits, mask)
            result["labelmix"] = self.config.oasis.lambda_labelmix * consistency
        return result

    def generate(self, batch: Batch) -> Tensor:
        """Training images of the batch with fresh noise from its stream."""
        z_dim = self.config.oasis.z_dim
        noise = torch.randn(len(batch), z_dim, generator=batch.rng).to(batch.label.device) if z_dim else None
        return self.generator(batch.label, noise)

    @torch.no_grad()
    def current(self, batch: Batch) -> Tensor:
        """Images by the generator in training, with the batch's own statistics; its buffers stay as they are."""
        buffers = [buffer.clone() for buffer in self.generator.buffers()]
        images = self.generate(batch)
        for buffer, before in zip(self.generator.buffers(), buffers, strict=True):
            buffer.copy_(before)
        return images.float()

    def weights(self, batch: Batch) -> Tensor | None:
        """Class weights of the batch, None where balancing is off."""
        o = self.config.oasis
        return (
            losses.class_weights(batch.label, self.spec.num_labels, o.max_class_weight) if o.balance_classes else None
        )

    def after_step(self) -> None:
        """Move the average towards the generator."""
        ema_update(self.average, self.generator, self.config.oasis.ema_decay)

    def before_synthesis(self, batches: Iterable[Batch]) -> None:
        """Give the average batch statistics of its own, from the given training batches with seeded noise."""

        def forward(batch: Batch) -> None:
            self.average(batch.label, self.noise(batch, [_calibration_random(*key) for key in _keys(batch)]))

        recalibrate_batchnorm(self.average, (lambda batch=batch: forward(batch) for batch in batches))  # type: ignore[misc]

    def noise(self, batch: Batch, randoms: list[SampleRandom]) -> Tensor | None:
        """(B, Z) noise, one vector per sample from its case stream; None for a generator without noise."""
        z_dim = self.config.oasis.z_dim
        if z_dim == 0:
            return None
        return torch.stack([torch.randn(z_dim, generator=r.case) for r in randoms]).to(batch.label.device)

    @torch.no_grad()
    def synthesize(self, batch: Batch, randoms: list[SampleRandom]) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] by the moving average of the generator."""
        return self.average(batch.label, self.noise(batch, randoms)).float()

    def release(self) -> dict[str, Tensor]:
        """The moving average's tensors."""
        return self.average.state_dict()

    def load_release(self, tensors: dict[str, Tensor]) -> None:
        """Load the moving average."""
        self.average.load_state_dict(tensors)


def _keys(batch: Batch) -> list[tuple[str, int]]:
    return list(zip(batch.cases, batch.indices, strict=True))


def _calibration_random(case: str, index: int) -> SampleRandom:
    stream = seeded_generator("batch statistics", case, index)
    return SampleRandom(stream, stream)
