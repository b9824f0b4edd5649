"""OASIS as a method: its players and their losses; with a wavelet critic, and unpaired."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from config import Config
from dataloaders.io.spec import DataSpec
from models.base import Batch, Player, adam
from models.gan import losses
from models.gan.adversarial import Gan
from models.gan.discriminator import OasisDiscriminator


class Oasis(Gan):
    """Adversarial label-to-image synthesis with a segmentation discriminator (Schönfeld et al., ICLR 2021).

    A wavelet critic of whole images can be added (SWAGAN; Gal et al., SIGGRAPH 2021). Unpaired (USIS; Eskandar et al.,
    2023) the U-Net only segments generated images, so that they keep to their label, and the critic alone sees real ones.
    """

    def __init__(self, config: Config, spec: DataSpec) -> None:
        o = config.oasis
        super().__init__(config, o, spec, o.z_dim)
        self.oasis = o
        size = o.crop or spec.size
        self.discriminator = OasisDiscriminator(spec.num_labels, spec.num_channels, size, o, config.tuned)
        self.critic = None
        if o.unpaired or o.critic == "wavelet":
            from models.gan.wavelet_discriminator import WaveletDiscriminator

            self.critic = WaveletDiscriminator(spec.num_channels, size, o.channels_W)

    @property
    def paired(self) -> bool:
        """Whether image and label of a batch belong together."""
        return not self.oasis.unpaired

    @property
    def r1_gamma(self) -> float:
        """Weight of R1; by default StyleGAN2-ADA's (Karras et al., NeurIPS 2020), which grows with the image."""
        height, width = self.oasis.crop or self.spec.size
        given = self.oasis.r1_gamma
        return 0.0002 * height * width / self.config.batch_size if given is None else given

    def players(self) -> dict[str, Player]:
        """Also the critic and, every r1_every steps, its penalty."""
        players = super().players()
        if self.critic is not None:
            every = self.oasis.r1_every if self.r1_gamma > 0 else 0
            optimizer = adam(self.critic, self.oasis.lr_w, self.config, lazy=every)
            players["critic"] = Player(self.critic, optimizer, self.critic_losses)
            if every:
                players["penalty"] = Player(self.critic, optimizer, self.penalty_losses, every)
        return players

    def generator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The generator wants every pixel of its image to be taken for a real pixel of its label (eq. 3)."""
        fake = self.generate(batch)
        logits, features = self.discriminator(fake)
        segmentation = losses.real_cross_entropy(logits, batch.label, self.weights(batch))
        result = {"segmentation": self.oasis.lambda_segment * segmentation}
        if self.critic is not None:
            scores, features = self.critic(fake)
            result["critic"] = self.oasis.lambda_critic * losses.logistic_generator(scores)
        if self.oasis.lambda_feature > 0:  # in the critic where there is one
            with torch.no_grad():
                _, wanted = (self.critic or self.discriminator)(batch.real)
            result["feature"] = self.oasis.lambda_feature * losses.relative_matching(wanted, features)
        return result | self.image_losses(fake, batch)

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Real pixels to their class, generated ones to "fake" (eq. 1), consistent under LabelMix (eq. 4)."""
        if not self.paired:
            return self.segmenter_losses(batch)
        real, fake = batch.real, self.fake_for_discriminators(batch)
        images, mask = [real, fake.float()], None
        if self.oasis.lambda_labelmix > 0:
            mask = losses.labelmix_mask(batch.label, self.spec.num_labels, batch.rng)
            images.append(mask * real + (1 - mask) * fake)
        # One pass for all: one power step of the spectral norm, and larger matrices.
        real_logits, fake_logits, *mixed = self.discriminator(torch.cat(images))[0].chunk(len(images))
        result = {
            "fake": losses.fake_cross_entropy(fake_logits),
            "real": losses.real_cross_entropy(real_logits, batch.label, self.weights(batch)),
        }
        if mask is not None:
            consistency = losses.labelmix_consistency(mixed[0], real_logits, fake_logits, mask)
            result["labelmix"] = self.oasis.lambda_labelmix * consistency
        batch.measures["discriminator/accuracy"] = losses.real_fake_accuracy(real_logits, fake_logits)
        return result

    def segmenter_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Unpaired: learn to segment generated images; no real image is shown, so no pairing is needed."""
        logits, _ = self.discriminator(self.fake_for_discriminators(batch))
        return {"segmentation": losses.real_cross_entropy(logits, batch.label, self.weights(batch))}

    def critic_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Logistic loss on whole images, without labels."""
        assert self.critic is not None
        (real, _), (fake, _) = self.critic(batch.real), self.critic(self.fake_for_discriminators(batch))
        with torch.no_grad():
            batch.measures["critic/accuracy"] = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return {"logistic": losses.logistic_discriminator(real, fake)}

    def penalty_losses(self, batch: Batch) -> dict[str, Tensor]:
        """R1 on real images, as many times stronger as it is rarer; in full precision."""
        assert self.critic is not None
        with torch.autocast(batch.label.device.type, enabled=False):
            images = batch.real.detach().requires_grad_()
            scores, _ = self.critic.forward(images)  # not __call__: torch.compile has no double backward
            penalty = losses.r1_penalty(scores, images)
        return {"r1": self.r1_gamma * self.oasis.r1_every * penalty}

    @torch.no_grad()
    def realness(self, batch: Batch) -> Tensor:
        """Mean log-probability of the pixels' labels, which "fake" competes with."""
        logits, _ = self.discriminator(batch.real)
        return -cross_entropy(logits, batch.label + 1, reduction="none").mean((1, 2))

    def weights(self, batch: Batch) -> Tensor | None:
        """Class weights of the batch, None where balancing is off."""
        o = self.oasis
        return self.class_weights(batch, o.max_class_weight) if o.balance_classes else None
