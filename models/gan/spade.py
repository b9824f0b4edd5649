"""SPADE as a method: the same generator family without noise, against a multi-scale patch discriminator."""

from __future__ import annotations

import torch
from torch import Tensor

from config import Config
from dataloaders.io.spec import DataSpec
from models.base import Batch, Player, adam
from models.gan import losses
from models.gan.adversarial import Gan
from models.gan.patch_discriminator import MultiscalePatchDiscriminator

SMALLEST_SCALE = 4  # pixels per side that the coarsest patch discriminator needs


class SpadeGan(Gan):
    """Semantic image synthesis with spatially-adaptive normalisation (Park et al., CVPR 2019): the baseline of the field.

    Generator without noise and with one more block than OASIS; hinge loss on patches at several scales, feature matching,
    VGG. Its optional image encoder (VAE) is left out. A second discriminator can judge rows of neighbouring slices.
    """

    discriminator: MultiscalePatchDiscriminator

    def __init__(self, config: Config, spec: DataSpec) -> None:
        o = config.spade
        size = o.crop or spec.size
        if min(size) >> (o.num_D - 1) < SMALLEST_SCALE:
            raise ValueError(
                f"--spade.num_D {o.num_D}: too many for images of {size[0]}x{size[1]}; the coarsest scale must "
                f"have at least {SMALLEST_SCALE} pixels"
            )
        super().__init__(config, o, spec, z_dim=0, middle_block=o.generator == "image")
        self.discriminator = MultiscalePatchDiscriminator(spec.num_labels, spec.num_channels, o)
        self.of_rows = None
        if o.slices_D > 1:
            self.of_rows = MultiscalePatchDiscriminator(spec.num_labels, spec.num_channels, o, slices=o.slices_D)

    def players(self) -> dict[str, Player]:
        """Also the discriminator of rows."""
        players, c = super().players(), self.config
        if self.of_rows is not None:
            players["row_discriminator"] = Player(self.of_rows, adam(self.of_rows, c.lr_d, c), self.row_losses)
        return players

    def generator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Hinge loss of all scales, feature matching, and the losses of the image itself."""
        fake = self.generate(batch)
        fake_features = self.discriminator(fake, batch.label)
        result = {"hinge": losses.hinge_generator([scale[-1] for scale in fake_features])}
        if self.of_rows is not None:
            result["row"] = losses.hinge_generator([scale[-1] for scale in self.of_rows(fake, batch.label)])
        if self.options.lambda_feature > 0:
            with torch.no_grad():  # in a pass of their own, which needs no gradients
                real_features = self.discriminator(batch.real, batch.label)
            matching = losses.feature_matching(real_features, fake_features)
            result["feature"] = self.options.lambda_feature * matching
        return result | self.image_losses(fake, batch)

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Hinge loss of all scales."""
        return self._hinge(batch, "discriminator", self.discriminator)

    def row_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Likewise of the discriminator of rows."""
        assert self.of_rows is not None
        return self._hinge(batch, "row_discriminator", self.of_rows)

    def _hinge(self, batch: Batch, player: str, net: MultiscalePatchDiscriminator) -> dict[str, Tensor]:
        real, fake = batch.real, self.fake_for_discriminators(batch)
        scales = net(torch.cat([real, fake.to(real.dtype)]), batch.label)
        real_logits, fake_logits = zip(*(scale[-1].chunk(2) for scale in scales), strict=True)
        with torch.no_grad():
            right = [(logits > 0).float().mean() for logits in real_logits]
            right += [(logits < 0).float().mean() for logits in fake_logits]
            batch.measures[f"{player}/accuracy"] = torch.stack(right).mean()
        return {"hinge": losses.hinge_discriminator(real_logits, fake_logits)}

    @torch.no_grad()
    def realness(self, batch: Batch) -> Tensor:
        """Mean logit over patches, then scales."""
        return torch.stack([s[-1].mean((1, 2, 3)) for s in self.discriminator(batch.real, batch.label)]).mean(0)
